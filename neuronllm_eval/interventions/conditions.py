"""Conditions: named interventions, as factors on every neuron of the model. Pure.

A name has up to three parts:

1. `suppress_good`: what is done to all chosen neurons, at the factors of the run.
2. `suppress_good.k50.x0.5`: a point of a sweep, of 50 good and bad neurons and a factor.
3. `.random_3` after either: the same operation on layer-matched random neurons; `.matched_3` on
   random ones that match in layer and size of activation.

`condition_factors` turns names into factors; `edited_by` counts what each of them edits. Operations
and conditions are two tables, `OPERATIONS` and `CONDITION_OPERATIONS`; everything else that knows
them, from flags to reports, reads these.
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
from neuronllm_eval.neurons.selection import random_like, random_of_same_activation

UNMASKED = "unmasked"


class Operation(NamedTuple):
    """What can be done to neurons.

    Attributes:
        factor: by which they are multiplied, unless the run has a factor of its own (`Scales`).
        verb: as a sentence begins with it.
        effect: 1 if it strengthens what they do, -1 if it weakens it.
    """

    factor: float
    verb: str
    effect: int


OPERATIONS = {
    "suppress": Operation(0.0, "suppressing", -1),
    "enhance": Operation(2.0, "enhancing", 1),
}
# condition -> the operation on (good, bad) neurons.
CONDITION_OPERATIONS: dict[str, tuple[str | None, str | None]] = {
    UNMASKED: (None, None),
    "suppress_good": ("suppress", None),
    "suppress_bad": (None, "suppress"),
    "enhance_good": ("enhance", None),
    "enhance_bad": (None, "enhance"),
    "degrade": ("suppress", "enhance"),
    "enhance": ("enhance", "suppress"),
}
CONDITIONS = tuple(CONDITION_OPERATIONS)
# Whether each condition should raise or lower accuracy: the side on which it is ranked among its
# random controls.
EXPECTED_SIGN = {
    condition: OPERATIONS[good].effect if good else -OPERATIONS[bad or ""].effect
    for condition, (good, bad) in CONDITION_OPERATIONS.items()
    if good or bad
}
FEWEST_CONTROLS = 20  # with fewer, p cannot be below 0.05
# What random controls have in common with the neurons -> how their names end, and their draw.
LAYER, ACTIVATION = "layer", "activation"
_CONTROLS = {LAYER: "random", ACTIVATION: "matched"}
_DRAWS = {LAYER: random_like, ACTIVATION: random_of_same_activation}
MATCHES = tuple(_CONTROLS)
CONTROLS_WITH_PERPLEXITY = 5  # of each condition; no test is made of it
_LARGEST = float(np.finfo(np.float32).max)
_NAME = re.compile(
    r"(?P<condition>[a-z_]+)"
    r"(?:\.k(?P<top_k>[1-9][0-9]{0,17})(?:\.x(?P<scale>-?[0-9][-+.0-9e]*))?)?"
    rf"(?:\.(?P<control>{'|'.join(_CONTROLS.values())})_(?P<seed>0|[1-9][0-9]{{0,17}}))?"
)


@dataclass(frozen=True)
class Scales:
    """A run's own factors, of the operations that have one."""

    suppress: float = OPERATIONS["suppress"].factor
    enhance: float = OPERATIONS["enhance"].factor

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            # Factors are float32; a whole number may have more digits than any float can hold.
            if not abs(getattr(self, name)) <= _LARGEST:
                raise UsageError(
                    f"the {name} scale is {getattr(self, name)!r:.100}",
                    expected=f"a finite number, at most {_LARGEST:.3g}",
                    remedy="check scale, suppress_scale and enhance_scale",
                )

    def factor(self, operation: str) -> float:
        """The factor of an operation."""
        return float(getattr(self, operation, OPERATIONS[operation].factor))


# (layer, index) of every neuron that a condition edits -> its factor; all others have the factor 1.
Edits = dict[tuple[int, int], float]


# Names ------------------------------------------------------------------------------------------


def only_operation(condition: str | None) -> str | None:
    """The operation of a condition that has one, whose factor may vary; None for the others."""
    operations = [name for name in CONDITION_OPERATIONS.get(condition or "", ()) if name]
    return operations[0] if len(operations) == 1 and hasattr(Scales, operations[0]) else None


def factor_text(factor: float) -> str:
    """A factor as names and tables have it: 0, 0.5, 2."""
    return repr(float(factor) + 0.0).removesuffix(".0")  # + 0.0 makes 0 of -0


def control_name(condition: str, seed: int, match: str = LAYER) -> str:
    """The name of a condition applied to the random neurons of `seed`.

    Args:
        condition: a condition or point.
        seed: of the draw.
        match: what they have in common with the neurons, one of `MATCHES`.
    """
    return f"{condition}.{_CONTROLS[match]}_{seed}"


