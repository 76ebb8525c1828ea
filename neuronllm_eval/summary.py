"""What each condition did to the benchmark: `conditions.jsonl` -> paired deltas. Pure.

Kept apart from the report so that every number in it can be computed again from the artifacts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.conditions import (
    UNMASKED,
    ConditionName,
    Scales,
    control_name,
    only_operation,
)
from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.statistics import (
    ControlRank,
    PairedDelta,
    paired_delta,
    random_control_rank,
    relative_accuracy_change,
    relative_confidence_change,
)

# What each condition is expected to do; its place among the controls is judged on this side.
EXPECTED_SIGN = {
    "suppress_good": -1,
    "suppress_bad": 1,
    "enhance_good": 1,
    "enhance_bad": -1,
    "degrade": -1,
    "enhance": 1,
}


@dataclass(frozen=True)
class ConditionSummary:
    """One condition, or one point of a sweep, against the unmasked run on the same docs.

    Attributes:
        name: as in `conditions.jsonl`; that of the condition, but for points.
        condition: one of `conditions.CONDITIONS`.
        top_k: good and bad neurons; None for the unmasked run.
        scale: factor of the condition's only operation; None for those of two or none.
        accuracy: paired, percent and percentage points.
        confidence: the same of the softmax over options at gold, percent and percentage points.
        rac: relative accuracy change, percent (our reading).
        rcc: relative confidence change, percent (our reading).
        controls: accuracy deltas of the layer-matched random controls under the same operation;
            None for the unmasked run.
        n_beyond: controls that moved less in the expected direction than the condition did.
    """

    name: str
    condition: str
    top_k: int | None
    scale: float | None
    accuracy: PairedDelta
    confidence: PairedDelta
    rac: float
    rcc: float
    controls: ControlRank | None
    n_beyond: int

    @property
    def is_point(self) -> bool:
        """Whether it is a point of a sweep rather than the condition as it is."""
        return self.name != self.condition


def summarise(
    table: DocTable, top_k: int, scales: Scales, n_resamples: int = 10_000, seed: int = 0
) -> list[ConditionSummary]:
    """Every condition and point that is not a random control, in order.

    Args:
        table: right or wrong and confidence per doc.
        top_k: good and bad neurons of the conditions that are no points.
        scales: their factors.
        n_resamples: draws of the bootstrap and of the permutation test.
        seed: of those draws.
    """
    chosen = [name for name in table.conditions if ".random_" not in name]
    return [_summarise(table, name, top_k, scales, n_resamples, seed) for name in chosen]


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
        100 * float(table.correct[other].mean() - table.correct[UNMASKED].mean())
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
        rac=relative_accuracy_change(accuracy.unmasked, accuracy.condition),
        rcc=relative_confidence_change(confidence.unmasked, confidence.condition),
        controls=random_control_rank(accuracy.delta, controls, sign) if sign else None,
        n_beyond=sum(sign * accuracy.delta > sign * control for control in controls),
    )


def summary_json(
    task: str,
    split: str,
    summaries: Sequence[ConditionSummary],
    docs: dict[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
) -> str:
    """The content of `summary.json`; what is not a number is null.

    Args:
        task: name of the harness task.
        split: the split that judged.
        summaries: one per condition and point.
        docs: per split, what became of its docs.
        metrics: by name of condition or point, the harness's metrics.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    conditions = [
        plain({**dataclasses.asdict(summary), "metrics": dict(metrics.get(summary.name, {}))})
        for summary in summaries
    ]
    values = {"task": task, "split": split, "docs": docs, "conditions": conditions}
    return json.dumps(values, indent=1) + "\n"
