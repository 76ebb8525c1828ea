"""What an edit costs beyond the benchmark, beside what random edits of the same size cost.

Two figures (our reading): how far the next token's distribution moves at the scored position, and
the perplexity of a plain text with all positions edited.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.formats.typed_files import NumberOrNaN
from neuronllm_eval.interventions.conditions import is_control
from neuronllm_eval.runs.artifacts import VALIDATE_REMEDY, load_perplexity
from neuronllm_eval.runs.directory import RunDirectory


@dataclass(frozen=True)
class EditCost:
    """One figure of a condition and of its layer-matched random controls.

    Attributes:
        value: of the condition; NaN if it is not finite.
        controls_mean: mean over the random controls; NaN without any.
        controls_high: their largest.
        n_controls: how many were measured.
    """

    value: NumberOrNaN
    controls_mean: NumberOrNaN
    controls_high: NumberOrNaN
    n_controls: int


def edit_cost(values: Mapping[str, float], name: str) -> EditCost | None:
    """A condition's figure among those of all; None if it has none.

    Args:
        values: by name of conditions, points and random controls.
        name: of a condition or point.
    """
    if name not in values:
        return None
    controls = [value for other, value in values.items() if is_control(other, of=name)]
    mean, high = (fmean(controls), max(controls)) if controls else (math.nan, math.nan)
    if math.isnan(mean):  # of which max() knows nothing
        high = math.nan
    return EditCost(values[name], mean, high, len(controls))


def recorded_perplexity(run: RunDirectory, docs: DocTable) -> Mapping[str, float]:
    """Perplexity of the plain text by condition; empty where it was not measured.

    Raises:
        ArtifactError: the file is damaged, or of conditions that the run's docs do not have.
    """
    record = load_perplexity(run)
    if record is None:
        return {}
    unknown = [name for name in record.perplexity if name not in docs.conditions]
    if unknown:
        raise ArtifactError(
            f"{run.perplexity} has {unknown[0]!r:.100}, which {run.conditions.name} has not",
            expected="files of one validation",
            remedy=VALIDATE_REMEDY,
        )
    return record.perplexity
