"""Conditions: named interventions, as factors on every neuron of the model. Pure.

A name has up to three parts:

1. `suppress_good`: what is done to all chosen neurons, at the factors of the run.
2. `suppress_good.k50.x0.5`: a point of a sweep, of 50 good and bad neurons and a factor.
3. `.random_3` after either: the same operation on layer-matched random neurons.

`condition_factors` turns names into factors; `edited_by` counts what each of them edits.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import random_like

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
# operation -> whether it should raise (1) or lower (-1) accuracy on good neurons; on bad ones, the
# reverse.
DIRECTIONS = {"suppress": -1, "enhance": 1}
# The same of conditions: the side on which each is ranked among its random controls.
EXPECTED_SIGN = {
    condition: DIRECTIONS[good] if good is not None else -DIRECTIONS[bad or ""]
    for condition, (good, bad) in OPERATIONS.items()
    if condition != UNMASKED
}
FEWEST_CONTROLS = 20  # with fewer, p cannot be below 0.05
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
        for name in (field.name for field in fields(self)):
            # Factors are float32; a whole number may have more digits than any float can hold.
            if not abs(getattr(self, name)) <= _LARGEST:
                raise UsageError(
                    f"the {name} scale is {getattr(self, name)!r:.100}",
                    expected=f"a finite number, at most {_LARGEST:.3g}",
                    remedy="check scale, suppress_scale and enhance_scale",
                )


class Edits(NamedTuple):
    """The neurons that a condition changes; all others have the factor 1.

    Attributes:
        layers: [edits] int64.
        indices: [edits] int64, coordinates within the layer.
        factors: [edits] float32.
    """

    layers: NDArray[np.int64]
    indices: NDArray[np.int64]
    factors: NDArray[np.float32]


# Names ------------------------------------------------------------------------------------------


def only_operation(condition: str | None) -> str | None:
    """The operation of a condition that has one; None for `unmasked`, `degrade` and `enhance`."""
    operations = [name for name in OPERATIONS.get(condition or "", ()) if name is not None]
    return operations[0] if len(operations) == 1 else None


def gerund(operation: str) -> str:
    """What a sentence calls an operation: suppressing, enhancing."""
    return f"{operation.removesuffix('e')}ing"


def factor_text(factor: float) -> str:
    """A factor as names and tables have it: 0, 0.5, 2."""
    return repr(float(factor) + 0.0).removesuffix(".0")  # + 0.0 makes 0 of -0


def control_name(condition: str, seed: int) -> str:
    """The name of a condition applied to the layer-matched random neurons of `seed`."""
    return f"{condition}{_CONTROL}{seed}"


@dataclass(frozen=True)
class ConditionName:
    """A condition's name, parsed.

    Attributes:
        condition: one of `CONDITIONS`.
        top_k: good and bad neurons of a sweep's point; None for all that were chosen.
        scale: factor of a sweep's point; None for the run's own, and where a condition has two.
        seed: of a random control; None for the chosen neurons.
    """

    condition: str
    top_k: int | None = None
    scale: float | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, name: str, where: str = "--conditions") -> ConditionName:
        """Parse the name of a condition, a point of a sweep or a random control.

        Args:
            name: as the user gave it.
            where: the flag or argument that has it, for error messages.

        Raises:
            UsageError: it is no condition.
        """
        match = _NAME.fullmatch(str(name))
        parts: dict[str, Any] = match.groupdict() if match else dict.fromkeys(_NAME.groupindex)
        condition, top_k, scale, seed = parts.values()
        is_point = top_k is not None
        fits = condition != UNMASKED and (scale is not None) == bool(only_operation(condition))
        if condition not in OPERATIONS or (is_point and not fits) or not _is_canonical(scale):
            near = difflib.get_close_matches(str(name), CONDITIONS, 1)
            raise UsageError(
                f"unknown condition {name!r:.100}"
                + (f" (perhaps {near[0]} is meant)" if near else ""),
                expected=", ".join(CONDITIONS)
                + f", or one of them with .kCOUNT.xFACTOR (degrade and enhance: .kCOUNT), with "
                f"{_CONTROL}SEED, or with both",
                remedy=f"check {where}",
            )
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
        scales, rows = self.scales(default), []
        groups = (neurons.good, neurons.bad)
        for operation, group in zip(OPERATIONS[self.condition], groups, strict=True):
            if operation is not None:
                factor = getattr(scales, operation)
                rows += [(neuron.layer, neuron.index, factor) for neuron in group]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        locations = table[:, :2].astype(np.int64)
        return Edits(locations[:, 0], locations[:, 1], table[:, 2].astype(np.float32))


def _is_canonical(scale: str | None) -> bool:
    """Whether a name's factor is written in the one way that keeps names unique."""
    try:
        return scale is None or factor_text(float(scale)) == scale
    except ValueError:
        return False


# Factors ----------------------------------------------------------------------------------------


