"""Rows that join at the layer which edits them: by hand, and in models."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.scaled_copies import (
    ScaledCopies,
    _narrowed,
    decoder_layers_of,
)
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt
from tests.fixtures.tiny_models import CONFIGS, NODES, WEIGHTS, n_hooks, random_prompt, tiny_model


def staircase(layers: Sequence[nn.Module], with_copies: range, n_copies: int):
    """Layers append their copies and get the rows alone that are present."""
    nodes = torch.arange(n_copies + 1) / n_copies
    unused = [nn.Identity() for _ in layers]  # down-projections
    return ScaledCopies(
        unused, layers, 1, with_copies, nodes.expand(len(with_copies), -1)
    ).joining()


class Adding(nn.Module):
    """A layer that adds its number to every row and notes what it was handed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.seen: list[Tensor] = []

    def forward(self, hidden_states: Tensor, places: Tensor) -> Tensor:
        assert places.shape[1] == hidden_states.shape[1]
        self.seen.append(hidden_states)
        return hidden_states + self.number


def run(layers: list[Adding], hidden: Tensor, by_name: bool) -> Tensor:
    places = torch.arange(hidden.shape[1])[None]
    for layer in layers:
        hidden = layer(places=places, hidden_states=hidden) if by_name else layer(hidden, places)
    return hidden


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_rows_by_hand(by_name, fails):
    # Four layers that add 1, 10, 100 and 1000; layers 1 and 2 have two copies each.
    layers = [Adding(10**n) for n in range(4)]
    try:
        with staircase(layers, range(1, 3), 2):
            out = run(layers, torch.full((2, 5, 1), 0.5), by_name)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert [layer.seen[0].shape for layer in layers] == [(2, n, 1) for n in (1, 3, 5, 5)]
    assert torch.equal(out, torch.full((2, 5, 1), 1111.5))
    assert sum(n_hooks(layer) for layer in layers) == 0


