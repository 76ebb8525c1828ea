"""The perplexity of the packaged plain text in a run's model, under its conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.harness.plain_text import plain_text, text_windows
from neuronllm_eval.interventions.conditions import Scales, condition_factors
from neuronllm_eval.interventions.perplexity import perplexities
from neuronllm_eval.models.fingerprints import digest
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import PerplexityRecord
from neuronllm_eval.stages.load import LoadedModel


def measured_perplexity(
    model: LoadedModel, neurons: NeuronSet, names: Sequence[str], scales: Scales
) -> PerplexityRecord:
    """Under conditions, points and random controls by their names; six digits of each.

    Raises:
        ModelError: the text does not fit into memory.
    """
    values, n_tokens = text_perplexities(model, condition_factors(names, neurons, scales))
    rounded = [float(f"{value:.6g}") if math.isfinite(value) else math.nan for value in values]
    return PerplexityRecord(digest(plain_text()), n_tokens, dict(zip(names, rounded, strict=True)))


def text_perplexities(model: LoadedModel, factors: NDArray[Any]) -> tuple[list[float], int]:
    """[edits] of the text, whose factors are [edits, layers, neurons]; and its tokens."""
    windows = text_windows(model.lm, plain_text())
    values = perplexities(model.lm.model, model.layers, windows, factors)
    return values, sum(len(window.scored) for window in windows)
