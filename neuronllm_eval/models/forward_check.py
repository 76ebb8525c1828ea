"""What engines and masks assume of a model's forward pass, tried on the model itself.

Hooks edit the input of each down-projection. That is a neuron's activation only if the projection
runs once in a pass, over all tokens; scores are read from logits that are as long as the input. A
model that shares its layers, or puts virtual tokens before the prompt, breaks this silently.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers, input_device
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters

# Two sequences of four tokens, which any vocabulary has.
_TOKENS = ((0, 1, 2, 3), (3, 2, 1, 0))
_N_TOKENS = 8


def require_plain_forward(model: nn.Module, layers: FFNLayers) -> None:
    """Refuse a model whose forward pass is not what hooks and scoring take it for.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.

    Raises:
        ModelError: `forward` does not take token ids alone, a down-projection runs twice, not at
            all or over other rows than the tokens, or the logits are not as long as the input.
    """
    calls: dict[int, list[int]] = {layer: [] for layer in range(len(layers.modules))}

    def count(layer: int, neurons: Tensor) -> Tensor:
        calls[layer].append(neurons.shape[:-1].numel())
        return neurons

    with torch.no_grad(), edit_neurons(layers.modules, count):
        logits = _logits(model)
    if logits.shape[:-1] != (len(_TOKENS), len(_TOKENS[0])):
        raise _unfit(
            model,
            f"gives logits of shape {tuple(logits.shape)} for {_N_TOKENS // 2} tokens in two rows",
            "logits for every token of the input, and no others",
            "merge or remove an adapter with virtual tokens, such as prompt tuning",
        )
    for layer, rows in calls.items():
        if rows != [_N_TOKENS]:
            raise _unfit(
                model,
                f"runs the down-projection {layers.names[layer]} {_times(rows)} in one pass",
                f"one run over all {_N_TOKENS} tokens: what enters it are the neurons",
                "choose a model whose layers are not shared or skipped",
            )


def require_gradients(model: nn.Module, layers: FFNLayers) -> None:
    """Refuse a model that has no gradients of its logits by its neurons, after passes without them.

    Raises:
        ModelError: such as bitsandbytes' 4-bit weights, once it has packed them for a CPU.
    """
    neurons: list[Tensor] = []

    def hold(_: int, values: Tensor) -> Tensor:
        neurons.append(values.detach().requires_grad_())
        return neurons[-1]

    with torch.no_grad():
        _logits(model)
    with frozen_parameters(model), edit_neurons(layers.modules, hold):
        try:
            total = _logits(model).float().sum()
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                total, neurons, allow_unused=True
            )
        except RuntimeError as error:
            raise _no_gradient(model, str(error).split("\n", 1)[0]) from error
    if any(gradient is None for gradient in gradients):
        raise _no_gradient(model, "some FFN neurons have none")


def _logits(model: nn.Module) -> Tensor:
    """[2, 4, vocabulary] of the probe's tokens."""
    tokens = torch.tensor(_TOKENS, device=input_device(model))
    try:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    except (TypeError, AttributeError) as error:
        raise _unfit(
            model,
            f"cannot be called with token ids and use_cache: {error}",
            "the forward pass of a Hugging Face causal LM",
            "give its `forward` the arguments input_ids and use_cache",
        ) from error
    return logits


def _times(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"over {rows[0]} rows"
    return f"{len(rows)} times" if rows else "never"


def _unfit(model: nn.Module, found: str, expected: str, remedy: str) -> ModelError:
    return ModelError(f"{type(model).__name__} {found}", expected=expected, remedy=remedy)


def _no_gradient(model: nn.Module, why: str) -> ModelError:
    return _unfit(
        model,
        f"has no gradients of its logits by its neurons: {why}",
        "weights that autograd can differentiate through",
        "load it without quantisation, or in 8 bit, or on a GPU",
    )
