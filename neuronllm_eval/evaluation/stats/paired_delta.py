"""What a condition changed, with an interval and tests, from per-doc scores; pure.

The docs (proxies) of one question are correlated, so the question is the unit of resampling.

1. Reduce docs to questions: the sum of (condition - unmasked) and the number of docs of each.
2. Delta = sum of differences / sum of doc counts: the harness's accuracy difference over docs,
   also where questions have different numbers of docs.
3. Interval: draw as many questions as there are, with replacement, and take the same ratio; the
   percentiles of many such draws are the bounds (cluster bootstrap of a ratio; Davison and
   Hinkley 1997, sections 2.4 and 5.3).
4. p: a paired permutation test. If the intervention changed nothing, each question's difference
   could as well have the opposite sign, so each of the 2**questions sign patterns is as likely as
   the observed one.
   Integer differences (correct answers): the exact distribution of the sum. Among the questions of
   one size, the number of positive signs is binomial; sizes are convolved one by one. Where every
   question has one doc, this is McNemar's exact test (`mcnemar`).
   Other differences (confidences): all sign patterns of up to 12 questions, otherwise random ones;
   then p is (count + 1) / (n + 1) (Phipson and Smyth 2010).

Percentile intervals are somewhat too short with few questions (fewer than about 30), and of zero
width with one question or where all questions changed by the same amount. The bootstrap makes the
same draws as `scipy.stats.bootstrap`, but much faster, since questions of equal differences are
drawn together; the tests compare it and the permutation test with scipy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.formats.typed_files import NumberOrNaN

FloatArray = NDArray[np.float64]

_CONFIDENCE_LEVEL = 0.95
MAX_TYPES = 64  # above this, drawing indices is faster than drawing multinomial counts
CHUNK_CELLS = 1 << 20  # resamples x questions in memory at once: 8 MiB an array
EXACT_QUESTIONS = 12  # 2**12 sign patterns are enumerated; more are sampled
_ROUNDING = 1e-12  # relative; sums this close count as tied


def percent_change(before: float, after: float) -> float:
    """(after - before) / before in percent; nan where `before` is 0.

    Of accuracies this is RAC, of mean confidences RCC (our reading): (condition - unmasked) /
    unmasked.
    """
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

    delta: NumberOrNaN
    low: NumberOrNaN
    high: NumberOrNaN
    p_value: NumberOrNaN
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

    unmasked: NumberOrNaN
    condition: NumberOrNaN


def points_between(
    unmasked: FloatArray, condition: FloatArray, weights: FloatArray | float = 1.0
) -> float:
    """The delta of `paired_delta` alone, percentage points: to the bit, so that ties are ties.

    Args:
        weights: of the docs; those of `balanced_delta` give its delta.
    """
    return 100.0 * float((weights * (condition - unmasked)).sum()) / unmasked.size


def paired_delta(
    unmasked: ArrayLike,
    condition: ArrayLike,
    question_index: ArrayLike,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDelta:
    """Accuracy delta with a cluster bootstrap interval and a sign-flip p-value, both by question.

    The p-value is exact where docs are correct or incorrect, and where at most 12 questions differ;
    otherwise Monte Carlo. The same seed gives the same numbers whatever the order of the docs, and
    swapping the two runs flips the signs of delta and interval and keeps p. No difference at all
    gives delta 0, interval [0, 0] and p 1.

    Args:
        unmasked: [docs], 1 if correct without intervention, else 0; or a confidence, 0 to 1.
        condition: [docs], the same docs in the same order under the condition.
        question_index: [docs], integer labels; docs of one question share a label.
        n_resamples: bootstrap draws, and sign flips where these are sampled.
        seed: 0 or more; seeds bootstrap and sign flips.

    Returns:
        The delta in percentage points (algorithm: module docstring).
    """
    before, after = _pair(unmasked, condition)
    change = mean_change(after - before, question_index, n_resamples=n_resamples, seed=seed)
    return PairedDelta(
        unmasked=100.0 * float(before.sum()) / before.size,
        condition=100.0 * float(after.sum()) / after.size,
        **asdict(change),
    )


def mean_change(
    changes: ArrayLike, question_index: ArrayLike, *, n_resamples: int = 10_000, seed: int = 0
) -> MeanChange:
    """The mean of changes with a cluster bootstrap interval and a sign-flip p-value.

    Args:
        changes: [docs], such as -1 for a doc that became incorrect; 1 is 100 points.
        question_index: see `paired_delta`, as for the rest.
    """
    values = np.asarray(changes, dtype=np.float64)
    question = question_ranks(question_index, values)
    sums = _sums(values, question)
    doc_counts = _sums(np.ones_like(values), question)
    bootstrap_rng, flip_rng = np.random.default_rng(seed).spawn(2)
    low, high = percentile_interval(bootstrap_deltas(sums, doc_counts, n_resamples, bootstrap_rng))
    return MeanChange(
        delta=100.0 * float(sums.sum()) / values.size,
        low=low,
        high=high,
        p_value=sign_flip_p(sums, n_resamples, flip_rng),
        n_docs=values.size,
        n_questions=sums.size,
    )


def relative_change(
    unmasked: ArrayLike,
    condition: ArrayLike,
    question_index: ArrayLike,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> RelativeChange:
    """`percent_change` of the means over docs, with a cluster bootstrap interval.

    The arguments are those of `paired_delta`.
    """
    before, after = _pair(unmasked, condition)
    question = question_ranks(question_index, before)
    change = percent_change(float(before.mean()), float(after.mean()))
    if math.isnan(change):
        return RelativeChange(change, math.nan, math.nan)
    differences, bases = _sums(after - before, question), _sums(before, question)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have no correct answer
        drawn = bootstrap_deltas(differences, bases, n_resamples, np.random.default_rng(seed))
    low, high = percentile_interval(drawn) if np.isfinite(drawn).all() else (math.nan, math.nan)
    return RelativeChange(change, low, high)


def _pair(unmasked: ArrayLike, condition: ArrayLike) -> tuple[FloatArray, FloatArray]:
    before = np.asarray(unmasked, dtype=np.float64)
    after = np.asarray(condition, dtype=np.float64)
    assert before.shape == after.shape, (before.shape, after.shape)
    return before, after


def question_ranks(labels: ArrayLike, values: FloatArray) -> NDArray[np.int64]:
    """Labels [docs] as ranks 0 .. questions - 1, for finite values [docs]."""
    unique, ranks = np.unique(np.asarray(labels), return_inverse=True)
    assert unique.size, "no docs"
    assert ranks.shape == values.shape, (ranks.shape, values.shape)
    assert np.isfinite(values).all(), "a value is not finite"
    return ranks.astype(np.int64)


def _sums(values: FloatArray, question: NDArray[np.int64]) -> FloatArray:
    """[questions] sums of values [docs]."""
    return np.bincount(question, weights=values).astype(np.float64)


def percentile_interval(drawn: FloatArray) -> tuple[float, float]:
    """The bounds of the 95% interval of a bootstrap's draws."""
    tail = (1.0 - _CONFIDENCE_LEVEL) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


