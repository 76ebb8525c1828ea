"""`summary.json`: what each condition did to the benchmark, as `report` writes it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.stats.significance import SplitHalf
from neuronllm_eval.formats.typed_files import NumberOrNaN, artifact, load
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.runs.directory import RunDirectory


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
        names = [each.name for each in self.conditions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the conditions are not one or more distinct ones: {names}")

    @property
    def applied_at(self) -> str:
        """Positions at which conditions were applied."""
        return self.positions.applied_at

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By name of condition or point, the harness's metrics; NaN where they are none."""
        return {each.name: each.metrics for each in self.conditions}

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
        StoredCondition(**vars(each), metrics=dict(metrics.get(each.name, {})))
        for each in summaries
    )
    return StoredSummary(task, split, docs, positions, split_half, conditions)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
