"""Paired permutation test: the sum of differences under all signs, or under random ones. Pure.

If a difference could as well have the other sign, each of the 2**questions patterns of signs is as
likely as the one observed.

1. Whole differences (right or wrong per doc): the chances of every sum, exactly. Among the
   questions of one size, the number of positive signs is binomial; sizes are added one by one.
   Where all sizes are 1, as with one doc per question, this is McNemar's exact test.
2. Others (confidences): all patterns of up to 12 questions, random ones of more; then p is
   (count + 1) / (n + 1) (Phipson and Smyth 2010).

The same p as `scipy.stats.permutation_test`, which the tests compare it with.
"""

from __future__ import annotations

import sys

import numpy as np
import scipy.stats

from neuronllm_eval.evaluation.stats.bootstrap import chunks
from neuronllm_eval.evaluation.stats.checks import FloatArray

EXACT_QUESTIONS = 12  # 2**12 sign patterns are enumerated; more are sampled
_ROUNDING = 1e-12  # relative; sums this close count as tied


def sign_flip_p(differences: FloatArray, n_resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the sum of differences [questions] under random signs, in (0, 1].

    Args:
        differences: [questions], condition minus unmasked, summed over the question's docs.
        n_resamples: random patterns, where neither sums nor patterns are enumerated.
        rng: draws them.
    """
    sizes = np.abs(differences[differences != 0])  # a question without difference cannot flip
    if (sizes == np.rint(sizes)).all():
        return _exact_p(sizes, abs(float(differences.sum())))
    threshold = abs(float(differences.sum())) - _ROUNDING * float(sizes.sum())
    if sizes.size <= EXACT_QUESTIONS:
        patterns = np.arange(1 << sizes.size)[:, np.newaxis] >> np.arange(sizes.size)
        signs = (1 - 2 * (patterns & 1)).astype(np.float64)  # [2**questions, questions]
        return float(np.mean(np.abs(signs @ sizes) >= threshold))
    return _sampled_p(sizes, threshold, n_resamples, rng)


def _exact_p(sizes: FloatArray, observed: float) -> float:
    """p of whole sizes [questions], from the chance of each sum of those that get the sign +."""
    if observed == 0:
        return 1.0
    chances = np.ones(1)  # [sums]
    for size, count in zip(*np.unique(sizes.astype(np.int64), return_counts=True), strict=True):
        wider = np.zeros(chances.size + size * count)
        for n_positive, chance in enumerate(scipy.stats.binom.pmf(range(count + 1), count, 0.5)):
            start = size * n_positive
            wider[start : start + chances.size] += chance * chances
        chances = wider
    least = (chances.size - 1 + int(observed)) // 2  # the signed sum is 2 * positive - total
    tail = float(chances[least:].sum())
    return min(1.0, max(2.0 * tail, sys.float_info.min))


def _sampled_p(
    sizes: FloatArray, threshold: float, n_resamples: int, rng: np.random.Generator
) -> float:
    total = sizes.sum()
    n_as_extreme = 0
    for rows in chunks(n_resamples, sizes.size):
        n_rows = rows.stop - rows.start
        random_bytes = rng.integers(0, 256, size=(n_rows, -(-sizes.size // 8)), dtype=np.uint8)
        positive = np.unpackbits(random_bytes, axis=1, count=sizes.size)
        flipped = 2.0 * (positive.astype(np.float64) @ sizes) - total
        n_as_extreme += int(np.count_nonzero(np.abs(flipped) >= threshold))
    return (n_as_extreme + 1) / (n_resamples + 1)
