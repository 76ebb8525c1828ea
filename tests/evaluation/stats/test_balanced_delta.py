"""Balanced accuracy: by hand, beside plain accuracy, and intervals that draw the labels too."""

from __future__ import annotations

import numpy as np
import pytest

from neuronllm_eval.evaluation.stats.balanced_delta import balanced_delta, balancing_weights
from neuronllm_eval.evaluation.stats.paired_delta import paired_delta


def test_by_hand():
    # Label 0: 2 of 3 before, 0 of 3 after; label 1: 0 of 1 before, 1 of 1 after.
    # Balanced: (2/3 + 0) / 2 before, (0 + 1) / 2 after; plain accuracy falls from 2/4 to 1/4.
    found = balanced_delta([1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 1])
    assert (found.unmasked, found.condition) == pytest.approx((100 / 3, 50.0))
    assert found.delta == pytest.approx(50 - 100 / 3)
    assert (found.n_docs, found.n_questions) == (4, 4)
    # Weighted changes -2/3, -2/3, 0 and 2: |sum| is 2/3; of 8 sign patterns all reach it.
    assert found.p_value == 1.0
    # Of draws of 4, 1 in 16 has only the first two docs, -1; 1 in 17 only the last two, both of
    # them, (0 + 1) / 2; more than that, 1, is the last doc alone, 1 in 256.
    assert (found.low, found.high) == (-100.0, 50.0)


def test_p_of_weighted_changes():
    # Weights 5/6 for three docs of label 0, 5/4 for two of label 1, all lost: only all signs alike
    # are as far from 0, 2 of 32 patterns.
    found = balanced_delta([1] * 5, [0] * 5, range(5), [0, 0, 0, 1, 1])
    assert balancing_weights([0, 0, 0, 1, 1]) == pytest.approx([5 / 6] * 3 + [5 / 4] * 2)
    assert (found.delta, found.low, found.high) == pytest.approx((-100, -100, -100))
    assert found.p_value == 2 / 32


def test_balanced_labels_give_accuracy():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 120))
    questions, labels = np.arange(120) // 3, np.arange(120) % 4
    plain = paired_delta(before, after, questions)
    found = balanced_delta(before, after, questions, labels)
    assert (balancing_weights(labels) == 1).all()
    for name in ("unmasked", "condition", "delta", "p_value", "n_docs", "n_questions"):
        assert getattr(found, name) == getattr(plain, name)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=3)


def test_one_answer_for_another_is_no_change_at_all():
    # Before, the model always says label 0, after always label 1. How often these are gold makes
    # accuracy uncertain, and balanced accuracy not: it is 50 in every draw of both labels.
    labels = np.arange(40) % 2
    found = balanced_delta(labels == 0, labels == 1, range(40), labels)
    assert (found.unmasked, found.condition, found.delta) == (50, 50, 0)
    assert (found.low, found.high, found.p_value) == (0, 0, 1)
    assert paired_delta(labels == 0, labels == 1, range(40)).high > 25


@pytest.mark.parametrize("n_docs", [30, 400])  # few kinds of questions, and many
def test_the_interval_is_that_of_drawing_questions(n_docs):
    rng = np.random.default_rng(1)
    before, after, labels = rng.integers(0, (2,) * n_docs, (3, n_docs))
    labels[: n_docs // 4] = 2
    weights = rng.integers(1, 1000, n_docs) if n_docs > 64 else np.ones(n_docs)
    before, after = before / weights, after / weights  # as many kinds as docs
    found = balanced_delta(before, after, range(n_docs), labels)

    def balanced(rows):
        change = (after - before)[rows]
        drawn = np.unique(labels[rows])
        return 100 * np.mean([change[labels[rows] == each].mean() for each in drawn])

    draws = [balanced(rng.integers(0, n_docs, n_docs)) for _ in range(1500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_swapping_the_runs_flips_the_signs():
    rng = np.random.default_rng(2)
    before, after, labels = rng.integers(0, 2, (3, 50))
    one = balanced_delta(before, after, range(50), labels)
    other = balanced_delta(after, before, range(50), labels)
    assert (other.delta, other.low, other.high) == pytest.approx((-one.delta, -one.high, -one.low))
    assert other.p_value == one.p_value
