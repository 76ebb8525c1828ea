"""Copies for layer l need not exist below layer l: rows join where they are first edited.

A copy that differs from the unedited row only in layer l is that row up to layer l. So a pass
starts with one row; at each decoder layer the layer's copies are appended, and what the layer is
handed (mask, position ids, position embeddings) is narrowed to the rows that are there. Each
layer's cache then has its own length, which a plain cache does not mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def decoder_layers(model: nn.Module, down_projections: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules that hold one down-projection each, in order; empty if there is no such list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(down_projections):
            pairs = zip(module, down_projections, strict=True)
            if all(any(part is down for part in layer.modules()) for layer, down in pairs):
                return list(module)
    return []


@contextmanager
def staircase(modules: Sequence[nn.Module], layers: range, n_copies: int) -> Iterator[None]:
    """Within the context, a pass over copies of a token computes each only where it is needed.

    The model must be fed `1 + len(layers) * n_copies` copies. Row 0 stays unedited; rows
    `1 + k * n_copies` and the following join at layer `layers[k]`.

    Args:
        modules: the model's decoder layers.
        layers: the layers that have copies.
        n_copies: copies of each of them.
    """
    n_rows = 1 + len(layers) * n_copies
    handles = []
    try:
        for index, module in enumerate(modules[: layers.stop]):
            joining = index in layers
            present = 1 + (layers.index(index) + 1) * n_copies if joining else 1
            hook = partial(
                join_rows, n_new=n_copies if joining else 0, present=present, n_rows=n_rows,
                is_first=index == 0,
            )  # fmt: skip
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def join_rows(
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    n_new: int,
    present: int,
    n_rows: int,
    is_first: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Append a layer's copies of row 0, and narrow all else to the rows that are present.

    A forward pre-hook of a decoder layer.

    Args:
        n_new: copies to append.
        present: rows that are there then.
        n_rows: rows that the model was fed.
        is_first: whether it is the model's first layer, which gets all of them.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if is_first:
        hidden = hidden[:, :1]
    if n_new:
        # What a copy does says nothing of the unedited row's gradient.
        copies = hidden[:, :1].detach().expand(-1, n_new, -1)
        hidden = torch.cat((hidden, copies), dim=1)
    rest = tuple(_narrowed(each, present, n_rows) for each in args[1:])
    named = {name: _narrowed(each, present, n_rows) for name, each in kwargs.items()}
    if args:
        return (hidden, *rest), named
    return (), {**named, "hidden_states": hidden}


def _narrowed(value: Any, present: int, n_rows: int) -> Any:
    """A layer's argument for the first `present` of `n_rows` rows."""
    if isinstance(value, (tuple, list)):
        return type(value)(_narrowed(each, present, n_rows) for each in value)
    if not isinstance(value, Tensor) or present == n_rows:
        return value
    if value.dim() == 4 and value.shape[-2] == n_rows:  # a mask [batch, 1, rows, columns + rows]
        return value[..., :present, : value.shape[-1] - n_rows + present]
    if value.dim() >= 2 and value.shape[1] == n_rows:
        return value[:, :present]
    if value.dim() == 1 and value.shape[0] == n_rows:
        return value[:present]
    return value
