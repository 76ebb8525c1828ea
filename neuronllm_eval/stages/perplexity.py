"""The perplexity of the packaged plain text in a run's model, under its conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.plain_text import TextWindow, plain_text, text_windows
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
        UsageError: as `windows_of`.
        ModelError: the text does not fit into memory.
    """
    windows = windows_of(model)
    values = text_perplexities(model, windows, condition_factors(names, neurons, scales))
    rounded = [float(f"{value:.6g}") if math.isfinite(value) else math.nan for value in values]
    n_tokens = sum(len(window.scored) for window in windows)
    return PerplexityRecord(digest(plain_text()), n_tokens, dict(zip(names, rounded, strict=True)))


def text_perplexities(
    model: LoadedModel, windows: Sequence[TextWindow], factors: NDArray[Any]
) -> list[float]:
    """[edits] of the windows; `factors` are [edits, layers, neurons]."""
    return perplexities(model.lm.model, model.layers, windows, factors)


def windows_of(model: LoadedModel) -> tuple[TextWindow, ...]:
    """The text as the model reads it.

    Raises:
        UsageError: the tokenizer has no token to put before it.
    """
    if model.lm.prefix_token_id is None:
        raise UsageError(
            "--perplexity with a tokenizer that has neither a BOS nor an EOS token",
            expected="a token for the first token of the text to follow",
            remedy="add prefix_token_id= to --model_args, or leave --perplexity out",
        )
    return text_windows(model.lm, plain_text())
