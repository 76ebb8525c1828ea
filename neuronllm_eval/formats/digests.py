"""`SHA256SUMS`: the digests of a folder's finished files, as `sha256sum -c` reads them.

Every file that a stage writes is listed there, and every reader of this package compares a file
with its digest before it reads it, so that a changed byte never becomes a changed number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.atomic import digest_of, write_whole

SUMS_FILE = "SHA256SUMS"
# Names of files inside the folder only.
_LINE = re.compile(r"([0-9a-f]{64})  (?!/|(?:.*/)?\.\.(?:/|$))(\S.*)")
_MOST_BYTES = 4 << 20  # of the file
_LEVELS = 3  # a file of a run lies at most this deep: adapters/<condition>/<file>


def list_digests(folder: Path, digests: Mapping[Path, str]) -> None:
    """Add files with their digests to those of their folder, or replace their lines."""
    _write(folder, _read(folder) | {_name(folder, path): digests[path] for path in digests})


def unlist_digests(folder: Path, paths: Iterable[Path]) -> None:
    """Remove files from the digests of their folder: before they are replaced or deleted."""
    names = {_name(folder, path) for path in paths}
    listed = _read(folder)
    if names & listed.keys():
        _write(folder, {name: value for name, value in listed.items() if name not in names})


def require_unchanged(path: Path, remedy: str) -> None:
    """Refuse a file whose folder lists another digest of it. Files that are not listed pass.

    Raises:
        ArtifactError: the file was changed after it was written.
    """
    for folder in list(path.parents)[:_LEVELS]:
        if (folder / SUMS_FILE).is_file() and path.is_file():
            listed = _read(folder).get(_name(folder, path))
            if listed is not None and (found := digest_of(path)) != listed:
                raise ArtifactError(
                    f"{path} was changed after it was written: its SHA-256 is {found[:12]}…",
                    expected=f"{listed[:12]}…, as {folder / SUMS_FILE} says",
                    remedy=f"restore the file, or {remedy}",
                )
            return


def missing_files(folder: Path) -> list[str]:
    """The names of files that a folder lists and does not have."""
    return [name for name in _read(folder) if not (folder / name).is_file()]


def unlisted_files(folder: Path, finished: Iterable[Path]) -> list[Path]:
    """Those of some files that a folder with digests does not list; none without digests."""
    if not (folder / SUMS_FILE).is_file():
        return []
    listed = _read(folder)
    return [path for path in finished if _name(folder, path) not in listed]


def changed_files(
    folder: Path, expected: Iterable[Path], optional: Sequence[Path] = ()
) -> list[str]:
    """What `sha256sum -c` would find wrong with a folder, and finished files that are not listed.

    Args:
        folder: that has the digests.
        expected: the finished files that exist.
        optional: files that may be missing.

    Returns:
        one text for each problem.
    """
    if not (folder / SUMS_FILE).is_file():
        return [f"there is no {SUMS_FILE}"]
    lines = _lines(folder)
    if lines.pop() or not all(map(_LINE.fullmatch, lines)):
        return [f"{SUMS_FILE} has lines that are no digests"]
    listed = _read(folder)
    missing = set(missing_files(folder)) - {_name(folder, path) for path in optional}
    problems = [f"{name} is missing" for name in sorted(missing)]
    for file in expected:
        name = _name(folder, file)
        if name not in listed:
            problems.append(f"{name} is not listed")
        elif digest_of(file) != listed[name]:
            problems.append(f"{name} was changed")
    return problems


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _read(folder: Path) -> dict[str, str]:
    """Digests by file name; none where there is no file."""
    matches = map(_LINE.fullmatch, _lines(folder))
    return {match[2]: match[1] for match in matches if match}


def _lines(folder: Path) -> list[str]:
    path = folder / SUMS_FILE
    if not path.is_file():
        return []
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ArtifactError(
            f"{path} has {size:,} bytes",
            expected=f"at most {_MOST_BYTES:,}",
            remedy="remove it; reports do without it",
        )
    # Not `read_text`, for which a carriage return ends a line too.
    return path.read_bytes().decode("utf-8", "replace").split("\n")


def _write(folder: Path, digests: Mapping[str, str]) -> None:
    lines = (f"{value}  {name}\n" for name, value in sorted(digests.items()))
    write_whole(folder / SUMS_FILE, "".join(lines))
