"""What the conditions of runs do to other tasks (`validate --also`), read for comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuronllm_eval.evaluation.condition_effects import ConditionSummary, load_summary
from neuronllm_eval.evaluation.other_tasks import finished_others, require_same_conditions
from neuronllm_eval.runs.artifacts import ValidationRecord
from neuronllm_eval.runs.directory import RunDirectory


@dataclass(frozen=True)
class Effects:
    """What conditions do to one other task.

    Attributes:
        task: of the harness.
        summaries: by condition or point.
    """

    task: str
    summaries: Mapping[str, ConditionSummary]


def read_effects(run: RunDirectory, record: ValidationRecord) -> tuple[Effects, ...]:
    """The effects on other tasks, as their summaries have them, by name of the task.

    Args:
        run: that was validated.
        record: how.

    Raises:
        ArtifactError: a file is missing or damaged, or of another validation than the run's own.
    """
    effects = []
    for other in finished_others(run):
        require_same_conditions(other, record)
        summary = load_summary(other)
        effects.append(Effects(summary.task, {each.name: each for each in summary.conditions}))
    return tuple(effects)


def mean_delta(effects: Sequence[Effects], name: str) -> float | None:
    """Mean change of accuracy over the other tasks, in points; None without any.

    Args:
        effects: on other tasks.
        name: of the condition or point.
    """
    found = [each.summaries[name] for each in effects if name in each.summaries]
    deltas = [summary.accuracy.delta for summary in found if summary.is_evaluated]
    return sum(deltas) / len(deltas) if deltas else None
