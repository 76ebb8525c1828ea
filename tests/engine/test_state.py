"""What engines leave behind in a model, whatever happens: no hook, nothing frozen or replaced."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.tiny_models import (
    NODES,
    WEIGHTS,
    call_engine,
    n_hooks,
    random_prompt,
    random_scales,
    tiny_model,
)

# Of different lengths, so that the batch is padded; one has no prefix.
PROMPTS = (
    random_prompt(0, 14, n_options=4),
    random_prompt(1, 1, n_options=3),
    random_prompt(2, 5, n_options=4),
)


def assert_left_as_found(model: nn.Module, hooks_before: int) -> None:
    """No hook, no frozen parameter and no forward of a module's own is left."""
    assert n_hooks(model) == hooks_before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


late = partial(FanOutEngine, savings=Savings.LATE)
KINDS = pytest.mark.parametrize("kind", [FanOutEngine, late, ReplayEngine])


@KINDS
def test_an_engine_changes_nothing_in_the_model(kind):
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    engine = kind(model, layers)
    before = n_hooks(model)
    engine.score(PROMPTS, random_scales(layers.shape))
    engine.integrate(PROMPTS, NODES, WEIGHTS, option_cross_entropy)
    assert n_hooks(model) == before
    assert not model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)


@KINDS
def test_parameters_are_frozen_while_gradients_are_taken(kind):
    # Only the edited neurons need gradients; those of the weights would cost time and memory.
    model = tiny_model("llama")
    engine = kind(model, find_ffn_layers(model))
    seen: set[bool] = set()

    def watching(loglikelihoods: Tensor, gold: int) -> Tensor:
        if loglikelihoods.requires_grad:
            seen.update(parameter.requires_grad for parameter in model.parameters())
        return option_cross_entropy(loglikelihoods, gold)

    engine.integrate(PROMPTS[:1], NODES, WEIGHTS, watching)
    assert seen == {False}
    assert all(parameter.requires_grad for parameter in model.parameters())


def without_gradient(loglikelihoods: Tensor, gold: int) -> Tensor:
    """A target that autograd cannot follow."""
    return loglikelihoods.detach()[..., gold]


def failing_target(loglikelihoods: Tensor, gold: int) -> Tensor:
    raise ZeroDivisionError("in the target")


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        raise ZeroDivisionError("in the backward pass")


def failing_gradient(loglikelihoods: Tensor, gold: int) -> Tensor:
    return FailingBackward.apply(loglikelihoods)[..., gold]


@KINDS
@pytest.mark.parametrize(
    ("target", "error"),
    [
        (without_gradient, RuntimeError),
        (failing_target, ZeroDivisionError),
        (failing_gradient, ZeroDivisionError),
    ],
)
def test_a_failing_target_leaves_no_hook_and_no_frozen_parameter(kind, target, error):
    model = tiny_model("llama")
    engine = kind(model, find_ffn_layers(model))
    before = n_hooks(model)
    with pytest.raises(error):
        engine.integrate(PROMPTS, NODES, WEIGHTS, target)
    assert_left_as_found(model, before)


@KINDS
@pytest.mark.parametrize("call", ["score", "integrate"])
@pytest.mark.parametrize(
    "place",
    ["lm_head", "model.norm", "model.layers.0", "model.layers.1.mlp.down_proj"],
)
def test_a_failing_model_leaves_no_hook_and_no_frozen_parameter(kind, call, place):
    model = tiny_model("llama")
    engine = kind(model, find_ffn_layers(model))

    def failing(*_args: object) -> None:
        raise MemoryError(f"in {place}")

    # A hook, since the forward of the head is another while path integrals are computed.
    model.get_submodule(place).register_forward_hook(failing)
    before = n_hooks(model)
    with pytest.raises(MemoryError, match=f"in {place}"):
        call_engine(engine, call, PROMPTS)
    assert_left_as_found(model, before)
