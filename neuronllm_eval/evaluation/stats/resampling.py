"""Cluster bootstrap and paired permutation test, by question. Pure, seeded, bounded in memory.

Bootstrap: the same draws as `scipy.stats.bootstrap`, but much faster, since questions of equal
differences are drawn together.

Permutation test: if the intervention changed nothing, each question's difference could as well have
the opposite sign, so each of the 2**questions sign patterns is as likely as the observed one.

1. Integer differences (correct answers): the exact distribution of the sum. Among the questions of
   one size, the number of positive signs is binomial; sizes are convolved one by one. Where all
   sizes are 1, as with one doc per question, this is McNemar's exact test.
2. Other differences (confidences): all sign patterns of up to 12 questions, otherwise random ones;
   then p is (count + 1) / (n + 1) (Phipson and Smyth 2010).

The tests compare both with scipy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import scipy.stats
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MAX_TYPES = 64  # above this, drawing indices is faster than drawing multinomial counts
CHUNK_CELLS = 1 << 20  # resamples x questions in memory at once: 8 MiB an array
EXACT_QUESTIONS = 12  # 2**12 sign patterns are enumerated; more are sampled
_ROUNDING = 1e-12  # relative; sums this close count as tied


def bootstrap_deltas(
    changes: FloatArray, bases: FloatArray, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Ratios of sums over resampled questions, [resamples], times 100.

    Args:
        changes: [questions] numerators, such as the sum of a question's differences.
        bases: [questions] denominators, such as its number of docs.
    """
    questions = np.stack([changes, bases], axis=1)  # [questions, 2]
    n_questions = len(questions)
    types, first_seen, multiplicity = np.unique(
        questions, axis=0, return_index=True, return_counts=True
    )
    # Order of appearance, not of value: it stays the same when the two runs are swapped.
    order = np.argsort(first_seen)
    types, shares = types[order], multiplicity[order] / n_questions
    few = len(types) <= MAX_TYPES
    deltas = np.empty(n_resamples)
    for rows in chunks(n_resamples, len(types) if few else n_questions):
        n_rows = rows.stop - rows.start
        if few:
            # Equal questions are exchangeable: how often each type is drawn is multinomial.
            sums = rng.multinomial(n_questions, shares, size=n_rows) @ types  # [rows, 2]
            numerators, denominators = sums[:, 0], sums[:, 1]
        else:
            drawn = rng.integers(0, n_questions, size=(n_rows, n_questions), dtype=np.int32)
            numerators = changes[drawn].sum(axis=1)
            denominators = bases[drawn].sum(axis=1)
        deltas[rows] = 100.0 * numerators / denominators
    return deltas


def sign_flip_p(differences: FloatArray, n_resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the sum of differences [questions] under random signs, in (0, 1].

    Args:
        differences: [questions], condition minus unmasked, summed over the question's docs.
        n_resamples: random patterns, where neither sums nor patterns are enumerated.
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
    """p of integer sizes [questions], from the probability of each sum of positive ones."""
    if observed == 0:
        return 1.0
    probabilities = np.ones(1)  # [sums]
    for size, count in zip(*np.unique(sizes.astype(np.int64), return_counts=True), strict=True):
        wider = np.zeros(probabilities.size + size * count)
        binomial = scipy.stats.binom.pmf(range(count + 1), count, 0.5)
        for n_positive, probability in enumerate(binomial):
            start = size * n_positive
            wider[start : start + probabilities.size] += probability * probabilities
        probabilities = wider
    least = (probabilities.size - 1 + int(observed)) // 2  # signed sum = 2 * positive - total
    tail = float(probabilities[least:].sum())
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


def chunks(n_rows: int, row_cells: int) -> Iterator[slice]:
    """Slices of rows of about `CHUNK_CELLS` cells each."""
    step = max(1, CHUNK_CELLS // row_cells)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
