"""All runs of a directory tree."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from neuronllm_eval.runs.directory import SETTINGS_FILE, RunDirectory, find_runs

logger = logging.getLogger(__name__)


def runs_below(paths: Iterable[Path]) -> list[RunDirectory]:
    """The runs at and below each path, at any depth, each once; by path within each tree.

    What lies within a run, in hidden folders, or in a folder that was seen under another name is
    not searched; a folder that cannot be read is warned of.

    Raises:
        ArtifactError: there is none at or below one of the paths.
    """
    found: dict[Path, RunDirectory] = {}
    for path in paths:
        runs = _below(path) or find_runs(path)
        for run in runs:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _warn(error: OSError) -> None:
    logger.warning("%s is not searched: %s", error.filename, error.strerror)


def _below(top: Path) -> list[RunDirectory]:
    runs, seen = [], set()
    for folder, below, files in os.walk(top, onerror=_warn, followlinks=True):
        place = Path(folder)
        if SETTINGS_FILE in files:
            runs.append(RunDirectory(place))
        is_known = place.resolve() in seen
        seen.add(place.resolve())
        visible = [name for name in sorted(below) if not name.startswith(".")]
        below[:] = [] if is_known or SETTINGS_FILE in files else visible
    return runs
