"""Which conditions a validation scores: conditions, the points of a sweep, random controls. Pure.

A dose-response sweep applies each condition at several numbers of neurons and several factors:

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
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.errors import UsageError
from neuronllm_eval.interventions.conditions import (
    ACTIVATION,
    CONDITION_OPERATIONS,
    CONDITIONS,
    CONTROLS_WITH_PERPLEXITY,
    FEWEST_CONTROLS,
    LAYER,
    UNMASKED,
    ConditionName,
    Scales,
    condition_factors,
    control_name,
    factor_text,
    only_operation,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import require_activations, resolve_count
from neuronllm_eval.prompts import SCORED

MOST_RANDOM = 1000  # controls of each condition, each a mask over all neurons


@dataclass(frozen=True)
class Sweep:
    """The two axes of a dose-response sweep; without any value there is none.

    Attributes:
        top_k: numbers of good and of bad neurons: counts, or shares of all neurons. A single one
            is the number that is evaluated, without a sweep.
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
        used = {only_operation(condition) for condition in conditions} | {None}
        idle = [factor_text(scale) for scale in self.scales if _operation(scale) not in used]
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
        _require_at_most(max(counts, default=0), neurons.top_k, "--top_k")
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
            if condition not in CONDITION_OPERATIONS or condition == UNMASKED:
                continue
            operation = only_operation(condition)
            run_factor = None if operation is None else default.factor(operation)
            factors: list[float | None] = [
                scale
                for scale in sorted(self.scales)
                if operation and _operation(scale) == operation
            ]
            for count in counts:
                for scale in factors or [run_factor]:
                    if (count, scale) != (max(counts), run_factor):
                        names.append(str(ConditionName(condition, count, scale)))
        return tuple(names)


def _operation(scale: float) -> str | None:
    if scale == 1:
        return None
    return "suppress" if scale < 1 else "enhance"


def _require_at_most(count: int, most: int, flag: str) -> None:
    if count > most:
        raise UsageError(
            f"top_k={count} of a set selected with top_k={most}",
            expected=f"1 to {most}",
            remedy=f"check {flag}, or run `neuronllm-eval identify` with a larger --top_k",
        )


def _require_distinct(name: str, values: Sequence[float]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise UsageError(
            f"{name} holds {', '.join(f'{value:g}' for value in repeated)} more than once",
            expected="every value once",
            remedy=f"check --{name}",
        )


@dataclass(frozen=True)
class ConditionPlan:
    """Which conditions are scored, and with which random controls.

    Attributes:
        conditions: names; `unmasked` is always scored.
        n_random: random controls of each condition.
        match: what they have in common with its neurons, one of `conditions.MATCHES`.
        seed: the first control's seed; the others follow.
        scales: factors of suppressing and enhancing.
        sweep: the numbers of neurons and the factors to sweep over.
        points: names of the sweep's points, each with as many random controls; see `over`.
        positions: where they act, one of `prompts.POSITIONS`.
        perplexity: whether the perplexity of a plain text is measured too.
    """

    conditions: tuple[str, ...] = CONDITIONS
    n_random: int = FEWEST_CONTROLS
    seed: int = 0
    scales: Scales = field(default_factory=Scales)
    sweep: Sweep = field(default_factory=Sweep)
    points: tuple[str, ...] = ()
    positions: str = SCORED
    match: str = LAYER
    perplexity: bool = False

    def __post_init__(self) -> None:
        for condition in self.conditions:
            ConditionName.parse(condition)
        if not 0 <= self.n_random <= MOST_RANDOM:
            raise UsageError(
                f"n_random is {self.n_random}",
                expected=f"0 to {MOST_RANDOM}",
                remedy="check --n_random",
            )
        self.sweep.require_use(self.conditions)

    def over(self, neurons: NeuronSet) -> tuple[NeuronSet, ConditionPlan]:
        """The neurons that the conditions evaluate, and the plan with the sweep's points over them.

        The largest number of neurons of the sweep is that of the conditions themselves.

        Raises:
            UsageError: the sweep asks for more neurons than were chosen.
            ArtifactError: controls need the sizes of activations, which are not known.
        """
        counts = self.sweep.counts(neurons)
        self.require_at_most(neurons.top_k)
        if self.match == ACTIVATION and self.n_random:
            require_activations(neurons)
        return neurons.top(max(counts)), self.at(counts)

    def require_at_most(self, top_k: int) -> None:
        """Raise UsageError for a condition that names more neurons than are selected."""
        for condition in self.conditions:
            _require_at_most(ConditionName.parse(condition).top_k or 0, top_k, "--conditions")

    def at(self, counts: Sequence[int]) -> ConditionPlan:
        """The plan with the sweep's points at these numbers of neurons."""
        return replace(self, points=self.sweep.points(self.conditions, self.scales, counts))

    @property
    def names(self) -> tuple[str, ...]:
        """All that is scored: unmasked first, each condition, each point, then the controls."""
        conditions = [name for name in self.conditions if name != UNMASKED]
        scored = [UNMASKED, *conditions, *self.points]
        controls = [name for condition in scored for name in self.controls(condition)]
        return tuple(dict.fromkeys((*scored, *controls)))

    def controls(self, condition: str) -> tuple[str, ...]:
        """The random controls of a condition; none of `unmasked` and of controls."""
        if condition == UNMASKED or ConditionName.parse(condition).seed is not None:
            return ()
        seeds = range(self.seed, self.seed + self.n_random)
        return tuple(control_name(condition, seed, self.match) for seed in seeds)

    @property
    def with_results(self) -> tuple[str, ...]:
        """Names that get a result file: all but the random controls of a sweep's points.

        These are most of a sweep, the harness takes longer to evaluate them than the model to score
        them, and summaries read `conditions.jsonl`.
        """
        of_points = {control for point in self.points for control in self.controls(point)}
        unwritten = of_points.difference(self.conditions)
        return tuple(name for name in self.names if name not in unwritten)

    @property
    def with_perplexity(self) -> tuple[str, ...]:
        """Names whose perplexity is measured: all but random controls beyond the first few.

        Each takes a pass over a text, and how random controls differ shows in a few. None if it is
        not to be measured.
        """
        if not self.perplexity:
            return ()
        scored = (UNMASKED, *self.conditions, *self.points)
        controls = {
            control
            for condition in scored
            for control in self.controls(condition)[:CONTROLS_WITH_PERPLEXITY]
        }
        return tuple(name for name in self.names if name in {*scored, *controls})

    def factors(self, neurons: NeuronSet) -> NDArray[Any]:
        """[conditions, layers, neurons] in the order of `names`; see `condition_factors`."""
        return condition_factors(self.names, neurons, self.scales)
