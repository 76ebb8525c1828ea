"""Every condition's factors on two layers of four neurons, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import provenance

from neuronllm_eval.conditions import (
    CONDITIONS,
    UNMASKED,
    Scales,
    condition_scales,
    control_name,
    require_condition,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons import Neuron, NeuronSet
from neuronllm_eval.selection import random_like

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
    require_condition(name)
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
    ],
)
def test_unknown_conditions_are_refused(condition):
    expected = (
        f"unknown condition {condition!r}.\n"
        "Expected: unmasked, suppress_good, suppress_bad, enhance_good, enhance_bad, degrade, "
        "enhance, or one of them with .random_SEED.\n"
        "Remedy: check condition or --conditions."
    )
    with pytest.raises(UsageError) as refusal:
        require_condition(condition)
    assert str(refusal.value) == expected
    with pytest.raises(UsageError) as refusal:
        condition_scales(NEURONS, condition)
    assert str(refusal.value) == expected


@pytest.mark.parametrize("name", ["suppress", "enhance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(name, value):
    with pytest.raises(UsageError) as refusal:
        Scales(**{name: value})
    assert str(refusal.value) == (
        f"the {name} scale is {value}.\nExpected: a finite number.\n"
        "Remedy: check scale, suppress_scale and enhance_scale."
    )
