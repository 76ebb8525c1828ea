"""Accuracy against chance: by hand, and how often guessing is called above chance."""

from __future__ import annotations

import numpy as np
import pytest

from neuronllm_eval.evaluation.stats.significance import ALPHA, chance_test


@pytest.mark.parametrize(
    ("n_correct", "n_docs", "n_questions", "p_value"),
    [
        (3, 4, 4, 13 / 256),  # (4 * 3 + 1) / 4^4: three or four of four, each with 1/4
        (4, 4, 4, 1 / 256),
        (0, 4, 4, 1.0),
        (9, 12, 4, 13 / 256),  # three docs of each question: three of four questions
        (11, 12, 4, 13 / 256),  # 3.67 questions are rounded down
        (12, 12, 4, 1 / 256),
    ],
)
def test_by_hand_with_four_options(n_correct, n_docs, n_questions, p_value):
    correct = [1] * n_correct + [0] * (n_docs - n_correct)
    found = chance_test(correct, [4] * n_docs, n_questions)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)
    assert (found.accuracy, found.chance) == (n_correct / n_docs, 0.25)
    assert (found.n_questions, found.n_docs) == (n_questions, n_docs)
    assert found.is_at_chance == (p_value > 0.05)


def test_chance_is_the_mean_over_docs():
    # 1/2, 1/2, 1/4 and 1/4: chance 3/8; both of two questions: 9/64.
    found = chance_test([1, 1, 1, 1], [2, 2, 4, 4], 2)
    assert (found.chance, found.p_value) == (0.375, pytest.approx(9 / 64, rel=1e-12))


@pytest.mark.parametrize(
    ("n_options", "fewest"),
    [(4, 3), (2, 5)],  # (1/4)^2 = 1/16 and (1/2)^4 = 1/16 are above 0.05, the next powers are not
)
def test_nothing_is_said_where_no_accuracy_could_be_above_chance(n_options, fewest):
    for n_questions in range(1, 7):
        wrong = chance_test([0] * n_questions, [n_options] * n_questions, n_questions)
        right = chance_test([1] * n_questions, [n_options] * n_questions, n_questions)
        assert wrong.is_at_chance == (n_questions >= fewest)
        assert not right.is_at_chance


@pytest.mark.parametrize("together", [True, False])
def test_guessing_is_seldom_above_chance(together):
    """However a question's three docs depend on each other, and with 2 to 5 options."""
    random = np.random.default_rng(0)
    n_questions, n_trials, n_above = 40, 1000, 0
    options = np.repeat(random.integers(2, 6, n_questions), 3)
    for _ in range(n_trials):
        draws = random.random(3 * n_questions)
        if together:
            draws = np.repeat(draws[::3], 3)
        n_above += not chance_test(draws < 1 / options, options, n_questions).is_at_chance
    assert n_above <= ALPHA * n_trials
