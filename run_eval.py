"""Identify, validate and report in one go; without arguments, on the embedded demo model.

A script, so that `accelerate launch run_eval.py ...` works; everything is in `neuronllm_eval.cli`.
"""

from neuronllm_eval.cli import run_eval_main

if __name__ == "__main__":
    raise SystemExit(run_eval_main())
