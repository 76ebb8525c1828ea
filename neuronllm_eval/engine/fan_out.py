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

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.attention_masks import MaskStyle, attention_masks
from neuronllm_eval.engine.interface import (
    SHIFT_INVARIANT,
    Engine,
    Integrand,
    OptionScores,
    PathIntegrals,
    Target,
)
from neuronllm_eval.engine.option_logits import (
    option_head,
    restrictable_head,
    score_options,
    split_logits,
)
from neuronllm_eval.engine.scaled_copies import (
    PathRows,
    all_plain,
    copies_per_layer,
    decoder_layers_of,
    join_at_layer,
    join_at_output,
)
from neuronllm_eval.engine.shared_prefix import Prefiller, Prefix
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
        prefix = self._prefill(prompts)
        batch = len(prompts)
        options = [_option_tokens(prompt) for prompt in prompts]
        scores: list[list[tuple[Tensor, Tensor]]] = []  # of each chunk, per prompt
        for start, stop in self._chunks(len(scales), batch, self.rows_per_prompt):
            chunk = scales[start:stop]

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                rows = neurons.reshape(batch, len(chunk), -1)
                return (rows * chunk[:, layer].to(rows)).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self._logits(prefix, len(chunk))
            scores.append([score_options(logits[row], ids) for row, ids in enumerate(options)])
        results = []
        for of_prompt in zip(*scores, strict=True):
            loglikelihoods, greedy = zip(*of_prompt, strict=True)
            results.append(OptionScores(torch.cat(loglikelihoods).cpu(), torch.cat(greedy).cpu()))
        return results

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """See `Engine.integrate_all`."""
        n_copies = copies_per_layer(nodes)
        layers_per_pass = (self.rows_per_prompt - 1) // n_copies  # one row stays unedited
        if layers_per_pass < 1:
            raise UsageError(
                f"{len(nodes)} nodes in passes of {self.rows_per_prompt} copies a prompt",
                expected="fewer nodes than copies",
                remedy="use fewer --n_steps, or build the engine for that many nodes",
            )
        batch, n_layers = len(prompts), self.layers.n_layers
        with frozen_parameters(self.model):
            prefix = self._prefill(prompts)
            passes = [
                self._integrate_layers(
                    prefix, prompts, PathRows(batch, range(start, stop), nodes), integrands
                )
                for start, stop in self._chunks(n_layers, batch * n_copies, layers_per_pass)
            ]
        attribution = torch.cat([one.attribution for one in passes], dim=2)
        node_targets = torch.cat([one.node_targets for one in passes], dim=2)
        activations = torch.cat([one.activations for one in passes], dim=1)
        loglikelihoods = passes[-1].loglikelihoods
        return [
            PathIntegrals.of_prompt(
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
        rows: PathRows,
        integrands: Sequence[Integrand],
    ) -> _LayerIntegrals:
        """The integrals of some layers, from one pass."""
        sharing: dict[Target, list[int]] = {}  # integrands that share a backward pass
        for index, integrand in enumerate(integrands):
            sharing.setdefault(integrand.differentiated, []).append(index)
        join = join_at_output if self.savings is Savings.LATE else join_at_layer
        with (
            torch.enable_grad(),
            join(self.layers.modules, self.decoder_layers, rows) as layer_copies,
        ):
            restrict = SHIFT_INVARIANT.issuperset(sharing)
            scores, unedited = self._option_logits(prefix, prompts, rows.n_rows, restrict)
            home = scores[0].device
            copies = [layer_copies[layer] for layer in rows.layers]
            leaves = [leaf for of_layer in copies for leaf in of_layer.leaves]
            shape = len(integrands), rows.batch, len(copies)
            attribution = torch.empty(*shape, self.layers.width, device=home)
            node_targets = torch.empty(*shape, len(rows.nodes), device=home)
            n_left = len(sharing)
            for target, indices in sharing.items():
                n_left -= 1
                values = torch.stack(
                    [target(scores[row], prompt.gold) for row, prompt in enumerate(prompts)]
                )  # [batch, rows]
                gradients = iter(torch.autograd.grad(values.sum(), leaves, retain_graph=n_left > 0))
                at_nodes = _at_nodes(values.detach(), rows)
                shared = [integrands[index] for index in indices]
                node_targets[indices] = torch.stack([one.values(at_nodes) for one in shared])
                weights = torch.stack(
                    [one.weights.to(home) * one.slopes(at_nodes) for one in shared]
                )  # [integrands, batch, layers, nodes]
                for number, of_layer in enumerate(copies):
                    of_leaves = [next(gradients) for _ in of_layer.leaves]
                    attribution[indices, :, number] = of_layer.attribution(
                        of_leaves, weights[:, :, number]
                    ).to(home)
        activations = torch.stack([one.neurons.float().to(home) for one in copies], dim=1)
        return _LayerIntegrals(attribution, node_targets, activations, unedited)

    def _option_logits(
        self, prefix: Prefix, prompts: Sequence[Prompt], n_rows: int, restrict: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the target needs of every row, and the unedited row's log-likelihoods.

        Returns:
            per prompt [rows, options] log-likelihoods, or logits if the head is to be restricted
            to the options; and [options] log-likelihoods in log-nats.
        """
        options = [_option_tokens(prompt) for prompt in prompts]
        tokens = sorted({token for ids in options for token in ids})
        head = self.head if restrict else None
        with nullcontext() if head is None else option_head(head, tokens):
            logits = self._logits(prefix, n_rows).float()
        if head is None:
            return [score_options(logits[row], ids)[0] for row, ids in enumerate(options)], [
                score_options(logits[row, 0].detach(), ids)[0] for row, ids in enumerate(options)
            ]
        of_tokens, full = split_logits(logits, n_rows, head.weight.shape[0])
        column = {token: index for index, token in enumerate(tokens)}
        return (
            [
                of_tokens[row][:, [column[token] for token in ids]]
                for row, ids in enumerate(options)
            ],
            [score_options(full[row].detach(), ids)[0] for row, ids in enumerate(options)],
        )

    def _prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        for prompt in prompts:
            if not prompt.one_token_options:
                raise ModelError(
                    f"doc {prompt.doc_id} has options of several tokens",
                    expected="options that are one token each",
                    remedy="use the replay engine (--engine replay)",
                )
        return self.prefiller.prefill([prompt.context for prompt in prompts])

    def _logits(self, prefix: Prefix, n_rows: int) -> Tensor:
        """Logits [batch, rows, vocabulary] of `n_rows` copies of each last token."""
        positions = prefix.lengths[:, None].expand(-1, n_rows)
        itself = torch.eye(n_rows, dtype=torch.bool, device=positions.device)
        masks: Any = attention_masks(
            self.model, self.mask_style, prefix.positions, positions, itself
        )
        return self.model(
            input_ids=prefix.last_tokens[:, None].expand(-1, n_rows),
            position_ids=positions,
            attention_mask=masks,
            past_key_values=prefix.cache(),
            use_cache=True,
        ).logits

    def _chunks(
        self, n_items: int, rows_per_item: int, most_items: int
    ) -> Iterator[tuple[int, int]]:
        size = max(1, min(self.rows_per_pass // rows_per_item, most_items))
        for start in range(0, n_items, size):
            yield start, min(start + size, n_items)


class _LayerIntegrals(NamedTuple):
    attribution: Tensor  # [integrands, batch, layers, neurons]
    node_targets: Tensor  # [integrands, batch, layers, nodes]
    activations: Tensor  # [batch, layers, neurons]
    loglikelihoods: list[Tensor]  # per prompt [options], unedited


def _option_tokens(prompt: Prompt) -> list[int]:
    return [option[0] for option in prompt.options]


def _at_nodes(values: Tensor, rows: PathRows) -> Tensor:
    """[batch, layers, nodes] F at every node, from its values [batch, rows] of a pass."""
    of_copies = values[:, 1:].reshape(len(values), len(rows.layers), rows.n_copies)
    if rows.n_copies == len(rows.nodes):
        return of_copies
    ends = values[:, :1, None].expand(-1, len(rows.layers), 1)  # row 0 is every layer's last node
    return torch.cat((of_copies, ends), dim=2)
