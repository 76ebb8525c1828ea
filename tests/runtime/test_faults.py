"""Faults inside a command leave nothing behind: no hook, no half file, no process, no lock.

`--faults N` injects more than the sample of a usual test run (`fixtures.faults.choose`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.launched import Launched
from neuronllm_eval.cli import main as cli
from neuronllm_eval.formats.atomic import digest_of
from tests.fixtures import processes
from tests.fixtures.cli import without_the_harness_tasks
from tests.fixtures.faults import (
    KINDS,
    Command,
    Fault,
    Tracer,
    choose,
    fsync,
    points,
    replace,
    run_content,
    strike,
    without_times,
)
from tests.fixtures.harness import TaskFolder, model_dir, some_docs
from tests.fixtures.processes import assert_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="functions have no full names to trace"),
]
TASK = "small"
N_QUESTIONS = 5


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """The harness's tasks are not read."""
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = TaskFolder(tmp_path_factory.mktemp("tasks"))
    splits = {
        "train": some_docs(0, N_QUESTIONS),
        "test": some_docs(100, N_QUESTIONS),
        "demonstration": some_docs(200, 2),
    }
    folder.write(TASK, splits, aqua=True)
    return folder.path


def run_eval(tasks: Path, *more: object) -> Command:
    """Five units of one question to identify, and five to validate, each saved."""

    def arguments(output: Path) -> list[object]:
        return [
            "--tasks", TASK, "--include_path", tasks, "--batch_size", 3, "--n_random", 1,
            "--conditions", "suppress_good", "--device", "cpu", "--checkpoint_every", 0,
            "--model_args", f"pretrained={model_dir()}", "--output_path", output, *more,
        ]  # fmt: skip

    return Command(
        arguments,
        cli.run_eval_main,
        lambda output: run_content(output / TASK),
        lambda output: [output / TASK],
    )


def masked(tasks: Path, neurons: Path, positions: str) -> Command:
    """lm_eval's command line with the masked model."""

    def arguments(output: Path) -> list[object]:
        given = f"pretrained={model_dir()},neurons={neurons},condition=suppress_good"
        return [
            "run", "--model", "neuronllm", "--model_args", f"{given},positions={positions}",
            "--tasks", TASK, "--include_path", tasks, "--limit", 4, "--device", "cpu",
            "--batch_size", 4, "--output_path", output,
        ]  # fmt: skip

    def content(output: Path) -> dict[str, bytes]:
        last = sorted(output.rglob("*.json"))[-1:]
        return {
            path.stem.partition("_")[0]: without_times(json.loads(path.read_text()))
            for path in last
        }

    return Command(arguments, cli.main, content, again=(), kept=())


@functools.cache
def undisturbed(folder: Path, tasks: Path) -> tuple[Command, dict[str, bytes], Counter[str]]:
    """The command, its artifacts, and what it passes through."""
    command = run_eval(tasks)
    counts = points(command, folder / "runs")
    return command, command.content(folder / "runs"), counts


