"""A command that is killed while it writes leaves nothing that is refused for ever.

A file is written in three steps: its line is taken from the digests, it is replaced, and its line
is added again. After a stop between any two of them the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from neuronllm_eval.runs import directory
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages.verify import check_files
from tests.fixtures.cli import call, without_the_harness_tasks
from tests.fixtures.processes import TASK, assert_same_bytes, run_eval

STEPS = ("unlist_digests", "write_whole", "list_digests")


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


def killed_at(step: Callable[..., Any], name: str, number: int = 1) -> Callable[..., Any]:
    """A step that does not happen for a file of this name, the `number`th time."""
    times = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal times
        if name in str(arguments):
            times += 1
            if times == number:
                raise KilledError
        return step(*arguments)

    return stopped


@pytest.mark.parametrize(
    ("step", "name", "number"),
    [
        ("unlist_digests", "commands.jsonl", 2),
        ("write_whole", "commands.jsonl", 2),
        ("list_digests", "commands.jsonl", 2),
        ("list_digests", "neurons.json", 1),
        ("list_digests", "run.yaml", 2),
        ("list_digests", "validation.json", 1),
        ("list_digests", "results/unmasked.json", 1),
        ("write_whole", "summary.json", 1),
        ("list_digests", "report.md", 1),
        ("write_whole", "README.md", 9),  # five adapters have one each; report rewrites them last
        ("list_digests", "README.md", 9),
    ],
)
def test_the_same_command_goes_on(tmp_path, monkeypatch, step, name, number):
    with monkeypatch.context() as patch:
        patch.setattr(directory, step, killed_at(getattr(directory, step), name, number))
        with pytest.raises(KilledError):
            run_eval(tmp_path)
    run = RunDirectory(tmp_path / TASK)
    code, _, err = run_eval(tmp_path)
    assert code == 0, err
    assert check_files(run).passed
    assert_same_bytes(run.path)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["summary.json", "report.html", "report.md", "README.md"])
def test_report_can_be_repeated(tmp_path, monkeypatch, step, name):
    assert run_eval(tmp_path)[0] == 0
    run = RunDirectory(tmp_path / TASK)
    with monkeypatch.context() as patch:
        patch.setattr(directory, step, killed_at(getattr(directory, step), name))
        with pytest.raises(KilledError):
            call("report", run.path)
    assert call("report", run.path)[0] == 0
    assert check_files(run).passed
    assert_same_bytes(run.path)
