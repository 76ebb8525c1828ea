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
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.attention_masks import MaskStyle, fan_out_masks
from neuronllm_eval.engine.interface import (
    SHIFT_INVARIANT,
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    PathIntegrals,
    Target,
    score_options,
)
from neuronllm_eval.engine.join_at_layer import decoder_layers
from neuronllm_eval.engine.join_at_output import OutputCopies, all_plain
from neuronllm_eval.engine.option_logits import option_head, restrictable_head, split_logits
from neuronllm_eval.engine.scaled_copies import NeuronCopies, PathCopies, copies_of, rows_of
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
            it. That is not to say that it is exact in this model: `engine.build_engine` finds out.
        rows_per_pass: most copies (over the whole batch) in one pass; bounds the memory.
        rows_per_prompt: most copies of one prompt in one pass. `engine.build_engine` checks the
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
        # The columns of the check: the longest prompt and the largest pass.
        most_columns = max(map(len, contexts)) - 1 + rows_per_prompt if contexts else None
        saves = savings is not Savings.NONE
        self.prefiller = Prefiller(
            model, mask_style, contexts, share=saves, most_columns=most_columns
        )
        stairs = decoder_layers(model, layers.modules) if saves else []
        if savings is Savings.LATE and not (stairs and all_plain(layers.modules)):
            savings = Savings.STAIRCASE
        self.savings = savings
        kind = OutputCopies if savings is Savings.LATE else NeuronCopies
        self.copies: PathCopies = kind(layers, stairs)
        self.head = restrictable_head(model) if saves else None
        self.rows_per_pass = rows_per_pass
        self.rows_per_prompt = rows_per_prompt

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        prefix = self._prefill(prompts)
        batch = len(prompts)
        parts = []
        for start, stop in self._chunks(len(scales), batch, self.rows_per_prompt):
            chunk = scales[start:stop]

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                rows = neurons.reshape(batch, len(chunk), -1)
                return (rows * chunk[:, layer].to(rows)).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self._fan_out(prefix, len(chunk))
            parts.append(
                [
                    score_options(logits[row], [option[0] for option in prompt.options])
                    for row, prompt in enumerate(prompts)
                ]
            )
        return [
            OptionScores(
                torch.cat([part[row][0] for part in parts]).cpu(),
                torch.cat([part[row][1] for part in parts]).cpu(),
            )
            for row in range(batch)
        ]

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """See `Engine.integrate_all`."""
        n_copies = copies_of(nodes)
        layers_per_pass = (self.rows_per_prompt - 1) // n_copies  # one row stays unedited
        if layers_per_pass < 1:
            raise UsageError(
                f"{len(nodes)} nodes in passes of {self.rows_per_prompt} copies a prompt",
                expected="fewer nodes than copies",
                remedy="use fewer --n_steps, or build the engine for that many nodes",
            )
        with frozen_parameters(self.model):
            prefix = self._prefill(prompts)
            parts = [
                self._integrate_layers(prefix, prompts, range(first, last), nodes, integrands)
                for first, last in self._chunks(
                    self.layers.n_layers, len(prompts) * n_copies, layers_per_pass
                )
            ]
        attribution = torch.cat([part.attribution for part in parts], dim=2)
        targets = torch.cat([part.node_targets for part in parts], dim=2)
        neurons = torch.cat([part.neurons for part in parts], dim=1)
        loglikelihoods = parts[-1].loglikelihoods
        return [
            PathIntegrals(
                tuple(
                    PathIntegral(
                        attribution[place, row],
                        targets[place, row],
                        float(integrand.target(loglikelihoods[row], prompt.gold)),
                        loglikelihoods[row],
                    )
                    for place, integrand in enumerate(integrands)
                ),
                neurons[row],
            )
            for row, prompt in enumerate(prompts)
        ]

    def _integrate_layers(
        self,
        prefix: Prefix,
        prompts: Sequence[Prompt],
        layers: range,
        nodes: Tensor,
        integrands: Sequence[Integrand],
    ) -> _LayerIntegrals:
        """One unedited copy in the first row, then copies (l, k) for the given layers."""
        by_target: dict[Target, list[int]] = {}
        for place, integrand in enumerate(integrands):
            by_target.setdefault(integrand.differentiated, []).append(place)
        batch = len(prompts)
        with torch.enable_grad(), self.copies.joined(layers, nodes, batch) as parts:
            restrict = SHIFT_INVARIANT.issuperset(by_target)
            found, unedited = self._option_logits(prefix, prompts, rows_of(layers, nodes), restrict)
            home = found[0].device
            sums = torch.empty(len(integrands), batch, len(layers), self.layers.width, device=home)
            targets = torch.empty(*sums.shape[:3], len(nodes), device=home)
            left = len(by_target)
            for target, places in by_target.items():
                left -= 1
                values = torch.stack(
                    [target(found[row], prompt.gold) for row, prompt in enumerate(prompts)]
                )  # [batch, rows]
                leaves = [leaf for layer in layers for leaf in parts[layer].leaves]
                gradients = iter(torch.autograd.grad(values.sum(), leaves, retain_graph=left > 0))
                at_nodes = _at_nodes(values.detach(), len(layers), nodes)
                of_target = [integrands[place] for place in places]
                targets[places] = torch.stack([each.values(at_nodes) for each in of_target])
                weights = torch.stack(
                    [each.weights.to(home) * each.slopes(at_nodes) for each in of_target]
                )  # [sums, batch, layers, nodes]
                for number, layer in enumerate(layers):
                    own = [next(gradients) for _ in parts[layer].leaves]
                    found_here = parts[layer].attribution(own, weights[:, :, number])
                    sums[places, :, number] = found_here.to(home)
            neurons = [parts[layer].neurons.float().to(home) for layer in layers]
        return _LayerIntegrals(sums, targets, torch.stack(neurons, dim=1), unedited)

    def _option_logits(
        self,
        prefix: Prefix,
        prompts: Sequence[Prompt],
        n_rows: int,
        restrict: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the target needs of every row, and the unedited row's log-likelihoods.

        Returns:
            per prompt [rows, options] log-likelihoods, or logits if the target is to be restricted
            to the options; and [options] log-likelihoods in log-nats.
        """
        options = [[option[0] for option in prompt.options] for prompt in prompts]
        tokens = sorted({token for ids in options for token in ids})
        head = self.head if restrict else None
        with nullcontext() if head is None else option_head(head, tokens):
            logits = self._fan_out(prefix, n_rows).float()
        if head is None:
            return [score_options(logits[row], ids)[0] for row, ids in enumerate(options)], [
                score_options(logits[row, 0].detach(), ids)[0] for row, ids in enumerate(options)
            ]
        some, full = split_logits(logits, n_rows, head.weight.shape[0])
        place = {token: column for column, token in enumerate(tokens)}
        return (
            [some[row][:, [place[token] for token in ids]] for row, ids in enumerate(options)],
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
        return self.prefiller.prefill(prompts)

    def _fan_out(self, prefix: Prefix, n_rows: int) -> Tensor:
        """Logits [batch, rows, vocabulary] of `n_rows` copies of each last token."""
        masks: Any = fan_out_masks(
            self.model.config,
            self.mask_style,
            prefix.positions,
            prefix.lengths,
            n_rows,
            self.model.dtype,  # type: ignore[arg-type]
        )
        output = self.model(
            input_ids=prefix.last_tokens[:, None].expand(-1, n_rows),
            position_ids=prefix.lengths[:, None].expand(-1, n_rows),
            attention_mask=masks,
            past_key_values=prefix.cache(),
            use_cache=True,
        )
        return output.logits

    def _chunks(
        self, n_items: int, rows_per_item: int, most_items: int
    ) -> Iterator[tuple[int, int]]:
        size = max(1, min(self.rows_per_pass // rows_per_item, most_items))
        for start in range(0, n_items, size):
            yield start, min(start + size, n_items)


@dataclass(frozen=True)
class _LayerIntegrals:
    attribution: Tensor  # [integrands, batch, layers, neurons]
    node_targets: Tensor  # [integrands, batch, layers, nodes]
    neurons: Tensor  # [batch, layers, neurons]
    loglikelihoods: list[Tensor]  # per prompt [options], unedited


def _at_nodes(values: Tensor, n_layers: int, nodes: Tensor) -> Tensor:
    """[batch, layers, nodes] F at every node, from its values [batch, rows] of a pass."""
    n_copies = copies_of(nodes)
    found = values[:, 1:].reshape(len(values), n_layers, n_copies)
    if n_copies == len(nodes):
        return found
    ends = values[:, :1, None].expand(-1, n_layers, 1)  # the unedited row is a node of every layer
    return torch.cat((found, ends), dim=2)
