"""What the tests of the command line share: calling it, one finished run, the form of a refusal."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.config.evaluate_config
import pytest
import yaml
from lm_eval.tasks import TaskManager

from neuronllm_eval.cli import commands
from neuronllm_eval.cli import main as cli
from neuronllm_eval.harness import tasks as harness_tasks
from neuronllm_eval.runs.directory import RunDirectory
from tests.harness_fixtures import model_dir, scratch

QUICK = ("--n_random", 2, "--conditions", "suppress_good,enhance")
SCORED = (
    "unmasked",
    "suppress_good",
    "enhance",
    "suppress_good.random_0",
    "suppress_good.random_1",
    "enhance.random_0",
    "enhance.random_1",
)


def call(*arguments: object, entry: Any = cli.main) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = entry([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def settings_of(*words: object) -> list[Any]:
    """The settings that a command line of `neuronllm-eval` stands for."""
    return commands.parsed(commands.main_parser(), [str(word) for word in words])[1]


def identify(
    output: Path, *more: object, task: object = "demo_topic", path: Path | None = None
) -> tuple[object, ...]:
    """The arguments of a quick `identify`."""
    return (
        "identify", "--model_args", f"pretrained={path or model_dir()}", "--tasks", task,
        "--limit", 4, "--device", "cpu", "--output_path", output, *more,
    )  # fmt: skip


@functools.cache
def finished() -> tuple[Path, dict[str, str]]:
    """A run made by identify and validate, not to be changed, and what each command said."""
    output = scratch() / "finished_run"
    said = {}
    for name, arguments in (
        ("identify", identify(output, "--top_k", 6)),
        ("validate", ("validate", output, *QUICK)),
        ("report", ("report", output / "demo_topic")),
    ):
        code, said[name], err = call(*arguments)
        assert code == 0, err
    return output, said


def finished_run() -> RunDirectory:
    """The only run of `finished`."""
    return RunDirectory(finished()[0] / "demo_topic")


def copy_of(run: RunDirectory, path: Path) -> RunDirectory:
    """A run that a test may spoil."""
    shutil.copytree(run.path, path)
    return RunDirectory(path)


def without_the_harness_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the harness its thousands of YAML files."""
    quick = functools.partial(TaskManager, include_defaults=False)
    quick.all_tasks = TaskManager.all_tasks
    monkeypatch.setattr(harness_tasks, "TaskManager", quick)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", quick)
    monkeypatch.setattr(lm_eval.config.evaluate_config, "TaskManager", quick, raising=False)


def change_settings(run: RunDirectory, **changes: Any) -> None:
    """Write other settings into a run's run.yaml."""
    values = yaml.safe_load(run.settings.read_text())
    values["settings"].update(changes)
    run.settings.write_text(yaml.safe_dump(values))


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_one_message(result: tuple[int, str, str], code: int | None, *parts: str) -> None:
    """One message without a traceback: what was found, what was expected, and the remedy.

    The exit code None stands for either of 1 and 2.
    """
    got, out, err = result
    assert "Traceback" not in err
    assert got in ((code,) if code else (1, 2)), (out, err)
    lines = err.strip().splitlines()
    starts = [line for line in lines if line.startswith("error: ")]
    assert len(starts) == 1, err
    assert any(line.startswith("Expected: ") for line in lines), err
    assert any(line.startswith("Remedy: ") for line in lines), err
    for part in parts:
        assert part in err, err
