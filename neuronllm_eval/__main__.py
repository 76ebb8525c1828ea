"""`python -m neuronllm_eval`: the same as the command `neuronllm-eval`."""

from neuronllm_eval.cli import main

raise SystemExit(main())
