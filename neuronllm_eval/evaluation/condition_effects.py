"""The effect of each condition on the benchmark: `conditions.jsonl` -> paired deltas. Pure.

1. `summarise`: the effects. Separate from the report, so that every number in it can be recomputed
   from the artifacts.
2. `StoredSummary`: the same as `summary.json` holds them, which `report` writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuronllm_eval.evaluation.doc_table import DocTable, without_controls
from neuronllm_eval.evaluation.edit_cost import EditCost, edit_cost
from neuronllm_eval.evaluation.robust_effects import (
    ControlledDelta,
    OptionMass,
    robust_effects,
)
from neuronllm_eval.evaluation.stats.paired_delta import (
    PairedDelta,
    paired_delta,
    percent_change,
    points_between,
)
from neuronllm_eval.evaluation.stats.significance import (
    ControlRank,
    McNemar,
    SplitHalf,
    holm,
    mcnemar,
    random_control_rank,
)
from neuronllm_eval.formats.typed_files import NumberOrNaN, artifact, load
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    EXPECTED_SIGN,
    UNMASKED,
    ConditionName,
    Edited,
    Scales,
    edited_by,
    is_control,
    only_operation,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import RunDirectory


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
        chance: percent, the accuracy of guessing. This and what follows is of `RobustEffects`, and
            None in summaries of earlier versions.
        calibrated: accuracy after batch calibration.
        balanced: accuracy as the mean over gold labels.
        by_gold: [options] accuracy by gold option.
        top_answer: percent of the docs with the most frequent answer, by its place among the
            options.
        collapsed: whether nearly all docs have the same answer.
        option_mass: total probability of the options.
        kl: KL divergence of the next token's distribution from the unmasked model's at the scored
            position, mean over docs, nats; None in validations of earlier versions.
        perplexity: of the packaged plain text, all positions edited; None where it is not measured.
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
    chance: float | None = None
    calibrated: ControlledDelta | None = None
    balanced: ControlledDelta | None = None
    by_gold: tuple[NumberOrNaN, ...] | None = None
    top_answer: float | None = None
    collapsed: bool | None = None
    option_mass: OptionMass | None = None
    kl: EditCost | None = None
    perplexity: EditCost | None = None

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
    table: DocTable,
    neurons: NeuronSet,
    scales: Scales,
    n_resamples: int = 10_000,
    seed: int = 0,
    perplexity: Mapping[str, float] | None = None,
) -> list[ConditionSummary]:
    """Every condition and point that is not a random control, in order.

    Args:
        neurons: good and bad neurons of the conditions that are not points.
        scales: factors of those conditions.
        n_resamples: draws of the bootstrap and of the permutation test.
        perplexity: by condition, of the plain text.

    Raises:
        ArtifactError: a point has more neurons than were selected.
    """
    edited = edited_by(without_controls(table.conditions), neurons, scales)
    return summaries_of(table, edited, neurons.top_k, scales, n_resamples, seed, perplexity)


def summaries_of(
    table: DocTable,
    edited: Mapping[str, Edited],
    top_k: int,
    scales: Scales,
    n_resamples: int = 10_000,
    seed: int = 0,
    perplexity: Mapping[str, float] | None = None,
) -> list[ConditionSummary]:
    """As `summarise`, where it is known what each condition edits."""
    kl = {name: float(of_docs.mean()) for name, of_docs in table.kl.items()}
    summaries = []
    for name in without_controls(table.conditions):
        summary = dataclasses.replace(
            _summarise(table, name, top_k, scales, n_resamples, seed),
            kl=edit_cost(kl, name),
            perplexity=edit_cost(perplexity or {}, name),
        )
        summaries.append(with_edited(summary, edited.get(name)))
    return _corrected(summaries)


def with_edited(summary: ConditionSummary, edited: Edited | None) -> ConditionSummary:
    """The same with `edited`; without figures where nothing was edited."""
    if edited is None or edited.n_neurons:
        return dataclasses.replace(summary, edited=edited)
    nothing: dict[str, Any] = dict.fromkeys(("delta", "low", "high", "p_value"), math.nan)
    calibrated, balanced = (
        value and dataclasses.replace(value, **nothing, controls=None, p_holm=math.nan)
        for value in (summary.calibrated, summary.balanced)
    )
    return dataclasses.replace(
        summary,
        accuracy=dataclasses.replace(summary.accuracy, **nothing),
        confidence=dataclasses.replace(summary.confidence, **nothing),
        calibrated=calibrated,
        balanced=balanced,
        rac=math.nan,
        rcc=math.nan,
        controls=None,
        n_beyond=0,
        mcnemar=None,
        edited=edited,
        kl=None,
        perplexity=None,
    )


def _corrected(summaries: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """The same with `corrected`.

    A point belongs to a surface that readers search, so it is corrected for everything evaluated.
    The conditions that are not points were named beforehand, so a sweep costs them no power.
    """
    tested = [s for s in summaries if s.is_evaluated and _stands_for(s) == s.name]
    over_all = _holm(tested)
    over_conditions = _holm([summary for summary in tested if not summary.is_point])
    results = []
    for summary in summaries:
        changes = (over_all if summary.is_point else over_conditions).get(_stands_for(summary))
        results.append(summary if changes is None else changes.of(summary))
    return results


def _stands_for(summary: ConditionSummary) -> str:
    """The name under which it is counted: conditions with the same edits are tested once."""
    same_as = None if summary.edited is None else summary.edited.same_as
    return summary.name if same_as is None else same_as


@dataclass(frozen=True)
class _PValues:
    """p-values of a condition after Holm's correction, each for the family's own of its test."""

    corrected: Corrected
    calibrated: float
    balanced: float

    def of(self, summary: ConditionSummary) -> ConditionSummary:
        """The summary with them."""
        assert summary.calibrated is not None
        assert summary.balanced is not None
        return dataclasses.replace(
            summary,
            corrected=self.corrected,
            calibrated=dataclasses.replace(summary.calibrated, p_holm=self.calibrated),
            balanced=dataclasses.replace(summary.balanced, p_holm=self.balanced),
        )


def _holm(family: Sequence[ConditionSummary]) -> dict[str, _PValues]:
    """By name, the p-values after Holm's correction for the whole family."""
    by_question, by_doc, of_calibrated, of_balanced = (
        holm([change.p_value for change in changes if change is not None])
        for changes in (
            [summary.accuracy for summary in family],
            [summary.mcnemar for summary in family],
            [summary.calibrated for summary in family],
            [summary.balanced for summary in family],
        )
    )
    return {
        summary.name: _PValues(Corrected(len(family), one, other), calibrated, balanced)
        for summary, one, other, calibrated, balanced in zip(
            family, by_question, by_doc, of_calibrated, of_balanced, strict=True
        )
    }


