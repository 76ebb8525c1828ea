"""Context managers that edit what enters the FFN down-projections.

Hooks live only inside these context managers: registration itself is guarded, so no hook survives
an exception, however early it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# (layer, neurons entering the down-projection [..., neurons]) -> what enters instead.
NeuronEdit = Callable[[int, Tensor], Tensor]
# Each layer's factors, by layer and by the device and type in which they were needed.
FactorCache = dict[tuple[int, torch.device, torch.dtype], Tensor]


def _edit_first_argument(
    module: nn.Module, args: tuple[Any, ...], *, layer: int, edit: NeuronEdit
) -> tuple[Any, ...]:
    return (edit(layer, args[0]), *args[1:])


@contextmanager
def edit_neurons(
    modules: Sequence[nn.Module], edit: NeuronEdit, layers: Iterable[int] | None = None
) -> Iterator[None]:
    """Within the context, `edit(layer, neurons)` replaces the input of `modules[layer]`.

    Args:
        modules: down-projections, one per layer.
        edit: gets the layer and its neurons [..., neurons], returns a tensor of the same shape.
        layers: the layers to edit; all of them if None.
    """
    handles = []
    try:
        for layer in range(len(modules)) if layers is None else layers:
            hook = partial(_edit_first_argument, layer=layer, edit=edit)
            handles.append(modules[layer].register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def scale_neurons(
    modules: Sequence[nn.Module],
    scale: Tensor,
    columns: Tensor | None = None,
    cache: FactorCache | None = None,
) -> Iterator[None]:
    """Within the context, neurons are multiplied by `scale` before the down-projection.

    Layers whose scales are all one get no hook, so an empty mask leaves the model bit-identical.

    Args:
        modules: down-projections, one per layer.
        scale: [layers, neurons] factors; 0 suppresses, 1 leaves alone, 2 doubles.
        columns: [batch, positions] bool, the positions to edit; all of them if None.
        cache: of the factors on their devices, shared by contexts with the same scale.
    """
    edited_layers = torch.nonzero((scale != 1).any(dim=-1)).flatten().tolist()
    factors: FactorCache = {} if cache is None else cache

    def edit(layer: int, neurons: Tensor) -> Tensor:
        key = (layer, neurons.device, neurons.dtype)
        if key not in factors:  # move each layer's row to its device once, not per call
            factors[key] = scale[layer].to(neurons.device, neurons.dtype)
        scaled = neurons * factors[key]
        if columns is None:
            return scaled
        keep = columns.to(neurons.device).reshape(*neurons.shape[:-1], 1)
        return torch.where(keep, scaled, neurons)

    with edit_neurons(modules, edit, edited_layers):
        yield


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Within the context no parameter needs a gradient; afterwards each is as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
