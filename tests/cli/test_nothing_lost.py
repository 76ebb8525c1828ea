"""A command that fails changes nothing, and its `--dry_run` fails with the same words.

Commands read and check all that they need before they write or delete anything. Faults are
damaged files, settings that cannot be, and models, tasks and data that are gone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    change_settings,
    finished_run,
    identify,
    list_all,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents, gone
from tests.fixtures.harness import TaskFolder, model_dir, scratch, some_docs

Command = Callable[[RunDirectory], tuple[object, ...]]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A finished run with its digests, in a folder with other finished work."""
    shutil.copytree(finished_run().path, tmp_path / "runs" / "demo_topic")
    for name in ("adapter", "table.md"):
        source = exported() / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, tmp_path / "runs" / name)
    return RunDirectory(tmp_path / "runs" / "demo_topic")


@cache
def exported() -> Path:
    """What earlier commands made of the finished run."""
    path, made = finished_run().path, scratch() / "exported"
    arguments = ("--condition", "enhance", "-o", made / "adapter")
    assert call("export", path, *arguments)[0] == 0
    assert call("compare", path, "-o", made / "table.md")[0] == 0
    return made


def assert_nothing_changes(run: RunDirectory, *words: object, entry=cli.main) -> str:
    """The command fails with one message, and leaves every file as it was; returns the message."""
    before = contents(run.path.parent)
    result = call(*words, entry=entry)
    assert_one_message(result, None)
    assert contents(run.path.parent) == before
    return re.sub(r"\.[\w.]+\.\d+", "", result[2][result[2].index("error: ") :])


# Commands that read a run -----------------------------------------------------------------------

READERS: dict[str, Command] = {
    "validate": lambda run: ("validate", run.path, *QUICK, "--overwrite"),
    "explain": lambda run: ("explain", run.path, "--limit", 2, "--top_n", 1),
    "report": lambda run: ("report", run.path),
    "export": lambda run: (
        "export", run.path, "--condition", "enhance", "--overwrite",
        "-o", run.path.parent / "adapter",
    ),
    "compare": lambda run: ("compare", run.path, "-o", run.path.parent / "table.md"),
}  # fmt: skip
IDENTIFIED = ("run.yaml", "neurons.json", "scores.safetensors", "tokens.json", "commands.jsonl")
VALIDATED = ("conditions.jsonl", "validation.json", "results/enhance.json", "validation_docs.jsonl")
READ = {
    "validate": IDENTIFIED,
    "explain": (*IDENTIFIED, "questions.jsonl", *VALIDATED),
    "report": (*IDENTIFIED, *VALIDATED),
    "export": ("run.yaml", "neurons.json", "scores.safetensors", "summary.json", "validation.json"),
    "compare": ("run.yaml", "neurons.json", "summary.json", "validation.json", "conditions.jsonl"),
}


@pytest.mark.parametrize("listed", [False, True], ids=["digests tell", "digests do not tell"])
@pytest.mark.parametrize("command", READERS)
def test_damaged_files(run, command, listed):
    for name in READ[command]:
        original = (run.path / name).read_bytes()
        if listed:
            (run.path / name).write_bytes(b"\xff{")
            list_all(run)
        else:
            (run.path / name).write_bytes(original[: len(original) // 2])
        assert_nothing_changes(run, *READERS[command](run))
        (run.path / name).write_bytes(original)
    list_all(run)
    assert call(*READERS[command](run))[0] == 0


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("validate", ("--conditions", "harm")),
        ("validate", ("--conditions", "suppress_good.k7.x0")),
        ("validate", ("--top_k", 7)),
        ("validate", ("--limit", 0)),
        ("validate", ("--device", "cuda:77")),
        ("explain", ("--limit", 0)),
        ("explain", ("--device", "cuda:77")),
        ("export", ("--condition", "harm")),
        ("export", ("--condition", "unmasked")),
        ("export", ("--top_k", 7)),
        ("export", ("--suppress_scale", "1e300")),
        ("compare", ("--conditions", "degrade")),
        ("compare", ("--baseline", "nothing")),
    ],
)
def test_settings_of_readers_that_cannot_be(run, command, more):
    words = (*READERS[command](run), *more)
    message = assert_nothing_changes(run, *words)
    if command == "validate":
        assert assert_nothing_changes(run, *words, "--dry_run") == message


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: change_settings(run, model_args={"pretrained": "no/such/model"}),
        lambda run: change_settings(run, model_args={"pretrained": str(model_dir(seed=1))}),
        lambda run: change_settings(run, include_path=["/no/such/folder"]),
        gone("run.yaml"),
        gone("scores.safetensors"),
    ],
    ids=["no model", "other weights", "no folder", "no settings", "no scores"],
)
@pytest.mark.parametrize("command", ["validate", "explain"])
def test_runs_whose_origin_is_gone(run, damage, command):
    damage(run)
    list_all(run)
    words = READERS[command](run)
    message = assert_nothing_changes(run, *words)
    if command == "validate":
        assert assert_nothing_changes(run, *words, "--dry_run") == message


