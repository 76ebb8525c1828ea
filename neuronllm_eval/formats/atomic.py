"""Files and folders that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonlines

from neuronllm_eval.errors import ArtifactError, UsageError


def write_whole(path: Path, content: str | bytes) -> str:
    """Write a file; returns the SHA-256 digest of its content.

    Raises:
        ArtifactError: a folder has that name.
    """
    require_no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        data = content.encode() if isinstance(content, str) else content
        temporary.unlink(missing_ok=True)  # a link there would be followed
        temporary.write_bytes(data)
        temporary.replace(path)
        return hashlib.sha256(data).hexdigest()
    finally:
        temporary.unlink(missing_ok=True)


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> str:
    """Write a JSON-lines file, one object a line; no line is kept if the iterable raises.

    Returns the SHA-256 digest of its content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with jsonlines.open(temporary, "w", compact=True) as writer:
            writer.write_all(values)
        digest = digest_of(temporary)
        temporary.replace(path)
        return digest
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which replaces `path` when the context ends without an error.

    Until then, and after an error, what was at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    previous = path.with_name(f".{path.name}.{os.getpid()}.before")
    try:
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            path.rename(previous)
        try:
            temporary.rename(path)
        except OSError:
            if previous.is_dir():
                previous.rename(path)
            raise
    finally:
        for folder in (temporary, previous):
            shutil.rmtree(folder, ignore_errors=True)


# What may be written ------------------------------------------------------------------------------


def require_no_folder(path: Path) -> None:
    """Raise ArtifactError if a folder is where a file is to be written."""
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder", expected="a file, or nothing", remedy="move the folder away"
        )


def require_no_file(path: Path) -> None:
    """Raise ArtifactError if a file is where a folder is to be made."""
    if path.is_file():
        raise ArtifactError(
            f"{path} is not a folder", expected="a folder, or nothing", remedy="move the file away"
        )


def require_no_link(path: Path) -> None:
    """Raise ArtifactError for a link where a run has a folder, or a file changed in place."""
    if path.is_symlink():
        raise ArtifactError(
            f"{path} is a link to {os.readlink(path)}",
            expected="what is inside the run directory: files elsewhere are not changed",
            remedy="remove the link",
        )


def unwritable(path: Path, reason: object) -> UsageError:
    """The error of a folder that cannot be made or written."""
    return UsageError(
        f"{path} cannot be written: {reason}",
        expected="a directory that can be written",
        remedy="pass another --output_path",
    )


def require_writable(path: Path) -> None:
    """Raise UsageError unless a folder can be made or written at `path`. Changes nothing."""
    try:
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    except OSError as error:  # a name that is too long, a working directory that is gone
        raise unwritable(path, error) from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise unwritable(path, f"{nearest} is not a directory that can be written")


def require_free_folder(path: Path, marker: str, overwrite: bool) -> None:
    """Raise UsageError for a folder with content, unless it may be replaced. Changes nothing.

    Args:
        path: the folder.
        marker: a file that every such folder has; a folder without it is never replaced.
        overwrite: whether a folder with the marker may be replaced.

    Raises:
        UsageError: there is a file or another folder, or the folder cannot be written.
    """
    if path.is_dir() and any(path.iterdir()):
        is_export = (path / marker).is_file()
        if not (overwrite and is_export):
            raise UsageError(
                f"{path} already contains {'an export' if is_export else 'something else'}",
                expected="a new or empty folder",
                remedy=f"pass another --output_path{', or --overwrite' if is_export else ''}",
            )
    require_writable(path)
