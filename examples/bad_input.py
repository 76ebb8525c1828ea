"""docs/bad-input.md: what is said to a mistake, and that nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from neuronllm_eval import NeuronLLMError, identify, validate


def said(mistake: Callable[[], object]) -> NeuronLLMError:
    """What a call that cannot be right raises."""
    try:
        mistake()
    except NeuronLLMError as error:
        print(f"{error}\nexit code of the command: {error.exit_code}\n")
        return error
    raise AssertionError("nothing was said")


output = "runs/bad"
assert "demo_topc" in said(lambda: identify(tasks="demo_topc", output_path=output)).found
assert said(lambda: identify(tasks="demo_topic", top_z=-1, output_path=output)).remedy
assert said(lambda: identify(method=["ace", "psychic"], output_path=output)).exit_code == 2
assert said(lambda: validate("runs/nowhere")).exit_code == 1
assert not Path(output).exists()
