"""McNemar's test, Holm's correction, ranks among random controls, chance, split halves. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.evaluation.stats.paired_delta import FloatArray
from neuronllm_eval.formats.typed_files import NumberOrNaN

ALPHA = 0.05


@dataclass(frozen=True)
class McNemar:
    """Docs whose answer became correct or incorrect under a condition.

    Attributes:
        n_gained: docs incorrect without intervention, correct under the condition.
        n_lost: docs correct without intervention, incorrect under the condition.
        p_value: exact, two-sided, in (0, 1].
    """

    n_gained: int
    n_lost: int
    p_value: NumberOrNaN


def mcnemar(unmasked: ArrayLike, condition: ArrayLike) -> McNemar:
    """McNemar's exact test of docs that are correct in one run and incorrect in the other.

    It treats docs as independent. Where the docs of a question change together, its p is too small;
    that of `paired_delta` is not, and equals this one where every question has one doc.

    Args:
        unmasked: [docs], 1 if correct without intervention, else 0.
        condition: [docs], the same docs in the same order under the condition.

    Returns:
        The docs that changed, and the two-sided binomial p; 1 if none changed.
    """
    before, after = np.asarray(unmasked), np.asarray(condition)
    n_gained = int(np.count_nonzero(after > before))
    n_lost = int(np.count_nonzero(after < before))
    n_changed = n_gained + n_lost
    p_value = float(scipy.stats.binomtest(n_gained, n_changed).pvalue) if n_changed else 1.0
    return McNemar(n_gained, n_lost, max(p_value, sys.float_info.min))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for their number (Holm 1979), in the same order.

    If each is valid, the probability that any true null hypothesis falls below alpha is at most
    alpha, however the tests depend on each other.

    Args:
        p_values: [tests], each above 0 and at most 1; may be empty.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.arange(raw.size, 0, -1) * raw[order]  # the smallest times the number of tests
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class ControlRank:
    """A condition's delta compared with those of its layer-matched random controls.

    Attributes:
        mean: mean delta of the controls, percentage points; nan without controls.
        low: smallest delta of the controls, percentage points; nan without controls.
        high: largest delta of the controls, percentage points; nan without controls.
        n_controls: number of controls.
        n_as_extreme: controls at least as far as the condition, on its side of `mean`.
        p_value: (1 + n_as_extreme) / (1 + n_controls), one-sided; nan without controls.
    """

    mean: NumberOrNaN
    low: NumberOrNaN
    high: NumberOrNaN
    n_controls: int
    n_as_extreme: int
    p_value: NumberOrNaN


def random_control_rank(
    condition_delta: float, control_deltas: Sequence[float], expected_sign: int = 0
) -> ControlRank:
    """Rank a condition's delta among the deltas of its random controls (our reading).

    The side is the condition's own: above the controls' mean, controls with a delta >= the
    condition's are as extreme; below it, those with a delta <= it; exactly at it, all are, so
    that p is 1. As the side is read from the data, p is a test at its face value only if the
    side was expected beforehand (suppressing good neurons lowers accuracy); otherwise double it.
    With n controls, p cannot be below 1 / (n + 1).

    Args:
        condition_delta: delta of the condition, percentage points.
        control_deltas: [controls], deltas of the random controls, percentage points.
        expected_sign: 1 or -1 if a rise or a fall was expected beforehand, which fixes the side;
            0 reads the side from the data.

    Returns:
        The controls' mean and range in percentage points and the one-sided empirical p (rule:
        Phipson and Smyth 2010). Without controls: mean, low, high and p are nan.
    """
    controls = np.asarray(control_deltas, dtype=np.float64)
    if not controls.size:
        return ControlRank(math.nan, math.nan, math.nan, 0, 0, math.nan)
    mean = math.fsum(controls) / controls.size
    side = expected_sign or np.sign(condition_delta - mean)
    n_as_extreme = int(np.count_nonzero(side * controls >= side * condition_delta))
    return ControlRank(
        mean=mean,
        low=float(controls.min()),
        high=float(controls.max()),
        n_controls=controls.size,
        n_as_extreme=n_as_extreme,
        p_value=(1 + n_as_extreme) / (1 + controls.size),
    )


# Chance -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChanceTest:
    """Accuracy compared with the accuracy of guessing.

    Attributes:
        accuracy: share of the docs that are correct, 0 to 1.
        chance: mean of 1 / number of options over the docs.
        n_questions: number of questions.
        n_docs: number of docs.
        p_value: one-sided, exact binomial, by question, in (0, 1].
    """

    accuracy: float
    chance: float
    n_questions: int
    n_docs: int
    p_value: float

    @property
    def is_at_chance(self) -> bool:
        """Whether accuracy is not clearly above chance: p is `ALPHA` or more.

        False where questions are too few for any accuracy to be above chance.
        """
        return self.p_value >= ALPHA > self.chance**self.n_questions


def chance_test(correct: ArrayLike, n_options: ArrayLike, n_questions: int) -> ChanceTest:
    """Whether accuracy is above chance.

    Docs of a question are not independent, so the test counts questions: of n of them, n times the
    accuracy over all docs, rounded down, are taken as correct. That is the usual test where every
    question has one doc, or its docs are correct together; otherwise it is conservative, as the
    accuracy over several docs varies less. So it is for docs with different numbers of options
    (our reading).

    Args:
        correct: [docs], 1 if the most likely option is the gold one, else 0.
        n_options: [docs], number of options.
        n_questions: number of questions that the docs belong to, at least 1.
    """
    right, options = np.asarray(correct), np.asarray(n_options)
    assert right.shape == options.shape, (right.shape, options.shape)
    assert 1 <= n_questions <= right.size, (n_questions, right.size)
    n_correct = int(np.count_nonzero(right))
    chance = float(np.mean(1 / options))
    test = scipy.stats.binomtest(
        n_questions * n_correct // right.size, n_questions, chance, alternative="greater"
    )
    p_value = max(float(test.pvalue), sys.float_info.min)
    return ChanceTest(n_correct / right.size, chance, n_questions, right.size, p_value)


# Agreement of two halves of the questions, or of two scorings, on the neurons ------------------


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
