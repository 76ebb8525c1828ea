"""What a model's norms do to a direction in the residual stream, found by running them.

Neither the names of modules nor their classes show where a norm is and what it does. So:

1. A pass over a few tokens records the input and output of every module without children.
2. The final norm is the module whose output is the LM head's input; the norm of an FFN's output,
   which few models have, is the one whose input is the down-projection's output.
3. A norm is applied to a few vectors, and must be `gain * centred(x) / size(x) + bias`, with or
   without centring: RMSNorm, LayerNorm and their like.

The size depends on everything else in the residual stream, and is left out, as is usual in a logit
lens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.models.ffn_layers import input_device

# Relative to the largest number: above rounding in 16 bits, below what no norm stays within.
_TOLERANCE = 0.03


@dataclass(frozen=True)
class Step:
    """One call of a module, on tensors of `[rows, width]`, float32 on the CPU."""

    name: str
    module: nn.Module
    inputs: Tensor
    outputs: Tensor

    @property
    def changes(self) -> bool:
        """Whether output and input differ; those of dropout do not outside of training."""
        return not _same(self.inputs, self.outputs)


@dataclass(frozen=True)
class Norm:
    """What a norm does to a direction, up to a factor.

    Attributes:
        name: of the module.
        gain: [width] float32.
        centres: whether the mean is subtracted first, as LayerNorm does.
    """

    name: str
    gain: Tensor
    centres: bool

    def applied(self, directions: Tensor) -> Tensor:
        """The directions [..., width] after the norm."""
        if self.centres:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions * self.gain


def trace(model: nn.Module, tokens: Sequence[int], also: Collection[nn.Module] = ()) -> list[Step]:
    """The calls of all modules without children in a pass over some tokens, in their order.

    Args:
        model: a Hugging Face causal LM in eval mode.
        tokens: a few; all activations of the pass are kept.
        also: modules to record even if they have children.
    """
    with torch.no_grad(), _recorded(model, also) as steps:
        model(input_ids=right_pad([tokens], input_device(model)), use_cache=False)
    return steps


@contextmanager
def _recorded(model: nn.Module, also: Collection[nn.Module]) -> Iterator[list[Step]]:
    """Within the context, calls of modules without children, or in `also`, are appended."""
    steps: list[Step] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any, *, name: str) -> None:
        if args and _is_vectors(args[0]) and _is_vectors(output):
            steps.append(Step(name, module, _rows(args[0]), _rows(output)))

    handles = []
    try:
        for name, module in model.named_modules():
            if not any(module.children()) or module in also:
                handles.append(module.register_forward_hook(partial(record, name=name)))
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _is_vectors(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2


def _rows(value: Tensor) -> Tensor:
    return value.detach().reshape(-1, value.shape[-1]).float().cpu()


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def step_before(steps: Sequence[Step], module: nn.Module) -> Step | None:
    """The call whose output is the input of `module`; None if there is none."""
    inputs = next((step.inputs for step in steps if step.module is module), None)
    if inputs is None:
        return None
    return next((step for step in steps if step.changes and _same(step.outputs, inputs)), None)


def step_behind(steps: Sequence[Step], module: nn.Module) -> Step | None:
    """The call whose input is the output of `module`; None if there is none."""
    outputs = next((step.outputs for step in steps if step.module is module), None)
    if outputs is None:
        return None
    return next((step for step in steps if step.changes and _same(step.inputs, outputs)), None)


def read_norm(step: Step) -> Norm | None:
    """What a module does to a direction; None if it is not a norm."""
    width = step.inputs.shape[-1]
    alternating = torch.ones(width)
    alternating[1::2] = -1
    # Of a size other than 1, which a norm divides by.
    other = 5 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    probes = torch.stack((torch.zeros(width), torch.ones(width), alternating, other))
    answers = _answers(step.module, probes)
    if answers is None or answers.shape != probes.shape or not torch.isfinite(answers).all():
        return None
    level, by_alternating, by_other = answers[1:] - answers[0]
    centres = bool(level.abs().max() <= _TOLERANCE * by_alternating.abs().max())
    gain = by_alternating / _normed(alternating, centres)
    gap = (gain * _normed(other, centres) - by_other).abs().max()
    if gap > _TOLERANCE * by_other.abs().max():
        return None
    return Norm(step.name, gain, centres)


@torch.no_grad()
def _answers(module: nn.Module, probes: Tensor) -> Tensor | None:
    """A module's output for some rows, float32 on the CPU; None if it does not accept them."""
    like = next(module.parameters(), torch.empty(0))
    try:
        answers = module(probes[None].to(like.device, like.dtype))
    except Exception:  # noqa: BLE001 - whatever a module raises that needs other inputs
        return None
    return _rows(answers) if _is_vectors(answers) else None


def _normed(vector: Tensor, centres: bool) -> Tensor:
    vector = vector - vector.mean() if centres else vector
    return vector / vector.square().mean().sqrt()
