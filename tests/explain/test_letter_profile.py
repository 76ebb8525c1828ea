"""The letter-bias index on attributions that are made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.explain.explanation import letter_bias, letter_profile

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("means", "index"),
    [
        ([2, 2, 2, 2], 0.0),  # helps whatever the letter
        ([-0.1, -0.1], 0.0),  # hurts whatever the letter
        ([3, -1, -1, -1], 1.0),  # helps one letter, hurts the others as much in sum
        ([1, -1], 1.0),
        ([1, 0, 0, 0], 0.75),  # 1 - (1/4)^2 / (1/4)
        ([3, 1, 1, 1], 1 - 1.5**2 / 3),
        ([1e-200, -1e-200], 1.0),  # whose squares are 0
    ],
)
def test_the_index(means, index):
    assert letter_bias(means) == pytest.approx(index, abs=1e-12)


@pytest.mark.parametrize("means", [[], [1.0], [0.0, 0.0]])
def test_where_it_is_not_defined(means):
    assert letter_bias(means) is None
    assert letter_profile(np.array(means), np.ones(len(means), dtype=np.int64)).reading == ""


@given(NUMBERS, st.floats(1e-3, 1e3))
def test_it_is_a_share_that_neither_size_sign_nor_order_changes(means, factor):
    index = letter_bias(means)
    if index is None:
        return
    assert 0 <= index <= 1
    for same in ([factor * each for each in means], [-each for each in means], means[::-1]):
        assert letter_bias(same) == pytest.approx(index, abs=1e-6)


def test_sums_are_divided_by_the_prompts_of_their_letter():
    # The same for each letter, though B is right in three times as many prompts, and C in none.
    profile = letter_profile(np.array([2.0, 6.0, 0.0]), np.array([1, 3, 0]))
    assert profile.means == (2.0, 2.0, None)
    assert profile.index == 0
    assert profile.reading == "content"
    assert letter_profile(np.array([2.0, -6.0]), np.array([1, 3])).reading == "letter"
