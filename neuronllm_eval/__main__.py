"""`python -m neuronllm_eval`, and the command `neuronllm-eval`."""

from __future__ import annotations

import os
import sys

from neuronllm_eval.errors import NeuronLLMError


def main() -> int:
    """The exit code of the command that the process was started with.

    `run` with arguments that cannot be right ends before all that the other modules import is
    loaded; of several processes, in the first.
    """
    given = sys.argv[1:]
    if given[:1] == ["run"] and os.environ.get("RANK", "0") == "0":
        from neuronllm_eval.cli.run_lm_eval import refuse_run

        try:
            refuse_run(given[1:])
        except NeuronLLMError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    from neuronllm_eval.cli import main as cli

    return cli.main(given)


if __name__ == "__main__":
    raise SystemExit(main())