def test_copies_are_of_the_unedited_row():
    # Layer 0's copy is edited to 7 on its way; layer 1's copy must still be row 0's.
    layers = [Adding(1), Adding(0)]

    def edit(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        return torch.cat((output[:, :1], torch.full_like(output[:, 1:], 7.0)), dim=1)

    layers[0].register_forward_hook(edit)
    with staircase(layers, range(0, 2), 1):
        out = run(layers, torch.zeros(1, 3, 1), by_name=False)
    assert out.flatten().tolist() == [1.0, 7.0, 1.0]


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_rows_of_any_staircase(n_layers, n_copies, data):
    start = data.draw(st.integers(0, n_layers - 1))
    stop = data.draw(st.integers(start + 1, n_layers))
    layers = [Adding(0) for _ in range(n_layers)]
    n_rows = 1 + (stop - start) * n_copies
    with staircase(layers, range(start, stop), n_copies):
        out = run(layers, torch.zeros(1, n_rows, 1), by_name=False)
    expected = [
        1 if index < start else 1 + (min(index, stop - 1) - start + 1) * n_copies
        for index in range(n_layers)
    ]
    assert [layer.seen[0].shape[1] for layer in layers] == expected
    assert out.shape == (1, n_rows, 1)


# What a layer is handed -------------------------------------------------------------------------


def test_arguments_narrowed_by_hand():
    mask = torch.arange(2 * 4 * 7).reshape(2, 1, 4, 7)  # 3 columns of a prefix, 4 rows
    assert torch.equal(_narrowed(mask, 2, 4), mask[:, :, :2, :5])
    cosines = torch.randn(1, 4, 6)
    assert torch.equal(_narrowed(cosines, 3, 4), cosines[:, :3])
    places = torch.arange(4)
    assert _narrowed(places, 1, 4).tolist() == [0]
    assert torch.equal(_narrowed(places[None], 2, 4), places[None, :2])
    pair = _narrowed((cosines, [places]), 2, 4)
    assert torch.equal(pair[0], cosines[:, :2])
    assert pair[1][0].tolist() == [0, 1]


@pytest.mark.parametrize("value", [None, True, 3, "eager", torch.tensor(2), torch.zeros(5)])
def test_what_does_not_run_over_rows_is_left_alone(value):
    assert _narrowed(value, 1, 4) is value


def test_nothing_is_narrowed_once_all_rows_are_there():
    mask = torch.zeros(1, 1, 4, 7)
    assert _narrowed(mask, 4, 4) is mask


def test_an_unknown_kind_of_tuple_is_an_error_and_not_a_guess():
    pair = namedtuple("pair", ["cosines", "sines"])(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    with pytest.raises(TypeError):
        _narrowed(pair, 2, 4)


# Which modules are the layers -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_decoder_layers_hold_one_down_projection_each(architecture):
    model = tiny_model(architecture)
    downs = find_ffn_layers(model).modules
    layers = decoder_layers_of(model, downs)
    assert len(layers) == len(downs)
    for layer, down in zip(layers, downs, strict=True):
        assert any(part is down for part in layer.modules())
        assert sum(part is other for part in layer.modules() for other in downs) == 1


def test_modules_that_are_no_list_in_order_are_no_decoder_layers():
    downs = [nn.Linear(2, 2) for _ in range(3)]
    model = nn.Module()
    assert decoder_layers_of(model, downs) == []
    model.backwards = nn.ModuleList(nn.Sequential(down) for down in reversed(downs))
    assert decoder_layers_of(model, downs) == []
    model.short = nn.ModuleList(nn.Sequential(down) for down in downs[:2])
    assert decoder_layers_of(model, downs) == []
    model.layers = nn.ModuleList(nn.Sequential(down) for down in downs)
    assert decoder_layers_of(model, downs) == list(model.layers)


# What models compute ----------------------------------------------------------------------------


# No prefix: copies only.
LETTERS = [random_prompt(0, 1), random_prompt(1, 1)]


def rows_per_layer(
    model: nn.Module, savings: Savings, prompts: Sequence[Prompt] = LETTERS, **options: int
) -> list[list[int]]:
    """Per pass over copies, how many rows the attention of each layer gets."""
    engine = FanOutEngine(model, find_ffn_layers(model), savings=savings, **options)
    passes: list[list[int]] = []
    handles = []
    for index, layer in enumerate(model.model.layers):

        def count(_module: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
            passes[-1][index] = args[0].shape[0] * args[0].shape[1]

        handles.append(layer.input_layernorm.register_forward_pre_hook(count))
    start = model.model.register_forward_pre_hook(
        lambda *_: passes.append([0] * len(model.model.layers))
    )
    handles.append(start)
    try:
        engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy)
    finally:
        for handle in handles:
            handle.remove()
    return passes


def test_copies_of_a_layer_do_not_reach_the_layers_below():
    model = tiny_model("llama")
    # 2 prompts; 1 row unedited, which is the last node too, and 3 copies a layer, which join at
    # layers 0, 1 and 2.
    assert rows_per_layer(model, Savings.STAIRCASE) == [[2 * 4, 2 * 7, 2 * 10]]
    assert rows_per_layer(model, Savings.NONE) == [[2 * 10] * 3]


def test_a_pass_over_later_layers_has_one_row_below_them():
    model = tiny_model("llama")
    # 7 rows a prompt: layers 0 and 1, then layer 2 alone.
    found = rows_per_layer(model, Savings.STAIRCASE, rows_per_prompt=7)
    assert found == [[2 * 4, 2 * 7, 2 * 7], [2, 2, 2 * 4]]
    found = rows_per_layer(model, Savings.NONE, rows_per_prompt=7)
    assert found == [[2 * 7] * 3, [2 * 4] * 3]


# A tree of 4 rows.
TEXTS = [replace(random_prompt(0, 1), options=((5,), (6, 7), (6, 8, 9), (50, 51)))]


@pytest.mark.parametrize(
    ("savings", "expected"),
    [
        # The unedited tree; then a layer's 3 copies and one row to a pass, without what is below.
        (Savings.STAIRCASE, [[4, 4, 4], [13, 13, 13], [0, 13, 13], [0, 0, 13]]),
        (Savings.LATE, [[4, 4, 4], [0, 13, 13], [0, 0, 13], [0, 0, 0]]),
    ],
)
def test_passes_over_copies_of_trees_leave_out_the_layers_below(savings, expected):
    model = tiny_model("llama")
    assert rows_per_layer(model, savings, TEXTS, rows_per_prompt=16) == expected
    assert n_hooks(model) == 0
    assert not any("forward" in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize("savings", [Savings.STAIRCASE, Savings.LATE])
def test_layers_that_were_left_out_are_back_after_an_exception(savings):
    model = tiny_model("llama")

    def fail(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[1] == 13:  # of a pass over copies
            raise ZeroDivisionError

    handle = model.model.layers[2].mlp.register_forward_pre_hook(fail)
    engine = FanOutEngine(model, find_ffn_layers(model), savings=savings, rows_per_prompt=16)
    with pytest.raises(ZeroDivisionError):
        engine.integrate(TEXTS, NODES, WEIGHTS, option_cross_entropy)
    handle.remove()
    assert n_hooks(model) == 0
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_copies_that_join_late_do_not_reach_their_own_layer_either():
    model = tiny_model("llama")
    # One row in layer 0; layer 0's copies join at its end, and so on.
    assert rows_per_layer(model, Savings.LATE) == [[2 * 1, 2 * 4, 2 * 7]]
    found = rows_per_layer(model, Savings.LATE, rows_per_prompt=7)
    assert found == [[2 * 1, 2 * 4, 2 * 7], [2, 2, 2]]
