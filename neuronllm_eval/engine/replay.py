"""The replay engine: full forward passes with hooks. Slow, general, and the oracle of the tests.

1. A prompt becomes the token sequences that score its options (`OptionSequences`).
2. The sequences are repeated once per edit and right-padded into one batch.
3. Hooks edit the neurons of each row: at the scored positions, or at all (`positions`).

Gradients at alpha = 1 alone, where nothing is edited, take one pass
(`gradient_times_activation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.gradient_times_activation import unedited_integrals
from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    OptionScores,
    PathIntegrals,
    Target,
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

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        return [self._score_one(prompt, scales) for prompt in prompts]

    @torch.no_grad()
    def _score_one(self, prompt: Prompt, scales: Tensor) -> OptionScores:
        sequences = self._sequences(prompt)
        # At the scored positions alone, these tokens come before all that is edited.
        n_shared = prompt.n_shared if self.positions == ALL else 0
        chunks = []
        for start, stop in self._chunks(len(scales), sequences):
            chunk = scales[start:stop]

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                grid = neurons.reshape(len(chunk), *sequences.edited.shape, -1)
                factor = chunk[:, layer].to(grid)[:, None, None]
                keep = sequences.edited.to(grid.device)[..., None]
                return torch.where(keep, grid * factor, grid).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self._logits(sequences, len(chunk))
            chunks.append(sequences.option_scores(logits, n_shared))
        loglikelihoods, greedy = zip(*chunks, strict=True)
        return OptionScores(torch.cat(loglikelihoods).cpu(), torch.cat(greedy).cpu())

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """See `Engine.integrate_all`."""
        with frozen_parameters(self.model):
            if not bool((nodes == 1).all()):
                return [self._integrate_one(prompt, nodes, integrands) for prompt in prompts]
            results = []
            for batch in self._batches(prompts):
                results += unedited_integrals(self.model, self.layers, batch, integrands)
            return results

    def _integrate_one(
        self, prompt: Prompt, nodes: Tensor, integrands: Sequence[Integrand]
    ) -> PathIntegrals:
        sequences = self._sequences(prompt)
        unedited: dict[int, Tensor] = {}

        def record(layer: int, neurons: Tensor) -> Tensor:
            unedited[layer] = neurons.detach().reshape(*sequences.edited.shape, -1)
            return neurons

        with torch.no_grad(), edit_neurons(self.layers.modules, record):
            logits = self._logits(sequences, 1)
        loglikelihoods = sequences.option_scores(logits)[0][0]
        home = loglikelihoods.device
        targets = tuple(dict.fromkeys(integrand.differentiated for integrand in integrands))
        shape = (len(integrands), self.layers.n_layers)
        attribution = torch.zeros(*shape, self.layers.width, device=home)
        node_targets = torch.zeros(*shape, len(nodes), device=home)
        for layer in range(self.layers.n_layers):
            for start, stop in self._chunks(len(nodes), sequences):
                gradients = self._node_gradients(
                    sequences, layer, unedited[layer], nodes[start:stop], targets
                )
                for index, integrand in enumerate(integrands):
                    product, at_nodes = gradients[integrand.differentiated]
                    weights = integrand.weights[start:stop].to(product.device)
                    weights = weights * integrand.slopes(at_nodes).to(product.device)
                    attribution[index, layer] += (product * weights[:, None]).sum(0).to(home)
                    node_targets[index, layer, start:stop] = integrand.values(at_nodes).to(home)
        activations = torch.stack(
            [sequences.activations(unedited[layer]).to(home) for layer in range(shape[1])]
        )
        return PathIntegrals.of_prompt(
            prompt.gold, integrands, attribution, node_targets, loglikelihoods, activations
        )

    def _node_gradients(
        self,
        sequences: OptionSequences,
        layer: int,
        unedited: Tensor,
        nodes: Tensor,
        targets: Sequence[Target],
    ) -> dict[Target, tuple[Tensor, Tensor]]:
        """Per target h * dF/dh(alpha h) summed over positions [nodes, neurons], and F [nodes]."""
        alphas = nodes.to(unedited.device)[:, None, None, None]
        # [nodes, sequences, positions, neurons]; the nodes keep their digits in 16 bits too.
        leaf = (alphas * unedited.float()).to(unedited.dtype).requires_grad_(True)
        keep = sequences.edited.to(unedited.device)[..., None]

        def edit(_: int, neurons: Tensor) -> Tensor:
            grid = neurons.reshape(leaf.shape)
            return torch.where(keep, leaf, grid).reshape(neurons.shape)

        results = {}
        with torch.enable_grad(), edit_neurons(self.layers.modules, edit, [layer]):
            logits = self._logits(sequences, len(nodes))
            loglikelihoods = sequences.option_scores(logits)[0]
            for target in targets:
                values = target(loglikelihoods, sequences.prompt.gold)
                (gradient,) = torch.autograd.grad(
                    values.sum(), leaf, retain_graph=target is not targets[-1]
                )
                product = torch.where(keep, unedited.float() * gradient.float(), 0.0)
                results[target] = product.sum((1, 2)), values.detach()
        return results

    def _sequences(self, prompt: Prompt) -> OptionSequences:
        return OptionSequences.build(prompt, input_device(self.model), self.positions)

    def _logits(self, sequences: OptionSequences, n_edits: int) -> Tensor:
        """[edits, sequences, positions, vocabulary]."""
        rows = sequences.tokens.repeat(n_edits, 1)
        logits = self.model(input_ids=rows, use_cache=False).logits
        return logits.reshape(n_edits, *sequences.tokens.shape, -1)

    def _chunks(self, n_edits: int, sequences: OptionSequences) -> Iterator[tuple[int, int]]:
        n_sequences, n_tokens = sequences.tokens.shape
        n_rows = min(self.rows_per_pass, TOKENS_PER_PASS // n_tokens)
        size = max(1, n_rows // n_sequences)
        for start in range(0, n_edits, size):
            yield start, min(start + size, n_edits)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[OptionSequences]]:
        """Prompts in order, as many as go into one pass; at least one."""
        batch: list[OptionSequences] = []
        for prompt in prompts:
            sequences = self._sequences(prompt)
            n_rows = len(sequences) + sum(map(len, batch))
            longest = max(one.tokens.shape[1] for one in (*batch, sequences))
            if batch and (n_rows > self.rows_per_pass or n_rows * longest > TOKENS_PER_PASS):
                yield batch
                batch = []
            batch.append(sequences)
        if batch:
            yield batch
