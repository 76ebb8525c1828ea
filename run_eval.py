"""Identify, validate and report in one go; without arguments, on the embedded demo model.

A script, so that `accelerate launch run_eval.py ...` works; all is in `neuronllm_eval.cli.main`.
"""

from neuronllm_eval.cli.main import run_eval_main

if __name__ == "__main__":
    raise SystemExit(run_eval_main())
