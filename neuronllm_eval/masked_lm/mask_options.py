"""The arguments of the harness model `neuronllm` that say what is masked, checked without a model.

Whatever a user can get wrong in them is refused here, before anything heavy is imported or loaded.
Result files get their section `neuronllm` from them, so that masks that scale other neurons can be
told apart.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    UNMASKED,
    ConditionName,
    Scales,
    condition_scales,
    only_operation,
)
from neuronllm_eval.models.fingerprints import digest
from neuronllm_eval.models.hub import SCHEME, Reference, fetch
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE, NeuronSet
from neuronllm_eval.prompts import POSITIONS, SCORED
from neuronllm_eval.runs.directory import folders_near, one_of

_ABOUT_RUN = "the run directory of `neuronllm-eval identify`"


@dataclass(frozen=True)
class MaskOptions:
    """What is done to which neurons, and where; see `NeuronMaskedLM`.

    Attributes:
        neurons: those of the condition; None if none are given.
        condition: its name.
        scales: its factors.
        positions: `scored` or `all`.
        fast: whether what requests share is computed once.
        source: the commit on the Hub that the neurons come from; empty for a run directory.
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
            raise _wrong("positions", positions, " or ".join(POSITIONS))
        if not isinstance(fast, bool):
            raise _wrong("fast", fast, "True or False")
        if condition is None and neurons is not None:
            raise UsageError(
                "neurons without a condition",
                expected="what to do with them: " + ", ".join(CONDITIONS),
                remedy="add condition=suppress_good, say, to --model_args",
            )
        name = ConditionName.parse(condition or UNMASKED, "condition in --model_args")
        scales = resolve_scales(name, scale, suppress_scale, enhance_scale)
        source = ""
        if isinstance(neurons, str) and neurons.startswith(SCHEME):
            fetched = fetch(Reference.parse(neurons), NEURONS_FILE)
            neurons, source = fetched.path, str(fetched.source)
        chosen = None if neurons is None else chosen_neurons(_load(neurons), name, top_k)
        if chosen is None and name.condition != UNMASKED:
            raise UsageError(
                f"condition={name} without neurons",
                expected=_ABOUT_RUN,
                remedy="add neurons=RUN_DIR to --model_args",
            )
        return cls(chosen, str(name), scales, positions, fast, source)

    @property
    def factors(self) -> NDArray[np.float32] | None:
        """[layers, neurons] of every neuron; None if nothing is masked."""
        if self.neurons is None or self.condition == UNMASKED:
            return None
        return condition_scales(self.neurons, self.condition, self.scales)

    def section(self) -> dict[str, Any]:
        """The section `neuronllm` of a result file's `config`.

        `mask_hash` is empty where nothing is masked, and `model_hash`, that of the model the
        neurons were found in, where there are no neurons.
        """
        neurons, factors = self.neurons, self.factors
        section: dict[str, Any] = {
            "condition": self.condition,
            "positions": self.positions,
            "suppress_scale": self.scales.suppress,
            "enhance_scale": self.scales.enhance,
            "n_good": len(neurons.good) if neurons else 0,
            "n_bad": len(neurons.bad) if neurons else 0,
            "mask_hash": "" if factors is None else mask_hash(factors),
            "model_hash": neurons.provenance.model_hash if neurons else "",
        }
        return {**section, "neurons": self.source} if self.source else section


# The arguments of `MaskOptions.read`, which are those of `NeuronMaskedLM`.
NAMES = tuple(inspect.signature(MaskOptions.read).parameters)


def mask_hash(factors: NDArray[np.float32]) -> str:
    """A digest of which neurons of a model of this shape are scaled, and by what; empty if none is.

    Args:
        factors: [layers, neurons] of every neuron; those of factor 1 do not count.
    """
    layers, indices = np.nonzero(factors != 1)
    if not layers.size:
        return ""
    scaled = factors[layers, indices] + np.float32(0)  # makes 0 of -0
    return digest(json.dumps([factors.shape, layers.tolist(), indices.tolist(), scaled.tolist()]))


def chosen_neurons(neurons: NeuronSet, name: ConditionName, top_k: int | None) -> NeuronSet:
    """The neurons that a condition uses: the first `top_k`, and of these the condition's own.

    Raises:
        UsageError: a `top_k` that is no number.
        ArtifactError: there are fewer.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int | None):
        raise _wrong("top_k", top_k, "a whole number")
    for count in (top_k, name.top_k):
        neurons = neurons if count is None else neurons.top(count)
    return neurons


def resolve_scales(name: ConditionName, scale: Any, suppress: Any, enhance: Any) -> Scales:
    """The factors of a condition's operations, from those that were given.

    Args:
        name: of the condition.
        scale: of its only operation, or None.
        suppress: of suppressing, or None.
        enhance: of enhancing, or None.

    Raises:
        UsageError: factors that do not go with the condition or together.
    """
    operation = only_operation(name.condition)
    given = {"suppress": suppress, "enhance": enhance}
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
        given = {operation: scale}
    for operation, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(
                f"the {operation} scale is {value!r}",
                expected="a number",
                remedy="check scale, suppress_scale and enhance_scale in --model_args",
            )
    scales = Scales(**{key: float(value) for key, value in given.items() if value is not None})
    return name.scales(scales)


def _load(neurons: Any) -> NeuronSet:
    """The neurons of a run; where there are none, the error names the runs nearby."""
    if isinstance(neurons, NeuronSet):
        return neurons
    if not isinstance(neurons, (str, Path)):
        raise _wrong("neurons", neurons, _ABOUT_RUN)
    path = Path(neurons)
    near = folders_near(path, NEURONS_FILE)
    if path.is_dir() and not (path / NEURONS_FILE).exists() and near:
        raise ArtifactError(
            f"{path} holds no {NEURONS_FILE}",
            expected="the run directory of one task",
            remedy=f"pass neurons= one of: {one_of(near)}",
        )
    return NeuronSet.load(path)


def _wrong(name: str, value: object, expected: str) -> UsageError:
    return UsageError(
        f"{name} is {value!r:.100}", expected=expected, remedy=f"check {name} in --model_args"
    )
