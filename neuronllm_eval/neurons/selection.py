"""Scores -> good, bad and random neurons that match these. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.neurons.activation_levels import from_levels, to_levels
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE, Neuron, NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores

_NEAREST = 10  # neurons of about the same activation, of which a control has one


def resolve_count(value: float, total: int, name: str) -> int:
    """A count from a setting that is a share of `total` (below 1) or a count (1 and above).

    Raises:
        UsageError: not positive, not whole, or more than `total`.
    """
    if 0 < value < 1:
        return max(1, round(value * total))
    if not (1 <= value <= total and value == int(value)):
        raise UsageError(
            f"{name} is {value:g}",
            expected=f"a share of {total} neurons between 0 and 1, or a count from 1 to {total}",
            remedy=f"check --{name}",
        )
    return int(value)


def select_neurons(
    scores: NeuronScores, top_k: float, ambiguous: str = "keep", *, or_none: bool = False
) -> NeuronSet:
    """The `top_k` neurons of highest positive and of lowest negative score, over the whole model.

    Args:
        scores: of all neurons.
        top_k: good and bad neurons to select, a count or a share of all neurons.
        ambiguous: `drop` leaves out neurons that some question put in G_e and another in B_e.
        or_none: the set may be empty.

    Raises:
        UsageError: `top_k` is not possible, or no neuron has a score other than zero.
    """
    count = resolve_count(top_k, scores.score.size, "top_k")
    score = scores.score
    if ambiguous == "drop":
        score = np.where((scores.good_count > 0) & (scores.bad_count > 0), 0.0, score)
    good, bad = highest(score, count), highest(-score, count)
    if not (good or bad or or_none):
        raise UsageError(
            "no neuron has a score other than zero",
            expected="questions whose answer depends on FFN neurons at the scored position",
            remedy="use --ambiguous keep, more questions, or another model",
        )
    n_layers, width = scores.shape
    sizes = scores.activation_mean
    return NeuronSet(
        n_layers=n_layers,
        width=width,
        good=tuple(Neuron(*location, float(score[location])) for location in good),
        bad=tuple(Neuron(*location, float(score[location])) for location in bad),
        top_k=count,
        ambiguous=ambiguous,
        provenance=scores.provenance,
        activation_levels=() if sizes is None else to_levels(sizes),
    )


def highest(values: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """(layer, index) of the `count` highest positive values; equal ones by location."""
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    locations = [divmod(int(flat), values.shape[1]) for flat in order]
    return [location for location in locations if values[location] > 0]


def random_like(neurons: NeuronSet, seed: int) -> NeuronSet:
    """A layer-matched random control: as many neurons in each layer as the good and bad sets have.

    The random `good` and `bad` sets do not overlap. They are drawn from the neurons of the layer
    that are in neither selected set, or from all of the layer where too few are left.

    Args:
        neurons: the set to match.
        seed: of the draw.
    """
    generator = np.random.default_rng([seed, 0x5EED])
    selected = {neuron.location for neuron in neurons.good + neurons.bad}
    good_counts = Counter(neuron.layer for neuron in neurons.good)
    bad_counts = Counter(neuron.layer for neuron in neurons.bad)
    good: list[Neuron] = []
    bad: list[Neuron] = []
    for layer in range(neurons.n_layers):
        count = good_counts[layer] + bad_counts[layer]
        free = [index for index in range(neurons.width) if (layer, index) not in selected]
        pool = free if len(free) >= count else range(neurons.width)
        drawn = generator.permutation(np.asarray(pool))[:count]
        random = [Neuron(layer, int(index), 0.0) for index in drawn]
        good += random[: good_counts[layer]]
        bad += random[good_counts[layer] :]
    return replace(neurons, good=tuple(good), bad=tuple(bad))


def random_of_same_activation(neurons: NeuronSet, seed: int) -> NeuronSet:
    """A random control matched by layer and size of activation.

    For each good, then each bad neuron of a layer it has one of the ten neurons whose mean
    |activation| is nearest, drawn from those of the layer that are in neither selected set and not
    drawn yet; or from all of the layer where too few are left.

    Args:
        neurons: the set to match.
        seed: of the draw.

    Raises:
        ArtifactError: the sizes of activations are not known.
    """
    require_activations(neurons)
    generator = np.random.default_rng([seed, 0x512E])
    levels = from_levels(neurons.activation_levels)
    selected = {neuron.location for neuron in neurons.good + neurons.bad}
    drawn: dict[tuple[int, int], Neuron] = {}
    for layer in range(neurons.n_layers):
        members = [n.index for n in neurons.good + neurons.bad if n.layer == layer]
        free = [index for index in range(neurons.width) if (layer, index) not in selected]
        pool = free if len(free) >= len(members) else range(neurons.width)
        # In a drawn order among those of one level.
        shuffled = generator.permutation(np.asarray(pool)).tolist() if members else []
        shuffled.sort(key=levels[layer].__getitem__)
        pool_levels = [levels[layer][index] for index in shuffled]
        for index in members:
            first, last = _nearest(pool_levels, levels[layer][index])
            pick = int(generator.integers(first, last))
            pool_levels.pop(pick)
            drawn[layer, index] = Neuron(layer, shuffled.pop(pick), 0.0)
    good, bad = (tuple(drawn[n.location] for n in group) for group in (neurons.good, neurons.bad))
    return replace(neurons, good=good, bad=bad)


def require_activations(neurons: NeuronSet) -> None:
    """Raise ArtifactError for neurons without the sizes of activations."""
    if not neurons.activation_levels:
        raise ArtifactError(
            f"{NEURONS_FILE} has no activation_levels",
            expected="the sizes of all neurons' activations, which controls of the same size need",
            remedy="run identify again with this version of neuronllm_eval, or use controls "
            "matched by layer",
        )


def _nearest(levels: Sequence[int], level: int) -> tuple[int, int]:
    """First and last index, exclusive, of the up to `_NEAREST` values nearest to a level.

    Args:
        levels: in ascending order, at least one.
        level: any.
    """
    first = last = bisect_left(levels, level)
    while last - first < min(_NEAREST, len(levels)):
        above = levels[last] - level if last < len(levels) else np.inf
        below = level - levels[first - 1] if first else np.inf
        if above <= below:
            last += 1
        else:
            first -= 1
    return first, last