# Resampling of questions, seeded and bounded in memory -------------------------------------------


def bootstrap_deltas(
    changes: FloatArray, bases: FloatArray, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Ratios of sums over resampled questions, [resamples], times 100.

    Args:
        changes: [questions] numerators, such as the sum of a question's differences; or
            [questions, labels], of which the mean over the labels drawn is taken.
        bases: denominators of the same shape, such as its number of docs.
    """
    questions = np.stack([changes, bases], axis=1)  # [questions, 2, ...]
    n_questions = len(questions)
    types, first_seen, multiplicity = np.unique(
        questions, axis=0, return_index=True, return_counts=True
    )
    # Order of appearance, not of value: it stays the same when the two runs are swapped.
    order = np.argsort(first_seen)
    types, shares = types[order], multiplicity[order] / n_questions
    few = len(types) <= MAX_TYPES
    # Equal numbers of docs, the usual case, add up to the same number in every draw.
    is_constant = bases.ndim == 1 and bool((bases == np.rint(bases[0])).all())
    deltas = np.empty(n_resamples)
    cells = (len(types) if few else n_questions) * changes[0].size
    for rows in chunks(n_resamples, cells):
        n_rows = rows.stop - rows.start
        if few:
            # Equal questions are exchangeable: how often each type is drawn is multinomial.
            counts = rng.multinomial(n_questions, shares, size=n_rows)
            sums = (counts @ types.reshape(len(types), -1)).reshape(n_rows, *types.shape[1:])
            numerators, denominators = sums[:, 0], sums[:, 1]
        else:
            drawn = rng.integers(0, n_questions, size=(n_rows, n_questions), dtype=np.int32)
            numerators = changes[drawn].sum(axis=1)
            denominators = bases.sum() if is_constant else bases[drawn].sum(axis=1)
        if changes.ndim > 1:
            numerators, denominators = _over_labels(numerators, denominators)
        deltas[rows] = 100.0 * numerators / denominators
    return deltas


def _over_labels(numerators: FloatArray, denominators: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of ratios [rows, labels], the sum over the labels that were drawn, and how many these are."""
    is_drawn = denominators > 0
    ratios = np.divide(numerators, denominators, where=is_drawn, out=np.zeros(is_drawn.shape))
    return ratios.sum(axis=1), is_drawn.sum(axis=1).astype(np.float64)


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
