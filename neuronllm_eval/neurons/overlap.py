"""The overlap of two sets of neurons, and that expected of layer-matched random sets. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from neuronllm_eval.neurons.neuron_set import Neuron
from neuronllm_eval.neurons.selection import layer_counts

_NEGLIGIBLE = 1e-20  # a probability

# Of two runs: sets that agree, and sets that contradict each other.
COMPARED = (("good", "good"), ("bad", "bad"), ("good", "bad"), ("bad", "good"))


@dataclass(frozen=True)
class Overlap:
    """Two sets of neurons of one model.

    Attributes:
        sizes: of the two sets.
        shared: number of neurons in both.
        jaccard: shared over the number in either, 0 to 1; None if both sets are empty.
        chance: the expected Jaccard index of random sets with as many neurons in each layer; None
            if both sets are empty.
    """

    sizes: tuple[int, int]
    shared: int
    jaccard: float | None
    chance: float | None


@dataclass(frozen=True)
class Locations:
    """Where the neurons of a set are, to compare one set with many others.

    Attributes:
        locations: (layer, index) of each neuron.
        by_layer: [layers] number of neurons in each.
    """

    locations: frozenset[tuple[int, int]]
    by_layer: tuple[int, ...]

    @classmethod
    def of(cls, neurons: Sequence[Neuron], n_layers: int) -> Locations:
        """The locations of distinct neurons of a model with `n_layers` layers."""
        locations = frozenset(neuron.location for neuron in neurons)
        return cls(locations, tuple(layer_counts(neurons, n_layers)))

    def overlap(self, other: Locations, width: int) -> Overlap:
        """The overlap with another set of the same model, whose layers have `width` neurons."""
        sizes = (len(self.locations), len(other.locations))
        shared = len(self.locations & other.locations)
        if not any(sizes):
            return Overlap(sizes, shared, None, None)
        chance = _chance_of_shared(self.by_layer, other.by_layer, width)
        possible = np.arange(len(chance))
        return Overlap(
            sizes,
            shared,
            shared / (sum(sizes) - shared),
            float((chance * possible / (sum(sizes) - possible)).sum()),
        )


def overlap(first: Sequence[Neuron], second: Sequence[Neuron], shape: tuple[int, int]) -> Overlap:
    """The overlap of two sets of distinct neurons of a model of shape [layers, neurons]."""
    n_layers, width = shape
    return Locations.of(first, n_layers).overlap(Locations.of(second, n_layers), width)


def _chance_of_shared(
    first: Sequence[int], second: Sequence[int], width: int
) -> NDArray[np.float64]:
    """Probabilities that 0, 1, ... neurons are shared by two random sets.

    Args:
        first: [layers] neurons of the first set.
        second: [layers] neurons of the second.
        width: neurons of a layer.
    """
    chance = np.ones(1)
    for one, two in zip(first, second, strict=True):
        if one and two:
            chance = np.convolve(chance, _chance_in_a_layer(width, *sorted((one, two))))
    return chance


@lru_cache(maxsize=1 << 14)
def _chance_in_a_layer(width: int, one: int, two: int) -> NDArray[np.float64]:
    """Probabilities that 0, 1, ... neurons of one layer are shared, up to where they vanish.

    The hypergeometric distribution; scipy's own takes milliseconds for sets of hundreds.
    """
    shared = np.arange(min(one, two) + 1)
    logs = _log_choose(one, shared) + _log_choose(width - one, two - shared)
    chance: NDArray[np.float64] = np.exp(logs - _log_choose(width, two))
    return chance[: np.flatnonzero(chance > _NEGLIGIBLE)[-1] + 1]


def _log_choose(n: int, k: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of binomial coefficients; -inf where k exceeds n."""
    k = np.asarray(k, dtype=np.float64)
    logs: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1)
    return np.where(k <= n, logs - gammaln(np.maximum(n - k, 0) + 1), -np.inf)
