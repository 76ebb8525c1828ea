"""The tables of `comparison.md`. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from neuronllm_eval.compared import Key
from neuronllm_eval.comparison import Comparison
from neuronllm_eval.comparison_names import Names
from neuronllm_eval.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.control_rank import ControlRank
from neuronllm_eval.evidence import p_text
from neuronllm_eval.markdown_text import escaped, markdown_table
from neuronllm_eval.method_differences import Difference
from neuronllm_eval.method_effects import PAPERS, SWAPPED, Effect
from neuronllm_eval.statistics import MeanChange, PairedDelta, RelativeChange

SHOWN = tuple(name for name in CONDITIONS if name != UNMASKED)
_LEAD = ("model", "task", "K", "method", "good, bad", "runs")


def delta_table(found: Comparison) -> str:
    """Accuracy deltas in points with their intervals; of several runs, pooled."""
    return _by_condition(
        found,
        (*SHOWN, SWAPPED),
        lambda each, name: _interval(each.accuracy.get(name)),
        ("unmasked", lambda each: f"{each.unmasked:.1f}"),
    )


def edited_table(found: Comparison) -> str:
    """How many neurons each condition edits; of several runs, each number that occurs."""

    def cell(each: Effect, name: str) -> str:
        counts = (str(own.n_neurons) for own in each.edited.get(name, ()))
        return " / ".join(dict.fromkeys(counts))

    return _by_condition(found, SHOWN, cell)


def p_table(found: Comparison) -> str:
    """p and McNemar's p after Holm's correction, and the docs lost and gained."""

    def cell(each: Effect, name: str) -> str:
        if (own := each.tests.get(name)) is None:
            return ""
        p_values = (own.corrected.p_value, own.corrected.mcnemar_p_value)
        flips = f"{own.mcnemar.n_lost}, {own.mcnemar.n_gained}"
        return f"{', '.join(map(p_text, p_values))} ({flips})"

    def family(each: Effect) -> str:
        return str(next((own.corrected.n_tests for own in each.tests.values()), ""))

    return _by_condition(found, SHOWN, cell, ("tests", family))


def controls_table(found: Comparison) -> str:
    """The place among the random controls, with its p; empty where there are none."""
    places = [own.controls for each in found.effects for own in each.tests.values()]
    if not any(places):
        return ""

    def cell(each: Effect, name: str) -> str:
        return _place(each.tests[name].controls) if name in each.tests else ""

    return _by_condition(found, SHOWN, cell)


def _place(rank: ControlRank | None) -> str:
    if rank is None:
        return ""
    return f"{rank.n_as_extreme + 1} of {rank.n_controls + 1}, {p_text(rank.p_value)}"


def _by_condition(
    found: Comparison,
    conditions: tuple[str, ...],
    cell: Callable[[Effect, str], str],
    extra: tuple[str, Callable[[Effect], str]] | None = None,
) -> str:
    """A row for each effect, a column for each condition that some of them have."""
    effects, names = found.effects, found.names
    shown = [
        n for n in conditions if any(n in each.edited or n in each.accuracy for each in effects)
    ]
    more = () if extra is None else (extra,)
    rows = [
        [
            *_lead_cells(names, each),
            *(text(each) for _, text in more),
            *(_with_note(cell(each, name), each.note(name)) for name in shown),
        ]
        for each in effects
    ]
    heads = [*_LEAD, *(head for head, _ in more), *(name.replace("_", " ") for name in shown)]
    return markdown_table(heads, rows)


def _with_note(text: str, note: str) -> str:
    """A cell, and what its condition had not to edit; that alone where nothing is measured."""
    if text in ("", "0"):
        return note
    return f"{text} ({note})" if note else text


def overview(found: Comparison) -> str:
    """Enhance minus degrade in points, with intervals: one column per model, task and split."""
    names = found.names
    cells = {each.key: _interval(each.accuracy.get(SWAPPED)) for each in found.effects}
    return _wide(names, cells)


def difference_table(found: Comparison) -> str:
    """Enhance minus degrade less that of the method they are held against, in points."""
    names, n_repeats = found.names, {each.key: len(each.seeds) for each in found.effects}

    def cell(each: Difference) -> str:
        seeds = f" ({len(each.seeds)} of {n_repeats[each.key]} seeds)"
        fewer = len(each.seeds) < n_repeats.get(each.key, 0)
        return f"{_interval(each.change)} p {p_text(each.corrected_p)}{seeds if fewer else ''}"

    return _wide(names, {each.key: cell(each) for each in found.differences})


def relative_table(found: Comparison) -> str:
    """RAC and RCC of degrade and enhance in percent, as the paper lays its table out."""
    names = found.names
    rows = [
        [
            *_lead_cells(names, each),
            *(_percent(measure.get(name)) for name in PAPERS for measure in (each.rac, each.rcc)),
        ]
        for each in found.effects
        if each.rac
    ]
    heads = [f"{name} {measure}" for name in PAPERS for measure in ("RAC %", "RCC %")]
    return markdown_table([*_LEAD, *heads], rows)


def _lead_cells(names: Names, each: Effect) -> list[str]:
    """The first cells of a row, under `_LEAD`."""
    key = each.key
    sizes = sorted({f"{g}, {b}" for g, b in zip(each.n_good, each.n_bad, strict=True)})
    cells = (names.model(key), names.task(key), str(key.top_k), names.method(key))
    return [escaped(cell) for cell in (*cells, " / ".join(sizes), str(len(each.seeds)))]


def _wide(names: Names, cells: Mapping[Key, str]) -> str:
    """A table with a row for each K and method, a column for each model, task and split."""
    columns: dict[tuple[str, str], None] = {}
    rows: dict[tuple[int, str], dict[tuple[str, str], str]] = {}
    for key, cell in cells.items():
        column = (names.model(key), names.task(key))
        columns[column] = None
        rows.setdefault((key.top_k, names.method(key)), {})[column] = cell
    heads = [f"{model}: {task}" if names.several_models else task for model, task in columns]
    lines = [
        [str(top_k), escaped(method), *(own.get(column, "") for column in columns)]
        for (top_k, method), own in sorted(rows.items(), key=lambda each: each[0][0])
    ]
    return markdown_table(["K", "method", *map(escaped, heads)], lines)


def _interval(change: PairedDelta | MeanChange | None) -> str:
    """A change in points and its interval; empty for None."""
    if change is None:
        return ""
    return f"{change.delta:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


def _percent(change: RelativeChange | None) -> str:
    if change is None or math.isnan(change.change):
        return ""
    bounds = "" if math.isnan(change.low) else f" [{change.low:+.1f}, {change.high:+.1f}]"
    return f"{change.change:+.1f}{bounds}"
