"""Conditions: named interventions, as factors on every neuron of the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons import NeuronSet
from neuronllm_eval.selection import random_like

UNMASKED = "unmasked"
SUPPRESS_SCALE = 0.0
ENHANCE_SCALE = 2.0
# condition -> what happens to (good, bad) neurons.
OPERATIONS: dict[str, tuple[str | None, str | None]] = {
    UNMASKED: (None, None),
    "suppress_good": ("suppress", None),
    "suppress_bad": (None, "suppress"),
    "enhance_good": ("enhance", None),
    "enhance_bad": (None, "enhance"),
    "degrade": ("suppress", "enhance"),
    "enhance": ("enhance", "suppress"),
}
CONDITIONS = tuple(OPERATIONS)
_CONTROL = ".random_"


@dataclass(frozen=True)
class Scales:
    """Factors of the two operations.

    Attributes:
        suppress: 0 by default.
        enhance: 2 by default.
    """

    suppress: float = SUPPRESS_SCALE
    enhance: float = ENHANCE_SCALE

    def __post_init__(self) -> None:
        for name in ("suppress", "enhance"):
            if not np.isfinite(getattr(self, name)):
                raise UsageError(
                    f"the {name} scale is {getattr(self, name)}",
                    expected="a finite number",
                    remedy="check scale, suppress_scale and enhance_scale",
                )


def require_condition(condition: str) -> None:
    """Raise UsageError unless `condition` is one of `CONDITIONS` or a random control of one."""
    name = condition.partition(_CONTROL)[0]
    seed = condition[len(name) + len(_CONTROL) :]
    if name not in OPERATIONS or (name != condition and not seed.isdecimal()):
        raise UsageError(
            f"unknown condition {condition!r}",
            expected=", ".join(CONDITIONS) + f", or one of them with {_CONTROL}SEED",
            remedy="check condition or --conditions",
        )


def control_name(condition: str, seed: int) -> str:
    """The name of a condition applied to the layer-matched random neurons of `seed`."""
    return f"{condition}{_CONTROL}{seed}"


def condition_scales(
    neurons: NeuronSet, condition: str, scales: Scales | None = None
) -> NDArray[np.float32]:
    """[layers, neurons] the factor of every neuron under a condition.

    Args:
        neurons: the good and bad neurons.
        condition: one of `CONDITIONS`, or `<condition>.random_<seed>` for the same operation on
            layer-matched random neurons.
        scales: the factors of suppressing and enhancing.

    Raises:
        UsageError: unknown condition.
    """
    require_condition(condition)
    name, _, seed = condition.partition(_CONTROL)
    if seed:
        neurons = random_like(neurons, int(seed))
    scales = scales or Scales()
    factors = np.ones(neurons.shape, dtype=np.float32)
    for operation, chosen in zip(OPERATIONS[name], (neurons.good, neurons.bad), strict=True):
        if operation is not None:
            for neuron in chosen:
                factors[neuron.layer, neuron.index] = getattr(scales, operation)
    return factors
