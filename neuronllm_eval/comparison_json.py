"""`comparison.json`. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from neuronllm_eval.compared import Key
from neuronllm_eval.comparison import Comparison
from neuronllm_eval.method_effects import Effect, Tested


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
