"""docs/bad-input.md: error messages, and that nothing is written after one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from neuronllm_eval import NeuronLLMError, identify, validate


def error_of(mistake: Callable[[], object]) -> NeuronLLMError:
    """The error that an invalid call raises."""
    try:
        mistake()
    except NeuronLLMError as error:
        print(f"{error}\nexit code of the command: {error.exit_code}\n")
        return error
    raise AssertionError("no error was raised")


output = "runs/bad"
assert "demo_topc" in error_of(lambda: identify(tasks="demo_topc", output_path=output)).found
assert error_of(lambda: identify(tasks="demo_topic", top_z=-1, limit=4, output_path=output)).remedy
assert error_of(lambda: identify(method=["ace", "psychic"], output_path=output)).exit_code == 2
assert error_of(lambda: validate("runs/nowhere")).exit_code == 1
assert not Path(output).exists()
