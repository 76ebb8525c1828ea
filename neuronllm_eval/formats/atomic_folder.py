"""A folder that is written aside and renamed, so that it is whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuronllm_eval.errors import UsageError


def require_free_folder(path: Path, marker: str, overwrite: bool) -> None:
    """Refuse a place that holds something, unless it may be replaced. Changes nothing.

    Args:
        path: of the folder.
        marker: a file that every such folder has; what has none is never replaced.
        overwrite: whether such a folder may be replaced.

    Raises:
        UsageError: a file or another folder is there, or the place cannot be written.
    """
    if path.is_dir() and any(path.iterdir()) and not (overwrite and (path / marker).is_file()):
        raise UsageError(
            f"{path} holds an export already"
            if (path / marker).is_file()
            else f"{path} is a folder that holds something else",
            expected="a new or empty folder",
            remedy="pass another --output_path"
            + (", or --overwrite" if (path / marker).is_file() else ""),
        )
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(
            f"{path} cannot be written: {nearest} is no directory that can be written",
            expected="a directory that can be written",
            remedy="pass another --output_path",
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` when the context ends well.

    What was at `path` is there until then. After an error nothing has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    before = path.with_name(f".{path.name}.{os.getpid()}.before")
    try:
        aside.mkdir()
        yield aside
        if path.is_dir():
            path.rename(before)
        try:
            aside.rename(path)
        except OSError:
            if before.is_dir():
                before.rename(path)
            raise
    finally:
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)
