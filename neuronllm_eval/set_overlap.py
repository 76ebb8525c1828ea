"""How far two sets of neurons overlap, and how far layer-matched random sets would. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from neuronllm_eval.neurons import Neuron
from neuronllm_eval.selection import layer_counts


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


def overlap(first: Sequence[Neuron], second: Sequence[Neuron], shape: tuple[int, int]) -> Overlap:
    """How far two sets overlap.

    Args:
        first: distinct neurons.
        second: distinct neurons of the same model.
        shape: the model's [layers, neurons].
    """
    one, two = ({neuron.place for neuron in neurons} for neurons in (first, second))
    sizes, shared = (len(one), len(two)), len(one & two)
    if not one | two:
        return Overlap(sizes, shared, None, None)
    n_layers, width = shape
    chance = _chance_of_shared(layer_counts(first, n_layers), layer_counts(second, n_layers), width)
    possible = np.arange(len(chance))
    return Overlap(
        sizes,
        shared,
        shared / len(one | two),
        float((chance * possible / (sum(sizes) - possible)).sum()),
    )


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
        possible = np.arange(min(one, two) + 1)
        chance = np.convolve(chance, scipy.stats.hypergeom.pmf(possible, width, one, two))
    return chance
