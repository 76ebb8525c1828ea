"""How far two sets of neurons overlap, and how far layer-matched random sets would. Pure."""

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
        shared: neurons that are in both.
        jaccard: shared over those in either, 0 to 1; None if both sets are empty.
        chance: the Jaccard index that is expected of random sets with as many neurons in each
            layer.
    """

    sizes: tuple[int, int]
    shared: int
    jaccard: float | None
    chance: float | None


@dataclass(frozen=True)
class Places:
    """A set of neurons as far as overlaps ask for it, so that one set can meet many others.

    Attributes:
        places: (layer, index) of each neuron.
        by_layer: [layers] how many lie in each.
    """

    places: frozenset[tuple[int, int]]
    by_layer: tuple[int, ...]

    @classmethod
    def of(cls, neurons: Sequence[Neuron], n_layers: int) -> Places:
        """Of distinct neurons of a model with so many layers."""
        places = frozenset(neuron.location for neuron in neurons)
        return cls(places, tuple(layer_counts(neurons, n_layers)))

    def overlap(self, other: Places, width: int) -> Overlap:
        """How far this set and another of the same model overlap.

        Args:
            other: the second set.
            width: neurons of a layer.
        """
        sizes = (len(self.places), len(other.places))
        shared = len(self.places & other.places)
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
    """How far two sets overlap.

    Args:
        first: distinct neurons.
        second: distinct neurons of the same model.
        shape: the model's [layers, neurons].
    """
    n_layers, width = shape
    return Places.of(first, n_layers).overlap(Places.of(second, n_layers), width)


def _chance_of_shared(
    first: Sequence[int], second: Sequence[int], width: int
) -> NDArray[np.float64]:
    """Probabilities that 0, 1, ... neurons are shared, where each layer's are drawn by chance.

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
    """Probabilities that 0, 1, ... of one layer's neurons are shared, up to where they vanish.

    The hypergeometric distribution; scipy's own takes milliseconds for sets of hundreds.
    """
    shared = np.arange(min(one, two) + 1)
    logs = _log_choose(one, shared) + _log_choose(width - one, two - shared)
    chance: NDArray[np.float64] = np.exp(logs - _log_choose(width, two))
    return chance[: np.flatnonzero(chance > _NEGLIGIBLE)[-1] + 1]


def _log_choose(of: int, taken: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of binomial coefficients; -inf where more are taken than there are."""
    taken = np.asarray(taken, dtype=np.float64)
    found: NDArray[np.float64] = gammaln(of + 1) - gammaln(taken + 1)
    return np.where(taken <= of, found - gammaln(np.maximum(of - taken, 0) + 1), -np.inf)
