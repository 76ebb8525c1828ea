"""McNemar's exact test of docs that are right in one run and wrong in the other; pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from neuronllm_eval.array_checks import FloatArray, checked_accuracies, require_same_length
from neuronllm_eval.errors import UsageError


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
