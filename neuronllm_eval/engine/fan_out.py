"""The fan-out engine: every edit of a prompt as one more query token of the same sequence.

Only the scored position is edited and only its logits are read, so the keys and values of all
earlier tokens never change. Hence, for a batch of prompts:

1. Prefill the contexts without their last tokens, once, without gradients and without LM head.
2. Feed R copies of each last token as R query tokens, all at the same position id, under a mask
   that lets each copy see the prefix and itself and no other copy.
3. Hooks edit the copies: for attribution, copy (l, k) has layer l's neurons scaled by alpha_k;
   for scoring, copy c has condition c's factors on every layer.
4. One backward pass of the summed targets gives the gradients of all layers and nodes.

Exact up to float rounding, at about the cost of two plain passes over the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.interface import (
    SHIFT_INVARIANT,
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    path_integrals,
    target_gradients,
)
from neuronllm_eval.engine.option_logits import OptionHead, restrictable_head, score_options
from neuronllm_eval.engine.scaled_copies import (
    ScaledCopies,
    all_plain,
    copies_per_layer,
    decoder_layers_of,
)
from neuronllm_eval.engine.shared_prefix import MaskStyle, Prefiller, Prefix
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import SCORED, Prompt

ROWS_PER_PROMPT = 128
ROWS_PER_PASS = 2048


class Savings(Enum):
    """What is saved, the most first. Scores have no copies that join: the first two are alike."""

    LATE = "copies join behind the layer that edits them"
    STAIRCASE = "copies join at the layer that edits them"
    NONE = "every token, row and logit is computed"


class FanOutEngine(Engine):
    """Many edits of a prompt in one pass; one-token options only.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        mask_style: how the model's attention takes its mask; see `attention_masks`.
        contexts: of all prompts of the run: what they share is computed once. Empty to share
            within batches only.
        savings: what to save. `LATE` becomes `STAIRCASE` where the model's modules do not allow for
            it. Whether it is exact in this model is for `build.build_engine` to find out.
        rows_per_pass: most copies (over the whole batch) in one pass; bounds the memory.
        rows_per_prompt: most copies of one prompt in one pass. `build.build_engine` checks the
            model with passes of this size, and no pass is larger.
    """

    name = "fan_out"
    positions = SCORED

    def __init__(
        self,
        model: nn.Module,
        layers: FFNLayers,
        *,
        mask_style: MaskStyle = MaskStyle.SINGLE,
        contexts: Sequence[Sequence[int]] = (),
        savings: Savings = Savings.STAIRCASE,
        rows_per_pass: int = ROWS_PER_PASS,
        rows_per_prompt: int = ROWS_PER_PROMPT,
    ) -> None:
        self.model = model
        self.layers = layers
        self.mask_style = mask_style
        self.rows_per_pass = rows_per_pass
        self.rows_per_prompt = rows_per_prompt
        saves = savings is not Savings.NONE
        # The columns of the check: the longest prompt and the largest pass.
        most_columns = max(map(len, contexts)) - 1 + rows_per_prompt if contexts else None
        self.prefiller = Prefiller(
            model, mask_style, contexts, share=saves, most_columns=most_columns
        )
        self.decoder_layers = decoder_layers_of(model, layers.modules) if saves else []
        self.head = restrictable_head(model) if saves else None
        if savings is Savings.LATE and not (self.decoder_layers and all_plain(layers.modules)):
            savings = Savings.STAIRCASE
        self.savings = savings

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        batch = len(prompts)
        options = _option_tokens(prompts)
        prefix = self.prefiller.prefill([prompt.context for prompt in prompts])
        n_rows = max(1, min(self.rows_per_pass // batch, self.rows_per_prompt))
        scores: list[list[tuple[Tensor, Tensor]]] = []  # of each chunk, per prompt
        for chunk in scales.split(n_rows):

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                rows = neurons.reshape(batch, len(chunk), -1)
                return (rows * chunk[:, layer].to(rows)).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self.model(
                    **self.prefiller.inputs(prefix, prefix.copies(len(chunk)))
                ).logits
            scores.append([score_options(logits[row], ids) for row, ids in enumerate(options)])
        results = []
        for of_prompt in zip(*scores, strict=True):
            loglikelihoods, greedy = zip(*of_prompt, strict=True)
            results.append(OptionScores(torch.cat(loglikelihoods).cpu(), torch.cat(greedy).cpu()))
        return results

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        """See `Engine.integrate_all`."""
        n_copies = copies_per_layer(nodes)
        layers_per_pass = (self.rows_per_prompt - 1) // n_copies  # one row stays unedited
        if layers_per_pass < 1:
            raise UsageError(
                f"{len(nodes)} nodes in passes of {self.rows_per_prompt} copies a prompt",
                expected="fewer nodes than copies",
                remedy="use fewer --n_steps, or build the engine for that many nodes",
            )
        options = _option_tokens(prompts)
        size = max(1, min(self.rows_per_pass // (len(prompts) * n_copies), layers_per_pass))
        layers = range(self.layers.n_layers)
        with frozen_parameters(self.model):
            prefix = self.prefiller.prefill([prompt.context for prompt in prompts])
            passes = [
                self._integrate_layers(
                    prefix, prompts, options, layers[start : start + size], nodes, integrands
                )
                for start in layers[::size]
            ]
        attribution = torch.cat([one.attribution for one in passes], dim=2)
        node_targets = torch.cat([one.node_targets for one in passes], dim=2)
        activations = torch.cat([one.activations for one in passes], dim=1)
        loglikelihoods = passes[-1].loglikelihoods
        return [
            path_integrals(
                prompt.gold,
                integrands,
                attribution[:, row],
                node_targets[:, row],
                loglikelihoods[row],
                activations[row],
            )
            for row, prompt in enumerate(prompts)
        ]

    def _integrate_layers(
        self,
        prefix: Prefix,
        prompts: Sequence[Prompt],
        options: Sequence[list[int]],
        layers: range,
        nodes: Tensor,
        integrands: Sequence[Integrand],
    ) -> _LayerIntegrals:
        """The integrals of some layers, from one pass."""
        copies = ScaledCopies(
            self.layers.modules,
            self.decoder_layers,
            len(prompts),
            layers,
            nodes,
            late=self.savings is Savings.LATE,
        )
        restricts = all(integrand.differentiated in SHIFT_INVARIANT for integrand in integrands)
        head = OptionHead(self.head if restricts else None, options, copies.n_rows)
        with torch.enable_grad(), copies.joining():
            with head.restricted():
                rows = self.prefiller.inputs(prefix, prefix.copies(copies.n_rows))
                logits = self.model(**rows).logits.float()
            scores, unedited = head.read(logits)
            home = logits.device
            of_layers = [copies.of_layer[layer] for layer in layers]
            leaves = [leaf for of_layer in of_layers for leaf in of_layer.leaves]
            shape = len(integrands), len(prompts), len(layers)
            attribution = torch.empty(*shape, self.layers.width, device=home)
            node_targets = torch.empty(*shape, len(nodes), device=home)
            golds = [prompt.gold for prompt in prompts]
            for indices, values, gradients in target_gradients(integrands, scores, golds, leaves):
                at_nodes = copies.at_nodes(values)
                sharing = [integrands[index] for index in indices]
                node_targets[indices] = torch.stack([one.values(at_nodes) for one in sharing])
                weights = torch.stack(
                    [one.weights.to(home) * one.slopes(at_nodes) for one in sharing]
                )  # [integrands, batch, layers, nodes]
                of_leaves = iter(gradients)
                for number, of_layer in enumerate(of_layers):
                    attribution[indices, :, number] = of_layer.attribution(
                        [next(of_leaves) for _ in of_layer.leaves], weights[:, :, number]
                    ).to(home)
        activations = torch.stack([one.neurons.float().to(home) for one in of_layers], dim=1)
        return _LayerIntegrals(attribution, node_targets, activations, unedited)


class _LayerIntegrals(NamedTuple):
    attribution: Tensor  # [integrands, batch, layers, neurons]
    node_targets: Tensor  # [integrands, batch, layers, nodes]
    activations: Tensor  # [batch, layers, neurons]
    loglikelihoods: list[Tensor]  # per prompt [options], unedited


def _option_tokens(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Per prompt the token of each option."""
    for prompt in prompts:
        if not prompt.one_token_options:
            raise ModelError(
                f"doc {prompt.doc_id} has options of several tokens",
                expected="options that are one token each",
                remedy="use the replay engine (--engine replay)",
            )
    return [[option[0] for option in prompt.options] for prompt in prompts]
