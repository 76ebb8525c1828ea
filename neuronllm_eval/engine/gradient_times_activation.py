"""Gradient times activation of every neuron in all layers, from one pass over unedited prompts.

At alpha = 1 no layer is edited, so one forward pass serves all layers, and one backward pass gives
all gradients of targets that share one (`Integrand.differentiated`):

1. The sequences of all prompts go through the model as one right-padded batch; hooks hold every
   layer's neurons h_l within the graph, so that gradients of a layer pass through later ones.
2. dF/dh_l of all layers comes from one backward pass of the summed targets; a prompt's target
   depends on its own rows alone.
3. h_l * dF/dh_l is summed over the prompt's edited positions, which exclude padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.interface import Integrand, PathIntegral, PathIntegrals, Target
from neuronllm_eval.engine.option_logits import OptionSequences
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.hooks import edit_neurons


def unedited_integrals(
    model: nn.Module,
    layers: FFNLayers,
    batch: Sequence[OptionSequences],
    integrands: Sequence[Integrand],
) -> list[PathIntegrals]:
    """Path integrals whose only nodes are at alpha = 1, for a batch of prompts.

    Args:
        model: a Hugging Face causal LM in eval mode, whose parameters are frozen.
        layers: its FFN down-projections.
        batch: the prompts' sequences.
        integrands: at least one.
    """
    tokens = _padded([sequences.tokens for sequences in batch])
    edited = _padded([sequences.edited for sequences in batch])
    neurons_of: dict[int, Tensor] = {}

    def record(layer: int, neurons: Tensor) -> Tensor:
        # Below the first layer nothing needs a gradient; later layers depend on earlier ones.
        leaf = neurons if neurons.requires_grad else neurons.detach().requires_grad_(True)
        neurons_of[layer] = leaf
        return leaf

    with torch.enable_grad(), edit_neurons(layers.modules, record):
        logits = model(input_ids=tokens, use_cache=False).logits
        home = logits.device
        scores = [
            sequences.option_scores(rows[None])[0][0]
            for sequences, rows in zip(batch, _by_prompt(batch, logits), strict=True)
        ]
        leaves = [neurons_of[layer] for layer in range(layers.n_layers)]
        targets = tuple(dict.fromkeys(integrand.differentiated for integrand in integrands))
        values: dict[Target, Tensor] = {}  # [prompts]
        products: dict[Target, list[Tensor]] = {}  # per prompt [layers, neurons]
        for target in targets:
            of_prompts = torch.stack(
                [
                    target(loglikelihoods, sequences.prompt.gold)
                    for loglikelihoods, sequences in zip(scores, batch, strict=True)
                ]
            )
            retain = target is not targets[-1]
            gradients = torch.autograd.grad(of_prompts.sum(), leaves, retain_graph=retain)
            values[target] = of_prompts.detach()
            products[target] = _products(batch, edited, leaves, gradients, home)
    grids = [_by_prompt(batch, leaf.detach().reshape(*edited.shape, -1)) for leaf in leaves]

    def integral(integrand: Integrand, index: int) -> PathIntegral:
        of_prompt = values[integrand.differentiated][index]
        weight = float(integrand.weights.sum()) * float(integrand.slopes(of_prompt))
        value = integrand.values(of_prompt)
        return PathIntegral(
            weight * products[integrand.differentiated][index],
            value.expand(len(leaves), len(integrand.weights)),
            float(value),
            scores[index].detach(),
        )

    return [
        PathIntegrals(
            tuple(integral(integrand, index) for integrand in integrands),
            torch.stack([sequences.activations(grid[index]).to(home) for grid in grids]),
        )
        for index, sequences in enumerate(batch)
    ]


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """[rows, positions] of all prompts, from those of each."""
    longest = max(tensor.shape[1] for tensor in tensors)
    pad = nn.functional.pad
    return torch.cat([pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])


def _by_prompt(batch: Sequence[OptionSequences], rows: Tensor) -> list[Tensor]:
    """The rows of each prompt."""
    return list(rows.split([len(sequences) for sequences in batch]))


def _products(
    batch: Sequence[OptionSequences],
    edited: Tensor,
    leaves: Sequence[Tensor],
    gradients: Sequence[Tensor],
    home: torch.device,
) -> list[Tensor]:
    """Per prompt [layers, neurons] float32: h * dF/dh summed over its edited positions."""
    by_layer = []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        product = (leaf.detach().float() * gradient.float()).reshape(*edited.shape, -1)
        keep = edited.to(product.device)[..., None]
        summed = torch.where(keep, product, 0.0).sum(1)  # [rows, neurons]
        by_layer.append([rows.sum(0).to(home) for rows in _by_prompt(batch, summed)])
    return [torch.stack(of_prompt) for of_prompt in zip(*by_layer, strict=True)]
