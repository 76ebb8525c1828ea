"""The replay engine: full forward passes with hooks. Slow, general, and the oracle of the tests.

1. A prompt becomes the token sequences that score its options (`option_sequences`).
2. The sequences are repeated once per edit and right-padded into one batch.
3. Hooks edit the neurons of each row: at the scored positions, or at all (`positions`).

Gradients at alpha = 1 alone, where nothing is edited, take one pass (`one_pass`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.gradient_times_activation import unedited_integrals
from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    PathIntegrals,
    Target,
)
from neuronllm_eval.engine.option_sequences import OptionSequences
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import ALL, SCORED, Prompt

SEQUENCES_PER_PASS = 16
TOKENS_PER_PASS = 4096  # with gradients, memory grows with the tokens of a pass


class ReplayEngine(Engine):
    """One full forward pass per edit; any causal LM, options of any length, any positions.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        positions: that are edited, one of `positions.POSITIONS`.
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

    @cached_property
    def _input_device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        return [self._score_one(prompt, scales) for prompt in prompts]

    @torch.no_grad()
    def _score_one(self, prompt: Prompt, scales: Tensor) -> OptionScores:
        sequences = OptionSequences.build(prompt, self._input_device, self.positions)
        # Elsewhere these tokens come before all that is edited.
        n_shared = prompt.n_shared if self.positions == ALL else 0
        parts = []
        for start, stop in self._chunks(len(scales), sequences):
            chunk = scales[start:stop]

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                grid = neurons.reshape(len(chunk), *sequences.edited.shape, -1)
                factor = chunk[:, layer].to(grid)[:, None, None]
                keep = sequences.edited.to(grid.device)[..., None]
                return torch.where(keep, grid * factor, grid).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self._forward(sequences, len(chunk))
            parts.append(sequences.option_scores(logits, n_shared))
        totals, greedy = zip(*parts, strict=True)
        return OptionScores(torch.cat(totals).cpu(), torch.cat(greedy).cpu())

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """See `Engine.integrate_all`."""
        with frozen_parameters(self.model):
            if bool((nodes == 1).all()):
                return [
                    found
                    for batch in self._batches(prompts)
                    for found in unedited_integrals(self.model, self.layers, batch, integrands)
                ]
            return [self._integrate_one(prompt, nodes, integrands) for prompt in prompts]

    def _integrate_one(
        self, prompt: Prompt, nodes: Tensor, integrands: Sequence[Integrand]
    ) -> PathIntegrals:
        sequences = OptionSequences.build(prompt, self._input_device, self.positions)
        unedited: dict[int, Tensor] = {}

        def record(layer: int, neurons: Tensor) -> Tensor:
            unedited[layer] = neurons.detach().reshape(*sequences.edited.shape, -1)
            return neurons

        with torch.no_grad(), edit_neurons(self.layers.modules, record):
            logits = self._forward(sequences, 1)
        loglikelihoods = sequences.option_scores(logits)[0][0]
        home = loglikelihoods.device
        targets = tuple(dict.fromkeys(integrand.differentiated for integrand in integrands))
        shape = (len(integrands), self.layers.n_layers)
        sums = torch.zeros(*shape, self.layers.width, device=home)
        values = torch.zeros(*shape, len(nodes), device=home)
        for layer in range(self.layers.n_layers):
            for start, stop in self._chunks(len(nodes), sequences):
                found = self._node_gradients(
                    sequences, layer, unedited[layer], nodes[start:stop], targets
                )
                for place, integrand in enumerate(integrands):
                    product, at_nodes = found[integrand.differentiated]
                    weights = integrand.weights[start:stop].to(product.device)
                    weights = weights * integrand.slopes(at_nodes).to(product.device)
                    sums[place, layer] += (product * weights[:, None]).sum(0).to(home)
                    values[place, layer, start:stop] = integrand.values(at_nodes).to(home)
        activations = [sequences.activations(unedited[layer]) for layer in range(shape[1])]
        return PathIntegrals(
            tuple(
                PathIntegral(
                    sums[place],
                    values[place],
                    float(integrand.target(loglikelihoods, prompt.gold)),
                    loglikelihoods,
                )
                for place, integrand in enumerate(integrands)
            ),
            torch.stack([each.to(home) for each in activations]),
        )

    def _node_gradients(
        self,
        sequences: OptionSequences,
        layer: int,
        base: Tensor,
        nodes: Tensor,
        targets: Sequence[Target],
    ) -> dict[Target, tuple[Tensor, Tensor]]:
        """Per target h * dF/dh(alpha h) summed over positions [nodes, neurons], and F [nodes]."""
        steps = nodes.to(base.device)[:, None, None, None]
        # [nodes, sequences, positions, neurons]; the nodes keep their digits in 16 bits too.
        leaf = (steps * base.float()).to(base.dtype).requires_grad_(True)
        keep = sequences.edited.to(base.device)[..., None]

        def edit(_: int, neurons: Tensor) -> Tensor:
            grid = neurons.reshape(leaf.shape)
            return torch.where(keep, leaf, grid).reshape(neurons.shape)

        found = {}
        with torch.enable_grad(), edit_neurons(self.layers.modules, edit, [layer]):
            logits = self._forward(sequences, len(nodes))
            loglikelihoods = sequences.option_scores(logits)[0]
            for target in targets:
                values = target(loglikelihoods, sequences.prompt.gold)
                (gradient,) = torch.autograd.grad(
                    values.sum(), leaf, retain_graph=target is not targets[-1]
                )
                product = torch.where(keep, base.float() * gradient.float(), 0.0)
                found[target] = product.sum((1, 2)), values.detach()
        return found

    def _forward(self, sequences: OptionSequences, n_edits: int) -> Tensor:
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
            one = OptionSequences.build(prompt, self._input_device, self.positions)
            n_rows = len(one) + sum(map(len, batch))
            longest = max(each.tokens.shape[1] for each in (*batch, one))
            if batch and (n_rows > self.rows_per_pass or n_rows * longest > TOKENS_PER_PASS):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch
