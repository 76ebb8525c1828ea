"""Conditions: named interventions, as factors on every neuron of the model. Pure.

A name has up to three parts: `suppress_good` is what is done to all chosen neurons, at the factors
of the run; `suppress_good.k50.x0.5` is a point of a sweep, with 50 good and bad neurons and a
factor of its own; `.random_3` after either is the same on layer-matched random neurons.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import random_like

FEWEST_CONTROLS = 20  # with fewer, p cannot be below 0.05


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
_LARGEST = float(np.finfo(np.float32).max)
_NAME = re.compile(
    r"(?P<condition>[a-z_]+)"
    r"(?:\.k(?P<top_k>[1-9][0-9]{0,17})(?:\.x(?P<scale>-?[0-9][-+.0-9e]*))?)?"
    r"(?:\.random_(?P<seed>0|[1-9][0-9]{0,17}))?"
)


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
            # Factors are float32; a whole number may have more digits than any float can hold.
            if not abs(getattr(self, name)) <= _LARGEST:
                raise UsageError(
                    f"the {name} scale is {getattr(self, name)!r:.100}",
                    expected=f"a finite number, at most {_LARGEST:.3g}",
                    remedy="check scale, suppress_scale and enhance_scale",
                )


class Edits(NamedTuple):
    """The neurons that a condition changes; all others keep the factor 1.

    Attributes:
        layers: [edits] int64.
        indices: [edits] int64, coordinates within the layer.
        factors: [edits] float32.
    """

    layers: NDArray[np.int64]
    indices: NDArray[np.int64]
    factors: NDArray[np.float32]


@dataclass(frozen=True)
class ConditionName:
    """A condition's name, taken apart.

    Attributes:
        condition: one of `CONDITIONS`.
        top_k: good and bad neurons of a sweep's point; None for all that were chosen.
        scale: factor of a sweep's point; None for the run's own, and where a condition has two.
        seed: of a random control; None for the neurons that were chosen.
    """

    condition: str
    top_k: int | None = None
    scale: float | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, name: str, where: str = "--conditions") -> ConditionName:
        """Take a name apart.

        Args:
            name: of a condition, a point of a sweep or a random control.
            where: the name was given, for error messages.

        Raises:
            UsageError: it is no condition.
        """
        found = _NAME.fullmatch(str(name))
        parts = found.groupdict() if found else {}
        condition, top_k, scale = (parts.get(key) for key in ("condition", "top_k", "scale"))
        takes = condition != UNMASKED and (scale is not None) == bool(only_operation(condition))
        if condition not in OPERATIONS or (top_k and not takes) or not _is_canonical(scale):
            raise UsageError(
                f"unknown condition {name!r:.100}",
                expected=", ".join(CONDITIONS)
                + f", or one of them with .kCOUNT.xFACTOR (degrade and enhance: .kCOUNT), with "
                f"{_CONTROL}SEED, or with both",
                remedy=f"check {where}",
            )
        seed = parts["seed"]
        return cls(
            condition,
            None if top_k is None else int(top_k),
            None if scale is None else float(scale),
            None if seed is None else int(seed),
        )

    def __str__(self) -> str:
        name = self.condition
        if self.top_k is not None:
            name += f".k{self.top_k}"
        if self.scale is not None:
            name += f".x{factor_text(self.scale)}"
        return name if self.seed is None else control_name(name, self.seed)

    def neurons(self, chosen: NeuronSet) -> NeuronSet:
        """The neurons that are edited: the first of `chosen`, or random ones like these."""
        if self.top_k is not None:
            chosen = chosen.top(self.top_k)
        return chosen if self.seed is None else random_like(chosen, self.seed)

    def scales(self, default: Scales) -> Scales:
        """The factors of the two operations, where `default` are the run's own."""
        operation = only_operation(self.condition)
        if self.scale is None or operation is None:
            return default
        return dataclasses.replace(default, **{operation: self.scale})

    def edits(self, neurons: NeuronSet, default: Scales) -> Edits:
        """What is done to `neurons`, which are those of `ConditionName.neurons`."""
        scales, found = self.scales(default), []
        kinds = (neurons.good, neurons.bad)
        for operation, chosen in zip(OPERATIONS[self.condition], kinds, strict=True):
            if operation is not None:
                factor = getattr(scales, operation)
                found += [(neuron.layer, neuron.index, factor) for neuron in chosen]
        table = np.array(found, dtype=np.float64).reshape(-1, 3)
        places = table[:, :2].astype(np.int64)
        return Edits(places[:, 0], places[:, 1], table[:, 2].astype(np.float32))


def only_operation(condition: str | None) -> str | None:
    """The operation of a condition that has one; None for `unmasked`, `degrade` and `enhance`."""
    operations = [name for name in OPERATIONS.get(condition or "", ()) if name is not None]
    return operations[0] if len(operations) == 1 else None


def factor_text(factor: float) -> str:
    """A factor as names and tables have it: 0, 0.5, 2."""
    return repr(float(factor) + 0.0).removesuffix(".0")  # + 0.0 makes 0 of -0


def _is_canonical(scale: str | None) -> bool:
    """Whether a name's factor is written in the one way that keeps names unique."""
    try:
        return scale is None or factor_text(float(scale)) == scale
    except ValueError:
        return False


def require_condition(condition: str) -> None:
    """Raise UsageError unless `condition` is one of `CONDITIONS`, a point or a random control."""
    ConditionName.parse(condition)


def control_name(condition: str, seed: int) -> str:
    """The name of a condition applied to the layer-matched random neurons of `seed`."""
    return f"{condition}{_CONTROL}{seed}"


def condition_scales(
    neurons: NeuronSet, condition: str, scales: Scales | None = None
) -> NDArray[np.float32]:
    """[layers, neurons] the factor of every neuron under a condition.

    Args:
        neurons: the good and bad neurons.
        condition: one of `CONDITIONS`, a point of a sweep such as `suppress_good.k50.x0.5`, or
            either with `.random_<seed>` for the same operation on layer-matched random neurons.
        scales: the factors of suppressing and enhancing.

    Raises:
        UsageError: unknown condition.
        ArtifactError: a point of more neurons than there are.
    """
    name = ConditionName.parse(condition)
    edits = name.edits(name.neurons(neurons), scales or Scales())
    factors = np.ones(neurons.shape, dtype=np.float32)
    factors[edits.layers, edits.indices] = edits.factors
    return factors


def stack_factors(shape: tuple[int, int], edits: Sequence[Edits]) -> NDArray[Any]:
    """[conditions, layers, neurons] factors, in the smallest type that holds all of them exactly.

    Whole factors take one byte a neuron, halves two: a sweep of 300 conditions over a model of
    32 layers of 11,008 neurons is 0.1 or 0.2 GB, where float32 would be 0.4.

    Args:
        shape: layers and neurons of the model.
        edits: what each condition changes.
    """
    values = np.unique(np.concatenate([np.ones(1, np.float32), *(each.factors for each in edits)]))
    kinds = (np.int8, np.float16, np.float32)
    with np.errstate(all="ignore"):  # a factor that does not fit is what is looked for
        kind = next(kind for kind in kinds if (values.astype(kind) == values).all())
    factors = np.ones((len(edits), *shape), dtype=kind)
    for row, each in enumerate(edits):
        factors[row, each.layers, each.indices] = each.factors.astype(kind)
    return factors
