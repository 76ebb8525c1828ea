"""Cluster bootstrap over questions; pure, seeded, bounded in memory.

The same draws as `scipy.stats.bootstrap`, which the tests compare them with, but much faster, since
questions of equal differences are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuronllm_eval.evaluation.stats.checks import FloatArray

MAX_TYPES = 64  # above this, drawing indices is faster than drawing multinomial counts
CHUNK_CELLS = 1 << 20  # resamples x questions held at once: 8 MiB an array


def bootstrap_deltas(
    changes: FloatArray, bases: FloatArray, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Ratios of sums over resampled questions, [resamples], times 100.

    Args:
        changes: [questions] numerators, such as the sum of a question's differences.
        bases: [questions] denominators, such as its number of docs.
        n_resamples: draws.
        rng: draws them.
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


def chunks(n_rows: int, row_cells: int) -> Iterator[slice]:
    """Slices of rows that hold about `CHUNK_CELLS` cells each."""
    step = max(1, CHUNK_CELLS // row_cells)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
