"""The paired permutation test: against all patterns of signs, scipy and the binomial."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronllm_eval.evaluation.stats.paired_delta import EXACT_QUESTIONS, sign_flip_p


def p_of(differences: Any, n_resamples: int = 1_000) -> float:
    return sign_flip_p(
        np.asarray(differences, dtype=np.float64), n_resamples, np.random.default_rng(0)
    )


def all_patterns(differences: list[int]) -> Fraction:
    """The share of all 2**n patterns of signs whose sum is at least as far from 0."""
    sizes = [abs(difference) for difference in differences]
    sums = [
        abs(sum(map(int.__mul__, signs, sizes)))
        for signs in itertools.product((-1, 1), repeat=len(sizes))
    ]
    return Fraction(sum(each >= abs(sum(differences)) for each in sums), len(sums))


def scipy_p(differences: NDArray[Any], n_resamples: int) -> float:
    return float(
        scipy.stats.permutation_test(
            (differences,),
            lambda d, axis=-1: d.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=n_resamples,
            batch=2_000,
            rng=np.random.default_rng(6),
        ).pvalue
    )


# Whole differences: every sum is counted ---------------------------------------------------------


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
@settings(max_examples=150, deadline=None)
def test_every_pattern_counts_once(differences: list[int]) -> None:
    assert p_of(differences) == pytest.approx(float(all_patterns(differences)), rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_one_doc_a_question_is_the_sign_test(n_gained: int, n_lost: int) -> None:
    # As scipy has it: equal chances of gain and loss among what changed.
    changed = max(1, n_gained + n_lost)
    expected = scipy.stats.binomtest(n_gained, changed, 0.5).pvalue if n_gained + n_lost else 1.0
    assert p_of([1] * n_gained + [-1] * n_lost + [0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_many_questions_agree_with_scipy(seed: int) -> None:
    # Its p is of 20,000 patterns: a standard error of at most 0.0035.
    differences = np.random.default_rng(seed).integers(-3, 4, size=80).astype(np.float64)
    assert p_of(differences) == pytest.approx(scipy_p(differences, 20_000), abs=0.015)


def test_far_tails_are_exact() -> None:
    # All 100 gained: + or - throughout, 2 / 2**100. Of 2 docs each, the same.
    assert p_of([1] * 100) == pytest.approx(2.0**-99, rel=1e-9)
    assert p_of([2] * 100) == pytest.approx(2.0**-99, rel=1e-9)
    # All but one of 60: 2 * (1 + 60) / 2**60.
    assert p_of([1] * 59 + [-1]) == pytest.approx(122 / 2.0**60, rel=1e-9)
    # 2 / 2**5000 is no float, but p is above 0.
    assert 0 < p_of([1] * 5000) < 1e-300


def test_nothing_changed() -> None:
    assert p_of([0.0]) == p_of([0, 0, 0]) == p_of([2, -2]) == 1.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_and_direction_do_not_matter(differences: list[int], random: Any) -> None:
    p_value = p_of(differences)
    shuffled = random.sample(differences, len(differences))
    assert p_of(shuffled) == p_value == p_of([-each for each in differences])
    assert p_of([*differences, 0, 0]) == p_value
    assert 0 < p_value <= 1


def test_a_whole_benchmark_is_quick() -> None:
    # 14,000 questions of 3 docs, half of them changed: about 0.05 s on one core.
    rng = np.random.default_rng(0)
    differences = rng.integers(-3, 4, size=14_000) * rng.integers(0, 2, size=14_000)
    start = time.perf_counter()
    p_value = p_of(differences)
    assert time.perf_counter() - start < 3.0
    spread = float(np.sqrt((differences**2).sum()))  # near enough to normal
    normal = 2 * scipy.stats.norm.sf(abs(differences.sum()) / spread)
    assert p_value == pytest.approx(normal, abs=0.01)


# Other differences: patterns are listed or drawn -------------------------------------------------


def test_halves_are_the_wholes_they_are_half_of() -> None:
    # 0.5, 1, -0.5 have the pattern of 1, 2, -1, though by the other path.
    assert p_of([0.5, 1.0, -0.5]) == pytest.approx(float(all_patterns([1, 2, -1])))
    rng = np.random.default_rng(3)
    differences = rng.integers(-3, 4, size=60)
    assert np.count_nonzero(differences) > EXACT_QUESTIONS
    # 1,000 patterns: a standard error of at most 0.016.
    assert p_of(differences * 0.25) == pytest.approx(p_of(differences), abs=0.07)


def test_a_sampled_p_is_never_0() -> None:
    # 100 confidences all rose: no sampled pattern reaches their sum, so (0 + 1) / (999 + 1).
    rises = np.random.default_rng(0).uniform(0.1, 0.9, size=100)
    assert p_of(rises, 999) == pytest.approx(1 / 1000)


@pytest.mark.parametrize("seed", range(3))
def test_sampled_patterns_agree_with_scipy(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.1, 1.0, size=60)
    assert p_of(differences, 20_000) == pytest.approx(scipy_p(differences, 20_000), abs=0.02)
