"""Run directories at and below a path, and those near a path that has none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.runs.directory import SETTINGS_FILE, RunDirectory

logger = logging.getLogger(__name__)
_MOST_NAMED = 5


def find_runs(path: Path) -> list[RunDirectory]:
    """The run at `path`, or those one level below it, by name.

    Raises:
        ArtifactError: there is none.
    """
    if (path / SETTINGS_FILE).is_file():
        return [RunDirectory(path)]
    runs = sorted(child.parent for child in path.glob(f"*/{SETTINGS_FILE}"))
    if not runs:
        raise ArtifactError(
            f"{path} holds no run",
            expected=f"a directory with {SETTINGS_FILE}, or with such directories in it",
            remedy=_remedy_near(path),
        )
    return [RunDirectory(run) for run in runs]


def runs_below(paths: Iterable[Path]) -> list[RunDirectory]:
    """The runs at and below each path, at any depth, each once; by path within each tree.

    Folders within a run, hidden folders, and folders seen under another name are not searched; a
    folder that cannot be read is warned of.

    Raises:
        ArtifactError: there is none at or below one of the paths.
    """
    runs: dict[Path, RunDirectory] = {}
    for path in paths:
        for run in _below(path) or find_runs(path):
            runs.setdefault(run.path.resolve(), run)
    return list(runs.values())


def _below(top: Path) -> list[RunDirectory]:
    def warn(error: OSError) -> None:
        logger.warning("%s is not searched: %s", error.filename, error.strerror)

    runs, seen = [], set()
    for folder, below, files in os.walk(top, onerror=warn, followlinks=True):
        path = Path(folder)
        is_run, is_seen = SETTINGS_FILE in files, path.resolve() in seen
        if is_run:
            runs.append(RunDirectory(path))
        seen.add(path.resolve())
        visible = [name for name in sorted(below) if not name.startswith(".")]
        below[:] = [] if is_run or is_seen else visible
    return runs


def folders_near(path: Path, name: str) -> list[Path]:
    """Folders with a file `name`: one or two levels below `path`; else the one `path` lies in.

    Args:
        path: need not exist.
        name: of the file.
    """
    below = [
        file.parent for levels in ("*", "*/*") for file in sorted(path.glob(f"{levels}/{name}"))
    ]
    above = [folder for folder in list(path.absolute().parents)[:2] if (folder / name).is_file()]
    return below or above[:1]


def one_of(folders: list[Path]) -> str:
    """Folders as an error's remedy names them."""
    names = [str(folder) for folder in folders[:_MOST_NAMED]]
    if len(folders) > _MOST_NAMED:
        names.append(f"{len(folders) - _MOST_NAMED} more")
    return ", ".join(names)


def _remedy_near(path: Path) -> str:
    near = folders_near(path, SETTINGS_FILE)
    if any(path in folder.parents for folder in near):  # deeper runs: the folders they lie in
        near = sorted({folder.parent for folder in near})
    if near:
        return f"pass one of: {one_of(near)}"
    return "check the path, or run `neuronllm-eval identify` first"
