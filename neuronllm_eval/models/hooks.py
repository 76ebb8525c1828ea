"""Context managers that change a model for a while: neurons, gradients, the type of weights.

Hooks live only inside these context managers: registration itself is guarded, so no hook survives
an exception, however early it comes.

Neurons may be identified in one floating-point type and evaluated in another: masks only say which
neurons are scaled. So weights are cast for attribution alone (`computing_in`), and each is as it
was afterwards, bit by bit. Buffers stay as they are, as they do where a model is loaded in that
type (rotary frequencies are float32 in any model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuronllm_eval.errors import ModelError, UsageError

AUTO = "auto"
ATTRIBUTION_DTYPES = (AUTO, "float32", "bfloat16", "float16")
# (layer, neurons entering the down-projection [..., neurons]) -> what enters instead.
NeuronEdit = Callable[[int, Tensor], Tensor]
# Each layer's factors, by layer and by the device and type in which they were needed.
FactorCache = dict[tuple[int, torch.device, torch.dtype], Tensor]


@contextmanager
def own_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context a module computes `forward`; its hooks still run."""
    before = vars(module).get("forward")  # accelerate puts its own there
    try:
        vars(module)["forward"] = forward
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


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

    def hook(_: nn.Module, args: tuple[Any, ...], *, layer: int) -> tuple[Any, ...]:
        return (edit(layer, args[0]), *args[1:])

    handles = []
    try:
        for layer in range(len(modules)) if layers is None else layers:
            handles.append(modules[layer].register_forward_pre_hook(partial(hook, layer=layer)))
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


# Another floating-point type: `--attribution_dtype` -----------------------------------------------


@contextmanager
def computing_in(model: nn.Module, name: str) -> Iterator[None]:
    """Within the context, a model's weights are of the type `name`; afterwards they are as before.

    Weights that become wider need no copy, since casting them back gives the same bits; of others
    the original is held beside the cast one.

    Args:
        model: all of its weights are in memory and of a floating-point type.
        name: one of `ATTRIBUTION_DTYPES`; `auto` changes nothing.

    Raises:
        UsageError: weights that are quantised or offloaded.
        ModelError: no memory for the cast weights.
    """
    if name == AUTO:
        yield
        return
    dtype: torch.dtype = getattr(torch, name)
    changed = [parameter for parameter in model.parameters() if parameter.dtype != dtype]
    _require_castable(model, changed, name)
    before = [
        (parameter.dtype, None if _is_lossless(parameter.dtype, dtype) else parameter.data)
        for parameter in changed
    ]
    try:
        _cast(changed, dtype)
        yield
    finally:
        for parameter, (dtype_before, original) in zip(changed, before, strict=True):
            parameter.data = parameter.data.to(dtype_before) if original is None else original


def _cast(parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    try:
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"out of memory while casting the weights to {dtype}: {error}",
            expected="room for the weights in the type of --attribution_dtype",
            remedy="leave --attribution_dtype out, or use parallelize=True in --model_args",
        ) from error


def _is_lossless(dtype: torch.dtype, target: torch.dtype) -> bool:
    """Whether casting to `target` keeps every bit."""
    return torch.promote_types(dtype, target) == target


def _require_castable(model: nn.Module, parameters: list[nn.Parameter], name: str) -> None:
    for parameter in parameters:
        if getattr(model, "hf_quantizer", None) is not None:
            found = "a quantised model"
        elif not parameter.is_floating_point() or parameter.element_size() < 2:
            found = f"weights of type {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter.is_meta:
            found = "weights that are offloaded from the device"
        else:
            continue
        raise UsageError(
            f"--attribution_dtype {name} with {found}",
            expected="weights of a floating-point type of 16 bits or more, all of them loaded",
            remedy="leave --attribution_dtype out, or load the model without quantisation and "
            "offloading",
        )
