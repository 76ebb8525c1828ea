"""What a model's norms do to a direction in the residual stream, found by trying them out.

Neither the names of modules nor their classes say where a norm is and what it does. So:

1. A pass over a few tokens notes what goes into and comes out of every module without children.
2. The final norm is the module whose output is what the LM head is given; the norm of an FFN's
   output, which few models have, is the one that is given what the down-projection gives.
3. A norm is asked what it makes of a few vectors, and has to be `gain * centred(x) / size(x) +
   bias`, with or without centring: RMSNorm, LayerNorm and their like.

The size depends on everything else in the residual stream, and is left out: the usual reading of
the logit lens.
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

# Of the largest number: what 16 bits may change, and nothing that is no norm stays below.
_TOLERANCE = 0.03


@dataclass(frozen=True)
class Step:
    """One call of a module, on tensors of `[rows, width]`, float32 on the CPU."""

    name: str
    module: nn.Module
    given: Tensor
    gave: Tensor

    @property
    def changes(self) -> bool:
        """Whether it does anything: dropout, for one, does not outside of training."""
        return not _same(self.given, self.gave)


@dataclass(frozen=True)
class Norm:
    """What a norm does to a direction, but for a factor.

    Attributes:
        name: of the module.
        gain: [width] float32.
        centres: whether the mean is taken off first, as LayerNorm does.
    """

    name: str
    gain: Tensor
    centres: bool

    def applied(self, directions: Tensor) -> Tensor:
        """The directions [..., width] behind the norm."""
        if self.centres:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions * self.gain


def trace(model: nn.Module, tokens: Sequence[int], also: Collection[nn.Module] = ()) -> list[Step]:
    """The calls of all modules without children in a pass over some tokens, in their order.

    Args:
        model: a Hugging Face causal LM in eval mode.
        tokens: a few; all activations of the pass are kept.
        also: modules to note whether they have children or not.
    """
    with torch.no_grad(), _noted(model, also) as steps:
        model(input_ids=right_pad([tokens], input_device(model)), use_cache=False)
    return steps


@contextmanager
def _noted(model: nn.Module, also: Collection[nn.Module]) -> Iterator[list[Step]]:
    """Within the context, calls of modules without children, or in `also`, join the list."""
    steps: list[Step] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any, *, name: str) -> None:
        if args and _is_vectors(args[0]) and _is_vectors(output):
            steps.append(Step(name, module, _rows(args[0]), _rows(output)))

    handles = []
    try:
        for name, module in model.named_modules():
            if not any(module.children()) or module in also:
                handles.append(module.register_forward_hook(partial(note, name=name)))
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
    """The call whose output `module` is given; None if no module gives it."""
    given = next((step.given for step in steps if step.module is module), None)
    if given is None:
        return None
    return next((step for step in steps if step.changes and _same(step.gave, given)), None)


def step_behind(steps: Sequence[Step], module: nn.Module) -> Step | None:
    """The call that is given what `module` gives; None if no module is."""
    gave = next((step.gave for step in steps if step.module is module), None)
    if gave is None:
        return None
    return next((step for step in steps if step.changes and _same(step.given, gave)), None)


def read_norm(step: Step) -> Norm | None:
    """What a module does to a direction; None if it is no norm."""
    width = step.given.shape[-1]
    signs = torch.ones(width)
    signs[1::2] = -1
    # Of another size than 1, which a norm takes away.
    other = 5 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    asked = torch.stack((torch.zeros(width), torch.ones(width), signs, other))
    answers = _answers(step.module, asked)
    if answers is None or answers.shape != asked.shape or not torch.isfinite(answers).all():
        return None
    level, by_signs, by_other = answers[1:] - answers[0]
    centres = bool(level.abs().max() <= _TOLERANCE * by_signs.abs().max())
    gain = by_signs / _normed(signs, centres)
    gap = (gain * _normed(other, centres) - by_other).abs().max()
    if gap > _TOLERANCE * by_other.abs().max():
        return None
    return Norm(step.name, gain, centres)


@torch.no_grad()
def _answers(module: nn.Module, asked: Tensor) -> Tensor | None:
    """What a module makes of some rows, float32 on the CPU; None if it does not take them."""
    like = next(module.parameters(), torch.empty(0))
    try:
        answers = module(asked[None].to(like.device, like.dtype))
    except Exception:  # noqa: BLE001 - whatever a module raises that needs other inputs
        return None
    return _rows(answers) if _is_vectors(answers) else None


def _normed(vector: Tensor, centres: bool) -> Tensor:
    vector = vector - vector.mean() if centres else vector
    return vector / vector.square().mean().sqrt()
