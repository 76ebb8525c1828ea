"""McNemar's exact test: by hand, against scipy, and beside the test by question."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronllm_eval.evaluation.stats.paired_delta import paired_delta
from neuronllm_eval.evaluation.stats.significance import McNemar, mcnemar


@pytest.mark.parametrize(
    ("n_gained", "n_lost", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (0, 6, 2 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 1.0),  # 2 * 0.623 is above 1
        (4, 3, 1.0),
        (3, 13, 2 * (1 + 16 + 120 + 560) / 65536),
    ],
)
def test_mcnemar_by_hand(n_gained: int, n_lost: int, p_value: float) -> None:
    # Besides those that changed, 3 docs are right and 2 wrong in both runs.
    unmasked = np.repeat([0, 1, 1, 0], [n_gained, n_lost, 3, 2])
    condition = np.repeat([1, 0, 1, 0], [n_gained, n_lost, 3, 2])
    found = mcnemar(unmasked, condition)
    assert (found.n_gained, found.n_lost) == (n_gained, n_lost)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_mcnemar_agrees_with_scipy(n_gained: int, n_lost: int) -> None:
    unmasked = np.repeat([0, 1, 1], [n_gained, n_lost, 5])
    condition = np.repeat([1, 0, 1], [n_gained, n_lost, 5])
    n_changed = n_gained + n_lost
    expected = scipy.stats.binomtest(n_lost, n_changed, 0.5).pvalue if n_changed else 1.0
    found = mcnemar(unmasked, condition)
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert mcnemar(condition, unmasked) == McNemar(n_lost, n_gained, found.p_value)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_of_one_doc_per_question_both_tests_are_the_same(docs: list[tuple[int, int]]) -> None:
    unmasked, condition = np.array(docs).T
    by_question = paired_delta(unmasked, condition, np.arange(len(docs)), n_resamples=10)
    assert mcnemar(unmasked, condition).p_value == pytest.approx(by_question.p_value, rel=1e-9)


def test_mcnemar_overstates_what_copies_of_a_question_show() -> None:
    # 5 questions lost, 3 docs each: by doc 2 / 2**15, by question 2 / 2**5.
    unmasked, condition, index = np.ones(15), np.zeros(15), np.repeat(np.arange(5), 3)
    assert mcnemar(unmasked, condition).p_value == pytest.approx(2 / 2**15)
    assert paired_delta(unmasked, condition, index).p_value == pytest.approx(2 / 2**5)


def test_without_an_effect_only_the_test_by_question_keeps_its_level() -> None:
    # 60 questions of 3 docs; a question moves up or down with equal chance, most docs with it.
    # At 5%, standard error 1.1 points over 400 trials, by doc about four times as often as it says.
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(60), 3)
    alarms = np.zeros(2)
    for _ in range(400):
        direction = rng.choice([-1, 0, 0, 1], size=60)[index]
        change = direction * (rng.uniform(size=180) < 0.8)
        unmasked, condition = change < 0, change > 0
        by_doc = mcnemar(unmasked, condition).p_value
        by_question = paired_delta(unmasked, condition, index, n_resamples=1).p_value
        alarms += by_doc <= 0.05, by_question <= 0.05
    assert alarms[0] / 400 > 0.12
    assert alarms[1] / 400 < 0.08


def test_mcnemar_of_a_whole_benchmark_is_above_0() -> None:
    assert 0 < mcnemar(np.ones(5000), np.zeros(5000)).p_value < 1e-300
