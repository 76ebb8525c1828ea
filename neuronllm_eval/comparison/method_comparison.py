"""Methods side by side, by model, task, method and number of neurons: what is shown. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neuronllm_eval.comparison.labels import Names
from neuronllm_eval.comparison.method_differences import Difference, differences, reference
from neuronllm_eval.comparison.method_effects import SWAPPED, Effect, Tested, effect, groups
from neuronllm_eval.comparison.method_runs import Compared, Key


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
                "edited": {name: asdict(own[0]) for name, own in each.edited.items()},
            }
            for each in found.single
        ],
        "pooled": [
            {
                **_row(each),
                "seeds": list(each.seeds),
                "n_good": list(each.n_good),
                "n_bad": list(each.n_bad),
                "edited": {name: list(map(asdict, own)) for name, own in each.edited.items()},
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
    tests = {name: _tests(own) for name, own in each.tests.items()}
    return {**_named(each.key), **measures, "tests": tests, "relative": relative}


def _tests(own: Tested) -> dict[str, Any]:
    return {
        "mcnemar": asdict(own.mcnemar),
        "corrected": asdict(own.corrected),
        "controls": None if own.controls is None else asdict(own.controls),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


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

    @property
    def names(self) -> Names:
        """What models, tasks and methods are called."""
        return Names([each.key for each in self.effects])


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
        tuple(each for each in pooled if each.edited),
        tuple(single.values()),
        tuple(differing),
    )


def against_text(found: Comparison) -> str:
    """What the methods are held against; empty if nothing is."""
    names = found.names
    return " or ".join(dict.fromkeys(names.method(each.against) for each in found.differences))


def unpaired(found: Comparison) -> list[str]:
    """Methods that are held against none, though there are several; task and K with each."""
    paired = {key for each in found.differences for key in (each.key, each.against)}
    variants = {(each.key.method, each.key.settings) for each in found.effects}
    names = found.names
    return [
        f"{names.method(each.key)} ({names.task(each.key)}, K {each.key.top_k})"
        for each in found.effects
        if len(variants) > 1 and each.key not in paired and SWAPPED in each.accuracy
    ]
