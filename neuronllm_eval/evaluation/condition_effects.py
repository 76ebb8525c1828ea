"""The effect of each condition on the benchmark: `conditions.jsonl` -> paired deltas. Pure.

Separate from the report, so that every number in it can be recomputed from the artifacts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.evaluation.doc_table import DocTable, without_controls
from neuronllm_eval.evaluation.stats.paired_delta import (
    PairedDelta,
    paired_delta,
    percent_change,
    points_between,
)
from neuronllm_eval.evaluation.stats.significance import (
    ControlRank,
    McNemar,
    holm,
    mcnemar,
    random_control_rank,
)
from neuronllm_eval.formats.typed_files import NumberOrNaN
from neuronllm_eval.interventions.conditions import (
    EXPECTED_SIGN,
    UNMASKED,
    ConditionName,
    Edited,
    Scales,
    control_name,
    edited_by,
    only_operation,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class Corrected:
    """p-values of one condition after Holm's correction.

    Attributes:
        n_tests: number of tests corrected for; conditions that edit the same neurons in the same
            way count once.
        p_value: of the accuracy delta, by question.
        mcnemar_p_value: of McNemar's test, by doc.
    """

    n_tests: int
    p_value: NumberOrNaN
    mcnemar_p_value: NumberOrNaN


@dataclass(frozen=True)
class ConditionSummary:
    """One condition, or one point of a sweep, against the unmasked run on the same docs.

    A condition that edits no neuron is not evaluated: changes and p are nan, tests are None.

    Attributes:
        name: as in `conditions.jsonl`; equal to `condition` except for points.
        condition: one of `conditions.CONDITIONS`.
        top_k: good and bad neurons; None for the unmasked run.
        scale: factor of the condition's only operation; None if it has two or none.
        accuracy: paired, percent and percentage points.
        confidence: the same of the softmax over options at gold, percent and percentage points.
        rac: relative accuracy change, percent (our reading).
        rcc: relative confidence change, percent (our reading).
        controls: accuracy deltas of the layer-matched random controls under the same operation;
            None for the unmasked run.
        n_beyond: controls that moved less in the expected direction than the condition.
        mcnemar: docs gained and lost, with McNemar's exact test; None for the unmasked run.
        corrected: p-values of `accuracy` and `mcnemar`, corrected for the conditions that are not
            points, or, for a point, for all conditions and points (our reading); None for the
            unmasked run.
        edited: how many neurons it edits; None for the unmasked run, and in summaries of earlier
            versions.
    """

    name: str
    condition: str
    top_k: int | None
    scale: float | None
    accuracy: PairedDelta
    confidence: PairedDelta
    rac: NumberOrNaN
    rcc: NumberOrNaN
    controls: ControlRank | None
    n_beyond: int
    mcnemar: McNemar | None
    corrected: Corrected | None = None
    edited: Edited | None = None

    @property
    def is_evaluated(self) -> bool:
        """Whether it edits any neuron, and so has changes and tests."""
        return self.mcnemar is not None

    @property
    def n_controls(self) -> int:
        """Random controls that there were."""
        return 0 if self.controls is None else self.controls.n_controls

    @property
    def is_point(self) -> bool:
        """Whether it is a point of a sweep, with its own number of neurons or factor."""
        return self.name != self.condition


def summarise(
    table: DocTable, neurons: NeuronSet, scales: Scales, n_resamples: int = 10_000, seed: int = 0
) -> list[ConditionSummary]:
    """Every condition and point that is not a random control, in order.

    Args:
        neurons: good and bad neurons of the conditions that are not points.
        scales: factors of those conditions.
        n_resamples: draws of the bootstrap and of the permutation test.

    Raises:
        ArtifactError: a point has more neurons than were selected.
    """
    edited = edited_by(without_controls(table.conditions), neurons, scales)
    return summaries_of(table, edited, neurons.top_k, scales, n_resamples, seed)


def summaries_of(
    table: DocTable,
    edited: Mapping[str, Edited],
    top_k: int,
    scales: Scales,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> list[ConditionSummary]:
    """As `summarise`, where it is known what each condition edits."""
    summaries = [
        with_edited(_summarise(table, name, top_k, scales, n_resamples, seed), edited.get(name))
        for name in without_controls(table.conditions)
    ]
    return _corrected(summaries)


def with_edited(summary: ConditionSummary, edited: Edited | None) -> ConditionSummary:
    """The same with `edited`; without figures where nothing was edited."""
    if edited is None or edited.n_neurons:
        return dataclasses.replace(summary, edited=edited)
    return dataclasses.replace(
        summary,
        accuracy=_without_change(summary.accuracy),
        confidence=_without_change(summary.confidence),
        rac=math.nan,
        rcc=math.nan,
        controls=None,
        n_beyond=0,
        mcnemar=None,
        edited=edited,
    )


def _without_change(delta: PairedDelta) -> PairedDelta:
    return dataclasses.replace(delta, delta=math.nan, low=math.nan, high=math.nan, p_value=math.nan)


def _corrected(summaries: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """The same with `corrected`.

    A point belongs to a surface that readers search, so it is corrected for everything evaluated.
    The conditions that are not points were named beforehand, so a sweep costs them no power.
    """
    tested = [each for each in summaries if each.is_evaluated and _stands_for(each) == each.name]
    over_all = _holm(tested)
    over_conditions = _holm([each for each in tested if not each.is_point])
    return [
        dataclasses.replace(
            each, corrected=(over_all if each.is_point else over_conditions).get(_stands_for(each))
        )
        for each in summaries
    ]


def _stands_for(summary: ConditionSummary) -> str:
    """The name under which it is counted: conditions with the same edits are tested once."""
    same = None if summary.edited is None else summary.edited.same_as
    return summary.name if same is None else same


def _holm(family: Sequence[ConditionSummary]) -> dict[str, Corrected]:
    return corrected_together(
        {
            each.name: (each.accuracy.p_value, each.mcnemar.p_value)
            for each in family
            if each.mcnemar is not None
        }
    )


def corrected_together(family: Mapping[str, tuple[float, float]]) -> dict[str, Corrected]:
    """By name, (p by question, McNemar's p) after Holm's correction for the whole family."""
    by_question = holm([by_question for by_question, _ in family.values()])
    by_doc = holm([by_doc for _, by_doc in family.values()])
    return {
        name: Corrected(len(family), *p_values)
        for name, *p_values in zip(family, by_question, by_doc, strict=True)
    }


def _summarise(
    table: DocTable, name: str, top_k: int, scales: Scales, n_resamples: int, seed: int
) -> ConditionSummary:
    def paired(values: Mapping[str, NDArray[np.float64]]) -> PairedDelta:
        return paired_delta(
            values[UNMASKED],
            values[name],
            table.question_index,
            n_resamples=n_resamples,
            seed=seed,
        )

    accuracy, confidence = paired(table.correct), paired(table.confidence)
    controls = [
        points_between(table.correct[UNMASKED], table.correct[other])
        for other in table.conditions
        if other.startswith(control_name(name, 0)[:-1])
    ]
    parts = ConditionName.parse(name)
    operation = only_operation(parts.condition)
    sign = EXPECTED_SIGN.get(parts.condition, 0)
    return ConditionSummary(
        name=name,
        condition=parts.condition,
        top_k=None if name == UNMASKED else parts.top_k or top_k,
        scale=None if operation is None else float(getattr(parts.scales(scales), operation)),
        accuracy=accuracy,
        confidence=confidence,
        rac=percent_change(accuracy.unmasked, accuracy.condition),
        rcc=percent_change(confidence.unmasked, confidence.condition),
        controls=random_control_rank(accuracy.delta, controls, sign) if sign else None,
        n_beyond=sum(sign * accuracy.delta > sign * control for control in controls),
        mcnemar=mcnemar(table.correct[UNMASKED], table.correct[name]) if sign else None,
    )
