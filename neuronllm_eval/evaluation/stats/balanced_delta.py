"""What a condition changed where every gold label counts alike; pure.

1. Balanced accuracy is the mean over gold labels of the accuracy on each one's docs. The same:
   docs are weighted so that labels count alike, with weights of mean 1 (`balancing_weights`).
2. Delta: the mean over docs of weight times (condition - unmasked).
3. Interval: questions are drawn with replacement, as for accuracy (`paired_delta`); of each draw,
   the mean over the labels drawn of the change on each one's docs. So how often a label is gold is
   drawn too, and a condition that says one label for all docs has exactly one balanced accuracy.
4. p: the sign-flip test by question of the weighted changes.

Where each label is gold as often as the others, weights are 1, and delta and p are those of
`paired_delta`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.evaluation.stats.paired_delta import (
    FloatArray,
    PairedDelta,
    bootstrap_deltas,
    percentile_interval,
    points_between,
    question_ranks,
    sign_flip_p,
)


def balancing_weights(labels: ArrayLike) -> FloatArray:
    """[docs] weights of mean 1 under which all labels [docs] count alike."""
    label, counts = _label_ranks(labels)
    return np.asarray(label.size / (counts.size * counts[label]), dtype=np.float64)


def balanced_delta(
    unmasked: ArrayLike,
    condition: ArrayLike,
    question_index: ArrayLike,
    labels: ArrayLike,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDelta:
    """Delta of balanced accuracy with a cluster bootstrap interval and a sign-flip p, by question.

    Args:
        unmasked: [docs], 1 if correct without intervention, else 0.
        condition: [docs], the same docs in the same order under the condition.
        question_index: [docs], integer labels; docs of one question share one.
        labels: [docs], the gold label of each.
        n_resamples: as in `paired_delta`, as are `seed` and the returned units.
    """
    before = np.asarray(unmasked, dtype=np.float64)
    after = np.asarray(condition, dtype=np.float64)
    assert before.shape == after.shape, (before.shape, after.shape)
    question, weights = question_ranks(question_index, before), balancing_weights(labels)
    label, counts = _label_ranks(labels)
    shape = int(question.max()) + 1, counts.size

    def by_label(values: FloatArray) -> FloatArray:
        """[questions, labels] sums of values [docs]."""
        cells = np.bincount(question * shape[1] + label, values, shape[0] * shape[1])
        return cells.astype(np.float64).reshape(shape)

    changes, bootstrap_rng, flip_rng = after - before, *np.random.default_rng(seed).spawn(2)
    n_docs = by_label(np.ones_like(before))
    low, high = percentile_interval(
        bootstrap_deltas(by_label(changes), n_docs, n_resamples, bootstrap_rng)
    )
    sums = np.bincount(question, weights * changes).astype(np.float64)
    return PairedDelta(
        delta=points_between(before, after, weights),
        low=low,
        high=high,
        p_value=sign_flip_p(sums, n_resamples, flip_rng),
        n_docs=before.size,
        n_questions=shape[0],
        unmasked=100.0 * float((weights * before).sum()) / before.size,
        condition=100.0 * float((weights * after).sum()) / after.size,
    )


def _label_ranks(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels [docs] as ranks 0 .. labels - 1, and how many docs each has."""
    _, ranks, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return ranks.astype(np.int64), counts.astype(np.int64)
