"""Copies of trees along alpha * h_l, each computed only from where it differs from the others.

In a pass over several layers' copies, the first tree (`option_tree`) is unedited, and every layer
adds a tree for each node but a last one at alpha = 1, which is the unedited tree whatever the
layer. A copy that differs from that tree in layer l alone is equal to it up to layer l, so it need
not exist below. Two ways to join:

1. At the layer: layer l's copies are appended where layer l begins, and edited where the neurons
   enter the down-projection.
2. Late: they are appended where layer l ends. That is exact where a layer adds its FFN's output to
   the residual stream and does no more with it: alpha * h_l in place of h_l changes the layer's
   output by (alpha - 1) * W h_l in every row, with the weights W of the down-projection, and the
   gradient of the neurons is W^T times that of the layer's output, whatever alpha. So copies run
   through nothing of the layer, and one product with the average over the nodes serves all.

Layers that normalise or scale the FFN's output are another matter. Nothing here knows which do:
`build.build_engine` compares results on the run's own prompts.

Either way each decoder layer gets mask, position ids and position embeddings narrowed to the rows
that are present. Each layer's cache then has its own length, which a plain cache does not mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class LayerCopies:
    """A layer's part in a pass, and what gradients say of its neurons.

    Attributes:
        neurons: [batch, rows, neurons] of the unedited tree.
        leaves: what gradients are taken of: the copies [batch, copies * rows, width] if there are
            any, and the unedited tree [batch, rows, width] where it is a node.
        weights: [width, neurons] of the down-projection if the leaves are the layer's output; None
            if they are the neurons themselves.
    """

    neurons: Tensor
    leaves: tuple[Tensor, ...]
    weights: Tensor | None = None

    def attribution(self, gradients: Sequence[Tensor], node_weights: Tensor) -> Tensor:
        """[integrands, batch, neurons] float32: h * sum over nodes of weight * dF/dh(alpha h).

        The products are summed over the rows of a tree, all of which alpha scales together.

        Args:
            gradients: of the leaves.
            node_weights: [integrands, batch, nodes].
        """
        joined = torch.cat(list(gradients), dim=1).float()
        at_nodes = joined.unflatten(1, (node_weights.shape[2], -1))  # [batch, nodes, rows, width]
        mean = torch.einsum("sbk,bkrw->sbrw", node_weights.to(joined.device), at_nodes)
        if self.weights is not None:
            mean = (mean.to(self.weights) @ self.weights).float()
        return (self.neurons.float() * mean.to(self.neurons.device)).sum(2)


def copies_per_layer(nodes: Tensor) -> int:
    """How many copies a layer has: a last node at alpha = 1 needs none."""
    return len(nodes) - int(float(nodes[-1]) == 1.0)


class ScaledCopies:
    """The copies that some layers have in one pass, and the hooks that make them.

    Args:
        down_projections: of all layers; `all_plain` if copies join late.
        decoder_layers: the modules that hold them, at which copies join; empty if the copies are to
            be there from the first layer on.
        batch: prompts, each of which has these copies.
        layers: the layers that have copies.
        nodes: [nodes] values of alpha, ascending.
        tree_rows: rows of a tree, and so of a copy.
        late: whether copies join where their layer ends.

    Attributes:
        n_trees: trees of each prompt in the whole pass, the unedited one included.
        of_layer: by layer its copies, which the pass fills in.
    """

    def __init__(
        self,
        down_projections: Sequence[nn.Module],
        decoder_layers: Sequence[nn.Module],
        batch: int,
        layers: range,
        nodes: Tensor,
        *,
        tree_rows: int = 1,
        late: bool = False,
    ) -> None:
        self.down_projections, self.decoder_layers = down_projections, decoder_layers
        self.batch, self.layers, self.late, self.tree_rows = batch, layers, late, tree_rows
        self.n_copies = copies_per_layer(nodes)
        self.alphas = nodes[: self.n_copies]
        self.unedited_is_node = self.n_copies < len(nodes)
        self.n_trees = 1 + self.n_copies * len(layers)
        self.of_layer: dict[int, LayerCopies] = {}
        # Of the unedited tree: neurons [batch, rows, neurons], W h [batch, rows, width].
        self._ffn: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Within the context, copies join a pass over `n_trees` equal trees of each prompt."""
        handles = []
        try:
            for layer, module in enumerate(self.decoder_layers[: self.layers.stop]):
                narrow = partial(self._narrow, layer=layer)
                handles.append(module.register_forward_pre_hook(narrow, with_kwargs=True))
            for layer in self.layers:
                down = self.down_projections[layer]
                if self.late:
                    append, module = partial(self._append, layer=layer), self.decoder_layers[layer]
                    handles.append(down.register_forward_hook(partial(self._record, layer=layer)))
                    handles.append(module.register_forward_hook(append))
                else:
                    handles.append(down.register_forward_pre_hook(partial(self._edit, layer=layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def at_nodes(self, values: Tensor) -> Tensor:
        """[batch, layers, nodes] a pass's values [batch, trees], each layer with all its nodes."""
        n_layers = len(self.layers)
        of_copies = values[:, 1:].reshape(len(values), n_layers, self.n_copies)
        if not self.unedited_is_node:
            return of_copies
        return torch.cat((of_copies, values[:, :1, None].expand(-1, n_layers, 1)), dim=2)

    # Hooks ---------------------------------------------------------------------------------------

    def _narrow(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, layer: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A decoder layer gets the rows alone that exist where it begins, its own ones included.

        The first layer gets all rows that the model was fed, the others what the layer before them
        returned.
        """
        hidden = args[0] if args else kwargs["hidden_states"]
        n_rows, n_present = self.n_trees * self.tree_rows, self._rows_before(layer)
        if layer == 0:
            hidden = hidden[:, : self.tree_rows]
        if not self.late and layer in self.layers:
            # A copy's gradient is not the unedited tree's.
            copies = hidden[:, : self.tree_rows].detach().repeat(1, self.n_copies, 1)
            hidden = torch.cat((hidden, copies), dim=1)
            n_present += copies.shape[1]
        rest = tuple(_narrowed(value, n_present, n_rows) for value in args[1:])
        named = {name: _narrowed(value, n_present, n_rows) for name, value in kwargs.items()}
        return ((hidden, *rest), named) if args else ((), {**named, "hidden_states": hidden})

    def _edit(self, _: nn.Module, args: tuple[Any, ...], *, layer: int) -> tuple[Any, ...]:
        """A down-projection gets alpha * h_l in its layer's copies."""
        grid = args[0].reshape(self.batch, -1, args[0].shape[-1])
        start = self._rows_before(layer)
        base = grid[:, : self.tree_rows].detach()
        # The nodes keep their digits in 16 bits too.
        scaled = self.alphas.to(base.device)[:, None, None] * base.float()[:, None]
        unedited, copies = self._add(layer, base, grid[:, : self.tree_rows], scaled)
        # Where copies do not join, those of later layers are there already.
        parts = (
            unedited,
            grid[:, self.tree_rows : start],
            copies,
            grid[:, start + copies.shape[1] :],
        )
        return (torch.cat(parts, 1).reshape(args[0].shape), *args[1:])

    def _record(
        self, down: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, layer: int
    ) -> None:
        neurons, added = (
            tensor.detach().reshape(self.batch, -1, tensor.shape[-1])[:, : self.tree_rows]
            for tensor in (args[0], output)
        )
        bias = getattr(down, "bias", None)
        added = added.float() if bias is None else added.float() - bias.detach().float()
        self._ffn[layer] = neurons, added

    def _append(self, _: nn.Module, __: tuple[Any, ...], output: Any, *, layer: int) -> Any:
        """A decoder layer's output gets the rows of its copies."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        neurons, added = self._ffn.pop(layer)
        tree = hidden[:, : self.tree_rows]
        steps = (self.alphas.to(hidden.device) - 1)[:, None, None]
        moved = tree.detach().float()[:, None] + steps * added.to(hidden.device)[:, None]
        weights = output_weights(self.down_projections[layer])
        unedited, copies = self._add(layer, neurons, tree, moved, weights)
        joined = torch.cat((unedited, hidden[:, self.tree_rows :], copies), dim=1)
        return (joined, *rest) if isinstance(output, tuple) else joined

    def _add(
        self,
        layer: int,
        neurons: Tensor,
        unedited: Tensor,
        values: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The unedited tree and its copies with these values [batch, copies, rows, width].

        Both are leaves where gradients need them.
        """
        copies = values.flatten(1, 2).to(unedited.dtype)
        leaves: tuple[Tensor, ...] = ()
        if self.n_copies:
            leaves = (copies.requires_grad_(True),)
        if self.unedited_is_node:
            if not unedited.requires_grad:  # below all copies
                unedited = unedited.detach().requires_grad_(True)
            leaves = (*leaves, unedited)
        self.of_layer[layer] = LayerCopies(neurons, leaves, weights)
        return unedited, copies

    def _rows_before(self, layer: int) -> int:
        n_trees = 1 + self.n_copies * len(range(self.layers.start, layer))
        return n_trees * self.tree_rows


# Weights of down-projections --------------------------------------------------------------------


def all_plain(down_projections: Sequence[nn.Module]) -> bool:
    """Whether the down-projections compute no more than their weights in memory say.

    Adapted, quantised and offloaded layers do not.
    """
    return all(
        type(down) in (nn.Linear, Conv1D) and down.get_parameter("weight").device.type != "meta"
        for down in down_projections
    )


def output_weights(down: nn.Module) -> Tensor:
    """[outputs, neurons] of a plain down-projection."""
    weight = down.get_parameter("weight").detach()
    return weight if type(down) is nn.Linear else weight.T  # Conv1D keeps [neurons, outputs]


# Rows that decoder layers get -------------------------------------------------------------------


def decoder_layers_of(model: nn.Module, down_projections: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules that hold one down-projection each, in order; empty if there is no such list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(down_projections):
            pairs = zip(module, down_projections, strict=True)
            if all(any(part is down for part in layer.modules()) for layer, down in pairs):
                return list(module)
    return []


def _narrowed(value: Any, n_present: int, n_rows: int) -> Any:
    """A layer's argument for the first `n_present` of `n_rows` rows."""
    if isinstance(value, (tuple, list)):
        return type(value)(_narrowed(part, n_present, n_rows) for part in value)
    if not isinstance(value, Tensor) or n_present == n_rows:
        return value
    if value.dim() == 4 and value.shape[-2] == n_rows:  # a mask [batch, 1, rows, columns + rows]
        return value[..., :n_present, : value.shape[-1] - n_rows + n_present]
    if value.dim() >= 2 and value.shape[1] == n_rows:
        return value[:, :n_present]
    if value.dim() == 1 and value.shape[0] == n_rows:
        return value[:n_present]
    return value
