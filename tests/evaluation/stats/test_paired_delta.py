"""Statistics: numbers worked out by hand, scipy as an independent oracle, and properties."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronllm_eval.evaluation.stats.paired_delta import (
    MAX_TYPES,
    PairedDelta,
    paired_delta,
    percent_change,
)

Docs = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


def proxied_docs(
    n_questions: int, seed: int, *, p_unmasked: float = 0.6, p_condition: float = 0.5
) -> Docs:
    """Right or wrong answers of 1 to 5 correlated docs per question: unmasked, condition, index."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(n_questions), rng.integers(1, 6, size=n_questions))
    shared = rng.normal(size=n_questions)[index]

    def answers(p: float) -> NDArray[Any]:
        noise = rng.normal(size=index.size)
        return np.asarray(shared + noise < math.sqrt(2) * scipy.stats.norm.ppf(p), dtype=np.int64)

    return answers(p_unmasked), answers(p_condition), index


def question_differences(docs: Docs) -> tuple[NDArray[Any], NDArray[Any]]:
    unmasked, condition, index = docs
    labels = np.unique(index)
    sums = [np.sum(condition[index == q] - unmasked[index == q]) for q in labels]
    return np.array(sums), np.array([np.sum(index == q) for q in labels])


@st.composite
def docs_strategy(draw: st.DrawFn) -> Docs:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=25))
    n_docs = sum(sizes)
    answers = st.lists(st.integers(0, 1), min_size=n_docs, max_size=n_docs)
    index = np.repeat(np.arange(len(sizes)), sizes)
    return np.array(draw(answers)), np.array(draw(answers)), index


# paired_delta: by hand


def test_unequal_numbers_of_docs_are_weighted_by_doc() -> None:
    # Question 0 loses both of 2 docs, question 1 wins its only doc.
    # Unmasked 2/3, condition 1/3, delta (-2 + 1) / 3; the mean over question means would be 0.
    # Two questions drawn: (0, 0) -> -4/4 and (1, 1) -> 2/2 with chance 1/4 each, mixed -> -1/3.
    # Signs: |+-2 +-1| is 1 or 3, always at least the observed 1.
    result = paired_delta([1, 1, 0], [0, 0, 1], [0, 0, 1])
    expected = PairedDelta(
        unmasked=200 / 3,
        condition=100 / 3,
        delta=-100 / 3,
        low=-100.0,
        high=100.0,
        p_value=1.0,
        n_docs=3,
        n_questions=2,
    )
    assert dataclasses.astuple(result) == pytest.approx(dataclasses.astuple(expected))


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1], 1.0),  # one question: both signs reach 1
        ([2, 1, 1], 2 / 8),  # 4 is reached by +++ and --- only
        ([3, 1, -1], 6 / 8),  # 3 + {2, 0, 0, -2}: 5, 3, 3 reach 3, and their negatives
        ([1, 1, 1, 1, 1, 0, 0], 2 / 32),  # questions without a difference do not count
        ([-1] * 12, 2 / 4096),  # the largest case that is enumerated
        ([1, -1], 1.0),  # sum 0: always reached
    ],
)
def test_exact_p_value(differences: list[int], p_value: float) -> None:
    # A question of 3 docs whose difference is d: |d| docs change, in the direction of d.
    unmasked = np.concatenate([np.arange(3) < max(0, -d) for d in differences])
    condition = np.concatenate([np.arange(3) < max(0, d) for d in differences])
    index = np.repeat(np.arange(len(differences)), 3)
    assert paired_delta(unmasked, condition, index).p_value == pytest.approx(p_value, abs=1e-15)


@pytest.mark.parametrize("seed", range(30))
def test_rounding_neither_loses_nor_invents_ties(seed: int) -> None:
    # 12 confidences that all rose: only the pattern observed and its mirror reach the sum,
    # however small a rise is and in whatever order the sum is rounded.
    rises = np.random.default_rng(seed).uniform(size=12)
    result = paired_delta(np.zeros(12), rises, np.arange(12), n_resamples=10)
    assert result.p_value == pytest.approx(2 / 4096, abs=1e-15)


def test_no_difference_gives_zero_interval_and_p_one() -> None:
    answers = [1, 0, 0, 1, 1]
    assert paired_delta(answers, answers, [0, 0, 1, 1, 2]) == PairedDelta(
        unmasked=60.0,
        condition=60.0,
        delta=0.0,
        low=0.0,
        high=0.0,
        p_value=1.0,
        n_docs=5,
        n_questions=3,
    )


