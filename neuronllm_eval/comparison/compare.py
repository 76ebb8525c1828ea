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


def require_possible(asked: CompareSettings, form: str) -> None:
    """Refuse what excludes each other, and columns that a format does not have."""
    for excluded, flags in (
        (asked.overlaps and asked.columns, "--columns with --overlaps"),
        (asked.rank and asked.against, "--against with --rank"),
    ):
        if excluded:
            raise UsageError(flags, expected="one of them", remedy="leave one of them away")
    known = COLUMNS if form in ("csv", "json") else HEADS
    unknown = [name for name in asked.columns if name not in known]
    if unknown:
        raise UsageError(
            f"{form} has no column {', '.join(map(repr, unknown)):.200}",
            expected=f"some of {', '.join(known)}",
            remedy="check --columns",
        )


def compare_runs(asked: CompareSettings, seconds: Mapping[str, float] | None = None) -> Comparison:
    """Compare the runs at and below `asked.run_dir`.

    Raises:
        UsageError: filters that nothing fits, or no run of `asked.against`.
        ArtifactError: there is no run, none with results, or one twice.
    """
    runs: list[ComparedRun] = []
    damaged: dict[Path, ArtifactError] = {}
    for directory in bar(iterable=runs_below(asked.run_dir), desc="read", unit="run", leave=False):
        try:
            run = read_run(directory, with_docs=not (asked.rank or asked.overlaps))
        except ArtifactError as error:
            damaged[directory.path] = error
        else:
            rows = (row for row in run.rows if asked.points or not row.summary.is_point)
            runs.append(replace(run, rows=tuple(rows)))
    if not runs:
        Comparison((), pd.DataFrame(), damaged=damaged).require_undamaged()
    runs = wanted(runs, {name: getattr(asked, name) for name in FILTERS})
    frame, left_out = overlaps(runs)
    for sentence in left_out:
        logger.warning("%s", sentence)
    found = Comparison(tuple(runs), frame, damaged=damaged, seconds=seconds or {})
    _require_results(found, asked)
    return found if asked.rank or asked.overlaps else with_pooled(found, asked)


def _require_results(found: Comparison, asked: CompareSettings) -> None:
    if asked.overlaps and found.overlaps.empty:
        raise ArtifactError(
            f"no two of {len(found.runs)} runs are of one model",
            expected="runs whose neurons can be the same",
            remedy="pass more runs, or leave --overlaps away",
        )
    if not asked.overlaps and not found.rows:
        others = f"; {', '.join(map(str, found.damaged))} cannot be read" if found.damaged else ""
        raise ArtifactError(
            f"none of {len(found.runs)} runs has results under these conditions{others}",
            expected="runs that are validated",
            remedy=f"run `neuronllm-eval validate {found.runs[0].facts.path}`, or --overlaps",
        )
    for run in found.runs:
        if run.missing:
            logger.warning("%s: neuronllm-eval %s comes first", run.facts.path, run.missing)


def with_pooled(found: Comparison, asked: CompareSettings) -> Comparison:
    """Repeats as rows, and how their methods differ."""
    groups = repeats([run for run in found.runs if run.docs is not None])
    held = reference(list(groups), asked.against)  # refuses before the work
    rows: list[Row] = []
    for key, group in bar(
        iterable=list(groups.items()), desc="compare", unit="method", leave=False
    ):
        rows += pool(key, group)
    differing = differences(groups, held) if held and not asked.conditions else []
    fitting = tuple(row for row in rows if fits(asked.conditions, names_of_row(row)))
    return replace(found, pooled=fitting, differences=tuple(differing))


def render(found: Comparison, form: str, asked: CompareSettings, width: int | None = None) -> str:
    """A comparison as text.

    Args:
        found: the runs.
        form: a format: table, markdown, latex, html, csv or json.
        asked: what is shown.
        width: of the terminal that shows the format `table`; None for a file.

    Raises:
        UsageError: there is no column `asked.sort_by`.
    """
    if form == "json":
        return _json(found, asked)
    if form == "csv":
        if asked.overlaps:
            return tables.as_csv(found.overlaps)
        return tables.as_csv(_chosen(_ordered(_shown(found, asked), asked).frame, asked))
    sections = _sections(found, asked, is_print=form == "latex")
    return tables.as_table(sections, width) if form == "table" else tables.PAGES[form](sections)


def _shown(found: Comparison, asked: CompareSettings) -> RankedRows:
    return ranked(found.rows if asked.rank else found.pooled)


def _chosen(frame: pd.DataFrame, asked: CompareSettings) -> pd.DataFrame:
    return frame[list(dict.fromkeys(asked.columns))] if asked.columns else frame


def _ordered(rows: RankedRows, asked: CompareSettings) -> RankedRows:
    frame = in_order(rows.frame, asked.group_by or "task", asked.sort_by, asked.ascending)
    return RankedRows(frame.reset_index(drop=True), rows.sets)


def _sections(found: Comparison, asked: CompareSettings, is_print: bool) -> list[tables.Section]:
    overlaps = overlap_sections(found.overlaps, found.runs)
    if asked.overlaps:
        return overlaps
    rows = _shown(found, asked)
    if asked.rank or asked.columns or asked.sort_by:
        group_by = asked.group_by or "task"
        ordered = _ordered(rows, asked)
        sections = ranked_sections(ordered, group_by, asked.columns, is_print=is_print)
    else:
        sections = side_by_side(
            rows, [key_of(row) for row in found.pooled], found.differences, asked.group_by
        )
    sections += seconds_section(found.seconds) + unfinished(found.runs)
    # In print their table is for those who ask for it: it is as wide as a page.
    return sections + (overlaps if asked.rank and not is_print else [])


def _json(found: Comparison, asked: CompareSettings) -> str:
    """All there is; null where there is nothing."""
    overlaps = _records(found.overlaps)
    if asked.overlaps:
        return dump_json({"overlaps": overlaps})
    rows = _ordered(ranked(found.rows), asked)
    values: dict[str, Any] = {"rows": _records(_chosen(rows.frame, asked))}
    sets = rows.sets
    if not asked.rank:
        pooled = ranked(found.pooled)
        sets = pooled.sets
        values["pooled"] = [
            {**line, "seeds": [run.seed for run in row.runs], "run": [r.path for r in row.runs]}
            for line, row in zip(_records(pooled.frame), found.pooled, strict=True)
        ]
        values["differences"] = [_difference(each) for each in found.differences]
        values["seconds"] = dict(found.seconds)
    return dump_json(
        {
            **values,
            "sets": [{**asdict(each), "terms": each.terms.values()} for each in sets],
            "overlaps": overlaps,
            "unfinished": [
                {"run": run.facts.path, "model": run.facts.model, "task": run.facts.task,
                 "method": run.facts.method, "missing": run.missing}
                for run in found.runs if run.missing
            ],
            "damaged": [
                {"run": str(path), "why": why.found} for path, why in found.damaged.items()
            ],
        }
    )  # fmt: skip


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _difference(each: Difference) -> dict[str, Any]:
    def named(key: RepeatKey) -> dict[str, Any]:
        return {"method": key.method, "method_settings": json.loads(key.settings)}

    key = each.key
    return {
        "model": key.model,
        "model_hash": key.model_hash,
        "task": key.task,
        "top_k": key.top_k,
        **named(key),
        "against": named(each.against),
        "seeds": list(each.seeds),
        **asdict(each.change),
        "p_holm": each.p_holm,
    }
