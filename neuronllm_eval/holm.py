"""Holm's correction of p-values for the number of tests; pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuronllm_eval.array_checks import checked_vector
from neuronllm_eval.errors import UsageError


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
