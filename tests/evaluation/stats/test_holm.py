"""Holm's correction: by hand, as the closure of Bonferroni's test, and by properties."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronllm_eval.evaluation.stats.significance import holm


def closed_test(p_values: list[float]) -> list[float]:
    """Holm's p as the closure of Bonferroni's test: the largest over all sets with the test."""
    n_tests = range(len(p_values))
    sets = [chosen for size in n_tests for chosen in itertools.combinations(n_tests, size + 1)]
    return [
        max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if test in s)
        for test in n_tests
    ]


def test_holm_by_hand() -> None:
    # In order .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no smaller than those before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.5, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


chances = st.floats(1e-12, 1.0) | st.sampled_from([0.01, 0.05, 1.0])


@given(st.lists(chances, min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_holm_is_bonferroni_closed(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(closed_test(p_values), rel=1e-12)


@given(st.lists(chances, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float], random: Any) -> None:
    adjusted = dict(zip(p_values, holm(p_values), strict=True))
    in_order = [adjusted[p_value] for p_value in sorted(p_values)]
    assert in_order == sorted(in_order)
    assert all(p_value <= adjusted[p_value] <= 1 for p_value in p_values)
    assert adjusted[min(p_values)] == min(1.0, len(p_values) * min(p_values))  # Bonferroni's
    shuffled = random.sample(p_values, len(p_values))
    assert holm(shuffled) == [adjusted[p_value] for p_value in shuffled]


def test_holm_keeps_the_chance_of_any_false_alarm() -> None:
    # 6 tests without an effect: 5% of 2,000 families may alarm, with a standard error of 0.5.
    families = np.random.default_rng(0).uniform(1e-9, 1.0, size=(2_000, 6))
    n_alarms = sum(min(holm(family.tolist())) <= 0.05 for family in families)
    assert 0.03 <= n_alarms / 2_000 <= 0.065
