"""Confidence and predictions: by hand, against scipy, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.evaluation.stats.confidence import predictions, softmax_confidence
from tests.refusals import assert_refused


def test_softmax_confidence_by_hand() -> None:
    # Log-likelihoods log 1, log 2, log 5 shifted by -1000: 1/8, 2/8, 5/8
    options = np.log([1.0, 2.0, 5.0]) - 1000.0
    np.testing.assert_allclose(softmax_confidence([options] * 3, [0, 1, 2]), [1 / 8, 2 / 8, 5 / 8])
    assert float(softmax_confidence(options, 2)) == pytest.approx(5 / 8)
    grid = softmax_confidence(np.zeros((2, 3, 4)), np.full((2, 3), 3))
    np.testing.assert_allclose(grid, np.full((2, 3), 0.25))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
def test_softmax_confidence_sums_to_one_and_agrees_with_scipy(options: list[float]) -> None:
    n_options = len(options)
    confidence = softmax_confidence([options] * n_options, np.arange(n_options))
    assert confidence.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(confidence, scipy.special.softmax(options), rtol=1e-9, atol=1e-300)


def test_predictions_take_the_first_of_equals() -> None:
    np.testing.assert_array_equal(predictions([[-2, -1, -1], [-3, -3, -3]]), [1, 0])
    assert int(predictions([-5.0, -4.0])) == 1


ERRORS: list[tuple[Callable[[], object], list[str]]] = [
    (
        lambda: softmax_confidence([[0.0, 1.0]], [2]),
        ["gold holds 2.", "Expected: 0 to 1, as there are 2 options.", "counts from 0"],
    ),
    (
        lambda: softmax_confidence([[0.0, 1.0]], [-1]),
        ["gold holds -1."],
    ),
    (
        lambda: softmax_confidence([[0.0, 1.0]], [0, 1]),
        ["gold has shape (2,), loglikelihoods (1, 2).", "Expected: gold of shape (1,)"],
    ),
    (
        lambda: softmax_confidence([[0.0, 1.0]], [0.0]),
        ["gold has dtype float64.", "Expected: integers."],
    ),
    (
        lambda: predictions(0.5),
        ["loglikelihoods is a single number.", "Expected: an array of shape [..., options]."],
    ),
    (
        lambda: predictions([[0.0, -math.inf]]),
        ["loglikelihoods holds 1 non-finite value(s), first -inf at position 1."],
    ),
]


@pytest.mark.parametrize(("call", "parts"), ERRORS)
def test_errors(call: Callable[[], object], parts: list[str]) -> None:
    assert_refused(call, parts)
