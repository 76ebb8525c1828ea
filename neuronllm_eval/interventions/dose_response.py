"""Dose-response sweeps: each condition at several numbers of neurons and several factors. Pure.

1. `--top_k` and `--scale` are lists; a sweep is every number of neurons with every factor.
2. A factor below 1 suppresses and one above 1 enhances, so each condition of one operation takes
   the factors on its own side (our reading). `suppress_good` and `enhance_good` together are the
   whole curve of the good neurons, and no mask is scored twice. 1 is the unmasked model.
3. `degrade` and `enhance` have two operations and no single factor: they are swept over the
   numbers of neurons, at the run's own two factors.
4. The point with most neurons and the run's own factor is the plain condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from neuronllm_eval.errors import UsageError
from neuronllm_eval.interventions.conditions import (
    OPERATIONS,
    UNMASKED,
    ConditionName,
    Scales,
    factor_text,
    only_operation,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import resolve_count


@dataclass(frozen=True)
class Sweep:
    """The two axes; without any value there is no sweep.

    Attributes:
        top_k: numbers of good and of bad neurons: counts, or shares of all neurons. One number
            is no sweep but the number that is judged.
        scales: factors.
    """

    top_k: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require_distinct("top_k", self.top_k)
        _require_distinct("scale", self.scales)
        for count in self.top_k:
            if not (0 < count < 1 or (math.isfinite(count) and count >= 1 and count % 1 == 0)):
                raise UsageError(
                    f"top_k is {count:g}",
                    expected="a count from 1, or a share of all neurons between 0 and 1",
                    remedy="check --top_k",
                )
        if min(self.top_k, default=1) < 1 <= max(self.top_k, default=1) and len(self.top_k) > 1:
            raise UsageError(
                f"top_k holds shares and counts: {', '.join(f'{k:g}' for k in self.top_k)}",
                expected="shares of all neurons, each below 1, or counts",
                remedy="check --top_k",
            )
        for scale in self.scales:
            if not (math.isfinite(scale) and scale >= 0):
                raise UsageError(
                    f"scale is {scale:g}",
                    expected="finite factors of 0 or more",
                    remedy="check --scale; --suppress_scale takes a negative one for all",
                )
        if self.scales == (1,):
            raise UsageError(
                "scale holds 1 alone, which changes nothing",
                expected="a factor below or above 1",
                remedy="check --scale; the unmasked model is always scored",
            )

    def require_use(self, conditions: Sequence[str]) -> None:
        """Raise UsageError if no condition takes one of the factors."""
        used = {only_operation(condition) for condition in conditions}
        idle = [factor_text(scale) for scale in self.scales if _operation(scale) not in used]
        idle = [scale for scale in idle if scale != "1"]
        if idle:
            raise UsageError(
                f"no condition takes scale {', '.join(idle)}: {', '.join(conditions)}",
                expected="a factor below 1 with suppress_good or suppress_bad, one above 1 with "
                "enhance_good or enhance_bad",
                remedy="add such a condition to --conditions, or check --scale",
            )

    def counts(self, neurons: NeuronSet) -> tuple[int, ...]:
        """Numbers of neurons, in ascending order; without any, all that were chosen.

        Raises:
            UsageError: more than were chosen.
        """
        total = neurons.n_layers * neurons.width
        counts = sorted({resolve_count(count, total, "top_k") for count in self.top_k})
        if counts and counts[-1] > neurons.top_k:
            raise UsageError(
                f"top_k={counts[-1]} of a set chosen with top_k={neurons.top_k}",
                expected=f"1 to {neurons.top_k}",
                remedy="check --top_k, or run `neuronllm-eval identify` with a larger one",
            )
        return tuple(counts) or (neurons.top_k,)

    def points(
        self, conditions: Sequence[str], default: Scales, counts: Sequence[int]
    ) -> tuple[str, ...]:
        """Names of the points that are no plain condition, by condition, number and factor.

        Args:
            conditions: names; those that are points or controls already are not swept.
            default: the run's own factors.
            counts: numbers of neurons.
        """
        names = []
        for condition in dict.fromkeys(conditions):
            if condition not in OPERATIONS or condition == UNMASKED:
                continue
            operation = only_operation(condition)
            own: float | None = None
            factors: list[float | None] = []
            if operation is not None:
                own = float(getattr(default, operation))
                factors = [scale for scale in sorted(self.scales) if _operation(scale) == operation]
            for count in counts:
                for scale in factors or [own]:
                    if (count, scale) != (max(counts), own):
                        names.append(str(ConditionName(condition, count, scale)))
        return tuple(names)


def _operation(scale: float) -> str | None:
    if scale == 1:
        return None
    return "suppress" if scale < 1 else "enhance"


def _require_distinct(name: str, values: Sequence[float]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise UsageError(
            f"{name} holds {', '.join(f'{value:g}' for value in twice)} more than once",
            expected="every value once",
            remedy=f"check --{name}",
        )
