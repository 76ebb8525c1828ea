"""Edits hit the neurons they name, nothing else, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.hooks import edit_neurons, frozen_parameters, scale_neurons
from tests.fixtures.tiny_models import CONFIGS, n_hooks, tiny_model

TOKENS = torch.tensor([[5, 17, 42, 8, 90], [3, 3, 60, 11, 7]])


def toy_layers() -> list[nn.Linear]:
    """Two down-projections of three neurons: weights (1, 10, 100) and (2, 20, 200), no bias."""
    layers = []
    for factor in (1.0, 2.0):
        layer = nn.Linear(3, 1, bias=False)
        layer.weight.data = factor * torch.tensor([[1.0, 10.0, 100.0]])
        layers.append(layer)
    return layers


class RefusingLinear(nn.Linear):
    """A module on which no hook can be registered."""

    def register_forward_pre_hook(self, *_args, **_kwargs):
        raise RuntimeError("no hooks here")


def outputs_of(module: nn.Module, model: nn.Module) -> Tensor:
    """What `module` returns while the model reads TOKENS; the hook is this test's own."""
    seen = []
    # Falcon adds to this very tensor afterwards, hence the copy.
    handle = module.register_forward_hook(lambda _module, _args, out: seen.append(out.clone()))
    try:
        with torch.no_grad():
            model(input_ids=TOKENS, use_cache=False)
    finally:
        handle.remove()
    (output,) = seen
    return output


# Editing ----------------------------------------------------------------------------------------


def test_edit_replaces_the_input_of_the_layers_it_is_given():
    first, second = toy_layers()
    neurons = torch.tensor([[1.0, 2.0, 3.0]])
    seen = []

    def edit(layer: int, values: Tensor) -> Tensor:
        seen.append((layer, values.tolist()))
        return values + layer

    with edit_neurons([first, second], edit, layers=[1]):
        assert first(neurons).item() == 321.0  # 1*1 + 2*10 + 3*100: not edited
        assert second(neurons).item() == 864.0  # 2*(2*1 + 3*10 + 4*100)
    assert second(neurons).item() == 642.0  # 2*321: as before
    assert seen == [(1, [[1.0, 2.0, 3.0]])]


def test_edit_takes_every_layer_unless_told_otherwise():
    first, second = toy_layers()
    with edit_neurons([first, second], lambda _layer, values: 0 * values):
        assert first(torch.ones(1, 3)).item() == 0.0
        assert second(torch.ones(1, 3)).item() == 0.0


def test_arguments_behind_the_first_reach_the_module_unchanged():
    class Scaled(nn.Module):
        def forward(self, values: Tensor, factor: float) -> Tensor:
            return values * factor

    module = Scaled()
    with edit_neurons([module], lambda _layer, values: values + 1):
        assert module(torch.tensor([2.0]), 5.0).item() == 15.0  # (2 + 1) * 5


def test_scale_multiplies_neurons_in_every_position_without_columns():
    first, second = toy_layers()
    scale = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    with scale_neurons([first, second], scale):
        # Neurons 1, 1, 1 become 0, 1, 2, hence 0*1 + 1*10 + 2*100.
        assert first(torch.ones(2, 2, 3)).flatten().tolist() == [210.0] * 4
        assert second(torch.ones(1, 3)).item() == 222.0


def test_scale_touches_only_the_given_columns():
    first, _ = toy_layers()
    columns = torch.tensor([[False, True], [True, False]])
    with scale_neurons([first], torch.tensor([[0.0, 1.0, 2.0]]), columns):
        assert first(torch.ones(2, 2, 3))[..., 0].tolist() == [[111.0, 210.0], [210.0, 111.0]]
        # OPT hands its FFN [batch * positions, neurons].
        assert first(torch.ones(4, 3))[..., 0].tolist() == [111.0, 210.0, 210.0, 111.0]


def test_scale_follows_the_dtype_of_the_neurons():
    layer = toy_layers()[0].to(torch.bfloat16)
    with scale_neurons([layer], torch.tensor([[0.0, 1.0, 2.0]])):
        output = layer(torch.ones(1, 3, dtype=torch.bfloat16))
    assert output.dtype is torch.bfloat16
    assert output.item() == 210.0


def test_contexts_nest():
    first, _ = toy_layers()
    with scale_neurons([first], torch.full((1, 3), 2.0)):
        with scale_neurons([first], torch.full((1, 3), 3.0)):
            assert first(torch.ones(1, 3)).item() == 666.0  # 2 * 3 * 111
        assert first(torch.ones(1, 3)).item() == 222.0


