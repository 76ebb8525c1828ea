"""Copies for layer l need not exist within layer l either: they join at its output.

Where a decoder layer adds its FFN's output to the residual stream and does no more with it:

1. alpha * h_l in place of h_l changes the layer's output by (alpha - 1) * W h_l, with the weights W
   of the down-projection. So copies are made of row 0's output, and run through nothing of the
   layer.
2. The neurons' gradient is W^T times that of the layer's output, whatever alpha. So one product
   with the average over the nodes does for all of them.

Layers that normalise or scale the FFN's output are another matter. Nothing here knows which do:
`engine.build_engine` compares results on the run's own prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuronllm_eval.engine.join_at_layer import join_rows
from neuronllm_eval.engine.scaled_copies import (
    PathLayer,
    copies_of,
    leaves_of,
    rows_of,
    with_gradient,
)
from neuronllm_eval.models.ffn_layers import FFNLayers


def all_plain(downs: Sequence[nn.Module]) -> bool:
    """Whether the weights at hand say what the down-projections compute.

    Those of adapted, quantised and offloaded layers do not.
    """
    return all(
        type(down) in (nn.Linear, Conv1D) and down.get_parameter("weight").device.type != "meta"
        for down in downs
    )


def output_weights(down: nn.Module) -> Tensor:
    """[outputs, neurons] of a plain down-projection."""
    weight = down.get_parameter("weight").detach()
    return weight if type(down) is nn.Linear else weight.T  # Conv1D keeps [neurons, outputs]


class OutputCopies:
    """Copies that are made where the decoder layer ends.

    Args:
        layers: the model's down-projections, which are `all_plain`.
        decoder_layers: the modules that hold them.
    """

    def __init__(self, layers: FFNLayers, decoder_layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.decoder_layers = decoder_layers

    @contextmanager
    def joined(self, layers: range, nodes: Tensor, batch: int) -> Iterator[dict[int, PathLayer]]:
        """See `PathCopies.joined`."""
        parts: dict[int, PathLayer] = {}
        handles = []
        try:
            for index, module in enumerate(self.decoder_layers[: layers.stop]):
                narrow = partial(
                    join_rows,
                    n_new=0,
                    present=rows_of(range(layers.start, index), nodes),
                    n_rows=rows_of(layers, nodes),
                    is_first=index == 0,
                )
                handles.append(module.register_forward_pre_hook(narrow, with_kwargs=True))
                if index in layers:
                    joint = _Joint(index, nodes, batch, parts)
                    down = self.layers.modules[index]
                    handles.append(down.register_forward_hook(joint.note))
                    handles.append(module.register_forward_hook(joint.append))
            yield parts
        finally:
            for handle in handles:
                handle.remove()


class _Joint:
    """Where a layer's copies join a pass: its hooks."""

    def __init__(self, layer: int, nodes: Tensor, batch: int, parts: dict[int, PathLayer]) -> None:
        self.layer = layer
        self.nodes = nodes
        self.batch = batch
        self.parts = parts
        self._neurons = self._added = self._down = torch.empty(0)

    def note(self, down: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep row 0's neurons [batch, neurons], and W h [batch, 1, outputs] in float32."""
        neurons, added = (
            each.detach().reshape(self.batch, -1, each.shape[-1]) for each in (args[0], output)
        )
        self._neurons, self._added = neurons[:, 0], added[:, :1].float()
        bias = getattr(down, "bias", None)
        if bias is not None:
            self._added = self._added - bias.detach().float()
        self._down = output_weights(down)

    def append(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """The layer's output with its copies, which differ from row 0 in what the FFN adds."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        n_copies = copies_of(self.nodes)
        first = hidden[:, :1]
        if n_copies < len(self.nodes):
            first = with_gradient(first)
        added = self._added.to(hidden.device)
        steps = (self.nodes[:n_copies].to(hidden.device) - 1)[None, :, None]
        copies = (first.detach().float() + steps * added).to(hidden.dtype).requires_grad_(True)
        leaves = leaves_of(copies, first, self.nodes)
        self.parts[self.layer] = PathLayer(self._neurons, leaves, self._down)
        joined = torch.cat((first, hidden[:, 1:], copies), dim=1)
        return (joined, *rest) if isinstance(output, tuple) else joined
