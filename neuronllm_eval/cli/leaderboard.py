"""`neuronllm-eval leaderboard`: many runs side by side. Reads files only; no model is loaded.

1. Every run at and below the directories is read; damaged ones are kept for the end.
2. Patterns keep the wanted ones.
3. One table, in the format that is asked for.
4. Damaged runs are named, and the command ends with 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from neuronllm_eval.cli.commands import LeaderboardSettings
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.formats.terminal import terminal_width
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runtime.progress import bar

if TYPE_CHECKING:
    from neuronllm_eval.comparison.leaderboard_rows import BoardRun
    from neuronllm_eval.comparison.neuron_overlap import RunsOverlap
    from neuronllm_eval.formats.sections import Section


SUFFIXES = {
    ".txt": "table",
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".json": "json",
}


logger = logging.getLogger(__name__)
Show = Callable[[str], object]


def show_leaderboard(options: LeaderboardSettings, show: Show) -> int:
    """Print or write the leaderboard of the runs at `options.run_dir`; returns the exit code.

    Args:
        options: what is asked for.
        show: is told what people are to read.

    Raises:
        UsageError: a flag that cannot be, or filters that nothing fits.
        ArtifactError: there is no run, or none with results; after all else, some are damaged.
    """
    output = options.output_path
    kind = options.format or _format_of(output)
    if output is not None:
        _require_file(output)
    _require_columns(options, kind)
    runs, damaged = _read(options)
    text = (
        _overlaps(options, kind, runs) if options.overlaps else _board(options, kind, runs, damaged)
    )
    if output is None:
        show(text.rstrip("\n"))
    else:
        write_whole(output, text)
        show(f"written to {output}")
    if damaged:
        raise _unreadable(damaged)
    return 0


def _require_file(output: Path) -> None:
    if output.is_dir():
        raise UsageError(
            f"--output_path is {output}, a folder", expected="a file", remedy="add a file name"
        )
    RunDirectory(output.parent).require_writable()


def _require_columns(options: LeaderboardSettings, kind: str) -> None:
    """Refuse columns that a format does not have, before any run is read."""
    if not options.columns:
        return
    from neuronllm_eval.comparison.leaderboard import COLUMNS
    from neuronllm_eval.comparison.leaderboard_tables import HEADS

    if options.overlaps:
        raise UsageError(
            "--columns with --overlaps",
            expected="one of them: overlaps have columns of their own",
            remedy="leave one of them away",
        )
    known = COLUMNS if kind in ("csv", "json") else HEADS
    unknown = [name for name in options.columns if name not in known]
    if unknown:
        raise UsageError(
            f"{kind} has no column {', '.join(map(repr, unknown)):.200}",
            expected=f"some of {', '.join(known)}",
            remedy="check --columns",
        )


def _format_of(output: Path | None) -> str:
    if output is None:
        return "table"
    if output.suffix not in SUFFIXES:
        raise UsageError(
            f"--output_path is {output}, without --format",
            expected=f"a file that ends with {', '.join(SUFFIXES)}",
            remedy="add such an ending, or --format",
        )
    return SUFFIXES[output.suffix]


def _read(options: LeaderboardSettings) -> tuple[list[BoardRun], dict[Path, ArtifactError]]:
    """The runs that the filters keep, with the entries that they keep; and what is damaged."""
    from neuronllm_eval.comparison.leaderboard_filters import Filters
    from neuronllm_eval.comparison.leaderboard_rows import read_run

    runs: list[BoardRun] = []
    damaged: dict[Path, ArtifactError] = {}
    found = runs_below(options.run_dir)
    for run in bar(iterable=found, desc="leaderboard", unit="run", leave=False):
        try:
            runs.append(read_run(run, with_points=options.points))
        except ArtifactError as error:
            damaged[run.path] = error
    if not runs:
        raise _unreadable(damaged)
    patterns = {field.name: tuple(getattr(options, field.name)) for field in fields(Filters)}
    return Filters(**patterns).kept(runs), damaged


def _board(
    options: LeaderboardSettings,
    kind: str,
    runs: Sequence[BoardRun],
    damaged: Mapping[Path, ArtifactError],
) -> str:
    from neuronllm_eval.comparison import neuron_overlap as leaderboard_overlaps
    from neuronllm_eval.comparison.leaderboard import leaderboard
    from neuronllm_eval.comparison.leaderboard_tables import overlap_sections, sections, unfinished
    from neuronllm_eval.formats import tables

    entries = [each for run in runs for each in run.entries]
    if not entries:
        others = f"; {', '.join(map(str, damaged))} cannot be read" if damaged else ""
        raise ArtifactError(
            f"none of {len(runs)} runs has results under these conditions{others}",
            expected="runs that are validated",
            remedy=f"run `neuronllm-eval validate {runs[0].path}`, or --overlaps",
        )
    board = leaderboard(entries, options.group_by, options.sort_by, options.ascending)
    columns = list(dict.fromkeys(options.columns))
    frame = board.frame[columns] if columns and kind in ("csv", "json") else board.frame
    if kind == "csv":
        for run in runs:
            if run.lacks:
                logger.warning("%s has no rows: neuronllm-eval %s comes first", run.path, run.lacks)
        return tables.as_csv(frame)
    found = _overlaps_of(runs)
    if kind == "json":
        lacking = [
            {"run": run.path, "model": run.model, "task": run.task, "method": run.method,
             "lacks": run.lacks}
            for run in runs if run.lacks
        ]  # fmt: skip
        unreadable = [{"run": str(path), "why": why.found} for path, why in damaged.items()]
        return leaderboard_overlaps.as_json(frame, found, board.sets, lacking, unreadable)
    is_latex = kind == "latex"
    return _page(
        options,
        kind,
        [
            *sections(board, options.group_by, columns, short=is_latex),
            *unfinished(runs),
            # In print their table is for those who ask for it: it is as wide as a page.
            *([] if is_latex else overlap_sections(found, runs)),
        ],
    )


def _page(options: LeaderboardSettings, kind: str, parts: Sequence[Section]) -> str:
    from neuronllm_eval.formats import tables

    if kind == "table" and not options.output_path:
        return tables.as_table(parts, terminal_width())
    return tables.PAGES[kind](parts)


def _overlaps(options: LeaderboardSettings, kind: str, runs: Sequence[BoardRun]) -> str:
    """Of `--overlaps`: nothing else."""
    from neuronllm_eval.comparison import neuron_overlap as leaderboard_overlaps
    from neuronllm_eval.comparison.leaderboard_tables import overlap_sections
    from neuronllm_eval.formats import tables

    found = _overlaps_of(runs)
    if not found:
        raise ArtifactError(
            f"no two of {len(runs)} runs are of one model",
            expected="runs whose neurons can be the same",
            remedy="pass more runs, or leave --overlaps away",
        )
    if kind == "csv":
        return tables.as_csv(leaderboard_overlaps.overlap_frame(found))
    if kind == "json":
        return dump_json({"overlaps": [asdict(each) for each in found]})
    return _page(options, kind, overlap_sections(found, runs))


def _overlaps_of(runs: Sequence[BoardRun]) -> list[RunsOverlap]:
    from neuronllm_eval.comparison.neuron_overlap import overlaps

    found, left_out = overlaps(runs)
    for sentence in left_out:
        logger.warning("%s", sentence)
    return found


def _unreadable(damaged: Mapping[Path, ArtifactError]) -> ArtifactError:
    if len(damaged) == 1:
        (error,) = damaged.values()
        return error
    listed = "\n".join(f"  {path}: {error.found}" for path, error in damaged.items())
    return ArtifactError(
        f"{len(damaged)} runs cannot be read, and have no rows:\n{listed}",
        expected="files as this package writes them",
        remedy="run validate, or identify, again on these, or move them away",
    )
