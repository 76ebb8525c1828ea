"""Finished runs compared: methods side by side, or every run ranked; as text of any format. Pure.

1. Rows are those of the runs' summaries (`rows`), with comparable sets and ranks (`ranking`).
2. Side by side, repeats with other seeds are pooled and methods are held against one of them
   (`pooling`).
3. `render` writes either as a page (`tables`), or as rows for programs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.neuron_overlap import overlap_sections, overlaps
from neuronllm_eval.comparison.other_tasks import others_records, others_section
from neuronllm_eval.comparison.pooling import (
    Difference,
    RepeatKey,
    differences,
    key_of,
    pool,
    reference,
    repeats,
)
from neuronllm_eval.comparison.ranking import (
    COLUMNS,
    FILTERS,
    RankedRows,
    fits,
    in_order,
    names_of_row,
    ranked,
    wanted,
)
from neuronllm_eval.comparison.rows import ComparedRun, Row, read_run
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.comparison.tables import (
    ranked_sections,
    seconds_section,
    side_by_side,
    unfinished,
)
from neuronllm_eval.comparison.words import HEADS
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats import tables
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.runs.directory import runs_below
from neuronllm_eval.runtime.process import bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Runs together.

    Attributes:
        runs: those that are wanted, with the rows that are.
        overlaps: of their neurons (`neuron_overlap.overlaps`).
        pooled: repeats as rows; empty where runs are ranked.
        differences: of methods to the one they are held against.
        damaged: runs that cannot be read, by directory.
        seconds: what stages took, where they were run just now.
    """

    runs: tuple[ComparedRun, ...]
    overlaps: pd.DataFrame
    pooled: tuple[Row, ...] = ()
    differences: tuple[Difference, ...] = ()
    damaged: Mapping[Path, ArtifactError] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The rows of all runs."""
        return [row for run in self.runs for row in run.rows]

    def require_undamaged(self) -> None:
        """Raise ArtifactError for the runs that cannot be read."""
        if len(self.damaged) == 1:
            raise next(iter(self.damaged.values()))
        if self.damaged:
            listed = "\n".join(f"  {path}: {why.found}" for path, why in self.damaged.items())
            raise ArtifactError(
                f"{len(self.damaged)} runs cannot be read, and have no rows:\n{listed}",
                expected="files as this package writes them",
                remedy="run validate, or identify, again on these, or move them away",
            )


def require_possible(settings: CompareSettings, form: str) -> None:
    """Refuse what excludes each other, and columns that a format does not have."""
    for excluded, flags in (
        (settings.overlaps and settings.columns, "--columns with --overlaps"),
        (settings.rank and settings.against, "--against with --rank"),
    ):
        if excluded:
            raise UsageError(flags, expected="one of them", remedy="leave one of them away")
    columns = COLUMNS if form in ("csv", "json") else HEADS
    unknown = [name for name in settings.columns if name not in columns]
    if unknown:
        raise UsageError(
            f"{form} has no column {', '.join(map(repr, unknown)):.200}",
            expected=f"some of {', '.join(columns)}",
            remedy="check --columns",
        )


def compare_runs(
    settings: CompareSettings, seconds: Mapping[str, float] | None = None
) -> Comparison:
    """Compare the runs at and below `settings.run_dir`.

    Raises:
        UsageError: filters that nothing fits, or no run of `settings.against`.
        ArtifactError: there is no run, none with results, or one twice.
    """
    runs: list[ComparedRun] = []
    damaged: dict[Path, ArtifactError] = {}
    for directory in bar(
        iterable=runs_below(settings.run_dir), desc="read", unit="run", leave=False
    ):
        try:
            run = read_run(directory, with_docs=not (settings.rank or settings.overlaps))
        except ArtifactError as error:
            damaged[directory.path] = error
        else:
            rows = (row for row in run.rows if settings.points or not row.summary.is_point)
            runs.append(replace(run, rows=tuple(rows)))
    if not runs:
        Comparison((), pd.DataFrame(), damaged=damaged).require_undamaged()
    runs = wanted(runs, {name: getattr(settings, name) for name in FILTERS})
    frame, left_out = overlaps(runs)
    for sentence in left_out:
        logger.warning("%s", sentence)
    comparison = Comparison(tuple(runs), frame, damaged=damaged, seconds=seconds or {})
    _require_results(comparison, settings)
    return comparison if settings.rank or settings.overlaps else with_pooled(comparison, settings)


def _require_results(comparison: Comparison, settings: CompareSettings) -> None:
    if settings.overlaps and comparison.overlaps.empty:
        raise ArtifactError(
            f"no two of {len(comparison.runs)} runs are of one model",
            expected="runs whose neurons can be the same",
            remedy="pass more runs, or leave --overlaps away",
        )
    if not settings.overlaps and not comparison.rows:
        others = (
            f"; {', '.join(map(str, comparison.damaged))} cannot be read"
            if comparison.damaged
            else ""
        )
        raise ArtifactError(
            f"none of {len(comparison.runs)} runs has results under these conditions{others}",
            expected="runs that are validated",
            remedy=f"run `neuronllm-eval validate {comparison.runs[0].facts.path}`, or --overlaps",
        )
    for run in comparison.runs:
        if run.missing:
            logger.warning("%s: neuronllm-eval %s comes first", run.facts.path, run.missing)


def with_pooled(comparison: Comparison, settings: CompareSettings) -> Comparison:
    """Repeats as rows, and how their methods differ."""
    groups = repeats([run for run in comparison.runs if run.docs is not None])
    against = reference(list(groups), settings.against)  # refuses before the work
    rows: list[Row] = []
    for key, group in bar(
        iterable=list(groups.items()), desc="compare", unit="method", leave=False
    ):
        rows += pool(key, group)
    differing = differences(groups, against) if against and not settings.conditions else []
    fitting = tuple(row for row in rows if fits(settings.conditions, names_of_row(row)))
    return replace(comparison, pooled=fitting, differences=tuple(differing))


def render(
    comparison: Comparison, form: str, settings: CompareSettings, width: int | None = None
) -> str:
    """A comparison as text.

    Args:
        comparison: of the runs.
        form: a format: table, markdown, latex, html, csv or json.
        settings: what is shown.
        width: of the terminal that shows the format `table`; None for a file.

    Raises:
        UsageError: there is no column `settings.sort_by`.
    """
    if form == "json":
        return _json(comparison, settings)
    if form == "csv":
        if settings.overlaps:
            return tables.as_csv(comparison.overlaps)
        return tables.as_csv(
            _chosen(_ordered(_shown(comparison, settings), settings).frame, settings)
        )
    sections = _sections(comparison, settings, is_print=form == "latex")
    return tables.as_table(sections, width) if form == "table" else tables.PAGES[form](sections)


def _shown(comparison: Comparison, settings: CompareSettings) -> RankedRows:
    return ranked(comparison.rows if settings.rank else comparison.pooled)


def _chosen(frame: pd.DataFrame, settings: CompareSettings) -> pd.DataFrame:
    return frame[list(dict.fromkeys(settings.columns))] if settings.columns else frame


def _ordered(rows: RankedRows, settings: CompareSettings) -> RankedRows:
    frame = in_order(rows.frame, settings.group_by or "task", settings.sort_by, settings.ascending)
    return RankedRows(frame.reset_index(drop=True), rows.sets)


def _sections(
    comparison: Comparison, settings: CompareSettings, is_print: bool
) -> list[tables.Section]:
    overlaps = overlap_sections(comparison.overlaps, comparison.runs)
    if settings.overlaps:
        return overlaps
    rows = _shown(comparison, settings)
    if settings.rank or settings.columns or settings.sort_by:
        group_by = settings.group_by or "task"
        ordered = _ordered(rows, settings)
        sections = ranked_sections(ordered, group_by, settings.columns, is_print=is_print)
    else:
        sections = side_by_side(
            rows,
            [key_of(row) for row in comparison.pooled],
            comparison.differences,
            settings.group_by,
        )
    if not settings.columns:
        sections += others_section(comparison.runs)
    sections += seconds_section(comparison.seconds) + unfinished(comparison.runs)
    # In print their table is for those who ask for it: it is as wide as a page.
    return sections + (overlaps if settings.rank and not is_print else [])


def _json(comparison: Comparison, settings: CompareSettings) -> str:
    """All there is; null where there is nothing."""
    overlaps = _records(comparison.overlaps)
    if settings.overlaps:
        return dump_json({"overlaps": overlaps})
    rows = _ordered(ranked(comparison.rows), settings)
    values: dict[str, Any] = {"rows": _records(_chosen(rows.frame, settings))}
    sets = rows.sets
    if not settings.rank:
        pooled = ranked(comparison.pooled)
        sets = pooled.sets
        values["pooled"] = [
            {**line, "seeds": [run.seed for run in row.runs], "run": [r.path for r in row.runs]}
            for line, row in zip(_records(pooled.frame), comparison.pooled, strict=True)
        ]
        names = {run.facts.model_hash: run.facts.model for run in comparison.runs}
        values["differences"] = [
            _difference(difference, names[difference.key.model_hash])
            for difference in comparison.differences
        ]
        values["seconds"] = dict(comparison.seconds)
    return dump_json(
        {
            **values,
            "sets": [{**asdict(one), "terms": one.terms.values()} for one in sets],
            "overlaps": overlaps,
            "other_tasks": others_records(comparison.runs),
            "unfinished": [
                {"run": run.facts.path, "model": run.facts.model, "task": run.facts.task,
                 "method": run.facts.method, "missing": run.missing}
                for run in comparison.runs if run.missing
            ],
            "damaged": [
                {"run": str(path), "why": why.found} for path, why in comparison.damaged.items()
            ],
        }
    )  # fmt: skip


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _difference(difference: Difference, model: str) -> dict[str, Any]:
    def named(key: RepeatKey) -> dict[str, Any]:
        return {"method": key.method, "method_settings": json.loads(key.settings)}

    key = difference.key
    return {
        "model": model,
        "model_hash": key.model_hash,
        "task": key.task,
        "top_k": key.top_k,
        **named(key),
        "against": named(difference.against),
        "seeds": list(difference.seeds),
        **asdict(difference.change),
        "p_holm": difference.p_holm,
    }
