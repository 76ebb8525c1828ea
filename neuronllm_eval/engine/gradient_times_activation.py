"""Gradient times activation of every neuron in all layers, from one pass over unedited prompts.

At alpha = 1 no layer is edited, so one forward pass serves all layers, and one backward pass
gives all gradients of what targets have in common (`Integrand.differentiated`):

1. The sequences of all prompts go through the model as one right-padded batch; hooks keep every
   layer's neurons h_l within the graph, so that gradients of a layer pass through later ones.
2. dF/dh_l of all layers comes from one backward pass of the summed targets; a prompt's target
   depends on its own rows alone.
3. h_l * dF/dh_l is summed over the prompt's edited positions; padding is none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.interface import Integrand, PathIntegral, PathIntegrals, Target
from neuronllm_eval.engine.option_sequences import OptionSequences
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
    tokens, edited = _padded(batch)
    kept: dict[int, Tensor] = {}

    def keep(layer: int, neurons: Tensor) -> Tensor:
        # Below the first layer nothing needs a gradient; later layers depend on earlier ones.
        attached = neurons if neurons.requires_grad else neurons.detach().requires_grad_(True)
        kept[layer] = attached
        return attached

    with torch.enable_grad(), edit_neurons(layers.modules, keep):
        logits = model(input_ids=tokens, use_cache=False).logits
        home = logits.device
        parts = zip(batch, _own_rows(batch, logits), strict=True)
        scores = [sequences.option_scores(own[None])[0][0] for sequences, own in parts]
        targets = tuple(dict.fromkeys(integrand.differentiated for integrand in integrands))
        leaves = [kept[layer] for layer in range(layers.n_layers)]
        values: dict[Target, Tensor] = {}  # [prompts]
        products: dict[Target, list[Tensor]] = {}  # per prompt [layers, neurons]
        for target in targets:
            own_values = torch.stack(
                [
                    target(own, sequences.prompt.gold)
                    for own, sequences in zip(scores, batch, strict=True)
                ]
            )
            retain = target is not targets[-1]
            gradients = torch.autograd.grad(own_values.sum(), leaves, retain_graph=retain)
            values[target] = own_values.detach()
            products[target] = _by_prompt(batch, edited, leaves, gradients, home)
    rows = [_own_rows(batch, leaf.detach().reshape(*edited.shape, -1)) for leaf in leaves]

    def integral(integrand: Integrand, place: int) -> PathIntegral:
        found = values[integrand.differentiated][place]
        weight = float(integrand.weights.sum()) * float(integrand.slopes(found))
        value = integrand.values(found)
        return PathIntegral(
            weight * products[integrand.differentiated][place],
            value.expand(len(leaves), len(integrand.weights)),
            float(value),
            scores[place].detach(),
        )

    return [
        PathIntegrals(
            tuple(integral(each, place) for each in integrands),
            torch.stack([sequences.activations(own[place]).to(home) for own in rows]),
        )
        for place, sequences in enumerate(batch)
    ]


def _padded(batch: Sequence[OptionSequences]) -> tuple[Tensor, Tensor]:
    """[rows, positions] tokens and edited positions of all prompts."""
    longest = max(sequences.tokens.shape[1] for sequences in batch)
    tokens, edited = (
        torch.cat(
            [
                nn.functional.pad(each, (0, longest - each.shape[1]))
                for each in (getattr(sequences, name) for sequences in batch)
            ]
        )
        for name in ("tokens", "edited")
    )
    return tokens, edited


def _own_rows(batch: Sequence[OptionSequences], rows: Tensor) -> list[Tensor]:
    """The rows of each prompt."""
    return list(rows.split([len(sequences) for sequences in batch]))


def _by_prompt(
    batch: Sequence[OptionSequences],
    edited: Tensor,
    leaves: Sequence[Tensor],
    gradients: Sequence[Tensor],
    home: torch.device,
) -> list[Tensor]:
    """Per prompt [layers, neurons] float32: h * dF/dh summed over its edited positions."""
    found = []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        product = (leaf.detach().float() * gradient.float()).reshape(*edited.shape, -1)
        keep = edited.to(product.device)[..., None]
        summed = torch.where(keep, product, 0.0).sum(1)  # [rows, neurons]
        found.append([own.sum(0).to(home) for own in _own_rows(batch, summed)])
    return [torch.stack(own) for own in zip(*found, strict=True)]
