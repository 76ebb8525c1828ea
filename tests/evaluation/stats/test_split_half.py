"""Agreement of two halves: by hand, by properties, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.evaluation.stats.significance import (
    SplitHalf,
    split_half_stability,
    stability_of,
)


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 and 2 1 4 3: squared differences sum to 4, 1 - 6 * 4 / (4 * 15) = 0.6
    halves = split_half_stability([10, 20, 30, 40], [2, 1, 4, 3], 1)
    assert halves.rank_correlation == pytest.approx(0.6)
    assert split_half_stability([1, 2], [5, 3], 1).rank_correlation == pytest.approx(-1.0)


@pytest.mark.parametrize(("a", "b"), [([1, 1, 1], [1, 2, 3]), ([1, 2], [0, 0]), ([1], [2])])
def test_spearman_of_constant_input_is_nan_without_warning(a: list[int], b: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(split_half_stability(a, b, 1).rank_correlation)


def test_split_half_by_hand() -> None:
    # Neurons 2 and 5 are 0 in both halves and left out; neuron 6 is 0 in one and stays.
    # Neurons 0, 1, 3, 4, 6 rank 5 4 2 1 3 and 4 5 1 2 3: squared differences sum to 4,
    # 1 - 6 * 4 / (5 * 24) = 0.8.
    # Top 2: {0, 1} and bottom 2: {3, 4} in both halves; the first of each differs.
    first = [9, 5, 0, -1, -7, 0, 0]
    second = [6, 8, 0, -9, -2, 0, 1]
    two = split_half_stability(first, second, 2)
    assert two.rank_correlation == pytest.approx(0.8)
    assert (two.top_k_overlap, two.bottom_k_overlap) == (1.0, 1.0)
    one = split_half_stability(first, second, 1)
    assert (one.top_k_overlap, one.bottom_k_overlap) == (0.0, 0.0)


def test_split_half_breaks_ties_by_index() -> None:
    # Top 2: {0, 1} (0 before 2 by index) against {1, 2}. Bottom 2: {3, 0} against {3, 0}.
    result = split_half_stability([1, 2, 1, 0], [0, 5, 4, 0], 2)
    assert result.top_k_overlap == 0.5
    assert result.bottom_k_overlap == 1.0


def test_split_half_breaks_many_ties_as_a_stable_sort_does() -> None:
    first, second = np.random.default_rng(0).integers(-2, 3, size=(2, 1_000))
    k = 50

    def overlap(sign: int) -> float:
        ranked = [sorted(range(1_000), key=(sign * half).__getitem__) for half in (first, second)]
        return len(set(ranked[0][:k]) & set(ranked[1][:k])) / k

    result = split_half_stability(first, second, k)
    assert (result.top_k_overlap, result.bottom_k_overlap) == (overlap(-1), overlap(1))
    assert 0 < result.top_k_overlap < 1


def test_split_half_without_scored_neurons_is_nan() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = split_half_stability([0.0, 0.0], [0.0, 0.0], 1)
    assert math.isnan(result.rank_correlation)


scores = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=40)


@given(scores, st.data())
def test_split_half_properties(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    first, second = np.array(pairs).T
    k = data.draw(st.integers(1, first.size))
    same = split_half_stability(first, first, k)
    assert (same.top_k_overlap, same.bottom_k_overlap) == (1.0, 1.0)
    one, two = split_half_stability(first, second, k), split_half_stability(second, first, k)
    np.testing.assert_allclose(dataclasses.astuple(one), dataclasses.astuple(two), atol=1e-12)
    assert 0 <= one.top_k_overlap <= 1
    assert math.isnan(one.rank_correlation) or abs(one.rank_correlation) <= 1 + 1e-12


def test_halves_are_compared_over_as_many_neurons_as_both_have_of_each_sign() -> None:
    # Scored neurons [3 2 1 -1 0] and [6 4 0 -2 2]: ranks 5 4 3 1 2 and 5 4 2 1 3,
    # 1 - 6 * 2 / (5 * 24) = 0.9. Each half has one negative neuron: k is 1 at most.
    halves = np.zeros((2, 2, 4))
    halves[0, 0], halves[1, 0] = [3, 2, 1, -1], [6, 4, 0, -2]
    halves[1, 1, 0] = 2
    found = stability_of(halves, 9)
    assert (found.k, found.top_k_overlap, found.bottom_k_overlap) == (1, 1.0, 1.0)
    assert found.rank_correlation == pytest.approx(0.9)
    halves[:, 1, 1:] = -7, -8, -9
    # Now four negative ones, and three positive: 2 as asked, [3, 2] and [6, 4].
    assert dataclasses.replace(stability_of(halves, 2), rank_correlation=0.0) == SplitHalf(
        k=2, rank_correlation=0.0, top_k_overlap=1.0, bottom_k_overlap=1.0
    )
    assert stability_of(halves, 9).k == 3


def test_halves_without_any_score_agree_on_nothing() -> None:
    found = stability_of(np.zeros((2, 3, 4)), 5)
    for value in (found.rank_correlation, found.top_k_overlap, found.bottom_k_overlap):
        assert math.isnan(value)


def test_scores_without_a_sign_are_compared_at_one_end() -> None:
    # As of a method that knows no bad neurons: [5 4 3 0] and [5 0 4 3] share one of the first 2.
    found = stability_of([[[5.0, 4, 3, 0]], [[5.0, 0, 4, 3]]], 2)
    assert (found.k, found.top_k_overlap) == (2, 0.5)
    assert math.isnan(found.bottom_k_overlap)
