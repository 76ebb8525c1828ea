"""The fan-out engine: every edit of a prompt as one more copy of its last tokens in one sequence.

Only scored positions are edited and only their logits are read, so the keys and values of all
earlier tokens never change. Hence, for a batch of prompts:

1. Prefill the contexts without their last tokens, once, without gradients and without LM head.
2. Behind each prefix, feed copies of the tree of rows that score the prompt's options
   (`option_tree`), under a mask that lets a copy see the prefix and itself and no other copy.
   Where options are one token each, a tree is one row: the context's last token.
3. Hooks edit the copies: for attribution, copy (l, k) has layer l's neurons scaled by alpha_lk in
   all its rows; for scoring, copy c has condition c's factors on every layer.
4. One backward pass of the summed targets gives the gradients of all layers and nodes.

Exact up to float rounding, at about the cost of two plain passes over the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.divergence import DivergenceFromFirst
from neuronllm_eval.engine.interface import (
    SHIFT_INVARIANT,
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    by_layer,
    path_integrals,
    target_gradients,
)
from neuronllm_eval.engine.option_head import OptionHead, restrictable_head
from neuronllm_eval.engine.option_logits import counted_shared
from neuronllm_eval.engine.option_tree import OptionTrees
from neuronllm_eval.engine.pass_size import ROWS_PER_PASS, ROWS_PER_PROMPT, PassSize
from neuronllm_eval.engine.scaled_copies import (
    ScaledCopies,
    Unedited,
    all_plain,
    copies_per_layer,
    decoder_layers_of,
)
from neuronllm_eval.engine.shared_prefix import MaskStyle, Prefiller, Prefix
from neuronllm_eval.models.ffn_layers import FFNLayers, text_config
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import SCORED, Prompt


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
            at least one copy, and in attribution all of a layer, if `rows_per_prompt` allows.
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
        self.size = PassSize(int(text_config(model).vocab_size), rows_per_pass, rows_per_prompt)
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
        for group in self.size.groups(prompts, len(scales)):
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
        n_rows = self.size.rows(batch, trees.n_rows, whole_vocabulary=True)
        n_copies = max(1, n_rows // trees.n_rows)
        divergence = DivergenceFromFirst()
        chunks: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for chunk in scales.split(n_copies):

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                copies = neurons.reshape(batch, len(chunk), trees.n_rows, -1)
                return (copies * chunk[:, layer, None].to(copies)).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                rows = trees.copies(prefix, len(chunk))
                logits = self.model(**self.prefiller.inputs(prefix, rows)).logits
            chunks.append(trees.scores(logits, divergence))
        return [OptionScores.joined([chunk[index] for chunk in chunks]) for index in range(batch)]

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        """See `Engine.integrate_all`."""
        nodes, integrands = by_layer(self.layers.n_layers, nodes, integrands)
        n_copies = sum(copies_per_layer(nodes))
        results: dict[int, tuple[PathIntegral, ...]] = {}
        with frozen_parameters(self.model):
            prefix = self.prefiller.prefill([prompt.context for prompt in prompts])
            for indices in self.size.groups(prompts, n_copies):
                chosen = [prompts[index] for index in indices]
                shared = [counted_shared(self.model, prompt) for prompt in chosen]
                group = _Group(chosen, prefix.of_prompts(indices), OptionTrees(chosen), shared)
                found = self._integrate(group, nodes, integrands)
                for row, index in enumerate(indices):
                    results[index] = path_integrals(
                        prompts[index],
                        integrands,
                        found.attribution[:, row],
                        found.node_targets[:, row],
                        found.node_slopes[:, row],
                        found.loglikelihoods[row],
                        found.activations[row],
                        shared[row],
                    )
        return [results[index] for index in range(len(prompts))]

    def _integrate(
        self, group: _Group, nodes: Tensor, integrands: Sequence[Integrand]
    ) -> _LayerIntegrals:
        """The integrals of prompts that go through the model together."""
        if group.trees.n_rows == 1:
            return self._passes(group, nodes, integrands)
        is_copy = nodes < 1
        at_one = self._pass(
            group, range(self.layers.n_layers), torch.ones_like(nodes[:, :1]),
            [
                one._replace(weights=torch.where(is_copy, 0.0, one.weights).sum(1, keepdim=True))
                for one in integrands
            ],
        )  # fmt: skip
        if not is_copy.any():
            return at_one._replace(
                node_targets=at_one.node_targets.expand(-1, -1, *nodes.shape),
                node_slopes=at_one.node_slopes.expand(-1, -1, *nodes.shape),
            )
        copies = self._passes(group, nodes, integrands, at_one)
        is_copy = is_copy.to(copies.node_targets.device)
        return at_one._replace(
            attribution=copies.attribution + at_one.attribution,
            node_targets=torch.where(is_copy, copies.node_targets, at_one.node_targets),
            node_slopes=torch.where(is_copy, copies.node_slopes, at_one.node_slopes),
        )

    def _passes(
        self,
        group: _Group,
        nodes: Tensor,
        integrands: Sequence[Integrand],
        at_one: _LayerIntegrals | None = None,
    ) -> _LayerIntegrals:
        """The integrals of all layers, from passes over as many copies as there is room for."""
        n_trees = self.size.trees(
            len(group.prompts),
            group.trees.n_rows,
            whole_vocabulary=not group.compares_logits(integrands),
        )
        counts = copies_per_layer(nodes)
        passes = [
            self._layers(group, layers, nodes, integrands, at_one and at_one.unedited)
            if at_one is None or any(counts[layers.start : layers.stop])
            else _of_layers(at_one, layers, nodes.shape[1])
            for layers in runs_of_layers(counts, n_trees)
        ]
        return passes[-1]._replace(
            attribution=torch.cat([one.attribution for one in passes], dim=2),
            node_targets=torch.cat([one.node_targets for one in passes], dim=2),
            node_slopes=torch.cat([one.node_slopes for one in passes], dim=2),
            activations=torch.cat([one.activations for one in passes], dim=1),
        )

    def _layers(
        self,
        group: _Group,
        layers: range,
        nodes: Tensor,
        integrands: Sequence[Integrand],
        unedited: dict[int, Unedited] | None,
    ) -> _LayerIntegrals:
        """The integrals of some layers, from one pass, or of one layer from several.

        Args:
            group: the prompts.
            layers: that have copies.
            nodes: [layers, nodes] of all layers, as the integrands' weights.
            integrands: of all layers.
            unedited: as in `_pass`.
        """
        rows = slice(layers.start, layers.stop)
        nodes = nodes[rows]
        integrands = [one._replace(weights=one.weights[rows]) for one in integrands]
        most = max(1, self.size.rows_per_prompt // group.trees.n_rows - 1)
        if len(layers) > 1 or copies_per_layer(nodes)[0] <= most:
            return self._pass(group, layers, nodes, integrands, unedited)
        passes = []
        # The last part has the nodes at alpha = 1, of which there may be several.
        n_copies = copies_per_layer(nodes)[0]
        stops = [*range(most, n_copies, most), nodes.shape[1]]
        for start, stop in pairwise([0, *stops]):
            part = [one._replace(weights=one.weights[:, start:stop]) for one in integrands]
            passes.append(self._pass(group, layers, nodes[:, start:stop], part, unedited))
        return passes[-1]._replace(
            attribution=torch.stack([one.attribution for one in passes]).sum(0),
            node_targets=torch.cat([one.node_targets for one in passes], dim=3),
            node_slopes=torch.cat([one.node_slopes for one in passes], dim=3),
        )

    def _pass(
        self,
        group: _Group,
        layers: range,
        nodes: Tensor,
        integrands: Sequence[Integrand],
        unedited: dict[int, Unedited] | None = None,
    ) -> _LayerIntegrals:
        """The integrals of some layers, from one pass.

        Args:
            group: the prompts.
            layers: that have copies.
            nodes: [layers, nodes] of these layers: their copies', and those at alpha = 1.
            integrands: with their weights at these nodes.
            unedited: by layer the unedited tree, if it had a pass of its own.
        """
        trees = group.trees
        copies = ScaledCopies(
            self.layers.modules,
            self.decoder_layers,
            len(group.prompts),
            layers,
            nodes,
            tree_rows=trees.n_rows,
            late=self.savings is Savings.LATE,
            unedited=unedited,
        )
        n_trees = copies.n_copies
        restricted = self.head if group.compares_logits(integrands) else None
        head = OptionHead(restricted, trees, 1 + n_trees)
        with torch.enable_grad(), copies.joining():
            with head.restricted():
                rows = (
                    trees.copies(group.prefix, 1 + n_trees)
                    if unedited is None
                    else trees.copies(group.prefix, n_trees, first_row=True)
                )
                logits = self.model(**self.prefiller.inputs(group.prefix, rows)).logits.float()
            scores, loglikelihoods = head.read(logits if unedited is None else logits[:, 1:])
            home = logits.device
            of_layers = [copies.of_layer[layer] for layer in layers]
            leaves = [leaf for of_layer in of_layers for leaf in of_layer.leaves]
            shape = len(integrands), len(group.prompts), len(layers)
            attribution = torch.empty(*shape, self.layers.width, device=home)
            node_targets = torch.empty(*shape, nodes.shape[1], device=home)
            node_slopes = torch.empty_like(node_targets)
            for indices, values, gradients in target_gradients(
                integrands, scores, group.prompts, leaves, group.shared
            ):
                at_nodes = copies.at_nodes(values)
                sharing = [integrands[index] for index in indices]
                node_targets[indices] = torch.stack([one.values(at_nodes) for one in sharing])
                factors = torch.stack([one.slopes(at_nodes) for one in sharing])
                # [integrands, batch, layers, nodes]
                weights = torch.stack([one.weights.to(home) for one in sharing])[:, None] * factors
                of_leaves = iter(gradients)
                for number, of_layer in enumerate(of_layers):
                    own = [next(of_leaves) for _ in of_layer.leaves]
                    attribution[indices, :, number] = of_layer.attribution(
                        own, weights[:, :, number]
                    ).to(home)
                    slopes = of_layer.slopes(own, nodes.shape[1]).to(home)
                    node_slopes[indices, :, number] = factors[:, :, number] * slopes
        activations = [of_layer.neurons[:, 0].float().to(home) for of_layer in of_layers]
        return _LayerIntegrals(
            attribution,
            node_targets,
            node_slopes,
            torch.stack(activations, dim=1),
            loglikelihoods,
            copies.unedited,
        )


def _of_layers(at_one: _LayerIntegrals, layers: range, n_nodes: int) -> _LayerIntegrals:
    """What layers without copies add to the pass over the unedited tree: nothing."""
    rows = slice(layers.start, layers.stop)
    return at_one._replace(
        attribution=torch.zeros_like(at_one.attribution[:, :, rows]),
        node_targets=at_one.node_targets[:, :, rows].expand(-1, -1, -1, n_nodes),
        node_slopes=at_one.node_slopes[:, :, rows].expand(-1, -1, -1, n_nodes),
        activations=at_one.activations[:, rows],
    )


def runs_of_layers(n_copies: Sequence[int], most: int) -> Iterator[range]:
    """Layers in order, as many as have no more than `most` copies together; at least one."""
    start = total = 0
    for layer, of_layer in enumerate(n_copies):
        if layer > start and total + of_layer > most:
            yield range(start, layer)
            start, total = layer, 0
        total += of_layer
    yield range(start, len(n_copies))


class _Group(NamedTuple):
    prompts: Sequence[Prompt]  # of a batch, those that go through the model together
    prefix: Prefix
    trees: OptionTrees
    shared: Sequence[float]  # log-likelihoods of tokens before the trees, where they count

    def compares_logits(self, integrands: Sequence[Integrand]) -> bool:
        """Whether all targets only compare logits of one row with each other."""
        return (
            self.trees.n_rows == 1
            and all(integrand.differentiated in SHIFT_INVARIANT for integrand in integrands)
            and all(prompt.compares_logits for prompt in self.prompts)
        )


class _LayerIntegrals(NamedTuple):
    attribution: Tensor  # [integrands, batch, layers, neurons]
    node_targets: Tensor  # [integrands, batch, layers, nodes]
    node_slopes: Tensor  # [integrands, batch, layers, nodes]
    activations: Tensor  # [batch, layers, neurons]
    loglikelihoods: list[Tensor]  # per prompt [options], of the first tree in the pass
    unedited: dict[int, Unedited]  # by layer
