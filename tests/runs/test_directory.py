"""Files are whole or not there; a run is not overwritten by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.atomic import write_lines, write_whole
from neuronllm_eval.runs.directory import RunDirectory, find_runs


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_where_the_artifacts_lie(tmp_path):
    run = RunDirectory(tmp_path)
    places = (run.settings, run.neurons, run.scores, run.questions, run.conditions, run.summary)
    assert [str(path.relative_to(tmp_path)) for path in (*places, run.report, run.result("x"))] == [
        "run.yaml",
        "neurons.json",
        "scores.safetensors",
        "questions.jsonl",
        "conditions.jsonl",
        "summary.json",
        "report.md",
        "results/x.json",
    ]


# Whole files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["grün\n", b"\x00\xff"])
def test_write_whole(tmp_path, content):
    path = tmp_path / "a" / "b" / "file.bin"
    write_whole(path, "old")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert files_in(path.parent) == ["file.bin"]


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails):
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    real = Path.write_bytes

    def broken(self, *args):
        if fails == "write_bytes":
            real(self, args[0][:1])  # half of it is written when the disk is full
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, fails, broken)
        with pytest.raises(OSError, match="no space left"):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["file.txt"]


def test_lines_appear_when_all_are_written(tmp_path):
    path = tmp_path / "lines.jsonl"

    def lines():
        yield {"a": 1}
        assert not path.exists()
        yield {"a": [2.5, None], "b": "grün"}

    write_lines(path, lines())
    assert path.read_text(encoding="utf-8") == '{"a":1}\n{"a":[2.5,null],"b":"grün"}\n'
    assert files_in(tmp_path) == ["lines.jsonl"]


def test_a_failed_pass_leaves_the_old_lines_and_nothing_else(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_lines(path, [{"old": 1}])

    def lines():
        yield {"new": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(path, lines())
    assert path.read_text() == '{"old":1}\n'
    assert files_in(tmp_path) == ["lines.jsonl"]


# Values -----------------------------------------------------------------------------------------


def test_a_file_is_read_once_until_the_stage_starts_over(tmp_path):
    run, read = RunDirectory(tmp_path), []
    for _ in range(2):
        assert run.once(run.conditions, lambda: read.append(1) or "read") == "read"
    assert len(read) == 1
    run.write(run.conditions, "text", "written")
    assert run.once(run.conditions, lambda: "read") == "written"
    run.clear_validation()
    assert run.once(run.conditions, lambda: "read again") == "read again"
    assert run == RunDirectory(tmp_path)


# Runs -------------------------------------------------------------------------------------------


def a_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.start()
    places = (
        run.settings, run.neurons, run.scores, run.questions, run.tokens, run.conditions,
        run.validation, run.summary, run.report, run.page, run.validation_docs,
        run.result("unmasked"), run.result("suppress_good.random_0"),
    )  # fmt: skip
    for place in places:
        write_whole(place, "old")
    (path / "notes.txt").write_text("mine")
    return run


def test_overwriting_removes_the_old_artifacts_and_no_other_file(tmp_path):
    run = a_run(tmp_path / "run")
    run.start()
    assert files_in(run.path) == ["notes.txt", "results"]
    assert files_in(run.path / "results") == []


def test_a_folder_without_a_run_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).start()
    assert files_in(tmp_path) == ["notes.txt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match=r"(?s)cannot be written: .*another --output_path"):
        RunDirectory(tmp_path / "taken" / "run").start()


def test_clearing_a_validation_keeps_what_identification_wrote(tmp_path):
    run = a_run(tmp_path / "run")
    run.clear_validation()
    assert files_in(run.path) == [
        "neurons.json", "notes.txt", "questions.jsonl", "results", "run.yaml", "scores.safetensors",
        "tokens.json",
    ]  # fmt: skip
    assert files_in(run.path / "results") == []


def test_find_runs(tmp_path):
    for name in ("b", "a", "c"):
        a_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert find_runs(tmp_path / "b") == [RunDirectory(tmp_path / "b")]
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("deep", "deep/er"),  # the runs are one level deeper than looked for
        ("deep/er/run/results", "deep/er/run"),  # or higher
        ("deep/er/run/run.yaml", "deep/er/run"),
    ],
)
def test_runs_a_level_away_are_named(tmp_path, name, meant):
    a_run(tmp_path / "deep" / "er" / "run")
    a_run(tmp_path / "deep" / "er" / "another")
    with pytest.raises(ArtifactError, match=r"holds no run") as error:
        find_runs(tmp_path / name)
    assert error.value.remedy == f"pass one of: {tmp_path / meant}"


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_no_run_to_find(tmp_path, name):
    a_run(tmp_path / "ve" / "ry" / "deep" / "run")
    with pytest.raises(ArtifactError, match=r"(?s)holds no run\..*run\.yaml.*identify` first"):
        find_runs(tmp_path / name)


def test_the_temporary_name_is_this_process_own(tmp_path, monkeypatch):
    # Two processes that write the same file do not write into each other's.
    seen = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(self.name), real(self, to)))
    write_whole(tmp_path / "x", "1")
    assert len(seen) == 1
    assert str(os.getpid()) in seen[0]


def test_a_place_that_cannot_hold_a_run_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper" / "run"):
        with pytest.raises(UsageError, match=r"file is not a directory that can be written"):
            RunDirectory(path).require_writable()
    RunDirectory(tmp_path / "new" / "run").require_writable()
    assert not (tmp_path / "new").exists()
