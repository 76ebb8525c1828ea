"""Copies of trees along alpha * h_l, each computed only from where it differs from the others.

In a pass over several layers' copies, the first tree (`option_tree`) is unedited, and every layer
adds a tree for each of its nodes but those at alpha = 1, which are the unedited tree whatever the
layer. A copy that differs from that tree in layer l alone is equal to it up to layer l, so it need
not exist below. Two ways to join:

1. At the layer: layer l's copies are appended where layer l begins, and edited where the neurons
   enter the down-projection.
2. Late: they are appended where layer l ends. That is exact where a layer adds its FFN's output to
   the residual stream and does no more with it: alpha * h_l in place of h_l changes the layer's
   output by (alpha - 1) * W h_l in every row, with the weights W of the down-projection, and the
   gradient of the neurons is W^T times that of the layer's output, whatever alpha. So copies run
   through nothing of the layer, and one product with the average over the nodes serves all.

A pass has the unedited tree among its rows, whose gradients are those of the node at alpha = 1.
Where trees have several rows, that tree has a pass of its own instead, and the passes over copies
start from what it recorded (`Unedited`). They leave out the layers below, and have one row beside
the copies, which stands in for the tree there. So they may be small, and copies lose little time in
attention to rows that are masked from them.

Layers that normalise or scale the FFN's output are another matter. Nothing here knows which do:
`build.build_engine` compares results on the run's own prompts.

Either way each decoder layer gets mask, position ids and position embeddings narrowed to the rows
that are present. Each layer's cache then has its own length, which a plain cache does not mind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from neuronllm_eval.models.hooks import own_forward


@dataclass(frozen=True)
class LayerCopies:
    """A layer's part in a pass, and what gradients say of its neurons.

    Attributes:
        neurons: [batch, rows, neurons] of the unedited tree.
        leaves: what gradients are taken of: the copies [batch, copies * rows, width] if there are
            any, and the unedited tree [batch, rows, width] where it is a node.
        n_copies: how many copies there are.
        direction: [batch, rows, width] what the leaves move by as alpha grows: the neurons, or W h.
        weights: [width, neurons] of the down-projection if the leaves are the layer's output; None
            if they are the neurons themselves.
    """

    neurons: Tensor
    leaves: tuple[Tensor, ...]
    n_copies: int
    direction: Tensor
    weights: Tensor | None = None

    def attribution(self, gradients: Sequence[Tensor], node_weights: Tensor) -> Tensor:
        """[integrands, batch, neurons] float32: h * sum over nodes of weight * dF/dh(alpha h).

        The products are summed over the rows of a tree, all of which alpha scales together.

        Args:
            gradients: of the leaves.
            node_weights: [integrands, batch, nodes], of the layer's copies first.
        """
        of_leaves = node_weights[..., : self.n_copies]
        if self.unedited_is_leaf:
            unedited = node_weights[..., self.n_copies :].sum(-1, keepdim=True)
            of_leaves = torch.cat((of_leaves, unedited), dim=2)
        if not self.leaves:
            return torch.zeros(*node_weights.shape[:2], self.neurons.shape[-1])
        at_nodes = self._at_nodes(gradients)
        mean = torch.einsum("sbk,bkrw->sbrw", of_leaves.to(at_nodes.device), at_nodes)
        if self.weights is not None:
            mean = (mean.to(self.weights) @ self.weights).float()
        return (self.neurons.float() * mean.to(self.neurons.device)).sum(2)

    def slopes(self, gradients: Sequence[Tensor], n_nodes: int) -> Tensor:
        """[batch, nodes] float32: dF(alpha h)/dalpha; NaN at nodes without a leaf."""
        slopes = self.direction.new_full((len(self.neurons), n_nodes), math.nan, dtype=torch.float)
        if self.leaves:
            at_nodes = self._at_nodes(gradients)
            direction = self.direction.float().to(at_nodes.device)
            found = torch.einsum("brw,bkrw->bk", direction, at_nodes).to(slopes.device)
            slopes[:, : self.n_copies] = found[:, : self.n_copies]
            if self.unedited_is_leaf:
                slopes[:, self.n_copies :] = found[:, self.n_copies :]
        return slopes

    @property
    def unedited_is_leaf(self) -> bool:
        """Whether gradients are taken of the unedited tree too."""
        return len(self.leaves) > int(self.n_copies > 0)

    def _at_nodes(self, gradients: Sequence[Tensor]) -> Tensor:
        """[batch, nodes, rows, width] of the leaves, that of the unedited tree last."""
        joined = torch.cat(list(gradients), dim=1).float()
        return joined.unflatten(1, (self.n_copies + int(self.unedited_is_leaf), -1))


class Unedited(NamedTuple):
    """A layer of the unedited tree.

    Attributes:
        neurons: [batch, rows, neurons].
        hidden: [batch, rows, width] what enters the layer, or leaves it if copies join late; None
            if they do not join.
        added: [batch, rows, width] float32, W h if copies join late.
        in_tuple: whether the layer returns its output in a tuple.
    """

    neurons: Tensor
    hidden: Tensor | None = None
    added: Tensor | None = None
    in_tuple: bool = False


def copies_per_layer(nodes: Tensor) -> list[int]:
    """How many copies each layer has: nodes at alpha = 1 need none.

    Args:
        nodes: [layers, nodes] values of alpha.
    """
    return [int(count) for count in (nodes < 1).sum(1)]


class ScaledCopies:
    """The copies that some layers have in one pass, and the hooks that make them.

    Args:
        down_projections: of all layers; `all_plain` if copies join late.
        decoder_layers: the modules that hold them, at which copies join; empty if the copies are to
            be there from the first layer on.
        batch: prompts, each of which has these copies.
        layers: the layers that have copies.
        nodes: [layers, nodes] values of alpha of these layers, ascending.
        tree_rows: rows of a tree, and so of a copy.
        late: whether copies join where their layer ends.
        unedited: by layer what a pass over the unedited tree recorded; the pass has that tree's
            first row alone then. None if the pass is to have the whole of it.

    Attributes:
        n_copies: of all these layers.
        n_leading: rows of each prompt before the copies: the unedited tree or its first row.
        n_rows: rows of each prompt in the whole pass.
        unedited: by layer the unedited tree, which a pass that has it fills in.
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
        unedited: dict[int, Unedited] | None = None,
    ) -> None:
        self.down_projections, self.decoder_layers = down_projections, decoder_layers
        self.batch, self.layers, self.late, self.tree_rows = batch, layers, late, tree_rows
        counts = copies_per_layer(nodes)
        self.alphas = {
            layer: row[:count] for layer, row, count in zip(layers, nodes, counts, strict=True)
        }
        self.starts = [0, *accumulate(counts)]  # of each layer's copies, among all
        self.n_copies = self.starts[-1]
        self.records = unedited is None
        self.is_copy = nodes < 1
        self.unedited_is_node = self.records and not bool(self.is_copy.all())
        self.unedited: dict[int, Unedited] = {} if unedited is None else unedited
        self.n_leading = tree_rows if self.records else 1
        self.n_rows = self._rows_before(layers.stop)
        self.of_layer: dict[int, LayerCopies] = {}
        # What the pass has computed of a layer's unedited tree so far.
        self._entering: Tensor | None = None
        self._ffn: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Within the context, copies join a pass over `n_rows` rows of each prompt."""
        with ExitStack() as stack:
            hook = partial(_hook, stack)
            for layer, module in enumerate(self.decoder_layers[: self.layers.stop]):
                narrow = partial(self._narrow, layer=layer)
                hook(module.register_forward_pre_hook(narrow, with_kwargs=True))
                if not self.records and layer < self.layers.start + self.late:
                    stack.enter_context(left_out(module, self.unedited[layer].in_tuple))
            for layer in self.layers:
                down = self.down_projections[layer]
                if self.late:
                    if self.records:
                        hook(down.register_forward_hook(self._record))
                    append = partial(self._append, layer=layer)
                    hook(self.decoder_layers[layer].register_forward_hook(append))
                else:
                    hook(down.register_forward_pre_hook(partial(self._edit, layer=layer)))
                    if self.decoder_layers and not self.n_copies:
                        note = partial(self._note, layer=layer)
                        hook(self.decoder_layers[layer].register_forward_hook(note))
            yield

    def at_nodes(self, values: Tensor) -> Tensor:
        """[batch, layers, nodes] the values of trees, where every layer has all its nodes.

        Nodes at alpha = 1 have the unedited tree's; NaN in a pass without it.

        Args:
            values: [batch, trees], of the unedited tree first if the pass has it.
        """
        n_leading = int(self.records)
        at_one = values[:, :1] if self.records else values.new_full((len(values), 1), math.nan)
        at_nodes = at_one[:, :, None].repeat(1, *self.is_copy.shape)
        at_nodes[:, self.is_copy.to(values.device)] = values[:, n_leading:]
        return at_nodes

    # Hooks ---------------------------------------------------------------------------------------

    def _narrow(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, layer: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A decoder layer gets the rows alone that exist where it begins, its own ones included.

        The first layer gets all rows that the model was fed, the others what the layer before them
        returned.
        """
        hidden = args[0] if args else kwargs["hidden_states"]
        n_present = self._rows_before(layer)
        if layer == 0:
            hidden = hidden[:, : self.n_leading]
        if not self.late and layer in self.layers:
            if self.records:
                # A copy's gradient is not the unedited tree's.
                self._entering = hidden[:, : self.tree_rows].detach()
            tree = self._entering if self.records else self.unedited[layer].hidden
            assert tree is not None
            copies = tree.to(hidden).repeat(1, len(self.alphas[layer]), 1)
            hidden = torch.cat((hidden, copies), dim=1)
            n_present += copies.shape[1]
        rest = tuple(_narrowed(value, n_present, self.n_rows) for value in args[1:])
        named = {name: _narrowed(value, n_present, self.n_rows) for name, value in kwargs.items()}
        return ((hidden, *rest), named) if args else ((), {**named, "hidden_states": hidden})

    def _edit(self, _: nn.Module, args: tuple[Any, ...], *, layer: int) -> tuple[Any, ...]:
        """A down-projection gets alpha * h_l in its layer's copies."""
        grid = args[0].reshape(self.batch, -1, args[0].shape[-1])
        if self.records:
            neurons = grid[:, : self.tree_rows].detach()
            self.unedited[layer] = Unedited(neurons, self._entering)
        neurons = self.unedited[layer].neurons.to(grid)
        # The nodes keep their digits in 16 bits too.
        scaled = self.alphas[layer].to(grid.device)[:, None, None] * neurons.float()[:, None]
        leading, copies = self._add(layer, grid[:, : self.n_leading], scaled, neurons)
        # Where copies do not join, those of later layers are there already.
        start = self._rows_before(layer)
        parts = (
            leading,
            grid[:, self.n_leading : start],
            copies,
            grid[:, start + copies.shape[1] :],
        )
        return (torch.cat(parts, 1).reshape(args[0].shape), *args[1:])

    def _record(self, down: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        neurons, added = (
            tensor.detach().reshape(self.batch, -1, tensor.shape[-1])[:, : self.tree_rows]
            for tensor in (args[0], output)
        )
        bias = getattr(down, "bias", None)
        added = added.float() if bias is None else added.float() - bias.detach().float()
        self._ffn = neurons, added

    def _append(self, _: nn.Module, __: tuple[Any, ...], output: Any, *, layer: int) -> Any:
        """A decoder layer's output gets the rows of its copies."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if self.records:
            assert self._ffn is not None
            tree = hidden[:, : self.tree_rows].detach()
            in_tuple = isinstance(output, tuple)
            self.unedited[layer] = Unedited(self._ffn[0], tree, self._ffn[1], in_tuple)
        base = self.unedited[layer]
        assert base.hidden is not None
        assert base.added is not None
        steps = (self.alphas[layer].to(hidden.device) - 1)[:, None, None]
        added = steps * base.added.to(hidden.device)[:, None]
        moved = base.hidden.to(hidden.device).float()[:, None] + added
        if self.n_copies and self.records:  # no other pass needs these, and views keep all rows
            self.unedited[layer] = Unedited(base.neurons)
        leading, copies = self._add(layer, hidden[:, : self.n_leading], moved, base.added)
        joined = torch.cat((leading, hidden[:, self.n_leading :], copies), dim=1)
        return (joined, *rest) if isinstance(output, tuple) else joined

    def _note(self, _: nn.Module, __: tuple[Any, ...], output: Any, *, layer: int) -> None:
        in_tuple = isinstance(output, tuple)
        self.unedited[layer] = self.unedited[layer]._replace(in_tuple=in_tuple)

    def _add(
        self, layer: int, leading: Tensor, values: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The leading rows, and copies with these values [batch, copies, rows, width].

        They move by `direction` [batch, rows, width] as alpha grows. Both are leaves, where
        gradients need them.
        """
        copies = values.flatten(1, 2).to(leading.dtype)
        leaves: tuple[Tensor, ...] = ()
        n_copies = len(self.alphas[layer])
        if n_copies:
            leaves = (copies.requires_grad_(True),)
        if self.unedited_is_node:
            if not leading.requires_grad:  # below all copies
                leading = leading.detach().requires_grad_(True)
            leaves = (*leaves, leading)
        weights = output_weights(self.down_projections[layer]) if self.late else None
        self.of_layer[layer] = LayerCopies(
            self.unedited[layer].neurons, leaves, n_copies, direction, weights
        )
        return leading, copies

    def _rows_before(self, layer: int) -> int:
        n_copies = self.starts[len(range(self.layers.start, layer))]
        return self.n_leading + n_copies * self.tree_rows


def _hook(stack: ExitStack, handle: RemovableHandle) -> None:
    stack.callback(handle.remove)


@contextmanager
def left_out(layer: nn.Module, in_tuple: bool) -> Iterator[None]:
    """Within the context a decoder layer returns what it is given."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if in_tuple else hidden

    with own_forward(layer, forward):
        yield


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
