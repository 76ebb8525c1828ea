"""The points of a sweep: which, by what name, over which neurons; and lists that make none."""

from __future__ import annotations

import numpy as np
import pytest

from neuronllm_eval.errors import UsageError
from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import CONDITIONS, Scales, condition_scales
from tests.fixtures.harness import many_neurons, neuron_set

ALL = (0.0, 0.5, 1.0, 1.5, 2.0, 4.0)


def points(conditions, counts, *scales, default=None):
    return Sweep((), scales).points(conditions, default or Scales(), counts)


def test_each_condition_takes_the_factors_on_its_side():
    assert points(("suppress_good", "enhance_bad"), (3, 9), *ALL) == (
        "suppress_good.k3.x0",
        "suppress_good.k3.x0.5",
        "suppress_good.k9.x0.5",  # k9.x0 is suppress_good itself
        "enhance_bad.k3.x1.5",
        "enhance_bad.k3.x2",
        "enhance_bad.k3.x4",
        "enhance_bad.k9.x1.5",  # k9.x2 is enhance_bad itself
        "enhance_bad.k9.x4",
    )


def test_conditions_of_two_operations_are_swept_over_numbers():
    assert points(("degrade", "enhance"), (3, 9), *ALL) == ("degrade.k3", "enhance.k3")
    assert points(("degrade",), (9,), *ALL) == ()


def test_without_factors_the_runs_own_are_used():
    assert points(("suppress_bad", "enhance_good"), (3, 9), default=Scales(0.25, 3.0)) == (
        "suppress_bad.k3.x0.25",
        "enhance_good.k3.x3",
    )
    # As for a condition that none of the factors is for.
    assert points(("suppress_bad", "enhance_good"), (3, 9), 0.5) == (
        "suppress_bad.k3.x0.5",
        "suppress_bad.k9.x0.5",
        "enhance_good.k3.x2",
    )


def test_the_plain_condition_is_the_point_at_the_runs_own_factor():
    found = points(("suppress_good",), (9,), 0.0, 0.5, default=Scales(suppress=0.5))
    assert found == ("suppress_good.k9.x0",)


def test_unmasked_points_and_controls_are_not_swept():
    given = ("unmasked", "degrade.random_1", "degrade.k2", "suppress_bad", "suppress_bad")
    assert points(given, (3, 9), 0.0) == ("suppress_bad.k3.x0",)


def test_without_lists_there_is_no_point():
    assert points(CONDITIONS, (9,)) == ()
    assert ConditionPlan().over(many_neurons()) == (many_neurons(), ConditionPlan())


def test_counts_and_shares_of_neurons():
    neurons = many_neurons()  # of 96
    assert Sweep().counts(neurons) == (neurons.top_k,)
    assert Sweep((4.0, 1.0)).counts(neurons) == (1, 4)
    # 1% of 96 neurons is 1, as is 1.4%; 4% are 4.
    assert Sweep((0.04, 0.01, 0.014)).counts(neurons) == (1, 4)


def test_the_largest_number_is_that_of_the_plain_conditions():
    neurons = many_neurons()
    judged, plan = ConditionPlan(("suppress_good",), 1, sweep=Sweep((3.0, 2.0), (0.5,))).over(
        neurons
    )
    assert judged == neurons.top(3)
    assert plan.names == (
        "unmasked",
        "suppress_good",
        "suppress_good.k2.x0.5",
        "suppress_good.k3.x0.5",
        "suppress_good.random_0",
        "suppress_good.k2.x0.5.random_0",
        "suppress_good.k3.x0.5.random_0",
    )


