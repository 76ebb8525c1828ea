"""Which neurons are chosen, and which random ones stand beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.neurons.activation_levels import from_levels, to_levels
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet, layer_counts
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import (
    random_like,
    random_of_same_activation,
    resolve_count,
    select_neurons,
)
from tests.fixtures.tiny_models import provenance


def scores(
    ace: list[list[float]],
    good: list[list[int]] | None = None,
    bad: list[list[int]] | None = None,
) -> NeuronScores:
    """Scores whose counts are one wherever the sign says so, unless told."""
    values = np.array(ace, dtype=np.float64)
    return NeuronScores(
        score=values,
        good_count=np.array((values > 0) if good is None else good, dtype=np.int64),
        bad_count=np.array((values < 0) if bad is None else bad, dtype=np.int64),
        half_sums=np.stack([values, np.zeros_like(values)]),
        letter_sums=np.zeros((4, *values.shape)),
        provenance=provenance(),
    )


def places(neurons: tuple[Neuron, ...]) -> list[tuple[int, int]]:
    return [neuron.location for neuron in neurons]


def chosen(good: list[tuple[int, int]], bad: list[tuple[int, int]], **changes: Any) -> NeuronSet:
    values = {
        "n_layers": 3,
        "width": 6,
        "good": tuple(Neuron(*place, 1.0) for place in good),
        "bad": tuple(Neuron(*place, -1.0) for place in bad),
        "top_k": max(4, len(good), len(bad)),
        "ambiguous": "keep",
        "provenance": provenance(),
    }
    return NeuronSet(**(values | changes))


# Counts and shares ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [
        (1, 10, 1),
        (1.0, 10, 1),
        (10, 10, 10),
        (3.0, 10, 3),
        (0.5, 10, 5),
        (0.02, 2048, 41),  # 40.96
        (0.1, 48, 5),  # 4.8
        (1e-9, 10, 1),  # never none
        (0.9999, 10, 10),
        (0.25, 10, 2),  # 2.5 is rounded to even
    ],
)
def test_counts_and_shares(value, total, expected):
    count = resolve_count(value, total, "top_k")
    assert count == expected
    assert type(count) is int


@pytest.mark.parametrize(
    "value", [0, -1, -0.5, 1.5, 10.5, 11, 1e300, float("nan"), float("inf"), float("-inf")]
)
def test_impossible_counts_are_refused(value):
    with pytest.raises(UsageError) as refusal:
        resolve_count(value, 10, "top_z")
    assert str(refusal.value) == (
        f"top_z is {value:g}.\n"
        "Expected: a share of 10 neurons between 0 and 1, or a count from 1 to 10.\n"
        "Remedy: check --top_z."
    )


# The choice -------------------------------------------------------------------------------------


def test_choice_by_hand():
    neurons = select_neurons(scores([[0.5, -2.0, 3.0, 0.0], [1.0, -0.25, -3.0, 0.75]]), top_k=3)
    assert neurons.good == (Neuron(0, 2, 3.0), Neuron(1, 0, 1.0), Neuron(1, 3, 0.75))
    assert neurons.bad == (Neuron(1, 2, -3.0), Neuron(0, 1, -2.0), Neuron(1, 1, -0.25))
    assert neurons.top_k == 3
    assert neurons.shape == (2, 4)
    assert neurons.ambiguous == "keep"
    assert neurons.provenance == provenance()


def test_only_neurons_of_the_right_sign_are_chosen():
    # Two are positive, one is negative, one is zero: four of each were asked for.
    neurons = select_neurons(scores([[0.5, 0.0], [2.0, -1.0]]), top_k=4)
    assert places(neurons.good) == [(1, 0), (0, 0)]
    assert places(neurons.bad) == [(1, 1)]
    assert neurons.top_k == 4
    only_good = select_neurons(scores([[0.5, 0.0]]), top_k=1)
    assert only_good.bad == ()


def test_ties_go_by_place():
    neurons = select_neurons(scores([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]), top_k=2)
    assert places(neurons.good) == [(0, 0), (0, 2)]
    assert places(neurons.bad) == [(0, 1), (1, 0)]
    # So many that a sort which is not stable would mix them.
    many = select_neurons(scores([[1.0] * 200, [-1.0] * 200]), top_k=150)
    assert places(many.good) == [(0, index) for index in range(150)]
    assert places(many.bad) == [(1, index) for index in range(150)]


def test_a_share_is_of_all_neurons_of_the_model():
    neurons = select_neurons(scores([[4.0, 3.0, 2.0, 1.0], [-4.0, -3.0, -2.0, -1.0]]), top_k=0.25)
    assert neurons.top_k == 2  # a quarter of eight
    assert places(neurons.good) == [(0, 0), (0, 1)]
    assert places(neurons.bad) == [(1, 0), (1, 1)]


def test_ambiguous_neurons_are_kept_or_dropped():
    # Neuron (0, 0) was good for two questions and bad for one, (0, 3) the other way round.
    found = scores(
        [[5.0, 1.0, -1.0, -5.0]],
        good=[[2, 1, 0, 1]],
        bad=[[1, 0, 1, 2]],
    )
    kept = select_neurons(found, top_k=1)
    assert (places(kept.good), places(kept.bad)) == ([(0, 0)], [(0, 3)])
    assert kept == select_neurons(found, top_k=1, ambiguous="keep")
    dropped = select_neurons(found, top_k=2, ambiguous="drop")
    assert dropped.good == (Neuron(0, 1, 1.0),)
    assert dropped.bad == (Neuron(0, 2, -1.0),)
    assert dropped.ambiguous == "drop"


def test_nothing_to_choose_is_refused():
    message = (
        "no neuron has a score other than zero.\n"
        "Expected: questions whose answer depends on FFN neurons at the scored position.\n"
        "Remedy: use --ambiguous keep, more questions, or another model."
    )
    with pytest.raises(UsageError) as refusal:
        select_neurons(scores([[0.0, 0.0]]), top_k=1)
    assert str(refusal.value) == message
    with pytest.raises(UsageError) as refusal:
        select_neurons(scores([[2.0]], good=[[1]], bad=[[1]]), top_k=1, ambiguous="drop")
    assert str(refusal.value) == message


def test_more_neurons_than_the_model_has_are_refused():
    with pytest.raises(UsageError, match=r"top_k is 3\.\nExpected: a share of 2 neur"):
        select_neurons(scores([[1.0, 2.0]]), top_k=3)


@given(
    st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=5, max_size=5), min_size=1, max_size=4
    ).filter(lambda rows: any(map(any, rows))),
    st.integers(1, 5),
)
def test_choice_against_sorting(ace, top_k):
    neurons = select_neurons(scores(ace), top_k)
    flat = [value for row in ace for value in row]
    assert [n.score for n in neurons.good] == sorted(filter(lambda v: v > 0, flat))[::-1][:top_k]
    assert [n.score for n in neurons.bad] == sorted(filter(lambda v: v < 0, flat))[:top_k]
    assert all(ace[n.layer][n.index] == n.score for n in neurons.good + neurons.bad)


# Random controls --------------------------------------------------------------------------------


@st.composite
def neuron_sets(draw: st.DrawFn) -> NeuronSet:
    """Any set of three layers of six, up to all neurons of the model."""
    everything = [(layer, index) for layer in range(3) for index in range(6)]
    order = draw(st.permutations(everything))
    n_good = draw(st.integers(0, 18))
    n_bad = draw(st.integers(0, 18 - n_good))
    return chosen(order[:n_good], order[n_good : n_good + n_bad])


@given(neuron_sets(), st.integers(0, 2**32))
def test_a_control_matches_the_counts_of_every_layer(neurons, seed):
    control = random_like(neurons, seed)
    assert layer_counts(control.good, 3) == layer_counts(neurons.good, 3)
    assert layer_counts(control.bad, 3) == layer_counts(neurons.bad, 3)
    drawn = places(control.good + control.bad)
    assert len(set(drawn)) == len(drawn)
    taken = set(places(neurons.good + neurons.bad))
    for layer in range(3):
        n_taken = sum(place[0] == layer for place in taken)
        if 2 * n_taken <= 6:  # there is room beside the chosen ones
            assert not {place for place in drawn if place[0] == layer} & taken
    assert {neuron.score for neuron in control.good + control.bad} <= {0.0}
    assert control.shape == neurons.shape
    assert control.top_k == neurons.top_k
    assert control.provenance == neurons.provenance


def test_a_control_depends_on_its_seed_alone():
    neurons = chosen([(0, 1), (1, 2)], [(1, 3), (2, 0)])
    assert random_like(neurons, 7) == random_like(neurons, 7)
    controls = {
        (tuple(places(c.good)), tuple(places(c.bad)))
        for c in (random_like(neurons, seed) for seed in range(10))
    }
    # 5 * 4 * 3 * 5 = 300 draws are possible; ten of them agree rarely.
    assert len(controls) >= 8


def test_every_free_neuron_has_its_chance():
    neurons = chosen([(1, 2)], [(1, 4)])
    drawn = {place for seed in range(60) for place in places(random_like(neurons, seed).good)}
    assert drawn == {(1, 0), (1, 1), (1, 3), (1, 5)}


def test_a_tight_layer_is_drawn_from_all_its_neurons():
    # Four of six are chosen, two are left, four are wanted.
    neurons = chosen([(0, 0), (0, 1)], [(0, 2), (0, 3)])
    controls = [random_like(neurons, seed) for seed in range(10)]
    for control in controls:
        assert layer_counts(control.good, 3) == [2, 0, 0]
        assert layer_counts(control.bad, 3) == [2, 0, 0]
    assert {place for each in controls for place in places(each.good)} == {
        (0, index) for index in range(6)
    }


def test_a_layer_chosen_whole_is_dealt_out_anew():
    neurons = chosen([(2, index) for index in range(5)], [(2, 5)])
    control = random_like(neurons, 0)
    assert sorted(places(control.good + control.bad)) == [(2, index) for index in range(6)]


# Controls of the same size of activation ----------------------------------------------------------


def test_levels_by_hand():
    # The largest, its half, a quarter octave less, 2**-15.75 and less, nothing at all.
    sizes = np.array([[8.0, 4.0, 4.0 / 2**0.25, 8 / 2**15.75, 1e-9, 0.0], [0.0] * 6])
    levels = to_levels(sizes)
    assert from_levels(levels) == [[63, 59, 58, 0, 0, 0], [0] * 6]
    assert levels == ("_xw000", "000000")


def with_sizes(
    good: list[tuple[int, int]], bad: list[tuple[int, int]], sizes: np.ndarray
) -> NeuronSet:
    n_layers, width = sizes.shape
    levels = to_levels(sizes)
    return chosen(good, bad, n_layers=n_layers, width=width, activation_levels=levels)


SIZES = 2.0 ** -(np.arange(2 * 60) % 12).reshape(2, 60)  # five neurons of each size in each layer


@pytest.mark.parametrize("seed", range(5))
def test_a_matched_control_has_neurons_of_the_layer_and_about_the_size(seed):
    neurons = with_sizes([(0, 0), (1, 3)], [(0, 12), (0, 5)], SIZES)
    control = random_of_same_activation(neurons, seed)
    drawn = places(control.good + control.bad)
    assert not set(drawn) & set(places(neurons.good + neurons.bad))
    assert len(set(drawn)) == len(drawn)
    pairs = zip(neurons.good + neurons.bad, control.good + control.bad, strict=True)
    for selected, other in pairs:
        assert selected.layer == other.layer
        # Ten neurons are nearest: of at most two sizes above or below.
        assert abs(np.log2(SIZES[selected.location] / SIZES[other.location])) <= 2
    assert control == random_of_same_activation(neurons, seed)
    assert (control.top_k, control.activation_levels) == (neurons.top_k, neurons.activation_levels)


def test_layers_alone_do_not_match_sizes():
    neurons = with_sizes([(0, 0)], [], SIZES)

    def sizes(draw: Any) -> set[float]:
        return {SIZES[draw(neurons, seed).good[0].location] for seed in range(40)}

    # Beside the selected one there are four of its size, five of half, and one of a quarter is
    # tenth, since none is larger.
    assert sizes(random_of_same_activation) <= {1.0, 0.5, 0.25}
    assert len(sizes(random_like)) > 6
    drawn = {random_of_same_activation(neurons, seed).good[0].index for seed in range(100)}
    assert len(drawn) > 6


def test_a_matched_control_of_a_tight_layer_is_of_all_its_neurons():
    sizes = np.ones((3, 6))
    neurons = with_sizes([(2, index) for index in range(5)], [(2, 5)], sizes)
    control = random_of_same_activation(neurons, 0)
    assert sorted(places(control.good + control.bad)) == [(2, index) for index in range(6)]


def test_neurons_without_sizes_have_no_matched_controls():
    with pytest.raises(ArtifactError, match=r"has no activation_levels\..*\n.*\n.*identify again"):
        random_of_same_activation(chosen([(0, 1)], []), 0)


def test_the_selection_keeps_the_sizes():
    sizes = np.array([[1.0, 2.0, 4.0]])
    found = scores([[1.0, -1.0, 0.0]])
    assert select_neurons(found, 1).activation_levels == ()
    found = dataclasses.replace(found, activation_mean=sizes)
    assert select_neurons(found, 1).activation_levels == to_levels(sizes)


def test_layer_counts_by_hand():
    assert layer_counts([Neuron(2, 0, 1.0), Neuron(0, 1, 1.0), Neuron(2, 5, 1.0)], 4) == [
        1,
        0,
        2,
        0,
    ]
