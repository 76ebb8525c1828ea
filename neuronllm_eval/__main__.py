"""`python -m neuronllm_eval`, and the command `neuronllm-eval`."""

from __future__ import annotations

from neuronllm_eval.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
