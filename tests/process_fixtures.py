"""What the tests of interruptions and of several processes share: a small run, and its bytes."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.kill_resume import content
from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.runtime.checkpoint import Part
from tests.cli_fixtures import call
from tests.harness_fixtures import scratch

TASK = "demo_topic"
LIMIT = 5  # questions, each of three prompts
N_UNITS = 5


def arguments(output: Path, *more: object) -> list[object]:
    """Of `run_eval.py`: five units of one question each to identify, and five to validate."""
    return [
        "--tasks", TASK, "--limit", LIMIT, "--batch_size", 3, "--n_random", 1, "--conditions",
        "suppress_good", "--device", "cpu", "--model_args", f"pretrained={MODEL_DIR}",
        "--checkpoint_every", 0, "--output_path", output, *more,
    ]  # fmt: skip


def run_eval(output: Path, *more: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the run in this process."""
    return call(*arguments(output, *more), entry=cli.run_eval_main)


@functools.cache
def uninterrupted() -> dict[str, bytes]:
    """The artifacts of the run when one process makes it without a break."""
    output = scratch() / "uninterrupted"
    code, _, err = run_eval(output)
    assert code == 0, err
    return content(output / TASK)


def assert_same_bytes(run: Path) -> None:
    """The run has the artifacts that it would have had without a break, and nothing besides."""
    found = content(run)
    for name, expected in uninterrupted().items():
        assert found[name] == expected, name
    assert not (run / "checkpoint").exists()
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def after_units(number: int, action: Callable[[], object]) -> Callable[..., None]:
    """An `add` for `Part` that acts once so many units are finished in this process."""
    real, finished = Part.add, 0

    def add(self: Part, *arguments: object) -> None:
        nonlocal finished
        real(self, *arguments)  # type: ignore[arg-type]
        finished += 1
        if finished == number:
            action()

    return add


# Called in processes that are about to work; each takes its rank --------------------------------


def killed_after_two(_rank: int) -> None:
    """The process kills itself in its second unit, when the first is saved."""
    Part.add = after_units(2, lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore


def second_killed_after_one(rank: int) -> None:
    """Only the second rank kills itself."""
    if rank == 1:
        Part.add = after_units(1, lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore


def second_scores_row_by_row(rank: int) -> None:
    """The second rank finds that its model cannot score forks."""
    from neuronllm_eval.masked_lm import scoring as masked_scoring

    if rank == 1:
        masked_scoring.exact_style = lambda *_: None  # type: ignore[assignment]


def second_fails(rank: int) -> None:
    """The second rank meets a question that it cannot attribute."""
    from neuronllm_eval.attribution import identify as identification
    from neuronllm_eval.errors import DocError

    def add(*_: object) -> None:
        raise DocError("doc 7 is rotten", expected="a fresh one", remedy="throw it away")

    if rank == 1:
        identification.add_question = add
