"""Copies of a token along alpha * h_l: what a pass edits, and what gradients say of the neurons.

Row 0 of a pass is unedited. Rows `1 + k * n_copies` and the following are the copies of layer
`layers[k]`, one for each node but a last one at alpha = 1: that is the unedited row, whatever the
layer. Here copies are edited where a layer's neurons enter its down-projection; `late_staircase`
knows a cheaper place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.join_at_layer import staircase
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.hooks import edit_neurons


@dataclass(frozen=True)
class PathLayer:
    """A layer's part in a pass.

    Attributes:
        neurons: [batch, neurons] of the unedited row.
        leaves: what gradients are to be taken of: the copies [batch, copies, width], and the
            unedited row [batch, 1, width] where it is a node.
        down: [width, neurons] weights of the down-projection if the leaves lie behind it, None if
            they are the neurons themselves.
    """

    neurons: Tensor
    leaves: tuple[Tensor, ...]
    down: Tensor | None = None

    def attribution(self, gradients: Sequence[Tensor], weights: Tensor) -> Tensor:
        """[sums, batch, neurons] float32: h * sum over nodes of weight * dF/dh(alpha h).

        Args:
            gradients: of the leaves.
            weights: [sums, batch, nodes].
        """
        nodes = torch.cat(list(gradients), dim=1).float()
        mean = torch.einsum("sbk,bkw->sbw", weights.to(nodes.device), nodes)
        if self.down is not None:
            mean = (mean.to(self.down) @ self.down).float()
        return self.neurons.float() * mean.to(self.neurons.device)


class PathCopies(Protocol):
    """How copies come into a pass.

    Attributes:
        decoder_layers: the modules at which copies join; empty if all are there from the start.
    """

    decoder_layers: Sequence[nn.Module]

    def joined(
        self, layers: range, nodes: Tensor, batch: int
    ) -> AbstractContextManager[dict[int, PathLayer]]:
        """Within the context, a pass over `rows_of` copies of each prompt's last token edits them.

        Args:
            layers: the layers that have copies.
            nodes: [nodes] values of alpha.
            batch: prompts of the pass.

        Returns:
            the layers' parts, which the pass fills in.
        """
        ...


class NeuronCopies:
    """Copies that are edited where the neurons enter the down-projection.

    Args:
        layers: the model's down-projections.
        decoder_layers: the modules that hold them, if copies are to join where they are first
            edited (`staircase`); empty if all are there from the first layer on.
    """

    def __init__(self, layers: FFNLayers, decoder_layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.decoder_layers = decoder_layers

    @contextmanager
    def joined(self, layers: range, nodes: Tensor, batch: int) -> Iterator[dict[int, PathLayer]]:
        """See `PathCopies.joined`."""
        n_copies = copies_of(nodes)
        parts: dict[int, PathLayer] = {}

        def edit(layer: int, neurons: Tensor) -> Tensor:
            # Without a staircase the rows of later layers are there already.
            rows = neurons.reshape(batch, -1, neurons.shape[-1])
            start = 1 + (layer - layers.start) * n_copies
            first = with_gradient(rows[:, :1]) if n_copies < len(nodes) else rows[:, :1]
            base = first.detach()
            alphas = nodes[:n_copies].to(base.device)[None, :, None]
            copies = (alphas * base.float()).to(base.dtype)  # nodes keep their digits
            copies.requires_grad_(True)
            parts[layer] = PathLayer(base[:, 0], leaves_of(copies, first, nodes))
            later = rows[:, start + n_copies :]
            return torch.cat((first, rows[:, 1:start], copies, later), 1).reshape(neurons.shape)

        with ExitStack() as stack:
            stack.enter_context(edit_neurons(self.layers.modules, edit, layers))
            if self.decoder_layers:
                stack.enter_context(staircase(self.decoder_layers, layers, n_copies))
            yield parts


def copies_of(nodes: Tensor) -> int:
    """How many copies a layer has: a last node at alpha = 1 needs none, unless it is the only."""
    return len(nodes) - int(len(nodes) > 1 and float(nodes[-1]) == 1.0)


def rows_of(layers: range, nodes: Tensor) -> int:
    """Rows of a pass: the unedited one, and every layer's copies."""
    return 1 + len(layers) * copies_of(nodes)


def with_gradient(first: Tensor) -> Tensor:
    """The unedited row, from which on gradients are followed; it has none before its first leaf."""
    return first if first.requires_grad else first.detach().requires_grad_(True)


def leaves_of(copies: Tensor, first: Tensor, nodes: Tensor) -> tuple[Tensor, ...]:
    """What gradients are to be taken of, one row for each node."""
    return (copies,) if copies.shape[1] == len(nodes) else (copies, first)
