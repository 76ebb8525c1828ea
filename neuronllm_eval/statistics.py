"""Paired deltas, intervals, tests, RAC, RCC and stability of per-doc scores; pure.

The docs (proxies) of one question are correlated, so the question is the unit of resampling.

1. Reduce docs to questions: the sum of (condition - unmasked) and the number of docs of each.
2. Delta = sum of differences / sum of doc counts: the harness's accuracy difference over docs,
   also where questions have different numbers of docs.
3. Interval: draw as many questions as there are, with replacement, and take the same ratio; the
   percentiles of many such draws are the bounds (cluster bootstrap of a ratio; Davison and
   Hinkley 1997, sections 2.4 and 5.3).
4. p: if the intervention changed nothing, each question's difference could as well have the other
   sign. Flip the signs by question and count how often the sum is at least as far from 0 (paired
   permutation test; the (count + 1) / (n + 1) rule is Phipson and Smyth 2010).

Percentile intervals are somewhat too short with few questions (fewer than about 30), and of zero
width with one question or where all questions changed alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from neuronllm_eval.array_checks import (
    FloatArray,
    IntArray,
    check_resampling,
    checked_accuracies,
    checked_number,
    checked_options,
    checked_vector,
    question_labels,
    require_integers,
    require_same_length,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.resampling import bootstrap_deltas, sign_flip_p


@dataclass(frozen=True)
class PairedDelta:
    """Accuracy of one condition against the unmasked run, on the same docs.

    Attributes:
        unmasked: accuracy over docs without intervention, percent.
        condition: accuracy over docs under the condition, percent.
        delta: condition minus unmasked, percentage points.
        low: lower bound of the delta's interval, percentage points.
        high: upper bound of the delta's interval, percentage points.
        p_value: two-sided, in (0, 1].
        n_docs: number of docs.
        n_questions: number of questions, the unit of resampling.
    """

    unmasked: float
    condition: float
    delta: float
    low: float
    high: float
    p_value: float
    n_docs: int
    n_questions: int


@dataclass(frozen=True)
class ControlRank:
    """Where a condition's delta stands among size-matched random controls.

    Attributes:
        mean: mean delta of the controls, percentage points; nan without controls.
        low: smallest delta of the controls, percentage points; nan without controls.
        high: largest delta of the controls, percentage points; nan without controls.
        n_controls: number of controls.
        n_as_extreme: controls at least as far as the condition, on its side of `mean`.
        p_value: (1 + n_as_extreme) / (1 + n_controls), one-sided; nan without controls.
    """

    mean: float
    low: float
    high: float
    n_controls: int
    n_as_extreme: int
    p_value: float


@dataclass(frozen=True)
class SplitHalf:
    """Agreement of neuron scores from two disjoint halves of the questions.

    Attributes:
        rank_correlation: Spearman's, over neurons not 0 in both halves; nan where undefined.
        top_k_overlap: share of the k highest neurons that both halves name, 0 to 1.
        bottom_k_overlap: share of the k lowest neurons that both halves name, 0 to 1.
    """

    rank_correlation: float
    top_k_overlap: float
    bottom_k_overlap: float


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

    The p-value is exact where at most 12 questions differ, otherwise Monte Carlo. The same seed
    gives the same numbers whatever the order of the docs, and swapping the two runs flips the
    signs of delta and interval and keeps p. No difference at all gives delta 0, interval [0, 0]
    and p 1.

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
    before = checked_accuracies("unmasked", unmasked)
    after = checked_accuracies("condition", condition)
    require_same_length("condition", after, "unmasked", before)
    question, n_questions = question_labels(question_index, like=("unmasked", before))
    check_resampling(confidence_level, n_resamples, seed)

    sums = np.bincount(question, weights=after - before)
    differences = np.asarray(sums, dtype=np.float64)
    doc_counts = np.bincount(question).astype(np.float64)
    bootstrap_rng, flip_rng = np.random.default_rng(seed).spawn(2)
    deltas = bootstrap_deltas(differences, doc_counts, n_resamples, bootstrap_rng)
    tail = (1.0 - confidence_level) / 2.0
    low, high = np.quantile(deltas, [tail, 1.0 - tail])
    return PairedDelta(
        unmasked=100.0 * float(before.sum()) / before.size,
        condition=100.0 * float(after.sum()) / after.size,
        delta=100.0 * float(differences.sum()) / before.size,
        low=float(low),
        high=float(high),
        p_value=sign_flip_p(differences, n_resamples, flip_rng),
        n_docs=before.size,
        n_questions=n_questions,
    )


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


def random_control_rank(
    condition_delta: float, control_deltas: Sequence[float], expected_sign: int = 0
) -> ControlRank:
    """Rank a condition's delta among the deltas of size-matched random controls (our reading).

    The side is the condition's own: above the controls' mean, controls with a delta >= the
    condition's are as extreme; below it, those with a delta <= it; exactly at it, all are, so
    that p is 1. As the side is read from the data, p is a test at its face value only if the
    side was expected beforehand (suppressing good neurons lowers accuracy); otherwise double it.
    With n controls, p cannot be below 1 / (n + 1).

    Args:
        condition_delta: delta of the condition, percentage points.
        control_deltas: [controls], deltas of the random controls, percentage points.
        expected_sign: 1 or -1 if a rise or a fall was expected beforehand: the side to judge on;
            0 reads the side from the data.

    Returns:
        The controls' mean and range in percentage points and the one-sided empirical p (rule:
        Phipson and Smyth 2010). Without controls: mean, low, high and p are nan.

    Raises:
        UsageError: a delta is not finite.
    """
    own = checked_number("condition_delta", condition_delta)
    if np.size(control_deltas) == 0:
        return ControlRank(math.nan, math.nan, math.nan, 0, 0, math.nan)
    controls = checked_vector("control_deltas", control_deltas)
    mean = math.fsum(controls) / controls.size
    as_extreme = np.ones(controls.size, dtype=np.bool_)
    side = expected_sign or np.sign(own - mean)
    if side > 0:
        as_extreme = controls >= own
    elif side < 0:
        as_extreme = controls <= own
    n_as_extreme = int(as_extreme.sum())
    return ControlRank(
        mean=mean,
        low=float(controls.min()),
        high=float(controls.max()),
        n_controls=controls.size,
        n_as_extreme=n_as_extreme,
        p_value=(1 + n_as_extreme) / (1 + controls.size),
    )


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
        rank_correlation=_spearman(one[scored], two[scored]),
        top_k_overlap=np.intersect1d(_lowest(-one, k), _lowest(-two, k)).size / k,
        bottom_k_overlap=np.intersect1d(_lowest(one, k), _lowest(two, k)).size / k,
    )


def softmax_confidence(loglikelihoods: ArrayLike, gold: ArrayLike) -> FloatArray:
    """Confidence: the softmax over the options at the gold option.

    Args:
        loglikelihoods: [..., options], log-nats.
        gold: [...], integer index of the right option.

    Returns:
        [...], probabilities, 0 to 1 (a 0-d array for a single doc).

    Raises:
        UsageError: an input is empty or not finite, shapes do not match, or gold is not an
            integer or out of range.
    """
    options = checked_options(loglikelihoods)
    right = np.asarray(gold)
    if right.shape != options.shape[:-1]:
        raise UsageError(
            f"gold has shape {right.shape}, loglikelihoods {options.shape}",
            expected=f"gold of shape {options.shape[:-1]}, one index per doc",
            remedy="pass gold and loglikelihoods of the same docs",
        )
    require_integers("gold", right)
    outside = (right < 0) | (right >= options.shape[-1])
    if outside.any():
        raise UsageError(
            f"gold holds {right[outside][0]}",
            expected=f"0 to {options.shape[-1] - 1}, as there are {options.shape[-1]} options",
            remedy="check that gold counts from 0 and that no option is missing",
        )
    weights = np.exp(options - options.max(axis=-1, keepdims=True))  # [..., options]
    at_gold = np.take_along_axis(weights, right[..., np.newaxis].astype(np.int64), axis=-1)
    confidence: FloatArray = np.asarray(at_gold[..., 0] / weights.sum(axis=-1))
    return confidence


def predictions(loglikelihoods: ArrayLike) -> IntArray:
    """The option with the highest log-likelihood, the first of equals, as the harness takes it.

    Args:
        loglikelihoods: [..., options], log-nats.

    Returns:
        [...], option indices (a 0-d array for a single doc).

    Raises:
        UsageError: the input is empty or not finite.
    """
    return np.asarray(checked_options(loglikelihoods).argmax(axis=-1), dtype=np.int64)


def _spearman(a: FloatArray, b: FloatArray) -> float:
    if a.size < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan  # scipy would warn
    return float(scipy.stats.spearmanr(a, b).statistic)


def _lowest(scores: FloatArray, k: int) -> IntArray:
    return np.argsort(scores, kind="stable")[:k]


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
