"""Let a model compute in another floating-point type for a while: `--attribution_dtype`.

Neurons may be identified in one type and evaluated in another: masks only say which neurons are
scaled. So the weights are cast for attribution alone, and each is as it was afterwards, bit by bit.
Buffers stay as they are, as they do where a model is loaded in that type (rotary frequencies are
float32 in any model).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from neuronllm_eval.errors import ModelError, UsageError

AUTO = "auto"
ATTRIBUTION_DTYPES = (AUTO, "float32", "bfloat16", "float16")


def dtype_name(model: nn.Module) -> str:
    """The floating-point type of a model's weights, such as `bfloat16`."""
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return str(next(types)).removeprefix("torch.")


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
