"""Where a condition stands among its layer-matched random controls; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuronllm_eval.evaluation.stats.checks import checked_number, checked_vector


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
