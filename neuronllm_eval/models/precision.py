"""Let a model compute in another floating-point type for a while: `--attribution_dtype`.

Neurons may be chosen in one type and judged in another: masks only say which neurons are scaled.
So the weights are cast for attribution alone, and every one is as it was afterwards, bit by bit.
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
    """The floating-point type that a model's weights have, such as `bfloat16`."""
    types = (each.dtype for each in model.parameters() if each.is_floating_point())
    return str(next(types)).removeprefix("torch.")


def require_dtype(name: str) -> None:
    """Raise UsageError unless `name` is one of `ATTRIBUTION_DTYPES`."""
    if name not in ATTRIBUTION_DTYPES:
        raise UsageError(
            f"attribution_dtype is {name!r}",
            expected=", ".join(ATTRIBUTION_DTYPES),
            remedy="check --attribution_dtype",
        )


@contextmanager
def computing_in(model: nn.Module, name: str) -> Iterator[None]:
    """Within the context, a model's weights are of the type `name`; afterwards they are as before.

    Weights that become wider need no copy, since casting them back gives the same bits; others
    are kept beside the cast ones.

    Args:
        model: all of its weights are at hand and of a floating-point type.
        name: one of `ATTRIBUTION_DTYPES`; `auto` changes nothing.

    Raises:
        UsageError: an unknown type, or weights that are quantised or offloaded.
        ModelError: no memory for the cast weights.
    """
    require_dtype(name)
    if name == AUTO:
        yield
        return
    dtype: torch.dtype = getattr(torch, name)
    changed = [each for each in model.parameters() if each.dtype != dtype]
    _require_castable(model, changed, name)
    before = [(each, each.dtype, _original(each, dtype)) for each in changed]
    try:
        _cast(changed, dtype)
        yield
    finally:
        for parameter, own, original in before:
            parameter.data = parameter.data.to(own) if original is None else original


def _original(parameter: nn.Parameter, dtype: torch.dtype) -> torch.Tensor | None:
    """What casting to `dtype` would lose; None if nothing."""
    return None if torch.promote_types(parameter.dtype, dtype) == dtype else parameter.data


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


def _require_castable(model: nn.Module, parameters: list[nn.Parameter], name: str) -> None:
    for parameter in parameters:
        if getattr(model, "hf_quantizer", None) is not None:
            found = "a quantised model"
        elif not parameter.is_floating_point() or parameter.element_size() < 2:
            found = f"weights of type {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter.device.type == "meta":
            found = "weights that are offloaded from the device"
        else:
            continue
        raise UsageError(
            f"--attribution_dtype {name} with {found}",
            expected="weights of a floating-point type of 16 bits or more, all of them loaded",
            remedy="leave --attribution_dtype out, or load the model without quantisation and "
            "offloading",
        )
