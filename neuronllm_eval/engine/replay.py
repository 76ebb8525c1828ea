"""The replay engine: full forward passes with hooks. Slow, general, and the oracle of the tests.

1. A prompt becomes the token sequences that score its options (`OptionSequences`).
2. The sequences are repeated once per edit and right-padded into one batch.
3. Hooks edit the neurons of each row: at the scored positions, or at all (`positions`).

At alpha = 1 no layer is edited. Where that is the only node, one pass serves all layers and several
prompts (`_integrate_unedited`): hooks hold every layer's neurons h_l within the graph, so that
gradients of a layer pass through later ones; a prompt's target depends on its own rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.divergence import DivergenceFromFirst
from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    by_layer,
    path_integrals,
    target_gradients,
)
from neuronllm_eval.engine.option_logits import OptionSequences
from neuronllm_eval.models.ffn_layers import FFNLayers, input_device
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import ALL, SCORED, Prompt

SEQUENCES_PER_PASS = 16
TOKENS_PER_PASS = 4096  # with gradients, memory grows with the tokens of a pass


class ReplayEngine(Engine):
    """One full forward pass per edit; any causal LM, options of any length, any positions.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        positions: which positions are edited, one of `prompts.POSITIONS`.
        rows_per_pass: most sequences in one pass; bounds the memory.
    """

    name = "replay"

    def __init__(
        self,
        model: nn.Module,
        layers: FFNLayers,
        *,
        positions: str = SCORED,
        rows_per_pass: int = SEQUENCES_PER_PASS,
    ) -> None:
        self.model = model
        self.layers = layers
        self.positions = positions
        self.rows_per_pass = rows_per_pass

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        results = []
        for prompt in prompts:
            sequences = OptionSequences.build(prompt, input_device(self.model), self.positions)
            # At the scored positions alone, these tokens come before all that is edited.
            n_shared = prompt.n_shared if self.positions == ALL else 0
            divergence, chunks = DivergenceFromFirst(), []
            for chunk in scales.split(self._edits_per_pass(sequences)):

                def edit(
                    layer: int,
                    neurons: Tensor,
                    chunk: Tensor = chunk,
                    sequences: OptionSequences = sequences,
                ) -> Tensor:
                    grid = neurons.reshape(len(chunk), *sequences.edited.shape, -1)
                    factor = chunk[:, layer].to(grid)[:, None, None]
                    keep = sequences.edited.to(grid.device)[..., None]
                    return torch.where(keep, grid * factor, grid).reshape(neurons.shape)

                with edit_neurons(self.layers.modules, edit):
                    logits = self._logits(sequences, len(chunk))
                scores = sequences.option_scores(logits, n_shared)
                chunks.append((*scores, sequences.divergence(logits, divergence)))
            results.append(OptionScores.joined(chunks))
        return results

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        """See `Engine.integrate_all`."""
        device = input_device(self.model)
        nodes, integrands = by_layer(self.layers.n_layers, nodes, integrands)
        sequences = [OptionSequences.build(prompt, device, self.positions) for prompt in prompts]
        with frozen_parameters(self.model):
            if not bool((nodes == 1).all()):
                return [self._integrate_nodes(one, nodes, integrands) for one in sequences]
            results = []
            for batch in self._batches(sequences):
                results += self._integrate_unedited(batch, integrands)
            return results

    # Any nodes: each layer by itself --------------------------------------------------------------

    def _integrate_nodes(
        self, sequences: OptionSequences, nodes: Tensor, integrands: Sequence[Integrand]
    ) -> tuple[PathIntegral, ...]:
        unedited: dict[int, Tensor] = {}

        def record(layer: int, neurons: Tensor) -> Tensor:
            unedited[layer] = neurons.detach().reshape(*sequences.edited.shape, -1)
            return neurons

        with torch.no_grad(), edit_neurons(self.layers.modules, record):
            logits = self._logits(sequences, 1)
        loglikelihoods = sequences.option_scores(logits)[0][0]
        shared = _first(sequences.shared(logits))
        home = loglikelihoods.device
        n_layers, width = self.layers.shape
        attribution = torch.zeros(len(integrands), n_layers, width, device=home)
        node_targets = torch.zeros(len(integrands), *nodes.shape, device=home)
        node_slopes = torch.zeros_like(node_targets)
        for layer, of_layer in enumerate(nodes):
            # Those at alpha = 1 are one, whose weight is that of all.
            own = of_layer[: int((of_layer < 1).sum()) + 1]
            for some in torch.arange(len(own)).split(self._edits_per_pass(sequences)):
                for index, product, values in self._products_at(
                    sequences, layer, unedited[layer], own[some], integrands
                ):
                    integrand = integrands[index]
                    weights = _joined(integrand.weights[layer], len(own))[some].to(product.device)
                    slopes = integrand.slopes(values).to(product.device)
                    weights = weights * slopes
                    node_slopes[index, layer, some] = (product.sum(1) * slopes).to(home)
                    attribution[index, layer] += (product * weights[:, None]).sum(0).to(home)
                    node_targets[index, layer, some] = integrand.values(values).to(home)
            for values in (node_targets, node_slopes):
                values[:, layer, len(own) :] = values[:, layer, len(own) - 1, None]
        activations = [sequences.activations(unedited[layer]).to(home) for layer in range(n_layers)]
        return path_integrals(
            sequences.prompt,
            integrands,
            attribution,
            node_targets,
            node_slopes,
            loglikelihoods,
            torch.stack(activations),
            shared,
        )

    def _products_at(
        self,
        sequences: OptionSequences,
        layer: int,
        unedited: Tensor,
        nodes: Tensor,
        integrands: Sequence[Integrand],
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each integrand h * dT/dh(alpha h) summed over positions [nodes, neurons], T [nodes].

        T is what the integrand differentiates.
        """
        alphas = nodes.to(unedited.device)[:, None, None, None]
        # [nodes, sequences, positions, neurons]; the nodes keep their digits in 16 bits too.
        leaf = (alphas * unedited.float()).to(unedited.dtype).requires_grad_(True)
        keep = sequences.edited.to(unedited.device)[..., None]

        def edit(_: int, neurons: Tensor) -> Tensor:
            grid = neurons.reshape(leaf.shape)
            return torch.where(keep, leaf, grid).reshape(neurons.shape)

        with torch.enable_grad(), edit_neurons(self.layers.modules, edit, [layer]):
            logits = self._logits(sequences, len(nodes))
            scores, shared = sequences.option_scores(logits)[0], sequences.shared(logits)
            for indices, values, (gradient,) in target_gradients(
                integrands, [scores], [sequences.prompt], [leaf], [shared]
            ):
                product = torch.where(keep, unedited.float() * gradient.float(), 0.0).sum((1, 2))
                for index in indices:
                    yield index, product, values[0]

    # Alpha = 1 alone: all layers in one pass ------------------------------------------------------

    def _integrate_unedited(
        self, batch: Sequence[OptionSequences], integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        tokens = _padded([sequences.tokens for sequences in batch])
        edited = _padded([sequences.edited for sequences in batch])
        n_rows = [len(sequences) for sequences in batch]
        neurons_of: dict[int, Tensor] = {}

        def record(layer: int, neurons: Tensor) -> Tensor:
            # Below the first layer nothing needs a gradient; later layers depend on earlier ones.
            leaf = neurons if neurons.requires_grad else neurons.detach().requires_grad_(True)
            neurons_of[layer] = leaf
            return leaf

        with torch.enable_grad(), edit_neurons(self.layers.modules, record):
            logits = self.model(input_ids=tokens, use_cache=False).logits
            home = logits.device
            of_prompts = list(zip(batch, logits.split(n_rows), strict=True))
            scores = [one.option_scores(rows[None])[0][0] for one, rows in of_prompts]
            shared = [_first(one.shared(rows[None])) for one, rows in of_prompts]
            prompts = [sequences.prompt for sequences in batch]
            leaves = [neurons_of[layer] for layer in range(self.layers.n_layers)]
            shape = len(integrands), len(batch)
            attribution = torch.empty(*shape, *self.layers.shape, device=home)
            node_targets = torch.empty(*shape, device=home)
            node_slopes = torch.empty(*shape, self.layers.n_layers, device=home)
            for indices, values, gradients in target_gradients(
                integrands, scores, prompts, leaves, shared
            ):
                products = self._summed_products(leaves, gradients, edited, n_rows, home)
                for index in indices:
                    integrand = integrands[index]
                    weights = integrand.weights.sum(1).to(home)  # [layers]
                    slopes = integrand.slopes(values)[:, None]
                    attribution[index] = (slopes * weights)[:, :, None] * products
                    node_slopes[index] = slopes * products.sum(2)
                    node_targets[index] = integrand.values(values)
        activations = [
            [
                sequences.activations(grid).to(home)
                for sequences, grid in zip(batch, grids.split(n_rows), strict=True)
            ]
            for grids in (leaf.detach().reshape(*edited.shape, -1) for leaf in leaves)
        ]
        n_nodes = integrands[0].weights.shape[1]
        return [
            path_integrals(
                prompt,
                integrands,
                attribution[:, row],
                node_targets[:, row, None, None].expand(-1, len(leaves), n_nodes),
                node_slopes[:, row, :, None].expand(-1, -1, n_nodes),
                scores[row].detach(),
                torch.stack([of_layer[row] for of_layer in activations]),
                _detached(shared[row]),
            )
            for row, prompt in enumerate(prompts)
        ]

    def _summed_products(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        edited: Tensor,
        n_rows: list[int],
        home: torch.device,
    ) -> Tensor:
        """[prompts, layers, neurons] float32: h * dF/dh summed over each prompt's edited positions.

        Args:
            leaves: per layer the neurons of all rows.
            gradients: of these.
            edited: [rows, positions] bool; no padding.
            n_rows: of each prompt.
            home: where the result is.
        """
        products = torch.empty(len(n_rows), *self.layers.shape, device=home)
        for layer, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
            product = (leaf.detach().float() * gradient.float()).reshape(*edited.shape, -1)
            keep = edited.to(product.device)[..., None]
            summed = torch.where(keep, product, 0.0).sum(1)  # [rows, neurons]
            for prompt, rows in enumerate(summed.split(n_rows)):
                products[prompt, layer] = rows.sum(0).to(home)
        return products

    # Passes ---------------------------------------------------------------------------------------

    def _logits(self, sequences: OptionSequences, n_edits: int) -> Tensor:
        """[edits, sequences, positions, vocabulary]."""
        rows = sequences.tokens.repeat(n_edits, 1)
        logits = self.model(input_ids=rows, use_cache=False).logits
        return logits.reshape(n_edits, *sequences.tokens.shape, -1)

    def _edits_per_pass(self, sequences: OptionSequences) -> int:
        n_sequences, n_tokens = sequences.tokens.shape
        return max(1, min(self.rows_per_pass, TOKENS_PER_PASS // n_tokens) // n_sequences)

    def _batches(self, prompts: Sequence[OptionSequences]) -> Iterator[list[OptionSequences]]:
        """Prompts in order, as many as go into one pass; at least one."""
        batch: list[OptionSequences] = []
        for sequences in prompts:
            n_rows = len(sequences) + sum(map(len, batch))
            longest = max(one.tokens.shape[1] for one in (*batch, sequences))
            if batch and (n_rows > self.rows_per_pass or n_rows * longest > TOKENS_PER_PASS):
                yield batch
                batch = []
            batch.append(sequences)
        if batch:
            yield batch


def _joined(weights: Tensor, n_nodes: int) -> Tensor:
    """[nodes] the weights, the last of which has those of all further ones."""
    return torch.cat((weights[: n_nodes - 1], weights[n_nodes - 1 :].sum(0, keepdim=True)))


def _first(shared: Tensor | float) -> Tensor | float:
    """Of the only edit."""
    return shared[0] if isinstance(shared, Tensor) else shared


def _detached(shared: Tensor | float) -> Tensor | float:
    return shared.detach() if isinstance(shared, Tensor) else shared


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """[rows, positions] of all prompts, from those of each."""
    longest = max(tensor.shape[1] for tensor in tensors)
    pad = nn.functional.pad
    return torch.cat([pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])
