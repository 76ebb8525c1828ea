"""Cluster bootstrap and sign-flip permutation over questions; pure, seeded, bounded in memory.

The same draws as `scipy.stats.bootstrap` and `permutation_test`, which the tests compare them with,
but much faster, since questions of equal differences are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuronllm_eval.array_checks import FloatArray

EXACT_QUESTIONS = 12  # 2**12 sign patterns are enumerated; more are sampled
MAX_TYPES = 64  # above this, drawing indices is faster than drawing multinomial counts
CHUNK_CELLS = 1 << 20  # resamples x questions held at once: 8 MiB an array
_ROUNDING = 1e-12  # relative; sums this close count as tied


def bootstrap_deltas(
    differences: FloatArray, doc_counts: FloatArray, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Deltas of resampled questions, [resamples], percentage points."""
    questions = np.stack([differences, doc_counts], axis=1)  # [questions, 2]
    n_questions = len(questions)
    types, first_seen, multiplicity = np.unique(
        questions, axis=0, return_index=True, return_counts=True
    )
    # Order of appearance, not of value: it stays the same when the two runs are swapped.
    order = np.argsort(first_seen)
    types, shares = types[order], multiplicity[order] / n_questions
    few = len(types) <= MAX_TYPES
    deltas = np.empty(n_resamples)
    for rows in _chunks(n_resamples, len(types) if few else n_questions):
        n_rows = rows.stop - rows.start
        if few:
            # Equal questions are exchangeable: how often each type is drawn is multinomial.
            sums = rng.multinomial(n_questions, shares, size=n_rows) @ types  # [rows, 2]
            numerators, denominators = sums[:, 0], sums[:, 1]
        else:
            drawn = rng.integers(0, n_questions, size=(n_rows, n_questions), dtype=np.int32)
            numerators = differences[drawn].sum(axis=1)
            denominators = doc_counts[drawn].sum(axis=1)
        deltas[rows] = 100.0 * numerators / denominators
    return deltas


def sign_flip_p(differences: FloatArray, n_resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the sum of differences [questions] under random signs."""
    sizes = np.abs(differences[differences != 0])  # a question without difference cannot flip
    observed = abs(float(differences.sum()))
    threshold = observed - _ROUNDING * float(sizes.sum())
    if sizes.size <= EXACT_QUESTIONS:
        patterns = np.arange(1 << sizes.size)[:, np.newaxis] >> np.arange(sizes.size)
        signs = (1 - 2 * (patterns & 1)).astype(np.float64)  # [2**questions, questions]
        return float(np.mean(np.abs(signs @ sizes) >= threshold))
    total = sizes.sum()
    n_as_extreme = 0
    for rows in _chunks(n_resamples, sizes.size):
        n_rows = rows.stop - rows.start
        random_bytes = rng.integers(0, 256, size=(n_rows, -(-sizes.size // 8)), dtype=np.uint8)
        positive = np.unpackbits(random_bytes, axis=1, count=sizes.size)
        flipped = 2.0 * (positive.astype(np.float64) @ sizes) - total
        n_as_extreme += int(np.count_nonzero(np.abs(flipped) >= threshold))
    return (n_as_extreme + 1) / (n_resamples + 1)


def _chunks(n_rows: int, row_cells: int) -> Iterator[slice]:
    step = max(1, CHUNK_CELLS // row_cells)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