def is_control(name: str, of: str | None = None) -> bool:
    """Whether a name is that of a random control, or of one of the condition or point `of`."""
    condition, dot, control = name.rpartition(".")
    kind = control.rpartition("_")[0]
    return bool(dot) and kind in _CONTROLS.values() and of in (None, condition)


@dataclass(frozen=True)
class ConditionName:
    """A condition's name, parsed.

    Attributes:
        condition: one of `CONDITIONS`.
        top_k: good and bad neurons of a sweep's point; None for all that were chosen.
        scale: factor of a sweep's point; None for the run's own, and where a condition has two.
        seed: of a random control; None for the chosen neurons.
        match: what a random control has in common with the chosen neurons, one of `MATCHES`.
    """

    condition: str
    top_k: int | None = None
    scale: float | None = None
    seed: int | None = None
    match: str = LAYER

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
        condition, top_k, scale, control, seed = parts.values()
        is_point = top_k is not None
        fits = condition != UNMASKED and (scale is not None) == bool(only_operation(condition))
        exists = condition in CONDITION_OPERATIONS and (fits or not is_point)
        if not (exists and _is_canonical(scale)):
            near = difflib.get_close_matches(str(name), CONDITIONS, 1)
            raise UsageError(
                f"unknown condition {name!r:.100}"
                + (f" (perhaps {near[0]} is meant)" if near else ""),
                expected=", ".join(CONDITIONS)
                + ", or one of them with .kCOUNT.xFACTOR (degrade and enhance: .kCOUNT), with "
                ".random_SEED or .matched_SEED, or with both",
                remedy=f"check {where}",
            )
        return cls(
            condition,
            None if top_k is None else int(top_k),
            None if scale is None else float(scale),
            None if seed is None else int(seed),
            next((match for match, kind in _CONTROLS.items() if kind == control), LAYER),
        )

    def __str__(self) -> str:
        name = self.condition
        if self.top_k is not None:
            name += f".k{self.top_k}"
        if self.scale is not None:
            name += f".x{factor_text(self.scale)}"
        return name if self.seed is None else control_name(name, self.seed, self.match)

    def neurons(self, chosen: NeuronSet) -> NeuronSet:
        """The neurons that are edited: the first of `chosen`, or random ones like these.

        Raises:
            ArtifactError: there are fewer; or the sizes of their activations are needed, and not
                known.
        """
        if self.top_k is not None:
            chosen = chosen.top(self.top_k)
        return chosen if self.seed is None else _DRAWS[self.match](chosen, self.seed)

    def scales(self, default: Scales) -> Scales:
        """The factors of the two operations, where `default` are the run's own."""
        operation = only_operation(self.condition)
        if self.scale is None or operation is None:
            return default
        return dataclasses.replace(default, **{operation: self.scale})

    def edits(self, neurons: NeuronSet, default: Scales) -> Edits:
        """What is done to `neurons`, which are those of `ConditionName.neurons`."""
        scales, groups = self.scales(default), (neurons.good, neurons.bad)
        return {
            neuron.location: float(np.float32(scales.factor(operation)))
            for operation, group in zip(CONDITION_OPERATIONS[self.condition], groups, strict=True)
            if operation
            for neuron in group
        }


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
    drawn: dict[tuple[int | None, int | None, str], NeuronSet] = {}
    edits = []
    for name in map(ConditionName.parse, names):
        draw = (name.top_k, name.seed, name.match)  # one draw serves all conditions and factors
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
    values = np.array([*{1.0, *(f for changed in edits for f in changed.values())}], np.float32)
    dtypes = (np.int8, np.float16, np.float32)
    with np.errstate(all="ignore"):  # a factor that does not fit is what is looked for
        dtype = next(dtype for dtype in dtypes if (values.astype(dtype) == values).all())
    factors = np.ones((len(edits), *shape), dtype=dtype)
    for row, changed in enumerate(edits):
        if changed:
            layers, indices = zip(*changed, strict=True)
            factors[row, list(layers), list(indices)] = list(changed.values())
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
    first_with: dict[frozenset[tuple[tuple[int, int], float]], str] = {}
    # The plainest name stands for all that do the same: no point, and of one operation.
    for name, parts in sorted(parsed.items(), key=_plainness):
        neurons = parts.neurons(chosen)
        edits = parts.edits(neurons, scales).items()
        changed = frozenset((location, factor) for location, factor in edits if factor != 1)
        good = {neuron.location for neuron in neurons.good}
        n_good = sum(location in good for location, _ in changed)
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
    operations = CONDITION_OPERATIONS[condition]
    columns = zip(("good", "bad"), operations, n_edited, n_chosen, strict=True)
    wanted = [(group, edited, chosen) for group, operation, edited, chosen in columns if operation]
    with_edits = [group for group, edited, _ in wanted if edited]
    if with_edits:
        return "" if len(with_edits) == len(wanted) else f"{with_edits[0]} only"
    if any(chosen for *_, chosen in wanted):
        return "factor 1"
    return f"no {wanted[0][0]} neurons" if len(wanted) == 1 else "no neurons"