# Commands that make runs ------------------------------------------------------------------------


def compare_methods(output: Path, *more: object) -> tuple[object, ...]:
    words = identify(output, *more)[1:]
    return ("compare-methods", *words, "--method", "neuronllm,gradxact", *QUICK)


MAKERS: dict[str, Callable[..., tuple[object, ...]]] = {
    "identify": identify,
    "run_eval": lambda output, *more: (*identify(output)[1:], *QUICK, *more),
    "compare-methods": compare_methods,
}


@pytest.mark.parametrize(
    "more",
    [
        ("--tasks", "no_such_task"),
        ("--tasks", "demo_topic,no_such_task"),
        ("--include_path", "/no/such/folder"),
        ("--top_k", "97"),
        ("--top_z", "49"),
        ("--limit", "0"),
        ("--n_steps", "0"),
        ("--selection_split", "validation"),
        ("--num_fewshot", "100"),
        ("--model_args", "pretrained=no/such/model"),
        ("--apply_chat_template",),
        ("--device", "cuda:77"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["identify", "run_eval"])
def test_settings_of_new_runs_that_cannot_be(run, command, more):
    entry = cli.run_eval_main if command == "run_eval" else cli.main
    words = (*MAKERS[command](run.path.parent, *map(str, more)), "--overwrite")
    message = assert_nothing_changes(run, *words, entry=entry)
    assert assert_nothing_changes(run, *words, "--dry_run", entry=entry) == message


@pytest.mark.parametrize(
    "more",
    [
        ("--conditions", "harm"),
        ("--conditions", "suppress_good.k7.x0", "--top_k", "6"),
        ("--scale", "1"),
        ("--n_random", "-1"),
    ],
    ids=" ".join,
)
def test_conditions_of_new_runs_that_cannot_be(run, more):
    words = (*MAKERS["run_eval"](run.path.parent, *more), "--overwrite")
    message = assert_nothing_changes(run, *words, entry=cli.run_eval_main)
    again = assert_nothing_changes(run, *words, "--dry_run", entry=cli.run_eval_main)
    assert again == message


@pytest.mark.parametrize(
    "more",
    [("--tasks", "no_such_task"), ("--top_k", "97"), ("--seeds", "1", "1"), ("--against", "ace")],
    ids=" ".join,
)
def test_compare_methods(run, more):
    words = (*compare_methods(run.path.parent, *more), "--overwrite")
    message = assert_nothing_changes(run, *words)
    assert assert_nothing_changes(run, *words, "--dry_run") == message


@pytest.mark.parametrize("flags", [(), ("--resume",)], ids=["plain", "resume"])
@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("identify", ("--top_k", "5")),
        ("identify", ("--limit", "3")),
        ("run_eval", ("--top_k", "6", "--n_random", "3")),
        ("run_eval", ("--top_k", "6", "--conditions", "degrade")),
    ],
)
def test_finished_runs_of_other_settings(run, command, more, flags):
    entry = cli.run_eval_main if command == "run_eval" else cli.main
    words = (*MAKERS[command](run.path.parent, *more), *flags)
    message = assert_nothing_changes(run, *words, entry=entry)
    assert assert_nothing_changes(run, *words, "--dry_run", entry=entry) == message


# Data that are gone -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, "", '{"train": [], "test": []}'])
def test_a_task_whose_data_are_gone(tmp_path, data):
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("own", {"train": some_docs(0, 6), "test": some_docs(50, 6)})
    include = ("--include_path", folder.path)
    words = identify(tmp_path / "runs", *include, "--top_k", 6, task="own")
    assert call(*words)[0] == 0
    run = RunDirectory(tmp_path / "runs" / "own")
    file = folder.path / "own.json"
    file.unlink() if data is None else file.write_text(data)
    for command in (words, ("validate", run.path)):
        message = assert_nothing_changes(run, *command, "--overwrite")
        assert assert_nothing_changes(run, *command, "--overwrite", "--dry_run") == message
    assert_nothing_changes(run, "explain", run.path)
