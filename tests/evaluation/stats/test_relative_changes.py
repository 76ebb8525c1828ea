"""RAC and RCC: by hand, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from neuronllm_eval.evaluation.stats.paired_delta import (
    relative_accuracy_change,
    relative_confidence_change,
)
from tests.refusals import assert_refused


@pytest.mark.parametrize("change", [relative_accuracy_change, relative_confidence_change])
def test_relative_change(change: Callable[[float, float], float]) -> None:
    assert change(80.0, 60.0) == pytest.approx(-25.0)  # -20 / 80
    assert change(0.4, 0.5) == pytest.approx(25.0)  # 0.1 / 0.4
    assert change(0.3, 0.3) == 0.0
    assert math.isnan(change(0.0, 0.5))


ERRORS: list[tuple[Callable[[], object], list[str]]] = [
    (
        lambda: relative_accuracy_change(-0.5, 0.5),
        ["unmasked_acc is -0.5.", "Expected: a fraction", "Remedy: pass unmasked_acc"],
    ),
    (
        lambda: relative_confidence_change(0.5, math.inf),
        ["condition_confidence holds 1 non-finite", "Expected: finite numbers."],
    ),
    (
        lambda: relative_accuracy_change(np.array([0.5, 0.6]), 0.5),  # type: ignore[arg-type]
        ["unmasked_acc has shape (2,).", "Expected: a single number.", "Remedy: pass the mean"],
    ),
]


@pytest.mark.parametrize(("call", "parts"), ERRORS)
def test_errors(call: Callable[[], object], parts: list[str]) -> None:
    assert_refused(call, parts)
