"""Agreement of two halves of the questions, or of two scorings, on the neurons; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.evaluation.stats.resampling import FloatArray
from neuronllm_eval.formats.typed_files import NumberOrNaN


@dataclass(frozen=True)
class SplitHalf:
    """Agreement of neuron scores from two disjoint halves of the questions.

    Attributes:
        k: number of neurons taken at each end.
        rank_correlation: Spearman's, over neurons not 0 in both halves; nan where undefined.
        top_k_overlap: share of the k highest neurons that both halves have in common, 0 to 1; nan
            if a half has none above 0.
        bottom_k_overlap: the same of the k lowest, and of neurons below 0.
    """

    k: int
    rank_correlation: NumberOrNaN
    top_k_overlap: NumberOrNaN
    bottom_k_overlap: NumberOrNaN


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
    """
    one, two = (np.asarray(half, dtype=np.float64) for half in (first, second))
    assert one.shape == two.shape, (one.shape, two.shape)
    assert 1 <= k <= one.size, (k, one.size)
    scored = (one != 0) | (two != 0)
    return SplitHalf(
        k=k,
        rank_correlation=_spearman(one[scored], two[scored]),
        top_k_overlap=np.intersect1d(_lowest(-one, k), _lowest(-two, k)).size / k,
        bottom_k_overlap=np.intersect1d(_lowest(one, k), _lowest(two, k)).size / k,
    )


def stability_of(half_sums: ArrayLike, top_k: int) -> SplitHalf:
    """Agreement of the two halves in `NeuronScores.half_sums`.

    Args:
        half_sums: [2, layers, neurons], the sums of either half of the questions.
        top_k: neurons selected at each end; as many are compared, but no more than either half has
            of each sign. A sign that is missing from a half, as it is for methods without bad
            neurons, is not compared.
    """
    first, second = np.asarray(half_sums, dtype=np.float64).reshape(2, -1)
    good, bad = (
        min(int(np.count_nonzero(sign * half > 0)) for half in (first, second)) for sign in (1, -1)
    )
    stability = split_half_stability(first, second, min(top_k, good or top_k, bad or top_k))
    return replace(
        stability,
        top_k_overlap=stability.top_k_overlap if good else math.nan,
        bottom_k_overlap=stability.bottom_k_overlap if bad else math.nan,
    )


def _spearman(a: FloatArray, b: FloatArray) -> float:
    if a.size < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan  # scipy would warn
    return float(scipy.stats.spearmanr(a, b).statistic)


def _lowest(scores: FloatArray, k: int) -> NDArray[np.int64]:
    return np.argsort(scores, kind="stable")[:k]
