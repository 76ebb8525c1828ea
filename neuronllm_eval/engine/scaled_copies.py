"""Copies of a token along alpha * h_l, each computed only from where it differs from the others.

A pass over several layers' copies has `PathRows`: row 0 is unedited, and every layer adds a row for
each node but a last one at alpha = 1, which is row 0 itself whatever the layer. A copy that differs
from row 0 in layer l alone is row 0 up to layer l, so it need not exist below. Two ways to join:

1. `join_at_layer` appends layer l's copies where layer l begins and edits them where the neurons
   enter the down-projection.
2. `join_at_output` appends them where layer l ends. That is exact where a layer adds its FFN's
   output to the residual stream and does no more with it: alpha * h_l in place of h_l changes the
   layer's output by (alpha - 1) * W h_l, with the weights W of the down-projection, and the
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

from neuronllm_eval.models.hooks import edit_neurons


def copies_per_layer(nodes: Tensor) -> int:
    """How many copies a layer has: a last node at alpha = 1 needs none, unless it is the only."""
    return len(nodes) - int(len(nodes) > 1 and float(nodes[-1]) == 1.0)


@dataclass(frozen=True)
class PathRows:
    """The rows of a pass: one that is unedited, then the copies of each layer in turn.

    Attributes:
        batch: prompts, each of which has these rows.
        layers: the layers that have copies.
        nodes: [nodes] values of alpha, ascending.
    """

    batch: int
    layers: range
    nodes: Tensor

    @property
    def n_copies(self) -> int:
        """Copies of each layer."""
        return copies_per_layer(self.nodes)

    @property
    def n_rows(self) -> int:
        """Rows of each prompt in the whole pass."""
        return self.before(self.layers.stop)

    def before(self, layer: int) -> int:
        """Rows of each prompt before the copies of `layer`."""
        return 1 + self.n_copies * len(range(self.layers.start, layer))

    def leaf(self, unedited: Tensor) -> Tensor:
        """The unedited row as gradients need it: a leaf in the first layer where it is a node."""
        if self.n_copies == len(self.nodes) or unedited.requires_grad:
            return unedited
        return unedited.detach().requires_grad_(True)


@dataclass(frozen=True)
class LayerCopies:
    """A layer's part in a pass, and what gradients say of its neurons.

    Attributes:
        neurons: [batch, neurons] of the unedited row.
        leaves: what gradients are taken of: the copies [batch, copies, width], and the unedited
            row [batch, 1, width] where it is a node.
        weights: [width, neurons] of the down-projection if the leaves are the layer's output; None
            if they are the neurons themselves.
    """

    neurons: Tensor
    leaves: tuple[Tensor, ...]
    weights: Tensor | None = None

    def attribution(self, gradients: Sequence[Tensor], node_weights: Tensor) -> Tensor:
        """[integrands, batch, neurons] float32: h * sum over nodes of weight * dF/dh(alpha h).

        Args:
            gradients: of the leaves.
            node_weights: [integrands, batch, nodes].
        """
        at_nodes = torch.cat(list(gradients), dim=1).float()
        mean = torch.einsum("sbk,bkw->sbw", node_weights.to(at_nodes.device), at_nodes)
        if self.weights is not None:
            mean = (mean.to(self.weights) @ self.weights).float()
        return self.neurons.float() * mean.to(self.neurons.device)


@contextmanager
def join_at_layer(
    down_projections: Sequence[nn.Module], decoder_layers: Sequence[nn.Module], rows: PathRows
) -> Iterator[dict[int, LayerCopies]]:
    """Within the context, a pass over `rows.n_rows` copies of a token edits each layer's copies.

    Args:
        down_projections: of all layers.
        decoder_layers: the modules that hold them, at which copies join; empty if the copies are to
            be there from the first layer on.
        rows: of the pass.

    Yields:
        by layer its copies, which the pass fills in.
    """
    layer_copies: dict[int, LayerCopies] = {}

    def edit(layer: int, neurons: Tensor) -> Tensor:
        grid = neurons.reshape(rows.batch, -1, neurons.shape[-1])
        start, stop = rows.before(layer), rows.before(layer + 1)
        unedited = rows.leaf(grid[:, :1])
        base = unedited.detach()
        alphas = rows.nodes[: rows.n_copies].to(base.device)[None, :, None]
        copies = (alphas * base.float()).to(base.dtype)  # nodes keep their digits in 16 bits too
        copies.requires_grad_(True)
        layer_copies[layer] = LayerCopies(base[:, 0], _leaves(copies, unedited, rows))
        # Where copies do not join, those of later layers are there already.
        parts = (unedited, grid[:, 1:start], copies, grid[:, stop:])
        return torch.cat(parts, 1).reshape(neurons.shape)

    with (
        edit_neurons(down_projections, edit, rows.layers),
        narrowed_rows(decoder_layers, rows, append=True),
    ):
        yield layer_copies


@contextmanager
def join_at_output(
    down_projections: Sequence[nn.Module], decoder_layers: Sequence[nn.Module], rows: PathRows
) -> Iterator[dict[int, LayerCopies]]:
    """As `join_at_layer`, with copies that are made of the decoder layers' outputs.

    Args:
        down_projections: of all layers, which are `all_plain`.
        decoder_layers: the modules that hold them.
        rows: of the pass.
    """
    layer_copies: dict[int, LayerCopies] = {}
    ffn: dict[int, tuple[Tensor, Tensor]] = {}  # row 0's neurons [batch, neurons], and W h

    def record(down: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, layer: int) -> None:
        neurons, added = (
            tensor.detach().reshape(rows.batch, -1, tensor.shape[-1])
            for tensor in (args[0], output)
        )
        added = added[:, :1].float()
        bias = getattr(down, "bias", None)
        ffn[layer] = neurons[:, 0], added if bias is None else added - bias.detach().float()

    def append(_: nn.Module, __: tuple[Any, ...], output: Any, *, layer: int) -> Any:
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        neurons, added = ffn.pop(layer)
        unedited = rows.leaf(hidden[:, :1])
        steps = (rows.nodes[: rows.n_copies].to(hidden.device) - 1)[None, :, None]
        moved = unedited.detach().float() + steps * added.to(hidden.device)
        copies = moved.to(hidden.dtype).requires_grad_(True)
        layer_copies[layer] = LayerCopies(
            neurons, _leaves(copies, unedited, rows), output_weights(down_projections[layer])
        )
        joined = torch.cat((unedited, hidden[:, 1:], copies), dim=1)
        return (joined, *rest) if isinstance(output, tuple) else joined

    handles = []
    with narrowed_rows(decoder_layers, rows, append=False):
        try:
            for layer in rows.layers:
                down, decoder_layer = down_projections[layer], decoder_layers[layer]
                handles.append(down.register_forward_hook(partial(record, layer=layer)))
                handles.append(decoder_layer.register_forward_hook(partial(append, layer=layer)))
            yield layer_copies
        finally:
            for handle in handles:
                handle.remove()


def _leaves(copies: Tensor, unedited: Tensor, rows: PathRows) -> tuple[Tensor, ...]:
    """What gradients are taken of, one row for each node."""
    return (copies,) if rows.n_copies == len(rows.nodes) else (copies, unedited)


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


@contextmanager
def narrowed_rows(
    decoder_layers: Sequence[nn.Module], rows: PathRows, *, append: bool
) -> Iterator[None]:
    """Within the context, decoder layers get the rows alone that exist where they begin.

    Args:
        decoder_layers: of the model.
        rows: that the model is fed.
        append: whether a layer's copies begin with the layer.
    """
    handles = []
    try:
        for layer, module in enumerate(decoder_layers[: rows.layers.stop]):
            n_new = rows.n_copies if append and layer in rows.layers else 0
            hook = partial(
                _narrow_inputs,
                n_new=n_new,
                n_present=rows.before(layer) + n_new,
                n_rows=rows.n_rows,
                is_first=layer == 0,
            )
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _narrow_inputs(
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    n_new: int,
    n_present: int,
    n_rows: int,
    is_first: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A decoder layer's pre-hook: append `n_new` copies of row 0, narrow all else to `n_present`.

    The first layer gets all `n_rows` rows that the model was fed, the others what the layer before
    them returned.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if is_first:
        hidden = hidden[:, :1]
    if n_new:
        # A copy's gradient is not the unedited row's.
        copies = hidden[:, :1].detach().expand(-1, n_new, -1)
        hidden = torch.cat((hidden, copies), dim=1)
    rest = tuple(_narrowed(value, n_present, n_rows) for value in args[1:])
    named = {name: _narrowed(value, n_present, n_rows) for name, value in kwargs.items()}
    return ((hidden, *rest), named) if args else ((), {**named, "hidden_states": hidden})


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
