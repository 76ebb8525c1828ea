"""McNemar's exact test of docs that are right in one run and wrong in the other; pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.stats.checks import (
    FloatArray,
    checked_accuracies,
    checked_vector,
    require_same_length,
)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for their number (Holm 1979), in the same order.

    If each is valid, then the chance that any true null hypothesis comes out below alpha is at
    most alpha, however the tests depend on each other.

    Args:
        p_values: [tests], each above 0 and at most 1; may be empty.

    Raises:
        UsageError: a value is not finite or out of range.
    """
    if np.size(p_values) == 0:
        return []
    given = checked_vector("p_values", p_values)
    outside = np.flatnonzero((given <= 0) | (given > 1))
    if outside.size:
        raise UsageError(
            f"p_values holds {given[outside[0]]:g} at position {outside[0]}",
            expected="numbers above 0 and at most 1",
            remedy="pass the p-values themselves, not in percent or as logarithms",
        )
    order = np.argsort(given, kind="stable")
    steps = np.arange(given.size, 0, -1) * given[order]  # the smallest times the number of tests
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class McNemar:
    """Docs whose answer became right or wrong under a condition.

    Attributes:
        n_gained: docs wrong without intervention, right under the condition.
        n_lost: docs right without intervention, wrong under the condition.
        p_value: exact, two-sided, in (0, 1].
    """

    n_gained: int
    n_lost: int
    p_value: float


def mcnemar(unmasked: ArrayLike, condition: ArrayLike) -> McNemar:
    """McNemar's exact test of docs that are right in one run and wrong in the other.

    It takes docs as independent. Where the docs of a question change alike, its p is too small;
    that of `paired_delta` is not, and is this one where every question has one doc.

    Args:
        unmasked: [docs], right (1) or wrong (0) without intervention.
        condition: [docs], the same docs in the same order under the condition.

    Returns:
        The docs that changed, and the two-sided binomial p of their being gained or lost with
        equal chance; 1 if none changed.

    Raises:
        UsageError: lengths differ, or an input is empty or holds anything but 0 and 1.
    """
    before = _checked_answers("unmasked", unmasked)
    after = _checked_answers("condition", condition)
    require_same_length("condition", after, "unmasked", before)
    n_gained = int(np.count_nonzero(after > before))
    n_lost = int(np.count_nonzero(after < before))
    fewer, n_changed = min(n_gained, n_lost), n_gained + n_lost
    tail = float(scipy.stats.binom.cdf(fewer, n_changed, 0.5)) if n_changed else 1.0
    return McNemar(n_gained, n_lost, min(1.0, max(2.0 * tail, sys.float_info.min)))


def _checked_answers(name: str, values: ArrayLike) -> FloatArray:
    array = checked_accuracies(name, values)
    between = np.flatnonzero((array > 0) & (array < 1))
    if between.size:
        raise UsageError(
            f"{name} holds {array[between[0]]:g} at position {between[0]}",
            expected="0 (wrong) or 1 (right) per doc",
            remedy=f"pass per-doc correctness as {name}; a confidence has no right and wrong",
        )
    return array
