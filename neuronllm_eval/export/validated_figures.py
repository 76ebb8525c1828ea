"""What a run's validation says of a condition that is exported: `summary.json`, read back."""

from __future__ import annotations

import math
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.export.model_card import Figures
from neuronllm_eval.formats.json_files import read_json
from neuronllm_eval.interventions.conditions import ConditionName, Scales, only_operation
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.reader import ValidationRecord


def judged_figures(run: RunDirectory, export: Export) -> Figures | None:
    """The figures of the same condition, number of neurons and scales; None if it was not judged.

    What edits no neuron is judged by no figures.

    Raises:
        ArtifactError: `summary.json` or `validation.json` is damaged.
    """
    if not (run.summary.is_file() and run.validation.is_file()):
        return None
    record = ValidationRecord.load(run.validation)
    summary = read_json(run.summary, "run `neuronllm-eval report` on it")
    wanted = _what(export.condition, export.top_k, export.scales)
    try:
        for values in summary["conditions"]:
            name = ConditionName.parse(values["name"])
            top_k = name.top_k or record.top_k
            if _what(values["name"], top_k, name.scales(record.scales)) == wanted:
                if values["corrected"] is None:
                    return None
                return _figures(str(summary["split"]), values, record.positions)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{run.summary} cannot be read: {type(error).__name__}: {error}",
            expected="a file as this package writes it",
            remedy="run `neuronllm-eval report` on the run",
        ) from error
    return None


def _what(condition: str, top_k: int, scales: Scales) -> tuple[Any, ...]:
    """All that tells one intervention on a run's neurons from another."""
    name = ConditionName.parse(condition)
    operation = only_operation(name.condition)
    factors = scales if operation is None else getattr(scales, operation)
    return name.condition, name.seed, top_k, factors


def _figures(split: str, values: dict[str, Any], applied_at: str) -> Figures:
    accuracy, controls = values["accuracy"], values["controls"]
    corrected = values["corrected"]
    names = ("unmasked", "condition", "delta", "low", "high")
    unmasked, condition, delta, low, high, p_value = numbers = [
        *(float(accuracy[name]) for name in names),
        float(corrected["p_value"]),
    ]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("figures that are not finite")
    n_controls = 0 if controls is None else int(controls["n_controls"])
    return Figures(
        split=split,
        n_questions=int(accuracy["n_questions"]),
        unmasked=unmasked,
        accuracy=condition,
        delta=delta,
        low=low,
        high=high,
        p_value=p_value,
        n_tests=int(corrected["n_tests"]),
        n_controls=n_controls,
        n_beyond=int(values["n_beyond"]),
        applied_at=applied_at,
    )
