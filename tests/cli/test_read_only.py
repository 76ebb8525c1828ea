"""Run directories that cannot be written: one message, exit code not 0, and nothing earlier lost.

Tests may run as root, whom no permission stops. So the interpreter's audit events do: whatever
opens for writing, renames, removes or makes something below a folder gets the system's error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.checkpoint import Part
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    copy_of,
    finished_run,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents

# Events and the places of the paths among their arguments; `open` is looked at more closely.
_CHANGES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,),
            "os.truncate": (0,), "os.link": (1,), "os.symlink": (1,)}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_protected: dict[str, int] = {}  # folder -> number of the error


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if not _protected:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = set(str(mode)) & set("wax+") if mode else int(flags) & _WRITES  # type: ignore[call-overload]
        places = (path,) if writes else ()
    else:
        places = tuple(arguments[place] for place in _CHANGES.get(event, ()))
    for place in places:
        if isinstance(place, (str, bytes, os.PathLike)):
            name = os.path.abspath(os.fsdecode(place))
            for folder, number in _protected.items():
                if name == folder or name.startswith(folder + os.sep):
                    raise OSError(number, os.strerror(number), name)


sys.addaudithook(_refuse)  # for good, and idle unless something is protected


@contextlib.contextmanager
def read_only(folder: Path, number: int = errno.EROFS) -> Iterator[None]:
    """Within the context, nothing below a folder can be changed."""
    _protected[os.path.abspath(folder)] = number
    try:
        yield
    finally:
        _protected.clear()


@pytest.fixture(autouse=True)
def only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(params=["told", "found out"])
def told(request, monkeypatch) -> None:
    """A file system may say that it cannot be written, or let one find out."""
    if request.param == "told":
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: not _protected and real(path, mode))


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "runs" / "demo_topic")


def test_the_protection_is_seen(tmp_path):
    with read_only(tmp_path), pytest.raises(OSError, match="Read-only"):
        (tmp_path / "file").write_text("")
    (tmp_path / "file").write_text("")
    for change in (
        lambda: (tmp_path / "file").unlink(),
        lambda: (tmp_path / "file").replace(tmp_path.parent / "elsewhere"),
        lambda: (tmp_path / "folder").mkdir(),
        lambda: os.open(tmp_path / "file", os.O_RDWR),
    ):
        with read_only(tmp_path), pytest.raises(OSError, match="Read-only"):
            change()
    with read_only(tmp_path):
        assert (tmp_path / "file").read_text() == ""


@pytest.mark.usefixtures("told")
def test_a_new_run_has_no_place(tmp_path):
    with read_only(tmp_path, errno.EACCES):
        result = call(*identify(tmp_path / "runs"))
    assert_one_message(result, None, "cannot be written", "--output_path")
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    "command",
    [
        lambda run: identify(run.path.parent, "--top_k", 6, "--overwrite"),
        lambda run: ("validate", run.path, *QUICK),
        lambda run: ("validate", run.path, *QUICK, "--overwrite"),
        lambda run: ("report", run.path),
        lambda run: ("explain", run.path, "--limit", 2, "--top_n", 1),
    ],
    ids=["identify", "validate", "validate anew", "report", "explain"],
)
def test_a_finished_run_that_cannot_be_written_is_kept(copied, command):
    before = contents(copied.path)
    with read_only(copied.path.parent):
        result = call(*command(copied))
    assert_one_message(result, None, "cannot be written")
    assert contents(copied.path) == before


def test_a_disk_that_turns_read_only_keeps_the_last_checkpoint(tmp_path, monkeypatch, caplog):
    """As Linux remounts one that fails."""
    output, real, saved = tmp_path / "runs", Part.save, []

    def save(self: Part, *arguments: object) -> None:
        if len(saved) == 2:
            _protected[os.path.abspath(output)] = errno.EROFS
        saved.append(True)
        real(self, *arguments)  # type: ignore[arg-type]

    command = (*identify(output, "--top_k", 6, "--checkpoint_every", 0)[1:], *QUICK)
    with read_only(tmp_path / "nothing"), monkeypatch.context() as patch:
        patch.setattr(Part, "save", save)
        result = call(*command, entry=cli.run_eval_main)
    assert_one_message(result, 1, "cannot be written: Read-only file system", "it resumes")
    code, _, err = call(*command, entry=cli.run_eval_main)
    assert code == 0, err
    assert "resuming; 2 of 4 units are finished" in caplog.text
    done = RunDirectory(output / "demo_topic")
    for path in ("scores.safetensors", "neurons.json", "conditions.jsonl"):
        assert (done.path / path).read_bytes() == (finished_run().path / path).read_bytes()
