"""Methods side by side as tables and as JSON: by model, task, method and number of neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neuronllm_eval.compared import Compared, Key
from neuronllm_eval.comparison_names import Names
from neuronllm_eval.evidence import p_text
from neuronllm_eval.markdown_text import escaped
from neuronllm_eval.method_effects import (
    PAPERS,
    SWAPPED,
    Difference,
    Effect,
    differences,
    effect,
    groups,
    reference,
)
from neuronllm_eval.report import markdown_table
from neuronllm_eval.statistics import MeanChange, PairedDelta, RelativeChange

SHOWN = ("suppress_good", "suppress_bad", "enhance_good", "enhance_bad", "degrade", "enhance")
_LEAD = ("model", "task", "K", "method", "good, bad", "runs")


@dataclass(frozen=True)
class Comparison:
    """What is shown of runs.

    Attributes:
        effects: a method's repeats together.
        single: every run by itself.
        differences: of methods to the one they are held against.
    """

    effects: tuple[Effect, ...]
    single: tuple[Effect, ...]
    differences: tuple[Difference, ...]


def compare(
    found: Sequence[Compared],
    against: str | None = None,
    n_resamples: int = 10_000,
    progress: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compute what is shown of runs.

    Args:
        found: what `compared_runs.read_compared` gives.
        against: the method that others are held against (`method_effects.reference`).
        n_resamples: draws of the bootstrap.
        progress: is called after each of `found`.

    Raises:
        UsageError: as `reference`.
    """
    held = reference(found, against)  # refuses first
    differing = differences(found, held, n_resamples) if held else []
    single: dict[int, Effect] = {}
    for each in found:
        single[id(each)] = effect([each], n_resamples)
        progress()
    pooled = (
        single[id(own[0])] if len(own) == 1 else effect(own, n_resamples)
        for own in groups(found).values()
    )
    return Comparison(
        tuple(each for each in pooled if each.accuracy),
        tuple(single.values()),
        tuple(differing),
    )


def delta_table(found: Comparison) -> str:
    """Accuracy deltas in points with their intervals; of several runs, pooled."""
    effects, names = found.effects, _names(found)
    shown = [name for name in (*SHOWN, SWAPPED) if any(name in each.accuracy for each in effects)]
    rows = [
        [
            *_lead_cells(names, each),
            f"{each.unmasked:.1f}",
            *(_interval(each.accuracy.get(name)) for name in shown),
        ]
        for each in effects
    ]
    heads = [*_LEAD, "unmasked", *(name.replace("_", " ") for name in shown)]
    return markdown_table(heads, rows)


def overview(found: Comparison) -> str:
    """Enhance minus degrade in points, with intervals: one column per model, task and split."""
    names = _names(found)
    cells = {each.key: _interval(each.accuracy.get(SWAPPED)) for each in found.effects}
    return _wide(names, cells)


def difference_table(found: Comparison) -> str:
    """Enhance minus degrade less that of the method they are held against, in points."""
    names, n_repeats = _names(found), {each.key: len(each.seeds) for each in found.effects}

    def cell(each: Difference) -> str:
        seeds = f" ({len(each.seeds)} of {n_repeats[each.key]} seeds)"
        fewer = len(each.seeds) < n_repeats.get(each.key, 0)
        return f"{_interval(each.change)} p {p_text(each.corrected_p)}{seeds if fewer else ''}"

    return _wide(names, {each.key: cell(each) for each in found.differences})


def against_text(found: Comparison) -> str:
    """What the methods are held against; empty if nothing is."""
    names = _names(found)
    return " or ".join(dict.fromkeys(names.method(each.against) for each in found.differences))


def unpaired(found: Comparison) -> list[str]:
    """Methods that are held against none, though there are several; task and K with each."""
    paired = {key for each in found.differences for key in (each.key, each.against)}
    variants = {(each.key.method, each.key.settings) for each in found.effects}
    names = _names(found)
    return [
        f"{names.method(each.key)} ({names.task(each.key)}, K {each.key.top_k})"
        for each in found.effects
        if len(variants) > 1 and each.key not in paired and SWAPPED in each.accuracy
    ]


def relative_table(found: Comparison) -> str:
    """RAC and RCC of degrade and enhance in percent, as the paper lays its table out."""
    names = _names(found)
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


def _names(found: Comparison) -> Names:
    return Names([each.key for each in found.effects])


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


def as_json(found: Comparison, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of `comparison.json`.

    Args:
        found: what `compare` gives.
        seconds: by stage, what it took; one pass finds the neurons of all methods it names.
    """
    return {
        "rows": [
            {
                **_row(each),
                "seed": each.seeds[0],
                "n_good": each.n_good[0],
                "n_bad": each.n_bad[0],
            }
            for each in found.single
        ],
        "pooled": [
            {
                **_row(each),
                "seeds": list(each.seeds),
                "n_good": list(each.n_good),
                "n_bad": list(each.n_bad),
            }
            for each in found.effects
        ],
        "differences": [
            {
                **_named(each.key),
                "against": _named(each.against),
                "seeds": list(each.seeds),
                **asdict(each.change),
                "p_holm": each.corrected_p,
            }
            for each in found.differences
        ],
        "seconds": seconds,
    }


def _named(key: Key) -> dict[str, Any]:
    model, weights = key.model
    return {
        **key._asdict(),
        "model": model,
        "model_hash": weights,
        "terms": dict(key.terms),
        "settings": dict(key.settings),
    }


def _row(each: Effect) -> dict[str, Any]:
    relative = {
        name: {
            measure + ending: _number(getattr(changes[name], part))
            for measure, changes in (("rac", each.rac), ("rcc", each.rcc))
            for ending, part in (("", "change"), ("_low", "low"), ("_high", "high"))
        }
        for name in each.rac
    }
    measures = {
        measure: {name: asdict(delta) for name, delta in getattr(each, measure).items()}
        for measure in ("accuracy", "confidence")
    }
    return {**_named(each.key), **measures, "relative": relative}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