def _summarise(
    table: DocTable, name: str, top_k: int, scales: Scales, n_resamples: int, seed: int
) -> ConditionSummary:
    accuracy, confidence = (
        paired_delta(
            values[UNMASKED],
            values[name],
            table.question_index,
            n_resamples=n_resamples,
            seed=seed,
        )
        for values in (table.correct, table.confidence)
    )
    controls = [other for other in table.conditions if is_control(other, of=name)]
    moved = [points_between(table.correct[UNMASKED], table.correct[other]) for other in controls]
    parts = ConditionName.parse(name)
    operation = only_operation(parts.condition)
    sign = EXPECTED_SIGN.get(parts.condition, 0)
    return ConditionSummary(
        name=name,
        condition=parts.condition,
        top_k=None if name == UNMASKED else parts.top_k or top_k,
        scale=None if operation is None else parts.scales(scales).factor(operation),
        accuracy=accuracy,
        confidence=confidence,
        rac=percent_change(accuracy.unmasked, accuracy.condition),
        rcc=percent_change(confidence.unmasked, confidence.condition),
        controls=random_control_rank(accuracy.delta, moved, sign) if sign else None,
        n_beyond=sum(sign * accuracy.delta > sign * control for control in moved),
        mcnemar=mcnemar(table.correct[UNMASKED], table.correct[name]) if sign else None,
        **vars(robust_effects(table, name, controls, sign, n_resamples, seed)),
    )


# `summary.json` -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredCondition(ConditionSummary):
    """A condition or point, with the harness's metrics under it.

    Attributes:
        metrics: by name; empty where no result file was written.
    """

    metrics: dict[str, NumberOrNaN] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition is {self.condition!r:.100}")


@dataclass(frozen=True)
class Positions:
    """Where neurons were `chosen_at`, and where conditions were `applied_at`."""

    chosen_at: str
    applied_at: str


@artifact
@dataclass(frozen=True)
class StoredSummary:
    """The content of `summary.json`.

    Attributes:
        task: name of the harness task.
        split: the validation split.
        docs: per role, what became of its docs.
        positions: where neurons were selected and conditions applied.
        split_half: how far two halves of the selection questions agree on the neurons.
        conditions: one per condition and point.
    """

    task: str
    split: str
    docs: dict[str, Any]
    positions: Positions
    split_half: SplitHalf
    conditions: tuple[StoredCondition, ...]

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the conditions are not one or more distinct ones: {names}")

    @property
    def applied_at(self) -> str:
        """Positions at which conditions were applied."""
        return self.positions.applied_at

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By name of condition or point, the harness's metrics; NaN where they are none."""
        return {condition.name: condition.metrics for condition in self.conditions}

    def to_json(self) -> str:
        """The content of the file; null stands for what is not a number."""
        values = _without_nan(dataclasses.asdict(self))
        # Files are read with sorted keys, a stage counts in an order of its own.
        values["docs"] = json.loads(json.dumps(self.docs, sort_keys=True))
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> StoredSummary:
        """Read a `summary.json`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return load(cls, path, "run `neuronllm-eval report` on the run")


def load_summary(run: RunDirectory) -> StoredSummary:
    """The summary of a run (`summary.json`).

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return run.once(run.summary, lambda: StoredSummary.load(run.summary))


def summary_of(
    task: str,
    split: str,
    summaries: Sequence[ConditionSummary],
    docs: dict[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    split_half: SplitHalf,
    positions: Positions,
) -> StoredSummary:
    """The content of `summary.json`.

    Args:
        task: name of the harness task.
        split: the validation split.
        summaries: one per condition and point.
        docs: per role, what became of its docs.
        metrics: by name of condition or point, the harness's metrics.
        split_half: how far two halves of the selection questions agree on the neurons.
        positions: where neurons were selected and conditions applied.
    """
    conditions = tuple(
        StoredCondition(**vars(summary), metrics=dict(metrics.get(summary.name, {})))
        for summary in summaries
    )
    return StoredSummary(task, split, docs, positions, split_half, conditions)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