# Invariants on every architecture ---------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_empty_mask_leaves_bit_identical_logits_and_no_hook(architecture):
    model = tiny_model(architecture)
    layers = find_ffn_layers(model)
    with torch.no_grad():
        expected = model(input_ids=TOKENS, use_cache=False).logits
        before = n_hooks(model)
        with scale_neurons(layers.modules, torch.ones(layers.shape)):
            assert n_hooks(model) == before
            found = model(input_ids=TOKENS, use_cache=False).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_masking_a_whole_layer_leaves_the_bias_of_its_down_projection(architecture):
    model = tiny_model(architecture)
    layers = find_ffn_layers(model)
    down = layers.modules[1]
    bias = getattr(down, "bias", None)
    if bias is None:
        bias = torch.zeros(32)  # the hidden size of every tiny model
    else:
        nn.init.normal_(bias)  # they start at zero, which would prove nothing
    scale = torch.ones(layers.shape)
    scale[1] = 0.0
    unmasked = outputs_of(down, model)
    before = n_hooks(model)
    with scale_neurons(layers.modules, scale):
        assert n_hooks(model) == before + 1  # the other layers are left alone
        masked = outputs_of(down, model)
    assert torch.equal(masked, bias.detach().expand_as(masked))
    assert not torch.equal(unmasked, masked)


def test_the_architectures_above_have_both_kinds_of_down_projection():
    with_bias = {
        name
        for name in CONFIGS
        if getattr(find_ffn_layers(tiny_model(name)).modules[0], "bias", None) is not None
    }
    assert with_bias == {"gpt2", "gpt_neo", "gpt_neox", "phi", "opt"}


def test_masked_columns_change_no_logit_before_them():
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    columns = torch.tensor([[False, False, True, False, False], [False] * 5])
    with torch.no_grad():
        expected = model(input_ids=TOKENS, use_cache=False).logits
        with scale_neurons(layers.modules, torch.zeros(layers.shape), columns):
            found = model(input_ids=TOKENS, use_cache=False).logits
    # Attention is causal: positions from column 2 of the first row on may change, nothing else.
    assert torch.equal(found[0, :2], expected[0, :2])
    assert torch.equal(found[1], expected[1])
    assert bool((found[0, 2:] != expected[0, 2:]).any(-1).all())


# Nothing is left behind -------------------------------------------------------------------------


def test_no_hook_survives_the_context():
    layers = toy_layers()
    with scale_neurons(layers, torch.zeros(2, 3)):
        assert [n_hooks(layer) for layer in layers] == [1, 1]
    assert [n_hooks(layer) for layer in layers] == [0, 0]


def test_no_hook_survives_an_exception_in_the_body():
    layers = toy_layers()
    with (
        pytest.raises(KeyError, match="body"),
        edit_neurons(layers, lambda _layer, values: values),
    ):
        raise KeyError("body")
    assert [n_hooks(layer) for layer in layers] == [0, 0]


def test_no_hook_survives_an_exception_in_the_edit():
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    before = n_hooks(model)

    def edit(layer: int, values: Tensor) -> Tensor:
        if layer == 1:
            raise ZeroDivisionError("in the edit")
        return values

    with pytest.raises(ZeroDivisionError, match="in the edit"), edit_neurons(layers.modules, edit):
        model(input_ids=TOKENS, use_cache=False)
    assert n_hooks(model) == before


def test_no_hook_survives_an_exception_in_the_model(monkeypatch):
    model = tiny_model("gpt2")
    layers = find_ffn_layers(model)
    before = n_hooks(model)

    def failing(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.lm_head, "forward", failing)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        scale_neurons(layers.modules, torch.zeros(layers.shape)),
    ):
        model(input_ids=TOKENS, use_cache=False)
    assert n_hooks(model) == before


def test_no_hook_survives_a_failing_registration():
    modules = [*toy_layers(), RefusingLinear(3, 1)]
    with (
        pytest.raises(RuntimeError, match="no hooks here"),
        edit_neurons(modules, lambda _layer, values: values),
    ):
        pytest.fail("the body must not run")
    assert [n_hooks(module) for module in modules] == [0, 0, 0]


def test_no_hook_survives_a_layer_that_is_not_there():
    layers = toy_layers()
    with (
        pytest.raises(IndexError),
        edit_neurons(layers, lambda _layer, values: values, layers=[0, 1, 2]),
    ):
        pytest.fail("the body must not run")
    assert [n_hooks(layer) for layer in layers] == [0, 0]


# Frozen parameters ------------------------------------------------------------------------------


def test_frozen_parameters_come_back_as_they_were():
    first, second = toy_layers()
    model = nn.ModuleList([first, second])
    first.weight.requires_grad_(False)
    with frozen_parameters(model):
        assert [p.requires_grad for p in model.parameters()] == [False, False]
    assert [p.requires_grad for p in model.parameters()] == [False, True]


def test_frozen_parameters_come_back_after_an_exception():
    model = nn.ModuleList(toy_layers())
    with pytest.raises(RuntimeError, match="body"), frozen_parameters(model):
        raise RuntimeError("body")
    assert [p.requires_grad for p in model.parameters()] == [True, True]
