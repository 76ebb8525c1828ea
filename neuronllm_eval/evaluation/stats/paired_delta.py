"""What a condition changed, with an interval and tests, from per-doc scores; pure.

The docs (proxies) of one question are correlated, so the question is the unit of resampling.

1. Reduce docs to questions: the sum of (condition - unmasked) and the number of docs of each.
2. Delta = sum of differences / sum of doc counts: the harness's accuracy difference over docs,
   also where questions have different numbers of docs.
3. Interval: draw as many questions as there are, with replacement, and take the same ratio; the
   percentiles of many such draws are the bounds (cluster bootstrap of a ratio; Davison and
   Hinkley 1997, sections 2.4 and 5.3).
4. p: if the intervention changed nothing, each question's difference could as well have the other
   sign. Over all signs, how often is the sum at least as far from 0 (paired permutation test)?
   Where every question has one doc, this is McNemar's exact test (`mcnemar`).

Percentile intervals are somewhat too short with few questions (fewer than about 30), and of zero
width with one question or where all questions changed alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.stats.bootstrap import bootstrap_deltas
from neuronllm_eval.evaluation.stats.checks import (
    FloatArray,
    check_resampling,
    checked_accuracies,
    checked_number,
    checked_vector,
    question_labels,
    require_same_length,
)
from neuronllm_eval.evaluation.stats.permutation_test import sign_flip_p


def relative_accuracy_change(unmasked_acc: float, condition_acc: float) -> float:
    """RAC (our reading): (condition - unmasked) / unmasked, in percent.

    Args:
        unmasked_acc: accuracy without intervention, as a fraction or in percent.
        condition_acc: accuracy under the condition, in the same unit.

    Returns:
        Percent of the unmasked accuracy; nan where that is 0.

    Raises:
        UsageError: a value is not finite or outside 0 to 100.
    """
    return _relative_change(("unmasked_acc", unmasked_acc), ("condition_acc", condition_acc))


def relative_confidence_change(unmasked_confidence: float, condition_confidence: float) -> float:
    """RCC (our reading): (condition - unmasked) / unmasked, in percent.

    Args:
        unmasked_confidence: mean over docs of the softmax over the options at the gold option,
            without intervention, as a fraction or in percent.
        condition_confidence: the same under the condition, in the same unit.

    Returns:
        Percent of the unmasked confidence; nan where that is 0.

    Raises:
        UsageError: a value is not finite or outside 0 to 100.
    """
    return _relative_change(
        ("unmasked_confidence", unmasked_confidence),
        ("condition_confidence", condition_confidence),
    )


def _relative_change(unmasked: tuple[str, float], condition: tuple[str, float]) -> float:
    values = []
    for name, given in (unmasked, condition):
        value = checked_number(name, given)
        if not 0.0 <= value <= 100.0:
            raise UsageError(
                f"{name} is {value:g}",
                expected="a fraction (0 to 1) or a percentage (0 to 100)",
                remedy=f"pass {name} in the same unit as its counterpart, not a delta",
            )
        values.append(value)
    before, after = values
    return math.nan if before == 0 else 100.0 * (after - before) / before


@dataclass(frozen=True)
class MeanChange:
    """A mean over docs of numbers that would be around 0 if nothing had changed.

    Attributes:
        delta: the mean, percentage points.
        low: lower bound of its interval, percentage points.
        high: upper bound, percentage points.
        p_value: two-sided, in (0, 1].
        n_docs: number of docs.
        n_questions: number of questions, the unit of resampling.
    """

    delta: float
    low: float
    high: float
    p_value: float
    n_docs: int
    n_questions: int


@dataclass(frozen=True)
class RelativeChange:
    """A change in percent of what it was before; nan where that was 0.

    Attributes:
        change: percent.
        low: lower bound of its interval, percent; nan where before may as well have been 0.
        high: upper bound, percent.
    """

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDelta(MeanChange):
    """Accuracy of one condition against the unmasked run, on the same docs.

    Attributes:
        unmasked: accuracy over docs without intervention, percent.
        condition: accuracy over docs under the condition, percent; `delta` is this minus that.
    """

    unmasked: float
    condition: float


def points_between(unmasked: FloatArray, condition: FloatArray) -> float:
    """The delta of `paired_delta` alone, percentage points: to the bit, so that ties are ties."""
    return 100.0 * float((condition - unmasked).sum()) / unmasked.size


def paired_delta(
    unmasked: ArrayLike,
    condition: ArrayLike,
    question_index: ArrayLike,
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDelta:
    """Accuracy delta with a cluster bootstrap interval and a sign-flip p-value, both by question.

    The p-value is exact where docs are right or wrong, and where at most 12 questions differ;
    otherwise Monte Carlo. The same seed gives the same numbers whatever the order of the docs, and
    swapping the two runs flips the signs of delta and interval and keeps p. No difference at all
    gives delta 0, interval [0, 0] and p 1.

    Args:
        unmasked: [docs], right (1) or wrong (0) without intervention; values between also pass,
            so a confidence can be compared in the same way.
        condition: [docs], the same docs in the same order under the condition.
        question_index: [docs], integer labels; docs of one question share a label.
        confidence_level: of the interval, between 0 and 1.
        n_resamples: bootstrap draws, and sign flips where these are sampled.
        seed: of all draws, 0 or more.

    Returns:
        The delta in percentage points (algorithm: module docstring).

    Raises:
        UsageError: lengths differ, an input is empty, not finite or outside 0 to 1, labels are
            not integers, or a setting is out of range.
    """
    before, after = _checked_pair(unmasked, condition)
    question, _ = question_labels(question_index, like=("unmasked", before))
    change = mean_change(
        after - before,
        question,
        confidence_level=confidence_level,
        n_resamples=n_resamples,
        seed=seed,
    )
    return PairedDelta(
        unmasked=100.0 * float(before.sum()) / before.size,
        condition=100.0 * float(after.sum()) / after.size,
        **asdict(change),
    )


def mean_change(
    changes: ArrayLike,
    question_index: ArrayLike,
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> MeanChange:
    """The mean of changes with a cluster bootstrap interval and a sign-flip p-value.

    Args:
        changes: [docs], such as -1 for a doc that became wrong; 1 is 100 points.
        question_index: see `paired_delta`, as for the other settings and the errors.
        confidence_level: of the interval, between 0 and 1.
        n_resamples: bootstrap draws, and sign flips where these are sampled.
        seed: of all draws, 0 or more.

    Raises:
        UsageError: see `paired_delta`.
    """
    values = checked_vector("changes", changes)
    question, n_questions = question_labels(question_index, like=("changes", values))
    check_resampling(confidence_level, n_resamples, seed)
    sums = np.bincount(question, weights=values).astype(np.float64)
    doc_counts = np.bincount(question).astype(np.float64)
    bootstrap_rng, flip_rng = np.random.default_rng(seed).spawn(2)
    deltas = bootstrap_deltas(sums, doc_counts, n_resamples, bootstrap_rng)
    low, high = _bounds(deltas, confidence_level)
    return MeanChange(
        delta=100.0 * float(sums.sum()) / values.size,
        low=low,
        high=high,
        p_value=sign_flip_p(sums, n_resamples, flip_rng),
        n_docs=values.size,
        n_questions=n_questions,
    )


def relative_change(
    unmasked: ArrayLike,
    condition: ArrayLike,
    question_index: ArrayLike,
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> RelativeChange:
    """(condition - unmasked) / unmasked in percent, with a cluster bootstrap interval.

    Of right or wrong that is RAC, of the confidence RCC (`relative_changes`).

    Args:
        unmasked: see `paired_delta`, as for the others and the errors.
        condition: [docs].
        question_index: [docs].
        confidence_level: of the interval, between 0 and 1.
        n_resamples: bootstrap draws.
        seed: of the draws, 0 or more.

    Raises:
        UsageError: see `paired_delta`.
    """
    before, after = _checked_pair(unmasked, condition)
    question, _ = question_labels(question_index, like=("unmasked", before))
    check_resampling(confidence_level, n_resamples, seed)
    change = relative_accuracy_change(float(before.mean()), float(after.mean()))
    if math.isnan(change):
        return RelativeChange(change, math.nan, math.nan)
    differences = np.bincount(question, weights=after - before).astype(np.float64)
    bases = np.bincount(question, weights=before).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have no right answer
        drawn = bootstrap_deltas(differences, bases, n_resamples, np.random.default_rng(seed))
    low, high = (math.nan, math.nan)
    if np.isfinite(drawn).all():
        low, high = _bounds(drawn, confidence_level)
    return RelativeChange(change, low, high)


def _checked_pair(unmasked: ArrayLike, condition: ArrayLike) -> tuple[FloatArray, FloatArray]:
    before = checked_accuracies("unmasked", unmasked)
    after = checked_accuracies("condition", condition)
    require_same_length("condition", after, "unmasked", before)
    return before, after


def _bounds(drawn: FloatArray, confidence_level: float) -> tuple[float, float]:
    tail = (1.0 - confidence_level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)
