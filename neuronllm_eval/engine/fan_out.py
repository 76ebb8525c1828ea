"""The fan-out engine: every edit of a prompt as one more copy of its last tokens in one sequence.

Only scored positions are edited and only their logits are read, so the keys and values of all
earlier tokens never change. Hence, for a batch of prompts:

1. Prefill the contexts without their last tokens, once, without gradients and without LM head.
2. Behind each prefix, feed copies of the tree of rows that score the prompt's options
   (`option_tree`), under a mask that lets a copy see the prefix and itself and no other copy.
   Where options are one token each, a tree is one row: the context's last token.
3. Hooks edit the copies: for attribution, copy (l, k) has layer l's neurons scaled by alpha_k in
   all its rows; for scoring, copy c has condition c's factors on every layer.
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
from neuronllm_eval.engine.option_head import OptionHead, restrictable_head
from neuronllm_eval.engine.option_tree import OptionTree, OptionTrees
from neuronllm_eval.engine.scaled_copies import (
    ScaledCopies,
    all_plain,
    copies_per_layer,
    decoder_layers_of,
)
from neuronllm_eval.engine.shared_prefix import MaskStyle, Prefiller, Prefix
from neuronllm_eval.errors import UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers, text_config
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import SCORED, Prompt

# Rows of one prompt, and of all prompts, in one pass. Trees of several rows take more rows, since
# the unedited tree is part of every pass; but copies are masked from each other at the cost of
# attention over all of them.
ROWS_PER_PROMPT, MOST_ROWS_PER_PROMPT, TREES_PER_PROMPT = 128, 768, 32
ROWS_PER_PASS = 2048
# Logits in one pass, in numbers: a large vocabulary leaves room for fewer rows.
LOGITS_PER_PASS = 2**26
# Prompts go through a pass together only as long as so many layers' copies do too.
_LAYERS_AT_ONCE = 4


def rows_per_prompt(prompts: Sequence[Prompt], n_nodes: int = 0) -> int:
    """How many rows of one of these prompts a pass has at most.

    There is room for the nodes of one layer, alpha = 0 and the unedited tree.
    """
    largest = max(len(OptionTree.of(prompt)) for prompt in prompts)
    usual = min(TREES_PER_PROMPT * largest, MOST_ROWS_PER_PROMPT)
    return max(ROWS_PER_PROMPT, usual, (n_nodes + 2) * largest)


class Savings(Enum):
    """What is saved, the most first. Scores have no copies that join: the first two are alike."""

    LATE = "copies join behind the layer that edits them"
    STAIRCASE = "copies join at the layer that edits them"
    NONE = "every token, row and logit is computed"


class FanOutEngine(Engine):
    """Many edits of a prompt in one pass.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        mask_style: how the model's attention takes its mask; see `attention_masks`.
        contexts: of all prompts of the run: what they share is computed once. Empty to share
            within batches only.
        savings: what to save. `LATE` becomes `STAIRCASE` where the model's modules do not allow for
            it. Whether it is exact in this model is for `build.build_engine` to find out.
        rows_per_pass: most rows (over the whole batch) in one pass; bounds the memory. A pass has
            at least one copy, and in attribution one layer's copies.
        rows_per_prompt: most rows of one prompt in one pass (`rows_per_prompt`).
            `build.build_engine` checks the model with passes of this size, and no pass is larger.
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
        self.vocabulary = int(text_config(model).vocab_size)
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
        prefix = self.prefiller.prefill([prompt.context for prompt in prompts])
        results: dict[int, OptionScores] = {}
        for group in self._groups(prompts, min(len(scales), _LAYERS_AT_ONCE), True):
            of_group = prefix.of_prompts(group)
            scores = self._score([prompts[index] for index in group], of_group, scales)
            results.update(zip(group, scores, strict=True))
        return [results[index] for index in range(len(prompts))]

    def _score(
        self, prompts: Sequence[Prompt], prefix: Prefix, scales: Tensor
    ) -> list[OptionScores]:
        """The scores of prompts that go through the model together."""
        trees = OptionTrees(prompts)
        batch = len(prompts)
        n_copies = max(1, self._rows(batch, True) // trees.n_rows)
        chunks: list[tuple[list[Tensor], list[Tensor]]] = []
        for chunk in scales.split(n_copies):

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                copies = neurons.reshape(batch, len(chunk), trees.n_rows, -1)
                return (copies * chunk[:, layer, None].to(copies)).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                rows = trees.copies(prefix, len(chunk))
                logits = self.model(**self.prefiller.inputs(prefix, rows)).logits
            chunks.append((trees.loglikelihoods(logits), trees.greedy(logits)))
        return [
            OptionScores(
                torch.cat([loglikelihoods[index] for loglikelihoods, _ in chunks]).cpu(),
                torch.cat([greedy[index] for _, greedy in chunks]).cpu(),
            )
            for index in range(batch)
        ]

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        """See `Engine.integrate_all`."""
        n_copies = copies_per_layer(nodes)
        largest = max(len(OptionTree.of(prompt)) for prompt in prompts)
        if (n_copies + 1) * largest > self.rows_per_prompt:
            raise UsageError(
                f"{len(nodes)} nodes and trees of {largest} rows in passes of "
                f"{self.rows_per_prompt} rows a prompt",
                expected="fewer nodes than copies",
                remedy="use fewer --n_steps, or build the engine for that many nodes",
            )
        whole_vocabulary = largest > 1 or not _only_compare(integrands)
        results: dict[int, tuple[PathIntegral, ...]] = {}
        with frozen_parameters(self.model):
            prefix = self.prefiller.prefill([prompt.context for prompt in prompts])
            for group in self._groups(prompts, n_copies * _LAYERS_AT_ONCE, whole_vocabulary):
                integrals = self._integrate(
                    [prompts[index] for index in group],
                    prefix.of_prompts(group),
                    nodes,
                    integrands,
                )
                results.update(zip(group, integrals, strict=True))
        return [results[index] for index in range(len(prompts))]

    def _integrate(
        self,
        prompts: Sequence[Prompt],
        prefix: Prefix,
        nodes: Tensor,
        integrands: Sequence[Integrand],
    ) -> list[tuple[PathIntegral, ...]]:
        """The integrals of prompts that go through the model together."""
        trees = OptionTrees(prompts)
        whole_vocabulary = trees.n_rows > 1 or not _only_compare(integrands)
        n_layers, n_copies = self.layers.n_layers, copies_per_layer(nodes)
        size = n_layers
        if n_copies:
            n_trees = self._rows(len(prompts), whole_vocabulary) // trees.n_rows
            size = max(1, min((n_trees - 1) // n_copies, n_layers))
        passes = [
            self._integrate_layers(
                prefix, prompts, trees, range(n_layers)[start : start + size], nodes, integrands
            )
            for start in range(0, n_layers, size)
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
        trees: OptionTrees,
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
            tree_rows=trees.n_rows,
            late=self.savings is Savings.LATE,
        )
        restricts = trees.n_rows == 1 and _only_compare(integrands)
        head = OptionHead(self.head if restricts else None, trees, copies.n_trees)
        with torch.enable_grad(), copies.joining():
            with head.restricted():
                rows = self.prefiller.inputs(prefix, trees.copies(prefix, copies.n_trees))
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
        activations = [of_layer.neurons[:, 0].float().to(home) for of_layer in of_layers]
        return _LayerIntegrals(attribution, node_targets, torch.stack(activations, 1), unedited)

    # How much goes through the model together ----------------------------------------------------

    def _groups(
        self, prompts: Sequence[Prompt], n_copies: int, whole_vocabulary: bool
    ) -> list[list[int]]:
        """Indices of prompts that go through a pass together, those of like trees.

        Args:
            prompts: the batch.
            n_copies: copies of each prompt that should fit into a pass.
            whole_vocabulary: whether logits of all tokens are read.
        """
        sizes = [len(OptionTree.of(prompt)) for prompt in prompts]
        groups: list[list[int]] = []
        for index in sorted(range(len(prompts)), key=sizes.__getitem__):
            size = sizes[index]
            if groups and size <= 2 * sizes[groups[-1][0]]:
                n_rows = self._rows(len(groups[-1]) + 1, whole_vocabulary)
                if size == 1 or n_rows >= (n_copies + 1) * size:
                    groups[-1].append(index)
                    continue
            groups.append([index])
        return groups

    def _rows(self, batch: int, whole_vocabulary: bool) -> int:
        """Rows of one prompt in a pass over a batch."""
        most = self.rows_per_pass
        if whole_vocabulary:
            most = min(most, LOGITS_PER_PASS // self.vocabulary)
        return min(most // batch, self.rows_per_prompt)


def _only_compare(integrands: Sequence[Integrand]) -> bool:
    """Whether all targets only compare options with each other."""
    return all(integrand.differentiated in SHIFT_INVARIANT for integrand in integrands)


class _LayerIntegrals(NamedTuple):
    attribution: Tensor  # [integrands, batch, layers, neurons]
    node_targets: Tensor  # [integrands, batch, layers, nodes]
    activations: Tensor  # [batch, layers, neurons]
    loglikelihoods: list[Tensor]  # per prompt [options], unedited
