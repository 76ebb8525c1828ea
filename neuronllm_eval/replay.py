"""The replay engine: full forward passes with hooks. Slow, general, and the oracle of the tests.

1. A prompt becomes the token sequences that score its options: one if all options are single
   tokens, else one per distinct context + option[:-1].
2. The sequences are repeated once per edit and right-padded into one batch.
3. Hooks edit the neurons at the scored positions of each row: the last context token and, for
   options of several tokens, the option tokens before the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from neuronllm_eval.architectures import FFNLayers
from neuronllm_eval.hooks import edit_neurons, frozen_parameters
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.scoring import (
    Engine,
    Integrand,
    OptionScores,
    PathIntegral,
    PathIntegrals,
    Target,
    right_pad,
)

SEQUENCES_PER_PASS = 16
TOKENS_PER_PASS = 4096  # with gradients, memory grows with the tokens of a pass


@dataclass(frozen=True)
class _Sequences:
    """The token sequences that score one prompt's options.

    Attributes:
        tokens: [sequences, positions] right-padded ids.
        scored: [sequences, positions] bool, the scored positions.
        sequence_of: per option, the sequence that scores it.
        prompt: the prompt.
    """

    tokens: Tensor
    scored: Tensor
    sequence_of: tuple[int, ...]
    prompt: Prompt

    @classmethod
    def build(cls, prompt: Prompt, device: torch.device) -> _Sequences:
        heads = [prompt.context + option[:-1] for option in prompt.options]
        distinct = list(dict.fromkeys(heads))
        tokens = right_pad(distinct, device)
        columns = torch.arange(tokens.shape[1], device=device)
        lengths = torch.tensor([len(sequence) for sequence in distinct], device=device)
        scored = (columns >= len(prompt.context) - 1) & (columns < lengths[:, None])
        return cls(tokens, scored, tuple(distinct.index(head) for head in heads), prompt)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def option_scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [edits, sequences, positions, vocabulary] -> two of [edits, options]."""
        start = len(self.prompt.context) - 1
        totals, greedy = [], []
        for option, sequence in zip(self.prompt.options, self.sequence_of, strict=True):
            rows = logits[:, sequence, start : start + len(option)].float()
            ids = torch.tensor(option, device=logits.device)
            token_logits = rows.gather(-1, ids.expand(len(rows), -1)[..., None])[..., 0]
            totals.append((token_logits - rows.logsumexp(-1)).sum(-1))
            greedy.append((rows.argmax(-1) == ids).all(-1))
        return torch.stack(totals, -1), torch.stack(greedy, -1)


class ReplayEngine(Engine):
    """One full forward pass per edit; any causal LM, options of any length."""

    name = "replay"

    def __init__(
        self, model: nn.Module, layers: FFNLayers, *, rows_per_pass: int = SEQUENCES_PER_PASS
    ) -> None:
        self.model = model
        self.layers = layers
        self.rows_per_pass = rows_per_pass

    @cached_property
    def _input_device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """See `Engine.score`."""
        return [self._score_one(prompt, scales) for prompt in prompts]

    @torch.no_grad()
    def _score_one(self, prompt: Prompt, scales: Tensor) -> OptionScores:
        sequences = _Sequences.build(prompt, self._input_device)
        parts = []
        for start, stop in self._chunks(len(scales), sequences):
            chunk = scales[start:stop]

            def edit(layer: int, neurons: Tensor, chunk: Tensor = chunk) -> Tensor:
                grid = neurons.reshape(len(chunk), *sequences.scored.shape, -1)
                factor = chunk[:, layer].to(grid)[:, None, None]
                keep = sequences.scored.to(grid.device)[..., None]
                return torch.where(keep, grid * factor, grid).reshape(neurons.shape)

            with edit_neurons(self.layers.modules, edit):
                logits = self._forward(sequences, len(chunk))
            parts.append(sequences.option_scores(logits))
        totals, greedy = zip(*parts, strict=True)
        return OptionScores(torch.cat(totals).cpu(), torch.cat(greedy).cpu())

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """See `Engine.integrate_all`."""
        with frozen_parameters(self.model):
            return [self._integrate_one(prompt, nodes, integrands) for prompt in prompts]

    def _integrate_one(
        self, prompt: Prompt, nodes: Tensor, integrands: Sequence[Integrand]
    ) -> PathIntegrals:
        sequences = _Sequences.build(prompt, self._input_device)
        unedited: dict[int, Tensor] = {}

        def record(layer: int, neurons: Tensor) -> Tensor:
            unedited[layer] = neurons.detach().reshape(*sequences.scored.shape, -1)
            return neurons

        with torch.no_grad(), edit_neurons(self.layers.modules, record):
            logits = self._forward(sequences, 1)
        loglikelihoods = sequences.option_scores(logits)[0][0]
        home = loglikelihoods.device
        targets = tuple(dict.fromkeys(integrand.target for integrand in integrands))
        shape = (len(integrands), self.layers.n_layers)
        sums = torch.zeros(*shape, self.layers.width, device=home)
        values = torch.zeros(*shape, len(nodes), device=home)
        for layer in range(self.layers.n_layers):
            for start, stop in self._chunks(len(nodes), sequences):
                found = self._node_gradients(
                    sequences, layer, unedited[layer], nodes[start:stop], targets
                )
                for place, integrand in enumerate(integrands):
                    product, node_values = found[integrand.target]
                    weights = integrand.weights[start:stop].to(product.device)
                    sums[place, layer] += (product * weights[:, None]).sum(0).to(home)
                    values[place, layer, start:stop] = node_values.to(home)
        last = len(prompt.context) - 1
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
            torch.stack([unedited[layer][0, last].float().to(home) for layer in range(shape[1])]),
        )

    def _node_gradients(
        self,
        sequences: _Sequences,
        layer: int,
        base: Tensor,
        nodes: Tensor,
        targets: Sequence[Target],
    ) -> dict[Target, tuple[Tensor, Tensor]]:
        """Per target h * dF/dh(alpha h) summed over positions [nodes, neurons], and F [nodes]."""
        steps = nodes.to(base.device)[:, None, None, None]
        # [nodes, sequences, positions, neurons]; the nodes keep their digits in 16 bits too.
        leaf = (steps * base.float()).to(base.dtype).requires_grad_(True)
        keep = sequences.scored.to(base.device)[..., None]

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

    def _forward(self, sequences: _Sequences, n_edits: int) -> Tensor:
        rows = sequences.tokens.repeat(n_edits, 1)
        logits = self.model(input_ids=rows, use_cache=False).logits
        return logits.reshape(n_edits, *sequences.tokens.shape, -1)

    def _chunks(self, n_edits: int, sequences: _Sequences) -> Iterator[tuple[int, int]]:
        n_sequences, n_tokens = sequences.tokens.shape
        n_rows = min(self.rows_per_pass, TOKENS_PER_PASS // n_tokens)
        size = max(1, n_rows // n_sequences)
        for start in range(0, n_edits, size):
            yield start, min(start + size, n_edits)
