"""The LM head for some tokens only: by hand, against the whole head, and put back as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuronllm_eval.engine import option_head as option_head_module
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.option_head import OptionHead, restrictable_head
from neuronllm_eval.engine.option_logits import score_options
from neuronllm_eval.engine.option_tree import OptionTrees
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt
from tests.fixtures.tiny_models import tiny_model


def one_token(options: list[list[int]]) -> OptionTrees:
    prompts = [Prompt(0, (1,), tuple((token,) for token in ids), 0) for ids in options]
    return OptionTrees(prompts)


def test_a_restricted_head_by_hand():
    # Three tokens with weights 1, 10 and 100 and biases 0.1, 0.2 and 0.3; hidden states 2 and 3.
    head = nn.Linear(1, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [10.0], [100.0]]))
        head.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    options = OptionHead(head, one_token([[2, 0]]), 2)
    with torch.no_grad(), options.restricted():
        logits = head(torch.tensor([[[2.0], [3.0]]]))
    # Row 0 and row 1 at tokens 0 and 2; then row 0 at tokens 0, 1, 2, filled up with a zero.
    expected = [[[2.1, 200.3], [3.1, 300.3], [2.1, 20.2], [200.3, 0.0]]]
    assert torch.allclose(logits, torch.tensor(expected))
    (scores,), (unedited,) = options.read(logits)
    assert torch.allclose(scores, torch.tensor([[200.3, 2.1], [300.3, 3.1]]))
    assert torch.allclose(unedited, torch.tensor([0.0, -198.2]))  # log-softmax of 2.1, 20.2, 200.3


@given(
    vocabulary=st.integers(2, 12),
    n_rows=st.integers(1, 4),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    data=st.data(),
)
def test_the_restricted_head_agrees_with_the_whole_one(vocabulary, n_rows, batch, bias, data):
    tokens = st.lists(st.integers(0, vocabulary - 1), min_size=2, unique=True)
    options = [data.draw(tokens) for _ in range(batch)]
    torch.manual_seed(0)
    head = nn.Linear(5, vocabulary, bias=bias)
    hidden = torch.randn(batch, n_rows, 5)
    restricted, whole = (
        OptionHead(head, one_token(options), n_rows),
        OptionHead(None, one_token(options), n_rows),
    )
    with torch.no_grad():
        with whole.restricted():
            logits = head(hidden).tanh()  # a model may do something to every logit
        scores, unedited = whole.read(logits)
        with restricted.restricted():
            some, also_unedited = restricted.read(head(hidden).tanh())
    for row, ids in enumerate(options):
        assert torch.allclose(some[row], logits[row][:, ids], atol=1e-6)
        assert torch.allclose(scores[row], score_options(logits[row], ids)[0], atol=1e-6)
        assert torch.allclose(also_unedited[row], unedited[row], atol=1e-6)
        assert torch.allclose(unedited[row], scores[row][0], atol=1e-6)


def test_gradients_reach_the_rows_and_not_what_is_only_reported():
    head = nn.Linear(2, 6, bias=False).requires_grad_(False)
    hidden = torch.randn(1, 3, 2, requires_grad=True)
    options = OptionHead(head, one_token([[4, 1]]), 3)
    with options.restricted():
        (some,), (unedited,) = options.read(head(hidden))
    (gradient,) = torch.autograd.grad(some[2].sum(), hidden)
    assert torch.allclose(gradient[0, 2], head.weight[[1, 4]].sum(0))
    assert bool((gradient[0, :2] == 0).all())
    assert not unedited.requires_grad


def test_hooks_on_the_head_still_run():
    head = nn.Linear(2, 6)
    shapes = []
    head.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    with OptionHead(head, one_token([[0, 1], [2, 0]]), 4).restricted():
        head(torch.zeros(1, 4, 2))
    assert shapes == [(1, 4 + 2, 3)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_head_gets_its_own_forward_back(fails):
    head = nn.Linear(2, 6)
    try:
        with OptionHead(head, one_token([[0, 1]]), 1).restricted():
            assert "forward" in vars(head)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert "forward" not in vars(head)
    assert head(torch.zeros(1, 2)).shape == (1, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_the_instance_is_put_back(fails):
    # As accelerate leaves one there, to move inputs to the device of the weights.
    head = nn.Linear(2, 6)
    original = head.forward
    calls = []

    def moving(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(hidden.shape)
        return original(hidden)

    head.forward = moving
    try:
        with OptionHead(head, one_token([[0, 1]]), 1).restricted():
            assert head(torch.zeros(1, 1, 2)).shape == (1, 1 + 3, 2)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert calls == []
    assert vars(head)["forward"] is moving
    head(torch.zeros(1, 2))
    assert calls == [(1, 2)]


# Which heads ------------------------------------------------------------------------------------


class OtherHead(nn.Linear):
    """A subclass may compute anything, as quantised and adapted layers do."""


def test_only_a_plain_linear_head_with_its_weights_at_hand_is_restricted():
    model = tiny_model("llama")
    assert restrictable_head(model) is model.lm_head
    model.lm_head = OtherHead(32, 97)
    assert restrictable_head(model) is None
    model.lm_head = nn.Linear(32, 97, device="meta")
    assert restrictable_head(model) is None
    assert restrictable_head(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "phi", "gemma2"])
def test_a_tied_head_and_one_with_a_bias_are_plain(architecture):
    model = tiny_model(architecture)
    assert restrictable_head(model) is model.get_output_embeddings()


# What the engine multiplies ---------------------------------------------------------------------


def test_the_engine_takes_the_options_tokens_of_all_rows_and_the_whole_head_of_one(monkeypatch):
    model = tiny_model("llama")
    engine = FanOutEngine(model, find_ffn_layers(model))
    products = []  # (rows of hidden states, rows of the weight)
    linear = nn.functional.linear

    class Watched:
        pad = staticmethod(nn.functional.pad)

        @staticmethod
        def linear(hidden, weight, bias):
            products.append((hidden.numel() // hidden.shape[-1], weight.shape[0]))
            return linear(hidden, weight, bias)

    monkeypatch.setattr(option_head_module, "functional", Watched)
    prompts = [
        Prompt(0, (3, 4, 5), ((10,), (11,)), 0),
        Prompt(1, (3, 4, 6, 7), ((10,), (12,), (13,), (14,), (15,)), 2),
    ]
    nodes = torch.tensor([0.0, 1.0])
    engine.integrate(prompts, nodes, nodes, option_cross_entropy)
    # 2 prompts of 1 + 3 layers x 1 copy at the tokens 10 to 15; both prompts' unedited rows.
    assert products == [(2 * 4, 6), (2, 97)]
    products.clear()
    engine.integrate(prompts, nodes, nodes, lambda values, gold: values[..., gold])
    engine.score(prompts, torch.ones(2, *engine.layers.shape))
    assert products == []  # these need the whole vocabulary's logits
