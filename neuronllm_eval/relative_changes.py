"""RAC and RCC: relative changes of accuracy and of confidence; pure."""

from __future__ import annotations

import math

from neuronllm_eval.array_checks import checked_number
from neuronllm_eval.errors import UsageError


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
