"""The figures of an exported condition, from the validation of its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuronllm_eval.evaluation.summary_file import StoredCondition, load_summary
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.interventions.conditions import ConditionName, Scales, only_operation
from neuronllm_eval.runs.artifacts import load_validation
from neuronllm_eval.runs.directory import RunDirectory


@dataclass(frozen=True)
class Figures:
    """The measured effect of a condition.

    Attributes:
        split: the validation split.
        effect: of the condition, as `summary.json` has it.
        applied_at: positions that were edited (`prompts.POSITIONS`).
    """

    split: str
    effect: StoredCondition
    applied_at: str


def validated_figures(run: RunDirectory, export: Export) -> Figures | None:
    """The figures of the same condition, number of neurons and scales; None if there are none.

    A condition that edits no neuron has none.

    Raises:
        ArtifactError: `summary.json` or `validation.json` is damaged.
    """
    if not (run.summary.is_file() and run.validation.is_file()):
        return None
    record, summary = load_validation(run), load_summary(run)
    exported = _intervention(export.condition, export.top_k, export.scales)
    for effect in summary.conditions:
        name = ConditionName.parse(effect.name)
        top_k, scales = name.top_k or record.top_k, name.scales(record.scales)
        if _intervention(effect.name, top_k, scales) == exported and effect.corrected is not None:
            return Figures(summary.split, effect, record.positions)
    return None


def _intervention(condition: str, top_k: int, scales: Scales) -> tuple[Any, ...]:
    """All that distinguishes one intervention on a run's neurons from another."""
    name = ConditionName.parse(condition)
    operation = only_operation(name.condition)
    factors = scales if operation is None else getattr(scales, operation)
    return name.condition, name.seed, top_k, factors
