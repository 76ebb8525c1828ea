"""Agreement of two halves of the questions, or of two scorings, on the neurons; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.stats.checks import (
    FloatArray,
    IntArray,
    checked_array,
    checked_vector,
    require_same_length,
)


@dataclass(frozen=True)
class SplitHalf:
    """Agreement of neuron scores from two disjoint halves of the questions.

    Attributes:
        k: number of neurons taken at each end.
        rank_correlation: Spearman's, over neurons not 0 in both halves; nan where undefined.
        top_k_overlap: share of the k highest neurons that both halves name, 0 to 1; nan if a half
            has none above 0.
        bottom_k_overlap: the same of the k lowest, and of neurons below 0.
    """

    k: int
    rank_correlation: float
    top_k_overlap: float
    bottom_k_overlap: float


def split_half_stability(first: ArrayLike, second: ArrayLike, k: int) -> SplitHalf:
    """How far two halves of the questions agree on the neurons.

    Neurons that are 0 in both halves were never selected: the correlation leaves them out. The
    overlaps rank all neurons, ties going to the lower index, so a k above the number of neurons
    scored on that side fills up with zeros, in the same order in both halves, and flatters them.

    Args:
        first: [neurons], scores from one half; flatten [layers, neurons] beforehand.
        second: [neurons], scores of the same neurons from the other half.
        k: number of neurons taken at each end, 1 to neurons.

    Returns:
        The rank correlation and |A and B| / k of the k highest and of the k lowest.

    Raises:
        UsageError: lengths differ, an input is empty or not finite, or k is out of range.
    """
    one, two = checked_vector("first", first), checked_vector("second", second)
    require_same_length("second", two, "first", one)
    if not 1 <= k <= one.size:
        raise UsageError(
            f"k is {k}",
            expected=f"1 to {one.size}, the number of neurons",
            remedy="lower k to the number of neurons selected at each end",
        )
    scored = (one != 0) | (two != 0)
    return SplitHalf(
        k=k,
        rank_correlation=_spearman(one[scored], two[scored]),
        top_k_overlap=np.intersect1d(_lowest(-one, k), _lowest(-two, k)).size / k,
        bottom_k_overlap=np.intersect1d(_lowest(one, k), _lowest(two, k)).size / k,
    )


def stability_of(half_sums: ArrayLike, top_k: int) -> SplitHalf:
    """Agreement of the two halves that `NeuronScores` keeps.

    Args:
        half_sums: [2, layers, neurons], the sums of either half of the questions.
        top_k: neurons chosen at each end; as many are compared, but no more than either half has
            of each sign. A sign that a half lacks, as all do whose method knows no bad neurons, is
            not compared.

    Raises:
        UsageError: the sums are empty or not finite.
    """
    first, second = (checked_array("half_sums", half).ravel() for half in np.asarray(half_sums))
    good, bad = (
        min(int(np.count_nonzero(sign * half > 0)) for half in (first, second)) for sign in (1, -1)
    )
    found = split_half_stability(first, second, min(top_k, *(n or top_k for n in (good, bad))))
    return replace(
        found,
        top_k_overlap=found.top_k_overlap if good else math.nan,
        bottom_k_overlap=found.bottom_k_overlap if bad else math.nan,
    )


def _spearman(a: FloatArray, b: FloatArray) -> float:
    if a.size < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan  # scipy would warn
    return float(scipy.stats.spearmanr(a, b).statistic)


def _lowest(scores: FloatArray, k: int) -> IntArray:
    return np.argsort(scores, kind="stable")[:k]