def condition_factors(names: Sequence[str], neurons: NeuronSet, scales: Scales) -> NDArray[Any]:
    """[conditions, layers, neurons] factors of conditions, points and controls by their names.

    In the smallest type that holds all of them exactly. Whole factors take one byte a neuron,
    halves two: a sweep of 300 conditions over a model of 32 layers of 11,008 neurons is 0.1 or
    0.2 GB, where float32 would be 0.4.

    Raises:
        UsageError: an unknown condition.
        ArtifactError: a condition asks for more neurons than there are.
    """
    drawn: dict[tuple[int | None, int | None], NeuronSet] = {}
    edits = []
    for name in map(ConditionName.parse, names):
        draw = (name.top_k, name.seed)  # one draw serves all conditions and factors
        if draw not in drawn:
            drawn[draw] = name.neurons(neurons)
        edits.append(name.edits(drawn[draw], scales))
    return stack_factors(neurons.shape, edits)


def stack_factors(shape: tuple[int, int], edits: Sequence[Edits]) -> NDArray[Any]:
    """[conditions, layers, neurons] factors of several conditions; see `condition_factors`.

    Args:
        shape: layers and neurons of the model.
        edits: what each condition changes.
    """
    values = np.unique(np.concatenate([np.ones(1, np.float32), *(each.factors for each in edits)]))
    dtypes = (np.int8, np.float16, np.float32)
    with np.errstate(all="ignore"):  # a factor that does not fit is what is looked for
        dtype = next(dtype for dtype in dtypes if (values.astype(dtype) == values).all())
    factors = np.ones((len(edits), *shape), dtype=dtype)
    for row, of_condition in enumerate(edits):
        layers, indices, changed = of_condition
        factors[row, layers, indices] = changed.astype(dtype)
    return factors


def condition_scales(
    neurons: NeuronSet, condition: str, scales: Scales | None = None
) -> NDArray[np.float32]:
    """[layers, neurons] the factor of every neuron under one condition.

    Args:
        neurons: the good and bad neurons.
        condition: a condition, a point of a sweep or a random control.
        scales: the factors of suppressing and enhancing.

    Raises:
        UsageError: unknown condition.
        ArtifactError: a point of more neurons than there are.
    """
    return condition_factors([condition], neurons, scales or Scales())[0].astype(np.float32)


# What conditions edit ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Edited:
    """What a condition edits.

    A method may find no bad neurons (`tn` and `qrnca` never do), or fewer than the user asked for.
    Then a condition of bad neurons edits nothing, and its figures would be those of the unmasked
    model; and `degrade` is `suppress_good` under another name, so that testing both is one test.

    Attributes:
        n_good: good neurons whose factor is not 1.
        n_bad: bad ones.
        same_as: the condition that gives the same neurons the same factors, and stands for both
            where tests are counted; None where there is none, or it is this one.
        note: what is missing: "no bad neurons", "good only", "factor 1"; empty where nothing is.
    """

    n_good: int
    n_bad: int
    same_as: str | None = None
    note: str = ""

    @property
    def n_neurons(self) -> int:
        """Good and bad ones together; 0 where there is nothing to evaluate."""
        return self.n_good + self.n_bad


def edited_by(names: Iterable[str], chosen: NeuronSet, scales: Scales) -> dict[str, Edited]:
    """What each condition and point edits.

    Args:
        names: of conditions and points; `unmasked` and random controls are left out.
        chosen: the good and bad neurons that were evaluated.
        scales: the run's own factors.

    Raises:
        ArtifactError: a point of more neurons than there are.
    """
    parsed = {name: ConditionName.parse(name) for name in names}
    parsed = {
        name: parts
        for name, parts in parsed.items()
        if parts.seed is None and parts.condition != UNMASKED
    }
    edited: dict[str, Edited] = {}
    first_with: dict[frozenset[tuple[int, int, float]], str] = {}
    # The plainest name stands for all that do the same: no point, and of one operation.
    for name, parts in sorted(parsed.items(), key=_plainness):
        neurons = parts.neurons(chosen)
        edits = (column.tolist() for column in parts.edits(neurons, scales))
        changed = frozenset(row for row in zip(*edits, strict=True) if row[2] != 1)
        good = {neuron.location for neuron in neurons.good}
        n_good = sum((layer, index) in good for layer, index, _ in changed)
        counts = (n_good, len(changed) - n_good)
        same_as = first_with.setdefault(changed, name) if changed else name
        note = _note(parts.condition, counts, (len(neurons.good), len(neurons.bad)))
        edited[name] = Edited(*counts, None if same_as == name else same_as, note)
    return {name: edited[name] for name in parsed}


def _plainness(item: tuple[str, ConditionName]) -> tuple[bool, bool]:
    name, parts = item
    return name != parts.condition, only_operation(parts.condition) is None


def _note(condition: str, n_edited: tuple[int, int], n_chosen: tuple[int, int]) -> str:
    """What is missing, by the numbers of good and of bad neurons."""
    columns = zip(("good", "bad"), OPERATIONS[condition], n_edited, n_chosen, strict=True)
    wanted = [(group, edited, chosen) for group, operation, edited, chosen in columns if operation]
    with_edits = [group for group, edited, _ in wanted if edited]
    if with_edits:
        return "" if len(with_edits) == len(wanted) else f"{with_edits[0]} only"
    if any(chosen for *_, chosen in wanted):
        return "factor 1"
    return f"no {wanted[0][0]} neurons" if len(wanted) == 1 else "no neurons"
