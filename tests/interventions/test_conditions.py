"""Every condition's factors on two layers of four neurons, by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    UNMASKED,
    ConditionName,
    Scales,
    condition_scales,
    control_name,
    factor_text,
    stack_factors,
)
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet
from neuronllm_eval.neurons.selection import random_like
from tests.fixtures.tiny_models import provenance

NEURONS = NeuronSet(
    n_layers=2,
    width=4,
    good=(Neuron(0, 1, 3.0), Neuron(1, 2, 1.0)),
    bad=(Neuron(1, 0, -2.0),),
    top_k=2,
    ambiguous="keep",
    provenance=provenance(),
)
# g marks the good neurons, b the bad one:   . g . .  /  b . g .
FACTORS = {
    "unmasked": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "suppress_good": [[1, 0, 1, 1], [1, 1, 0, 1]],
    "suppress_bad": [[1, 1, 1, 1], [0, 1, 1, 1]],
    "enhance_good": [[1, 2, 1, 1], [1, 1, 2, 1]],
    "enhance_bad": [[1, 1, 1, 1], [2, 1, 1, 1]],
    "degrade": [[1, 0, 1, 1], [2, 1, 0, 1]],
    "enhance": [[1, 2, 1, 1], [0, 1, 2, 1]],
}


def test_every_condition_has_its_factors_below():
    assert set(CONDITIONS) == set(FACTORS)
    assert CONDITIONS[0] == UNMASKED == "unmasked"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_factors_by_hand(condition):
    factors = condition_scales(NEURONS, condition)
    assert factors.dtype == np.float32
    assert factors.tolist() == FACTORS[condition]


def test_scales_of_ones_own():
    factors = condition_scales(NEURONS, "degrade", Scales(suppress=0.5, enhance=-3.0))
    assert factors.tolist() == [[1, 0.5, 1, 1], [-3, 1, 0.5, 1]]
    assert condition_scales(NEURONS, "degrade", Scales()).tolist() == FACTORS["degrade"]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("seed", [0, 3, 12])
def test_a_control_does_the_same_to_random_neurons(condition, seed):
    name = control_name(condition, seed)
    assert name == f"{condition}.random_{seed}"
    ConditionName.parse(name)
    factors = condition_scales(NEURONS, name)
    assert (factors == condition_scales(random_like(NEURONS, seed), condition)).all()
    # Layer by layer as many factors of each kind as the condition itself has, elsewhere.
    expected = np.array(FACTORS[condition])
    assert (np.sort(factors, axis=1) == np.sort(expected, axis=1)).all()
    assert not ((factors != 1) & (expected != 1))[0].any()


def test_controls_of_different_seeds_differ():
    drawn = {
        condition_scales(NEURONS, control_name("suppress_good", seed)).tobytes()
        for seed in range(12)
    }
    assert len(drawn) > 2  # three places in layer 0 times one or two in layer 1


@pytest.mark.parametrize(
    "condition",
    [
        "suppress",
        "",
        "Degrade",
        "random_3",
        ".random_3",
        "degrade.random_",
        "degrade.random_x",
        "degrade.random_-1",
        "degrade.random_1.5",
        "degrade.random_1.random_2",
        "degraderandom_1",
        "nothing.random_1",
        # A point has a number of neurons and, with one operation, one factor in one spelling.
        "suppress_good.k2",
        "suppress_good.x0.5",
        "suppress_good.x0.5.k2",
        "suppress_good.k0.x0.5",
        "suppress_good.k02.x0.5",
        "suppress_good.k2.x0.50",
        "suppress_good.k2.x.5",
        "suppress_good.k2.x2.0",
        "suppress_good.k2.x-0",
        "suppress_good.k2.x1e",
        "suppress_good.k2.xnan",
        "suppress_good.k2.x0.5.",
        "suppress_good.random_1.k2.x0.5",
        "suppress_good.k2.x0.5.random_",
        "degrade.k2.x0.5",
        "unmasked.k2",
        "unmasked.k2.x0.5",
        "nothing.k2",
    ],
)
def test_unknown_conditions_are_refused(condition):
    expected = (
        f"unknown condition {condition!r}.\n"
        "Expected: unmasked, suppress_good, suppress_bad, enhance_good, enhance_bad, degrade, "
        "enhance, or one of them with .kCOUNT.xFACTOR (degrade and enhance: .kCOUNT), with "
        ".random_SEED or .matched_SEED, or with both.\n"
        "Remedy: check --conditions."
    )
    with pytest.raises(UsageError) as refusal:
        ConditionName.parse(condition)
    assert re.sub(r" \(perhaps \w+ is meant\)", "", str(refusal.value)) == expected
    with pytest.raises(UsageError) as refusal:
        condition_scales(NEURONS, condition)
    assert re.sub(r" \(perhaps \w+ is meant\)", "", str(refusal.value)) == expected


def test_a_misspelt_condition_is_recognised():
    with pytest.raises(UsageError, match=r"'supress_good' \(perhaps suppress_good is meant\)"):
        ConditionName.parse("supress_good")


@pytest.mark.parametrize("name", ["suppress", "enhance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(name, value):
    with pytest.raises(UsageError) as refusal:
        Scales(**{name: value})
    assert str(refusal.value) == (
        f"the {name} scale is {value}.\nExpected: a finite number, at most 3.4e+38.\n"
        "Remedy: check scale, suppress_scale and enhance_scale."
    )


# Points of a sweep ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("suppress_good", ("suppress_good", None, None, None)),
        ("degrade.random_12", ("degrade", None, None, 12)),
        ("degrade.matched_12", ("degrade", None, None, 12, "activation")),
        ("enhance_bad.k1.x4.matched_0", ("enhance_bad", 1, 4.0, 0, "activation")),
        ("suppress_good.k50.x0.5", ("suppress_good", 50, 0.5, None)),
        ("enhance_bad.k1.x4.random_0", ("enhance_bad", 1, 4.0, 0)),
        ("suppress_bad.k7.x-1", ("suppress_bad", 7, -1.0, None)),
        ("suppress_bad.k7.x1e-05.random_3", ("suppress_bad", 7, 1e-5, 3)),
        ("degrade.k50", ("degrade", 50, None, None)),
        ("enhance.k50.random_2", ("enhance", 50, None, 2)),
    ],
)
def test_names_are_taken_apart_and_put_together(name, parts):
    found = ConditionName.parse(name)
    assert found == ConditionName(*parts)
    assert str(found) == name


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_factor_has_a_name_of_its_own(factor):
    name = str(ConditionName("enhance_good", 3, factor, 1))
    assert ConditionName.parse(name).scale == factor
    assert factor_text(-0.0) == factor_text(0.0) == "0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One good neuron and one bad one, of two and one.
        ("suppress_good.k1.x0.5", [[1, 0.5, 1, 1], [1, 1, 1, 1]]),
        ("enhance_bad.k1.x4", [[1, 1, 1, 1], [4, 1, 1, 1]]),
        ("degrade.k1", [[1, -2, 1, 1], [3, 1, 1, 1]]),
        ("enhance.k2", [[1, 3, 1, 1], [-2, 1, 3, 1]]),
    ],
)
def test_factors_of_points_by_hand(name, expected):
    # A point's own factor goes before the run's; conditions of two operations keep the run's.
    assert condition_scales(NEURONS, name, Scales(-2.0, 3.0)).tolist() == expected


def test_a_points_control_is_matched_to_its_own_neurons():
    name = "suppress_good.k1.x0.5.random_3"
    alone = condition_scales(NEURONS.top(1), "suppress_good.random_3", Scales(suppress=0.5))
    assert (condition_scales(NEURONS, name) == alone).all()
    assert (alone != 1).sum(axis=1).tolist() == [1, 0]  # as the one good neuron, in layer 0


def test_a_point_of_more_neurons_than_there_are():
    with pytest.raises(ArtifactError, match=r"top_k=3 of a set selected with top_k=2"):
        condition_scales(NEURONS, "suppress_good.k3.x0")


@pytest.mark.parametrize(
    ("factors", "kind"),
    [
        ([0.0, 2.0, -3.0], np.int8),
        ([127.0], np.int8),
        ([128.0], np.float16),
        ([0.5, 1.5, 4.0], np.float16),
        ([0.1, 2.0], np.float32),
        ([2049.0], np.float32),  # float16 holds whole numbers to 2048
        ([1e6], np.float32),
        ([], np.int8),
    ],
)
def test_factors_take_the_smallest_type_that_holds_them(factors, kind):
    count = len(factors)
    places = (np.arange(count), np.arange(count) + 1)
    edits = {(place, place + 1): factor for place, factor in enumerate(factors)}
    stacked = stack_factors((3, 5), [{}, edits])
    assert stacked.dtype == kind
    wanted = np.ones((2, 3, 5), dtype=np.float32)
    wanted[1][places] = factors
    assert (stacked.astype(np.float32) == wanted).all()