@pytest.fixture(scope="module")
def reference(tasks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    undisturbed(folder, tasks)
    return folder


def complaints(
    faults: list[Fault], command: Command, folder: Path, expected: dict[str, bytes]
) -> str:
    """What went wrong, fault by fault."""
    assert faults
    found = []
    for number, fault in enumerate(faults):
        if wrong := strike(fault, command, folder / str(number), expected):
            found.append(f"{fault}: {'; '.join(wrong)}")
    return "\n".join(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_leaves_nothing_behind(reference, tasks, tmp_path, kind, request):
    command, expected, counts = undisturbed(reference, tasks)
    chosen = choose(counts, request.config.getoption("--faults"))
    faults = [fault for fault in chosen if fault.kind == kind]
    assert len(chosen) >= 18
    assert not complaints(faults, command, tmp_path, expected)


def test_a_fault_while_the_weights_are_of_another_type(tasks, tmp_path):
    command = run_eval(tasks, "--attribution_dtype", "bfloat16", "--engine", "fan_out")
    counts = points(command, tmp_path / "undisturbed")
    expected = command.content(tmp_path / "undisturbed")
    places = ("hooks._cast", "grad", "Part.save", "write_neurons", "to_bytes")
    points_there = [point for point in sorted(counts) if point.endswith(places)]
    faults = [
        Fault(("internal", "ctrl-c")[number % 2], point, counts[point])
        for number, point in enumerate(points_there)
    ]
    assert len(faults) >= len(places)
    assert not complaints(faults, command, tmp_path, expected)


@pytest.mark.parametrize("positions", ["scored", "all"])
def test_a_fault_in_the_masked_model(reference, tasks, tmp_path, positions):
    command = masked(tasks, reference / "runs" / TASK, positions)
    counts = points(command, tmp_path / "undisturbed")
    expected = command.content(tmp_path / "undisturbed")
    kinds = ("internal", "full disk", "ctrl-c", "memory")
    modules = ("masked_lm.", "models.hooks.")
    own = [point for point in sorted(counts) if point.startswith(modules)]
    faults = [
        Fault(kinds[number % len(kinds)], point, counts[point]) for number, point in enumerate(own)
    ][::4]
    assert len(faults) >= 8
    assert not complaints(faults, command, tmp_path, expected)


def test_a_fault_is_seen(reference, tasks, tmp_path, monkeypatch):
    """What is left behind is found: a hook, a frozen weight, a temporary file."""

    def careless(path: Path, content: str | bytes) -> str:
        raw = content.encode() if isinstance(content, str) else content
        path.with_name(f".{path.name}.1").write_bytes(raw)
        path.write_bytes(raw)
        return digest_of(path)

    command, expected, _ = undisturbed(reference, tasks)
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.hooks.RemovableHandle.remove", lambda _: None)
        fault = Fault("internal", "engine.fan_out.FanOutEngine._score.<locals>.edit", 1)
        found = "\n".join(strike(fault, command, tmp_path / "hooks", expected))
    assert "the model's hooks are" in found
    with monkeypatch.context() as patch:
        patch.setattr("neuronllm_eval.runs.directory.write_whole", careless)
        fault = Fault("full disk", "neurons.selection.select_neurons", 1)
        found = "\n".join(strike(fault, command, tmp_path / "files", expected))
    assert ".scores.safetensors.1 is left" in found


# Killed, and several processes ------------------------------------------------------------------


def killed_at(point: str, number: int, _rank: int) -> None:
    """The process kills itself at a point."""
    fault = Fault("killed", point, number)
    os.fsync, os.replace = fsync, replace
    sys.settrace(Tracer(fault, lambda _: os.kill(os.getpid(), signal.SIGKILL)))


@pytest.mark.parametrize("number", [2, 3, 20])
def test_killed_before_a_file_gets_its_name(tmp_path, number):
    output = tmp_path / "runs"
    before = functools.partial(killed_at, "faults.replace", number)
    run = Launched(1, processes.arguments(output), tmp_path / "log", "run_eval_main", before)
    assert run.wait() == [-signal.SIGKILL], run.output()
    left = [path.name for path in output.rglob(".*") if path.name != ".lock"]
    assert len(left) == 1
    code, _, err = processes.run_eval(output)
    assert code == 0, err
    processes.assert_same_bytes(output / processes.TASK)


def fails(kind: str, failing: int, pids: Path, rank: int) -> None:
    """One rank meets a fault in its first unit; each says which process it is."""
    from neuronllm_eval.attribution import identify as identification

    (pids / str(rank)).write_text(str(os.getpid()))

    def add(*_: object) -> None:
        raise KINDS[kind].make()

    if rank == failing:
        identification.add_question = add


@pytest.mark.parametrize(("kind", "failing"), [("internal", 1), ("memory", 0)])
def test_a_fault_in_one_of_two_processes_leaves_neither(tmp_path, kind, failing):
    pids = tmp_path / "pids"
    pids.mkdir()
    output, start = tmp_path / "runs", time.monotonic()
    before = functools.partial(fails, kind, failing, pids)
    run = Launched(2, processes.arguments(output), tmp_path / "log", "run_eval_main", before)
    assert run.wait() == [1, 1], run.output()
    assert time.monotonic() - start < 60
    assert_gone(pids)
    code, _, err = processes.run_eval(output)
    assert code == 0, err
    processes.assert_same_bytes(output / processes.TASK)
