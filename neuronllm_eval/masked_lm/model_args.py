"""The arguments of the harness model `neuronllm` that say what is masked, checked without a model.

All that a user can get wrong in them is refused here, before anything heavy is imported or loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.interventions.conditions import (
    OPERATIONS,
    UNMASKED,
    ConditionName,
    Scales,
    only_operation,
)
from neuronllm_eval.models.hub import SCHEME, Reference, fetch
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE, NeuronSet
from neuronllm_eval.prompts import POSITIONS, SCORED
from neuronllm_eval.runs.search import folders_near, one_of

# The arguments of `MaskOptions.read`, which are those of `NeuronMaskedLM`.
NAMES = ("neurons", "condition", "scale", "suppress_scale", "enhance_scale", "top_k", "positions",
         "fast")  # fmt: skip
_HERE = "in --model_args"
_CONDITION = f"condition {_HERE}"


@dataclass(frozen=True)
class MaskOptions:
    """What is done to which neurons, and where; see `NeuronMaskedLM`.

    Attributes:
        neurons: those of the condition; None if none are given.
        condition: its name.
        scales: its factors.
        positions: `scored` or `all`.
        fast: whether what requests share is computed once.
        source: which commit of the Hub the neurons are of; empty if they are of a run directory.
    """

    neurons: NeuronSet | None
    condition: str
    scales: Scales
    positions: str
    fast: bool
    source: str = ""

    @classmethod
    def read(
        cls,
        neurons: str | Path | NeuronSet | None = None,
        condition: str | None = None,
        scale: float | None = None,
        suppress_scale: float | None = None,
        enhance_scale: float | None = None,
        top_k: int | None = None,
        positions: str = SCORED,
        fast: bool = True,
    ) -> MaskOptions:
        """Check the arguments, and read the neurons.

        Raises:
            UsageError: unknown condition or positions, or arguments that do not go together.
            ArtifactError: the neurons file is missing, damaged, or holds fewer than `top_k`; or the
                Hub does not have it.
        """
        if positions not in POSITIONS:
            raise UsageError(
                f"positions is {positions!r}",
                expected=" or ".join(POSITIONS),
                remedy=f"check positions {_HERE}",
            )
        if condition is None:
            if neurons is not None:
                raise UsageError(
                    "neurons without a condition",
                    expected="what to do with them: " + ", ".join(OPERATIONS),
                    remedy="add condition=suppress_good, say, to --model_args",
                )
            condition = UNMASKED
        if not isinstance(fast, bool):
            raise UsageError(
                f"fast is {fast!r}", expected="True or False", remedy="check --model_args"
            )
        scales = resolve_scales(condition, scale, suppress_scale, enhance_scale)
        source = ""
        if isinstance(neurons, str) and neurons.startswith(SCHEME):
            fetched = fetch(Reference.parse(neurons), NEURONS_FILE)
            neurons, source = fetched.path, str(fetched.source)
        found = chosen_neurons(neurons, condition, top_k)
        return cls(found, condition, scales, positions, fast, source)


def chosen_neurons(
    neurons: str | Path | NeuronSet | None, condition: str, top_k: int | None
) -> NeuronSet | None:
    """The neurons that a condition uses: the first so many of a run; None without any.

    Raises:
        UsageError: a condition without neurons, or a `top_k` that is no number.
        ArtifactError: they cannot be read, or are fewer than `top_k`.
    """
    if neurons is None:
        if condition != UNMASKED:
            raise UsageError(
                f"condition={condition} without neurons",
                expected="the run directory of `neuronllm-eval identify`",
                remedy="add neurons=RUN_DIR to --model_args",
            )
        return None
    if not isinstance(neurons, (str, Path, NeuronSet)):
        raise UsageError(
            f"neurons is {neurons!r:.100}",
            expected="the run directory of `neuronllm-eval identify`",
            remedy="check neurons in --model_args",
        )
    found = neurons if isinstance(neurons, NeuronSet) else _read(Path(neurons))
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise UsageError(
                f"top_k is {top_k!r}", expected="a whole number", remedy="check --model_args"
            )
        found = found.top(top_k)
    own = ConditionName.parse(condition, _CONDITION).top_k
    return found if own is None else found.top(own)


def _read(path: Path) -> NeuronSet:
    """The neurons of a run; where there are none, which runs are near is said."""
    near = folders_near(path, NEURONS_FILE)
    if path.is_dir() and not (path / NEURONS_FILE).exists() and near:
        raise ArtifactError(
            f"{path} holds no {NEURONS_FILE}",
            expected="the run directory of one task",
            remedy=f"pass neurons= one of: {one_of(near)}",
        )
    return NeuronSet.load(path)


def resolve_scales(
    condition: str, scale: Any, suppress: Any, enhance: Any, where: str = _CONDITION
) -> Scales:
    """The factors of a condition's operations, from what was given of them.

    Args:
        condition: its name.
        scale: of its only operation, or None.
        suppress: of suppressing, or None.
        enhance: of enhancing, or None.
        where: the condition was given, for error messages.

    Raises:
        UsageError: an unknown condition, or factors that do not go with it or together.
    """
    name = ConditionName.parse(condition, where)
    operation = only_operation(name.condition)
    if scale is not None:
        if operation is None or suppress is not None or enhance is not None:
            raise UsageError(
                f"scale={scale} with condition={name}",
                expected="scale with a condition of one operation, and without suppress_scale or "
                "enhance_scale",
                remedy="use suppress_scale= and enhance_scale=",
            )
        if name.scale is not None:
            raise UsageError(
                f"scale={scale} with condition={name}, which names a factor itself",
                expected="the factor in one place",
                remedy=f"leave scale out, or use condition={name.condition} with top_k and scale",
            )
        suppress = scale if operation == "suppress" else None
        enhance = scale if operation == "enhance" else None
    given = {"suppress": suppress, "enhance": enhance}
    for operation, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(
                f"the {operation} scale is {value!r}",
                expected="a number",
                remedy="check scale, suppress_scale and enhance_scale in --model_args",
            )
    scales = Scales(**{key: float(value) for key, value in given.items() if value is not None})
    return name.scales(scales)
