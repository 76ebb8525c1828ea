"""What conditions do to tasks that their neurons were not selected on: `also/<task>/` of a run.

Each folder holds a validation as the run's own (`runs.directory.RunDirectory.on_other_task`), with
the same neurons, conditions, random controls, factors and positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise
from neuronllm_eval.evaluation.doc_table import doc_table
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import (
    ValidationRecord,
    excluded_ids,
    load_metrics,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory


@dataclass(frozen=True)
class OtherTask:
    """A run's conditions on another task.

    Attributes:
        directory: of the validation.
        task: name of the harness task.
        split: its validation split.
        chance: mean of 1 / number of options over the docs.
        summaries: one per condition and point, with figures as of the run's own.
        docs: what became of the split's docs, and how many questions are `set_aside`.
        metrics: name of condition or point -> the harness's metrics.
    """

    directory: RunDirectory
    task: str
    split: str
    chance: float
    summaries: tuple[ConditionSummary, ...]
    docs: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]

    @property
    def by_name(self) -> dict[str, ConditionSummary]:
        """The summaries by condition or point."""
        return {summary.name: summary for summary in self.summaries}


def finished_others(run: RunDirectory) -> list[RunDirectory]:
    """The finished validations on other tasks, by name."""
    return [
        other
        for other in run.on_other_tasks
        if other.conditions.is_file() and other.validation.is_file()
    ]


def require_same_conditions(other: RunDirectory, record: ValidationRecord) -> ValidationRecord:
    """How the neurons were validated on another task.

    Args:
        other: the validation.
        record: of the run's own.

    Raises:
        ArtifactError: it differs from the run's own; or a file is missing or damaged.
    """
    there = load_validation(other)
    if replace(there, batch_size=record.batch_size, docs=record.docs) != record:
        raise ArtifactError(
            f"{other.validation} is of other neurons, factors or positions than the run's own",
            expected="the same conditions on every task",
            remedy="run validate with --also again, and --overwrite",
        )
    return there


def read_other_tasks(
    run: RunDirectory, neurons: NeuronSet, record: ValidationRecord
) -> tuple[OtherTask, ...]:
    """What the run's conditions do to other tasks, in the order of their names.

    Args:
        run: that was validated.
        neurons: those that were validated.
        record: how.

    Raises:
        ArtifactError: a file is missing or damaged, or of another validation.
    """
    return tuple(_read(other, neurons, record) for other in finished_others(run))


def _read(other: RunDirectory, neurons: NeuronSet, record: ValidationRecord) -> OtherTask:
    there = require_same_conditions(other, record)
    task = load_settings(other).task
    answers = doc_table(other, task)
    summaries = tuple(summarise(answers, neurons, record.scales))
    docs: dict[str, Any] = {str(part): counts for part, counts in there.docs.items()}
    if excluded := excluded_ids(other, "validation"):
        docs["set_aside"] = len(excluded)
    return OtherTask(
        directory=other,
        task=task,
        split=answers.split,
        chance=answers.unmasked_against_chance.chance,
        summaries=summaries,
        docs=docs,
        metrics={
            summary.name: load_metrics(other, summary.name, task)
            for summary in summaries
            if (summary.is_evaluated or summary.name == UNMASKED)
            and other.result(summary.name).exists()
        },
    )
