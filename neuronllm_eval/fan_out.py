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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from neuronllm_eval.architectures import FFNLayers
from neuronllm_eval.attention_masks import MaskStyle, fan_out_masks
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.scoring import OptionScores, PathIntegral, Target, right_pad, score_options

ROWS_PER_PROMPT = 128


@dataclass(frozen=True)
class _Prefix:
    """Keys and values of a batch of prompts without their last tokens.

    Attributes:
        keys_values: per layer ([batch, heads, positions, dim], the same); empty without a prefix.
        lengths: [batch] true prefix lengths; columns beyond them are padding.
        last_tokens: [batch] the token at the scored position.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor
    last_tokens: Tensor

    @property
    def n_columns(self) -> int:
        return self.keys_values[0][0].shape[-2] if self.keys_values else 0

    def cache(self) -> DynamicCache:
        """A fresh cache over the same tensors: a fan-out pass extends it, never the prefix."""
        return DynamicCache(self.keys_values) if self.keys_values else DynamicCache()


class FanOutEngine:
    """Many edits of a prompt in one pass; one-token options only.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        mask_style: how the model's attention takes its mask; see `attention_masks`.
        rows_per_pass: most copies (over the whole batch) in one pass; bounds the memory.
        rows_per_prompt: most copies of one prompt in one pass. `engine.build_engine` checks the
            model with passes of this size, and no pass is larger.
    """

    name = "fan_out"

    def __init__(
        self,
        model: nn.Module,
        layers: FFNLayers,
        *,
        mask_style: MaskStyle = MaskStyle.SINGLE,
        rows_per_pass: int = 2048,
        rows_per_prompt: int = ROWS_PER_PROMPT,
    ) -> None:
        self.model = model
        self.layers = layers
        self.mask_style = mask_style
        self.rows_per_pass = rows_per_pass
        self.rows_per_prompt = rows_per_prompt

    @cached_property
    def _input_device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

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

    def integrate(
        self, prompts: Sequence[Prompt], nodes: Tensor, weights: Tensor, target: Target
    ) -> list[PathIntegral]:
        """See `Engine.integrate`."""
        layers_per_pass = (self.rows_per_prompt - 1) // len(nodes)  # one row stays unedited
        if layers_per_pass < 1:
            raise UsageError(
                f"{len(nodes)} nodes in passes of {self.rows_per_prompt} copies a prompt",
                expected="fewer nodes than copies",
                remedy="use fewer --n_steps, or build the engine for that many nodes",
            )
        with frozen_parameters(self.model):
            prefix = self._prefill(prompts)
            attributions, node_targets = [], []
            for first, last in self._chunks(
                self.layers.n_layers, len(prompts) * len(nodes), layers_per_pass
            ):
                part = self._integrate_layers(
                    prefix, prompts, range(first, last), nodes, weights, target
                )
                attributions.append(part.attribution)
                node_targets.append(part.node_targets)
        attribution = torch.cat(attributions, dim=1)  # [batch, layers, neurons]
        targets = torch.cat(node_targets, dim=1)  # [batch, layers, nodes]
        return [
            PathIntegral(
                attribution[row],
                targets[row],
                float(target(part.loglikelihoods[row], prompt.gold)),
                part.loglikelihoods[row],
            )
            for row, prompt in enumerate(prompts)
        ]

    def _integrate_layers(
        self,
        prefix: _Prefix,
        prompts: Sequence[Prompt],
        layers: range,
        nodes: Tensor,
        weights: Tensor,
        target: Target,
    ) -> _LayerIntegrals:
        """Copies (l, k) for the given layers, and one unedited copy in the last row."""
        batch, n_nodes = len(prompts), len(nodes)
        n_rows = len(layers) * n_nodes + 1
        bases: dict[int, Tensor] = {}
        leaves: dict[int, Tensor] = {}

        def edit(layer: int, neurons: Tensor) -> Tensor:
            rows = neurons.reshape(batch, n_rows, -1)
            start = (layer - layers.start) * n_nodes
            base = rows[:, -1:].detach()  # the unedited copy [batch, 1, neurons]
            scaled = nodes.to(base.device)[None, :, None] * base.float()  # nodes keep their digits
            leaf = scaled.to(base.dtype).requires_grad_(True)
            bases[layer], leaves[layer] = base, leaf
            edited = torch.cat((rows[:, :start], leaf, rows[:, start + n_nodes :]), dim=1)
            return edited.reshape(neurons.shape)

        with torch.enable_grad(), edit_neurons(self.layers.modules, edit, layers):
            logits = self._fan_out(prefix, n_rows)
            loglikelihoods = [
                score_options(logits[row], [option[0] for option in prompt.options])[0]
                for row, prompt in enumerate(prompts)
            ]
            values = torch.stack(
                [target(loglikelihoods[row], prompt.gold) for row, prompt in enumerate(prompts)]
            )  # [batch, rows]
            gradients = torch.autograd.grad(values.sum(), [leaves[layer] for layer in layers])
        home = values.device
        weighted = [
            (
                bases[layer][:, 0].float()
                * torch.einsum("k,bkn->bn", weights.to(gradient.device), gradient.float())
            ).to(home)
            for layer, gradient in zip(layers, gradients, strict=True)
        ]
        return _LayerIntegrals(
            torch.stack(weighted, dim=1),
            values[:, :-1].detach().reshape(batch, len(layers), n_nodes),
            [rows[-1].detach() for rows in loglikelihoods],
        )

    @torch.no_grad()
    def _prefill(self, prompts: Sequence[Prompt]) -> _Prefix:
        for prompt in prompts:
            if not prompt.one_token_options:
                raise ModelError(
                    f"doc {prompt.doc_id} has options of several tokens",
                    expected="options that are one token each",
                    remedy="use the replay engine (--engine replay)",
                )
        device = self._input_device
        contexts = [prompt.context for prompt in prompts]
        lengths = torch.tensor([len(context) - 1 for context in contexts], device=device)
        last_tokens = torch.tensor([context[-1] for context in contexts], device=device)
        if int(lengths.max()) == 0:
            return _Prefix((), lengths, last_tokens)
        tokens = right_pad([context[:-1] for context in contexts], device)
        # A plain DynamicCache, without a config: sliding layers must not trim it.
        cache = DynamicCache()
        self.model.base_model(  # type: ignore[operator]
            input_ids=tokens, past_key_values=cache, use_cache=True
        )
        keys_values = tuple((layer.keys, layer.values) for layer in cache.layers)
        return _Prefix(keys_values, lengths, last_tokens)

    def _fan_out(self, prefix: _Prefix, n_rows: int) -> Tensor:
        """Logits [batch, rows, vocabulary] of `n_rows` copies of each last token."""
        masks: Any = fan_out_masks(
            self.model.config,
            self.mask_style,
            prefix.lengths,
            prefix.n_columns,
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
    attribution: Tensor  # [batch, layers, neurons]
    node_targets: Tensor  # [batch, layers, nodes]
    loglikelihoods: list[Tensor]  # per prompt [options], unedited
