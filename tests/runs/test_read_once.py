"""A command opens no file of a run twice, and reads none back that it has just written."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from pathlib import Path

import pytest

from neuronllm_eval.formats.digests import SUMS_FILE
from neuronllm_eval.runs import artifacts
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import call, copy_of, finished_run

# Appended to, a line for each start of a stage.
GROWING = "commands.jsonl"


@pytest.fixture
def opened(monkeypatch) -> Counter[tuple[str, str]]:
    """How often each file was opened: (`read` or `write`, its name)."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(path: object, mode: str) -> None:
        if isinstance(path, (str, Path)):
            counts["read" if mode[0] == "r" else "write", Path(path).name] += 1

    real_open, real_safe_open = io.open, artifacts.NeuronScores.load

    def counting(file, mode="r", *args, **kwargs):
        count(file, mode)
        return real_open(file, mode, *args, **kwargs)

    def scores(directory, shape):
        count(Path(directory) / "scores.safetensors", "r")
        return real_safe_open(directory, shape)

    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(artifacts.NeuronScores, "load", scores)
    return counts


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "run")


def reads(opened: Counter[tuple[str, str]], run: RunDirectory) -> dict[str, int]:
    """How often each file of the run was read."""
    names = {path.name for path in run.path.rglob("*") if path.is_file()}
    return {
        name: count
        for (action, name), count in sorted(opened.items())
        if action == "read"
        and name in names
        and name not in ("neuronllm.json", "README.md", SUMS_FILE)
    }


def test_report_reads_each_file_once(run, opened):
    assert call("report", run.path)[0] == 0
    counts = reads(opened, run)
    assert {"run.yaml", "neurons.json", "conditions.jsonl", "unmasked.json"} <= set(counts)
    assert set(counts.values()) == {1}
    assert "summary.json" not in counts  # it has just been written


def test_validate_reads_nothing_that_it_has_written(run, opened):
    done = call("validate", run.path, "--n_random", 1, "--conditions", "enhance", "degrade")
    assert done[0] == 0, done[2]
    counts = reads(opened, run)
    counts.pop(GROWING)
    written = {
        "conditions.jsonl", "validation.json", "validation_docs.jsonl", "summary.json",
        "enhance.json", "unmasked.json",
    }  # fmt: skip
    assert not written & set(counts)
    assert set(counts.values()) == {1}
