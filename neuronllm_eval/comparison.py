"""Methods side by side as tables and as JSON: by model, task, method and number of neurons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neuronllm_eval.compared_runs import Compared, Key
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
)
from neuronllm_eval.methods import ACE
from neuronllm_eval.report import markdown_table
from neuronllm_eval.statistics import RelativeChange

SHOWN = ("suppress_good", "suppress_bad", "enhance_good", "enhance_bad", "degrade", "enhance")
_LEAD = ("model", "task", "K", "method", "good, bad", "runs")


@dataclass(frozen=True)
class Comparison:
    """What is shown of runs.

    Attributes:
        effects: a method's repeats together.
        single: every run by itself.
        differences: of methods to the one they are held against.
        against: that method's name; empty if there is no other.
    """

    effects: tuple[Effect, ...]
    single: tuple[Effect, ...]
    differences: tuple[Difference, ...]
    against: str


def compare(
    found: Sequence[Compared],
    against: str | None = None,
    n_resamples: int = 10_000,
    progress: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compute what is shown of runs.

    Args:
        found: what `compared_runs.read_compared` gives.
        against: the method that others are held against; of the first run if not given, and ACE
            where that is among them.
        n_resamples: draws of the bootstrap.
        progress: is called after each of `found`.

    Raises:
        UsageError: no run is of the method `against`.
    """
    methods = list(dict.fromkeys(each.key.method for each in found))
    other = against or (ACE.name if ACE.name in methods else methods[0])
    by_key = groups(found)
    differing = differences(found, other, n_resamples)  # refuses first
    single: dict[int, Effect] = {}
    for each in found:
        single[id(each)] = effect([each], n_resamples)
        progress()
    return Comparison(
        tuple(
            single[id(own[0])] if len(own) == 1 else effect(own, n_resamples)
            for own in by_key.values()
        ),
        tuple(single.values()),
        tuple(differing),
        other if len(methods) > 1 or against else "",
    )


def delta_table(found: Comparison) -> str:
    """Accuracy deltas in points with their intervals; of several runs, pooled."""
    effects, names = found.effects, _Names(found)
    shown = [name for name in (*SHOWN, SWAPPED) if any(name in each.accuracy for each in effects)]
    rows = [
        [
            *names.lead(each),
            f"{next(iter(each.accuracy.values())).unmasked:.1f}",
            *(_interval(each.accuracy.get(name)) for name in shown),
        ]
        for each in effects
    ]
    heads = [*_LEAD, "unmasked", *(name.replace("_", " ") for name in shown)]
    return markdown_table(heads, rows)


def overview(found: Comparison) -> str:
    """Enhance minus degrade in points, with intervals: one column per model, task and split."""
    names = _Names(found)
    cells = {each.key: _interval(each.accuracy.get(SWAPPED)) for each in found.effects}
    return names.wide(cells)


def difference_table(found: Comparison) -> str:
    """Enhance minus degrade less that of the method they are held against, in points."""
    cells = {
        each.key: f"{_interval(each.change)} p {p_text(each.corrected_p)}"
        for each in found.differences
    }
    return _Names(found).wide(cells)


def relative_table(found: Comparison) -> str:
    """RAC and RCC of degrade and enhance in percent, as the paper lays its table out."""
    names = _Names(found)
    rows = [
        [
            *names.lead(each),
            *(_percent(measure.get(name)) for name in PAPERS for measure in (each.rac, each.rcc)),
        ]
        for each in found.effects
        if each.rac
    ]
    heads = [f"{name} {measure}" for name in PAPERS for measure in ("RAC %", "RCC %")]
    return markdown_table([*_LEAD, *heads], rows)


class _Names:
    """How rows and columns are called: in full where they could be taken for each other."""

    def __init__(self, found: Comparison) -> None:
        keys = [each.key for each in found.effects]
        self._several_models = len({key.model for key in keys}) > 1
        self._splits = _distinct(keys, lambda key: (key.model, key.task), lambda key: key.split)
        names = dict.fromkeys(name for key in keys for name, _ in key.settings)
        self._varying = [
            name
            for name in names
            if _distinct(
                keys,
                lambda key: (key.model, key.task),
                lambda key, name=name: dict(key.settings).get(name),  # type: ignore[misc]
            )
        ]
        self._hashes = _distinct(keys, lambda key: _short(key), lambda key: key.model)

    def model(self, key: Key) -> str:
        name = _short(key)
        return f"{name} ({key.model[1].rsplit(':', 1)[-1][:8]})" if name in self._hashes else name

    def task(self, key: Key) -> str:
        several = (key.model, key.task) in self._splits
        return f"{key.task} ({key.split})" if several else key.task

    def method(self, key: Key) -> str:
        settings = {} if key.method_args == "{}" else json.loads(key.method_args)
        of_run = dict(key.settings)
        settings |= {name: of_run.get(name, "") for name in self._varying}
        return " ".join([key.method, *(f"{name}={value}" for name, value in settings.items())])

    def lead(self, each: Effect) -> list[str]:
        """The first cells of a row."""
        key = each.key
        sizes = sorted({f"{g}, {b}" for g, b in zip(each.n_good, each.n_bad, strict=True)})
        cells = (self.model(key), self.task(key), str(key.top_k), self.method(key))
        return [escaped(cell) for cell in (*cells, " / ".join(sizes), str(len(each.seeds)))]

    def wide(self, cells: Mapping[Key, str]) -> str:
        """A table with a row for each K and method, a column for each model, task and split."""
        columns: dict[tuple[str, str], None] = {}
        rows: dict[tuple[int, str], dict[tuple[str, str], str]] = {}
        for key, cell in cells.items():
            column = (self.model(key), self.task(key))
            columns[column] = None
            rows.setdefault((key.top_k, self.method(key)), {})[column] = cell
        heads = [f"{model}: {task}" if self._several_models else task for model, task in columns]
        lines = [
            [str(top_k), escaped(method), *(own.get(column, "") for column in columns)]
            for (top_k, method), own in sorted(rows.items(), key=lambda each: each[0][0])
        ]
        return markdown_table(["K", "method", *map(escaped, heads)], lines)


def _short(key: Key) -> str:
    return key.model[0].rstrip("/").rsplit("/", 1)[-1]


def _distinct(
    keys: Sequence[Key], within: Callable[[Key], Any], value: Callable[[Key], Any]
) -> set[Any]:
    """The groups of keys, by `within`, that have several values."""
    by_group: dict[Any, set[Any]] = {}
    for key in keys:
        by_group.setdefault(within(key), set()).add(value(key))
    return {group for group, values in by_group.items() if len(values) > 1}


def _interval(change: Any) -> str:
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
        seconds: by stage, what it took here; stages that were finished before are not there.
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
        "settings": dict(key.settings),
        "method_args": json.loads(key.method_args),
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
