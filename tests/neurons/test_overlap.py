"""Overlap of sets of neurons, and what chance alone gives, by hand and by drawing."""

from __future__ import annotations

import numpy as np
import pytest

from neuronllm_eval.neurons.neuron_set import Neuron, overlap
from neuronllm_eval.neurons.selection import random_like
from tests.fixtures.harness import neuron_set


def neurons(*places: tuple[int, int]) -> list[Neuron]:
    return [Neuron(*place, 1.0) for place in places]


def test_by_hand():
    # One layer of 4 neurons: of two sets of one neuron, chance shares it in 1 of 4 cases, with a
    # Jaccard index of 1.
    found = overlap(neurons((0, 1)), neurons((0, 1)), (1, 4))
    assert (found.sizes, found.shared, found.jaccard) == ((1, 1), 1, 1.0)
    assert found.chance == pytest.approx(0.25)
    # Sets of 2 of 4: 0, 1, 2 shared in 1, 4, 1 of 6 cases, Jaccard 0, 1/3, 1.
    found = overlap(neurons((0, 1), (0, 2)), neurons((0, 2), (0, 3)), (1, 4))
    assert (found.shared, found.jaccard) == (1, pytest.approx(1 / 3))
    assert found.chance == pytest.approx((4 / 3 + 1) / 6)


def test_chance_keeps_to_the_layers():
    # In different layers no drawing could share any.
    found = overlap(neurons((0, 1)), neurons((1, 1)), (2, 4))
    assert (found.jaccard, found.chance) == (0.0, 0.0)


def test_sets_without_neurons():
    assert overlap([], [], (2, 4)).jaccard is None
    assert overlap([], neurons((0, 0)), (2, 4)).jaccard == 0.0


def test_chance_is_what_random_sets_have_on_average():
    first = neuron_set([(0, 1), (0, 2), (1, 3), (1, 4), (1, 5)], [], n_layers=2, width=8)
    second = neuron_set([(0, 6), (1, 1), (1, 2), (1, 0)], [], n_layers=2, width=8)
    expected = overlap(first.good, second.good, first.shape).chance
    # The layer-matched controls of a set that is replaced each time, so that none is left out.
    generator = np.random.default_rng(0)

    def drawn(counts):
        return neurons(
            *(
                (layer, int(index))
                for layer, count in enumerate(counts)
                for index in generator.permutation(8)[:count]
            )
        )

    found = [overlap(drawn((2, 3)), drawn((1, 3)), (2, 8)).jaccard for _ in range(2000)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 2000**0.5)
    # A control has as many in each layer, so that chance expects the same of it.
    control = random_like(first, 1)
    assert overlap(control.good, second.good, first.shape).chance == expected
