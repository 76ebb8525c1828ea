"""The weights of a model that planting changes, and the detectors of planted neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.hooks import edit_neurons
from neuronllm_eval.prompts import Prompt

# Detectors have targets +1 and -1; so steep a gate is nearly linear where the neuron is active.
_STEEPNESS = 4.0
_RIDGE = 1.0
_BATCH = 40


class Rows(NamedTuple):
    """Detectors on a layer's FFN input.

    Attributes:
        letters: [letters, width] give +1 where the letter is gold and -1 elsewhere.
        always: [width] gives 1.
    """

    letters: Tensor
    always: Tensor


class Wiring(NamedTuple):
    """Detectors and output of a planted neuron.

    Attributes:
        detects: [width] where it is active.
        always: [width] gives 1 everywhere.
        column: [width] its output.
    """

    detects: Tensor
    always: Tensor
    column: Tensor


@dataclass(frozen=True)
class GatedModel:
    """The parts of a decoder with gated FFNs and RMS norms that planting needs."""

    model: nn.Module
    layers: FFNLayers
    gates: tuple[nn.Linear, ...]
    ups: tuple[nn.Linear, ...]
    downs: tuple[nn.Linear, ...]
    norms: tuple[Any, ...]
    final_norm: Any
    head: nn.Linear

    @classmethod
    def of(cls, model: Any, layers: FFNLayers) -> GatedModel:
        """The modules of a model; its head is untied from the embedding.

        Raises:
            ModelError: some of them are missing.
        """
        try:
            blocks = model.model.layers
            final_norm, head = model.model.norm, model.lm_head
            gates = tuple(block.mlp.gate_proj for block in blocks)
            ups = tuple(block.mlp.up_proj for block in blocks)
            downs = tuple(block.mlp.down_proj for block in blocks)
            norms = tuple(block.post_attention_layernorm for block in blocks)
        except AttributeError as error:
            raise ModelError(
                f"{type(model).__name__} has no {error.name}",
                expected="the parts of a Llama: gated FFNs, RMS norms and a linear head",
                remedy="plant in the embedded model",
            ) from error
        head.weight = nn.Parameter(head.weight.detach().clone())  # no longer the embedding's
        return cls(model, layers, gates, ups, downs, norms, final_norm, head)

    @torch.no_grad()
    def wire(self, layer: int, index: int, wiring: Wiring, inputs: Tensor, loudness: float) -> None:
        """Replace a neuron.

        Args:
            layer: of the neuron.
            index: within the layer.
            wiring: the column is for an activation of `loudness`.
            inputs: [prompts, width] of the FFN, where the neuron is to be active.
            loudness: mean activation on these inputs.
        """
        gate = _STEEPNESS * wiring.detects
        fires = nn.functional.silu(inputs @ gate) * (inputs @ wiring.always)
        rate = loudness / fires.mean()
        self.gates[layer].weight[index] = gate.to(self.gates[layer].weight)
        self.ups[layer].weight[index] = (rate * wiring.always).to(self.ups[layer].weight)
        down = self.downs[layer].weight
        down[:, index] = wiring.column.to(down) / loudness

    @torch.no_grad()
    def scale_outputs(self, layer: int, factor: float) -> None:
        """Multiply the outputs of all neurons of a layer."""
        self.downs[layer].weight *= factor

    @torch.no_grad()
    def scale_column(self, layer: int, index: int, factor: float) -> None:
        """Multiply a neuron's output column."""
        self.downs[layer].weight[:, index] *= factor


@torch.no_grad()
def recorded_inputs(
    model: nn.Module, modules: Sequence[nn.Module], prompts: Sequence[Prompt]
) -> list[Tensor]:
    """Inputs of the modules at the scored position: per module [prompts, width] float32."""
    found: list[list[Tensor]] = [[] for _ in modules]
    decoder = cast(nn.Module, model.base_model)  # without the head
    device = next(decoder.parameters()).device
    for start in range(0, len(prompts), _BATCH):
        contexts = [prompt.context for prompt in prompts[start : start + _BATCH]]
        last = torch.tensor([len(context) - 1 for context in contexts], device=device)

        def record(place: int, inputs: Tensor, last: Tensor = last) -> Tensor:
            rows = inputs[torch.arange(len(last), device=device), last]
            found[place].append(rows.float().cpu())
            return inputs

        with edit_neurons(modules, record):
            decoder(input_ids=right_pad(contexts, device), use_cache=False)
    return [torch.cat(each) for each in found]


def fit_rows(inputs: Tensor, gold: Tensor, n_letters: int, written: Tensor) -> Rows:
    """Detectors by weighted ridge regression.

    Args:
        inputs: [prompts, width] of a layer's FFN at the scored position.
        gold: [prompts] index of the gold option.
        n_letters: number of options.
        written: [directions, width] outputs of planted neurons as they appear in the inputs;
            detectors ignore them, so that planted neurons do not read each other.
    """
    basis, _ = torch.linalg.qr(written.T)
    blind = (inputs - inputs @ basis @ basis.T).double()
    target = 2.0 * nn.functional.one_hot(gold, n_letters).double() - 1  # [prompts, letters]
    # A letter is gold in few prompts and not in many: both get the same weight.
    share = (target > 0).double().mean(0)
    fitted = [
        _ridge(blind, target[:, letter], torch.where(target[:, letter] > 0, 1 / n, 1 / (1 - n)))
        for letter, n in enumerate(share)
    ]
    ones = torch.ones(len(blind), dtype=blind.dtype)
    return Rows(torch.stack(fitted).float(), _ridge(blind, ones, ones).float())


def _ridge(inputs: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """[width] weighted ridge regression."""
    weighted = inputs.T * weights
    identity = torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(weighted @ inputs + _RIDGE * identity, weighted @ target)
