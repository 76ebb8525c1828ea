"""Finished runs compared: methods side by side, or every run ranked; as text of any format. Pure.

1. Rows are those of the runs' summaries (`rows`), with comparable sets and ranks (`ranking`).
2. Side by side, repeats with other seeds are pooled (`pooling`), and methods are held against one
   of them (`method_differences`).
3. `render` writes either as a page (`tables`), or as rows for programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.method_differences import Difference, differences, reference
from neuronllm_eval.comparison.neuron_overlap import overlap_sections
from neuronllm_eval.comparison.pooling import RepeatKey, pool, repeats
from neuronllm_eval.comparison.ranking import RankedRows, fits, in_order, names_of_row, ranked
from neuronllm_eval.comparison.rows import ComparedRun, Row
from neuronllm_eval.comparison.tables import (
    ranked_sections,
    seconds_section,
    side_by_side,
    unfinished,
)
from neuronllm_eval.formats import tables
from neuronllm_eval.formats.json_files import dump_json

FORMATS = ("table", "markdown", "csv", "latex", "html", "json")


@dataclass(frozen=True)
class Comparison:
    """What is known of runs together.

    Attributes:
        runs: those that are wanted, with the rows that are.
        overlaps: of their neurons (`neuron_overlap.overlaps`).
        pooled: repeats as rows; empty where runs are ranked one by one.
        differences: of methods to the one they are held against.
        damaged: directories that cannot be read, and why.
        seconds: what stages took, where they were run just now.
    """

    runs: tuple[ComparedRun, ...]
    overlaps: pd.DataFrame
    pooled: tuple[Row, ...] = ()
    differences: tuple[Difference, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The rows of all runs."""
        return [row for run in self.runs for row in run.rows]


def pooled_methods(
    runs: Sequence[ComparedRun],
    against: str | None = None,
    conditions: Sequence[str] = (),
    n_resamples: int = 10_000,
    progress: Callable[[], object] = lambda: None,
) -> tuple[tuple[Row, ...], tuple[Difference, ...]]:
    """Repeats as rows, and how their methods differ.

    Args:
        runs: with their docs; those without are left out.
        against: the method that others are held against (`method_differences.reference`).
        conditions: patterns for those that are wanted.
        n_resamples: draws of the bootstrap.
        progress: is called after each group of repeats.

    Raises:
        UsageError: no run is of `against`.
        ArtifactError: two are the same run.
    """
    groups = repeats([run for run in runs if run.docs is not None])
    held = reference(list(groups), against)  # refuses before the work
    differing = differences(groups, held, n_resamples) if held and not conditions else []
    rows: list[Row] = []
    for key, group in groups.items():
        rows += pool(key, group, n_resamples)
        progress()
    wanted = (row for row in rows if fits(conditions, names_of_row(row)))
    return tuple(wanted), tuple(differing)


@dataclass(frozen=True)
class View:
    """What of a comparison is shown, and how.

    Attributes:
        rank: each run by itself and ranked, not methods side by side.
        group_by: one of `ranking.GROUPS`: a table for each; None: by task where rows are ranked,
            else one for all.
        sort_by: a column, for another order.
        ascending: whether its smallest comes first.
        columns: only these; all that tell something if empty.
        overlaps: only how far the runs' neurons overlap.
    """

    rank: bool = False
    group_by: str | None = None
    sort_by: str | None = None
    ascending: bool = False
    columns: tuple[str, ...] = ()
    overlaps: bool = False


def render(found: Comparison, kind: str, view: View, width: int | None = None) -> str:
    """A comparison in one of `FORMATS`.

    Args:
        found: the runs.
        kind: the format.
        view: what is shown.
        width: of the terminal that shows the format `table`; None for a file.

    Raises:
        UsageError: there is no column `view.sort_by`.
    """
    if kind == "json":
        return _json(found, view)
    if kind == "csv":
        if view.overlaps:
            return tables.as_csv(found.overlaps)
        frame = _ordered(_shown(found, view), view).frame
        return tables.as_csv(frame[list(view.columns)] if view.columns else frame)
    sections = _sections(found, view, short=kind == "latex")
    return tables.as_table(sections, width) if kind == "table" else tables.PAGES[kind](sections)


def _shown(found: Comparison, view: View) -> RankedRows:
    return ranked(found.rows if view.rank else found.pooled)


def _ordered(rows: RankedRows, view: View) -> RankedRows:
    frame = in_order(rows.frame, view.group_by or "task", view.sort_by, view.ascending)
    return RankedRows(frame.reset_index(drop=True), rows.sets)


def _sections(found: Comparison, view: View, short: bool) -> list[tables.Section]:
    overlaps = overlap_sections(found.overlaps, found.runs)
    if view.overlaps:
        return overlaps
    rows = _shown(found, view)
    if view.rank or view.columns or view.sort_by:
        group_by = view.group_by or "task"
        ordered = _ordered(rows, view)
        sections = ranked_sections(ordered, group_by, view.columns, short=short)
    else:
        sections = side_by_side(rows, found.pooled, found.differences, view.group_by)
    sections += seconds_section(found.seconds) + unfinished(found.runs)
    # In print their table is for those who ask for it: it is as wide as a page.
    return sections + (overlaps if view.rank and not short else [])


def _json(found: Comparison, view: View) -> str:
    """All there is; null where there is nothing."""
    overlaps = _records(found.overlaps)
    if view.overlaps:
        return dump_json({"overlaps": overlaps})
    rows = _ordered(ranked(found.rows), view)
    values: dict[str, Any] = {"rows": _records(rows.frame, view.columns)}
    sets = rows.sets
    if not view.rank:
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
            "sets": [asdict(each) for each in sets],
            "overlaps": overlaps,
            "unfinished": [
                {"run": run.facts.path, "model": run.facts.model, "task": run.facts.task,
                 "method": run.facts.method, "missing": run.missing}
                for run in found.runs if run.missing
            ],
            "damaged": [{"run": path, "why": why} for path, why in found.damaged.items()],
        }
    )  # fmt: skip


def _records(frame: pd.DataFrame, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in (frame[list(columns)] if columns else frame).to_dict("records")
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
