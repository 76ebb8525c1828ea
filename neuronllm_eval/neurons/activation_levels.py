"""How large neurons' activations are, in a character each, for controls of the same size. Pure.

`neurons.json` holds the sizes, so that whoever has it draws the same controls. A level is a quarter
octave (a factor of 1.19): the largest mean |activation| of a layer has level 63, one of half that
size 59, and level 0 has all below 2**-15.75 of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_HIGHEST = len(LEVELS) - 1
_PER_OCTAVE = 4


def to_levels(sizes: NDArray[np.float64]) -> tuple[str, ...]:
    """[layers] texts with a character for each neuron.

    Args:
        sizes: [layers, neurons] mean |activation|, 0 or more.
    """
    largest = sizes.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # of layers and neurons that are silent
        below = np.rint(_PER_OCTAVE * np.log2(largest / sizes))
    levels = _HIGHEST - np.where(below <= _HIGHEST, below, _HIGHEST).astype(np.int64)
    return tuple("".join(LEVELS[level] for level in layer) for layer in levels.tolist())


def from_levels(texts: Sequence[str]) -> list[list[int]]:
    """[layers][neurons] levels, 0 to 63, of what `to_levels` gives."""
    return [list(map(LEVELS.index, text)) for text in texts]
