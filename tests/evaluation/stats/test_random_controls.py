"""The place among random controls: by hand, by properties, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.evaluation.stats.significance import ControlRank, random_control_rank
from neuronllm_eval.interventions.conditions import FEWEST_CONTROLS


def test_rank_below_the_controls() -> None:
    # Mean of -1, 0, 1, -4 is -1; -4 is below, and only the control at -4 is as low: (1+1)/(1+4)
    expected = ControlRank(
        mean=-1.0, low=-4.0, high=1.0, n_controls=4, n_as_extreme=1, p_value=2 / 5
    )
    assert random_control_rank(-4.0, [-1.0, 0.0, 1.0, -4.0]) == expected


def test_rank_above_the_controls_even_where_the_delta_is_negative() -> None:
    # Mean of -8, -6, -4 is -6; -5 is above it, and so is the control at -4: (1 + 1) / (1 + 3)
    rank = random_control_rank(-5.0, [-8.0, -6.0, -4.0])
    assert (rank.mean, rank.n_as_extreme, rank.p_value) == (-6.0, 1, 0.5)


def test_rank_beyond_all_controls_is_limited_by_their_number() -> None:
    rank = random_control_rank(-30.0, np.linspace(-1, 1, 19).tolist())
    assert [rank.n_as_extreme, rank.p_value] == pytest.approx([0, 1 / 20])


def test_rank_at_the_mean_has_no_side() -> None:
    rank = random_control_rank(0.0, [-1.0, 1.0])
    assert (rank.n_as_extreme, rank.p_value) == (2, 1.0)


def test_rank_without_controls_is_nan() -> None:
    rank = random_control_rank(-3.0, [])
    assert (rank.n_controls, rank.n_as_extreme) == (0, 0)
    assert all(math.isnan(x) for x in (rank.mean, rank.low, rank.high, rank.p_value))


# Quarters add without rounding, so that mirrored deltas have exactly mirrored means.
quarters = st.integers(-400, 400).map(lambda n: n / 4)


@given(quarters, st.lists(quarters, min_size=1, max_size=30))
def test_rank_is_symmetrical_and_in_range(delta: float, controls: list[float]) -> None:
    rank = random_control_rank(delta, controls)
    mirrored = random_control_rank(-delta, [-c for c in controls])
    assert rank.p_value == mirrored.p_value
    assert 1 / (1 + len(controls)) <= rank.p_value <= 1
    assert rank.low <= rank.mean <= rank.high


def test_an_expected_side_is_the_side_to_judge_on() -> None:
    # Expected to fall, but it rose further than all four controls: all of them fell more.
    rank = random_control_rank(4.0, [0.0, 0.5, -0.5, 1.0], expected_sign=-1)
    assert (rank.n_as_extreme, rank.p_value) == (4, 1.0)
    # As expected: none rose as far.
    rank = random_control_rank(4.0, [0.0, 0.5, -0.5, 1.0], expected_sign=1)
    assert (rank.n_as_extreme, rank.p_value) == (0, 0.2)


@given(st.lists(quarters, min_size=1, max_size=30), quarters, st.sampled_from([-1, 1]))
def test_the_place_is_that_in_a_sorted_list(controls: list[float], delta: float, sign: int) -> None:
    # Among all, the condition comes after its ties: the worst place that they allow.
    rank = random_control_rank(delta, controls, expected_sign=sign)
    everyone = sorted((sign * each for each in [*controls, delta]), reverse=True)
    place = len(everyone) - everyone[::-1].index(sign * delta)
    assert rank.p_value == place / len(everyone)
    shuffled = random_control_rank(delta, controls[::-1], expected_sign=sign)
    assert shuffled.p_value == rank.p_value


def test_fewest_controls_are_those_that_can_come_below_5_percent() -> None:
    beyond = [random_control_rank(9.0, [0.0] * n).p_value for n in (19, FEWEST_CONTROLS)]
    assert beyond[0] == 0.05 > beyond[1] == 1 / 21


def test_the_p_of_a_control_among_controls_is_uniform() -> None:
    # Of 21 exchangeable deltas each has the same chance of any place.
    deltas = np.random.default_rng(0).normal(size=(2_000, 21))
    p_values = [random_control_rank(own, others, -1).p_value for own, *others in deltas]
    share = np.mean(np.array(p_values) <= 1.5 / 21)  # first place: 1/21, standard error 0.005
    assert share == pytest.approx(1 / 21, abs=0.015)
