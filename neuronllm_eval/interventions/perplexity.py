"""Perplexity of a text under many conditions, which edit the neurons at all of its positions.

Neurons are edited at every token, as an exported adapter does, wherever a validation edits them:
an edit of the scored position alone leaves no trace in a text that has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuronllm_eval.engine.batching import batched
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.engine.pass_size import LOGITS_PER_PASS
from neuronllm_eval.engine.replay import SEQUENCES_PER_PASS
from neuronllm_eval.harness.plain_text import TextWindow
from neuronllm_eval.models.ffn_layers import FFNLayers, input_device, text_config
from neuronllm_eval.models.hooks import edit_neurons
from neuronllm_eval.runtime.process import bar


@dataclass(frozen=True)
class _EditedWindow:
    """A window under one edit."""

    window: TextWindow
    edit: int

    @property
    def n_tokens(self) -> int:
        return self.window.n_tokens


@torch.no_grad()
def perplexities(
    model: nn.Module, layers: FFNLayers, windows: Sequence[TextWindow], factors: NDArray[Any]
) -> list[float]:
    """[edits] perplexity by token: exp of minus the mean log-likelihood of the scored tokens.

    NaN or infinite where the model's logits are, or where it is beyond any float.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        windows: of the text.
        factors: [edits, layers, neurons], of any type that holds them exactly.

    Raises:
        ModelError: not even one window fits into memory.
    """
    scales = torch.from_numpy(factors)
    rows = [_EditedWindow(window, edit) for window in windows for edit in range(len(factors))]
    longest = max(window.n_tokens for window in windows)
    most = LOGITS_PER_PASS // (longest * int(text_config(model).vocab_size))
    size = max(1, min(SEQUENCES_PER_PASS, most))
    sums = [0.0] * len(factors)
    with bar(total=len(rows), desc="perplexity of a text", unit="pass", leave=False) as progress:
        for row, loglikelihood in batched(
            rows, size, lambda some: _loglikelihoods(model, layers, some, scales)
        ):
            sums[row.edit] += loglikelihood
            progress.update()
    n_scored = sum(len(window.scored) for window in windows)
    return [_exp(-total / n_scored) for total in sums]


def _loglikelihoods(
    model: nn.Module, layers: FFNLayers, rows: Sequence[_EditedWindow], scales: Tensor
) -> list[float]:
    """Of each window's scored tokens, log-nats."""
    tokens = right_pad([row.window.tokens for row in rows], input_device(model))
    factors = scales[[row.edit for row in rows]]

    def edit(layer: int, neurons: Tensor) -> Tensor:
        grid = neurons.reshape(*tokens.shape, -1)
        return (grid * factors[:, layer, None].to(grid)).reshape(neurons.shape)

    with edit_neurons(layers.modules, edit):
        logits = model(input_ids=tokens, use_cache=False).logits
    return [_loglikelihood(of_row, row.window) for of_row, row in zip(logits, rows, strict=True)]


def _loglikelihood(logits: Tensor, window: TextWindow) -> float:
    """Of the scored tokens of one row [positions, vocabulary]."""
    end, n_scored = window.n_tokens, len(window.scored)
    ids = torch.tensor(window.scored, device=logits.device)
    scored = logits[end - n_scored : end].float()
    values = scored.gather(-1, ids[:, None])[:, 0] - scored.logsumexp(-1)
    return float(values.double().sum())


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
