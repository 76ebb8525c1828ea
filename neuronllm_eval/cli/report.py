"""`neuronllm-eval report`: the reports of runs, written again. No model is loaded.

1. Every run at and below the directory gets its reports; what hinders one is kept for the end.
2. The pages of folders with several runs are written.
3. Runs without a report are named, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Mapping
from pathlib import Path

from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runtime.distributed import own_rank

DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)


def report(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Report on every run at and below `options.run_dir`; returns the exit code.

    Args:
        options: parsed flags.
        show: is told what people are to read, by the first process alone.

    Raises:
        ArtifactError: there is no run; after all else, some are damaged or cannot be written.
    """
    is_first = not own_rank()
    runs = runs_below([Path(options.run_dir)])
    damaged: dict[Path, ArtifactError] = {}
    unwritten: dict[Path, str] = {}
    for run in runs:
        try:
            report_task(run, show if is_first else None)
        except ArtifactError as error:
            damaged[run.path] = error
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            unwritten[run.path] = error.strerror or ""
    if is_first and not unwritten:
        table = closing_table(write_overviews(runs, Path(options.run_dir)))
        if table is not None:
            show(table)
    if damaged or unwritten:
        raise _without_report(damaged, unwritten)
    return 0


def _without_report(
    damaged: Mapping[Path, ArtifactError], unwritten: Mapping[Path, str]
) -> ArtifactError:
    if not unwritten:
        if len(damaged) == 1:
            (error,) = damaged.values()
            return error
        return ArtifactError(
            f"{len(damaged)} runs cannot be read, and have no new report:\n{_listed(damaged)}",
            expected="files as this package writes them",
            remedy="run validate, or identify, again on these, or move them away",
        )
    others = f"\nand of these the files are damaged:\n{_listed(damaged)}" if damaged else ""
    listed = ", ".join(f"{path} ({why})" for path, why in unwritten.items())
    return ArtifactError(
        f"the report cannot be written: {listed}{others}",
        expected="a disk with room, that can be written",
        remedy="make room, or take the tables that are printed above",
    )


def _listed(damaged: Mapping[Path, ArtifactError]) -> str:
    return "\n".join(f"  {path}: {error.found}" for path, error in damaged.items())