def test_a_sweeps_factors_are_those_of_each_condition_alone():
    neurons = many_neurons()
    sweep = Sweep((2.0, 3.0, 5.0), (0.0, 0.3, 1.5, 4.0))
    judged, plan = ConditionPlan(n_random=2, seed=4, sweep=sweep).over(neurons)
    found = dict(zip(plan.names, plan.factors(judged), strict=True))
    # 4 conditions x 3 numbers x 2 factors, of which suppress_*.k5.x0 are plain; the enhancing ones
    # have their own factor 2 besides; 2 conditions x 2 smaller numbers.
    n_points = 24 - 2 + 4
    assert len(found) == 1 + (6 + n_points) * 3
    one = {}
    for top_k in (2, 3, 5):
        for suppress, enhance in ((0.0, 1.5), (0.3, 4.0), (0.0, 2.0)):
            alone = ConditionPlan(n_random=2, seed=4, scales=Scales(suppress, enhance))
            factors = alone.factors(neurons.top(top_k))
            for name, row in zip(alone.names, factors, strict=True):
                condition, dot, control = name.partition(".")
                factor = {"s": suppress, "e": enhance}[condition[0]] if "_" in condition else None
                plain = top_k == 5 and factor in (None, 0.0, 2.0)
                middle = (
                    "" if plain else f".k{top_k}" + (f".x{factor:g}" if "_" in condition else "")
                )
                if condition == "unmasked":
                    middle = ""
                elif factor is None and (suppress, enhance) != (0.0, 2.0):
                    continue
                one[condition + middle + dot + control] = row
    one = {name: row for name, row in one.items() if name in found}
    assert set(one) == set(found)
    for name, row in one.items():
        assert np.array_equal(found[name], row), name
        assert np.array_equal(found[name], condition_scales(judged, name)), name


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (((2.5,),), "top_k is 2.5.\nExpected: a count from 1, or a share of all neurons between 0 "
         "and 1.\nRemedy: check --top_k."),
        (((0.0,),), "top_k is 0.\nExpected: a count from 1"),
        (((-4.0,),), "top_k is -4."),
        (((float("inf"),),), "top_k is inf."),
        (((float("nan"),),), "top_k is nan."),
        (((3.0, 0.5),), "top_k holds shares and counts: 3, 0.5.\nExpected: shares of all neurons, "
         "each below 1, or counts."),
        (((3.0, 5.0, 3.0),), "top_k holds 3 more than once.\nExpected: every value once.\nRemedy: "
         "check --top_k."),
        (((), (0.5, 0.5, 2.0, 2.0)), "scale holds 0.5, 2 more than once."),
        (((), (0.5, -1.0)), "scale is -1.\nExpected: finite factors of 0 or more.\nRemedy: check "
         "--scale; --suppress_scale takes a negative one for all."),
        (((), (float("inf"),)), "scale is inf."),
        (((), (float("nan"),)), "scale is nan."),
        (((), (1.0,)), "scale holds 1 alone, which changes nothing."),
    ],
)  # fmt: skip
def test_lists_that_are_no_sweep(lists, message):
    with pytest.raises(UsageError) as refusal:
        Sweep(*lists)
    assert str(refusal.value).startswith(message)
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("conditions", "scales", "idle"),
    [
        (("suppress_good", "degrade"), (0.0, 1.5, 4.0), "1.5, 4"),
        (("enhance_bad",), (0.0, 1.0, 2.0), "0"),
        (("degrade", "enhance", "unmasked"), (0.5, 1.0), "0.5"),
    ],
)
def test_a_factor_that_no_condition_takes_is_refused(conditions, scales, idle):
    with pytest.raises(UsageError) as refusal:
        ConditionPlan(conditions, sweep=Sweep((), scales))
    assert str(refusal.value) == (
        f"no condition takes scale {idle}: {', '.join(conditions)}.\n"
        "Expected: a factor below 1 with suppress_good or suppress_bad, one above 1 with "
        "enhance_good or enhance_bad.\n"
        "Remedy: add such a condition to --conditions, or check --scale."
    )


def test_more_neurons_than_were_chosen():
    neurons = neuron_set(good=((0, 1), (1, 2)), bad=((1, 5),))
    with pytest.raises(UsageError) as refusal:
        ConditionPlan(sweep=Sweep((1.0, 50.0))).over(neurons)
    assert str(refusal.value) == (
        f"top_k=50 of a set selected with top_k={neurons.top_k}.\nExpected: 1 to {neurons.top_k}."
        "\nRemedy: check --top_k, or run `neuronllm-eval identify` with a larger --top_k."
    )