def test_questions_not_docs_are_resampled() -> None:
    # 20 questions, half gained and half lost. Copying every doc 9 times adds no information, so
    # the interval stays about +-44 points (1.96 / sqrt(20)); by doc it would shrink to +-15.
    unmasked = np.repeat([0, 1], 10)
    once = paired_delta(unmasked, 1 - unmasked, np.arange(20))
    copied = np.repeat(unmasked, 9)
    nine = paired_delta(copied, 1 - copied, np.repeat(np.arange(20), 9))
    assert [nine.low, nine.high] == pytest.approx([once.low, once.high])
    assert nine.p_value == once.p_value
    assert once.high == pytest.approx(100 * 1.96 / math.sqrt(20), abs=6)


def test_booleans_and_confidences_are_accepted() -> None:
    # (0.25 + 0.5) / 2 = 37.5%, (0.75 + 0.5) / 2 = 62.5%
    result = paired_delta(np.array([0.25, 0.5]), np.array([0.75, 0.5]), [0, 1])
    assert (result.unmasked, result.condition, result.delta) == (37.5, 62.5, 25.0)
    assert paired_delta(np.array([True, False]), np.array([True, True]), [0, 1]).delta == 50.0


# paired_delta: independent oracles


def scipy_interval(differences: NDArray[Any], counts: NDArray[Any]) -> tuple[float, float]:
    interval = scipy.stats.bootstrap(
        (differences, counts),
        lambda d, n, axis=-1: 100 * d.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        batch=2_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def scipy_p(differences: NDArray[Any], n_resamples: float) -> float:
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


@pytest.mark.parametrize("n_questions", [12, 60, 200])
def test_interval_agrees_with_scipy_bootstrap(n_questions: int) -> None:
    docs = proxied_docs(n_questions, seed=n_questions)
    result = paired_delta(*docs, n_resamples=20_000)
    low, high = scipy_interval(*question_differences(docs))
    assert result.low == pytest.approx(low, abs=0.05 * (high - low))
    assert result.high == pytest.approx(high, abs=0.05 * (high - low))


def test_many_distinct_questions_agree_with_scipy() -> None:
    # Confidences make every question's difference distinct: the path that draws indices.
    rng = np.random.default_rng(8)
    index = np.repeat(np.arange(150), rng.integers(1, 5, size=150))
    unmasked = rng.uniform(0, 0.9, size=index.size)
    condition = unmasked + rng.uniform(-0.1, 0.12, size=index.size).clip(-unmasked, None)
    differences, counts = question_differences((unmasked, condition, index))
    assert len(np.unique(differences)) > MAX_TYPES
    result = paired_delta(unmasked, condition, index, n_resamples=20_000)
    low, high = scipy_interval(differences, counts)
    assert result.low == pytest.approx(low, abs=0.05 * (high - low))
    assert result.high == pytest.approx(high, abs=0.05 * (high - low))
    assert result.p_value == pytest.approx(scipy_p(differences, 20_000), abs=0.015)
    swapped = paired_delta(condition, unmasked, index, n_resamples=20_000)
    assert [swapped.low, swapped.high] == pytest.approx([-result.high, -result.low])


@pytest.mark.parametrize("seed", range(4))
def test_exact_p_agrees_with_scipy_permutation_test(seed: int) -> None:
    docs = proxied_docs(10, seed=seed)
    expected = scipy_p(question_differences(docs)[0], np.inf)
    assert paired_delta(*docs).p_value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_p_of_many_questions_agrees_with_scipy_permutation_test(seed: int) -> None:
    docs = proxied_docs(60, seed=seed)
    differences = question_differences(docs)[0]
    assert paired_delta(*docs).p_value == pytest.approx(scipy_p(differences, 20_000), abs=0.02)


# paired_delta: properties


@given(docs_strategy())
@settings(max_examples=60, deadline=None)
def test_point_estimates_are_the_means_over_docs(docs: Docs) -> None:
    unmasked, condition, index = docs
    result = paired_delta(*docs, n_resamples=200)
    assert result.unmasked == pytest.approx(100 * np.mean(unmasked), abs=1e-12)
    assert result.condition == pytest.approx(100 * np.mean(condition), abs=1e-12)
    assert result.delta == pytest.approx(result.condition - result.unmasked, abs=1e-12)
    assert -100 <= result.low <= result.high <= 100
    assert 0 < result.p_value <= 1
    assert (result.n_docs, result.n_questions) == (index.size, index.max() + 1)


@given(docs_strategy())
@settings(max_examples=60, deadline=None)
def test_swapping_the_runs_flips_delta_and_interval(docs: Docs) -> None:
    unmasked, condition, index = docs
    one = paired_delta(unmasked, condition, index, n_resamples=200)
    two = paired_delta(condition, unmasked, index, n_resamples=200)
    assert two.delta == -one.delta
    assert two.low == pytest.approx(-one.high, abs=1e-9)
    assert two.high == pytest.approx(-one.low, abs=1e-9)
    assert two.p_value == one.p_value


@given(docs_strategy(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_docs_does_not_matter(docs: Docs, random: Any) -> None:
    order = list(range(docs[2].size))
    random.shuffle(order)
    unmasked, condition, index = (column[order] for column in docs)
    shuffled = paired_delta(unmasked, condition, index, n_resamples=200)
    assert shuffled == paired_delta(*docs, n_resamples=200)


@given(docs_strategy())
@settings(max_examples=40, deadline=None)
def test_labels_only_need_to_keep_their_order(docs: Docs) -> None:
    unmasked, condition, index = docs
    relabelled = paired_delta(unmasked, condition, 1000 * index - 7, n_resamples=200)
    assert relabelled == paired_delta(*docs, n_resamples=200)


@given(st.integers(5, 60), st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_interval_contains_the_estimate(n_gained: int, surplus: int, seed: int) -> None:
    # One doc per question, almost as many lost as gained: near-symmetrical, never degenerate.
    unmasked = np.repeat([0, 1], [n_gained + surplus, n_gained])
    index = np.arange(unmasked.size)
    result = paired_delta(unmasked, 1 - unmasked, index, n_resamples=1_000, seed=seed)
    assert result.low < result.delta < result.high


def test_a_seed_fixes_the_draws_and_another_changes_them() -> None:
    docs = proxied_docs(80, seed=2)
    results = [paired_delta(*docs, n_resamples=500, seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 50 questions of 1 to 5 correlated docs; true accuracies 60% and 50%, so the truth is -10.
    # Standard error of the rate over 400 trials is 1.1 points; percentile intervals run short.
    n_covered = 0
    for seed in range(400):
        result = paired_delta(*proxied_docs(50, seed=seed), n_resamples=400, seed=seed)
        n_covered += result.low <= -10.0 <= result.high
    assert 0.90 <= n_covered / 400 <= 0.98


def test_p_value_is_calibrated_without_an_effect() -> None:
    # Standard error of the rate over 400 trials is 1.1 points.
    n_rejected = 0
    for seed in range(400):
        docs = proxied_docs(50, seed=seed, p_unmasked=0.55, p_condition=0.55)
        n_rejected += paired_delta(*docs, n_resamples=400, seed=seed).p_value <= 0.05
    assert n_rejected / 400 <= 0.09


def test_ten_thousand_resamples_of_600_questions_are_quick() -> None:
    docs = proxied_docs(600, seed=0)
    start = time.perf_counter()
    paired_delta(*docs)
    assert time.perf_counter() - start < 2.0  # about 0.03 s on one core


@pytest.mark.parametrize("distinct", [False, True])
def test_memory_is_bounded(distinct: bool) -> None:
    # 3,000 questions x 5,000 resamples at once would be 120 MB for a single float64 array.
    rng = np.random.default_rng(0)
    unmasked, condition = rng.uniform(size=(2, 3_000))
    if not distinct:
        unmasked, condition = unmasked.round(), condition.round()
    tracemalloc.start()
    paired_delta(unmasked, condition, np.arange(3_000), n_resamples=5_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_one_question_has_no_width_and_no_evidence() -> None:
    result = paired_delta([1, 1, 1], [0, 0, 0], [7, 7, 7])
    assert (result.delta, result.low, result.high, result.p_value) == (-100, -100, -100, 1.0)
    assert result.n_questions == 1


@pytest.mark.parametrize("answer", [0, 1])
def test_all_docs_right_or_all_wrong_in_both_runs(answer: int) -> None:
    answers = np.full(6, answer)
    result = paired_delta(answers, answers, np.repeat([0, 1, 2], 2))
    assert (result.delta, result.low, result.high, result.p_value) == (0, 0, 0, 1)


# percent_change


def test_rac_and_rcc_are_changes_in_percent() -> None:
    assert percent_change(80.0, 60.0) == pytest.approx(-25.0)  # -20 / 80
    assert percent_change(0.4, 0.5) == pytest.approx(25.0)  # 0.1 / 0.4
    assert percent_change(0.3, 0.3) == 0.0
    assert math.isnan(percent_change(0.0, 0.5))
