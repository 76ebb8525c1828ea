"""Passes that end once the cache is full: by hand, and in models."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.shared_prefix import MaskStyle, Prefiller, PrefillPasses
from neuronllm_eval.masked_lm.shared_context_scoring import Fork, ForkScorer
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.tiny_models import (
    CONFIGS,
    NODES,
    WEIGHTS,
    contexts,
    n_hooks,
    proxies,
    random_scales,
    random_tokens,
    tiny_model,
)

# Questions of a run: what all share, stems, proxies' own tokens.
SHARED = random_tokens(9, 12)
QUESTIONS = [
    proxies(10 * number, (*SHARED, *random_tokens(number, 9)), [3, 6, 4]) for number in range(3)
]
RUN = [prompt.context for question in QUESTIONS for prompt in question]


class Writing(nn.Module):
    """A decoder that writes one column for each layer in `order`, and counts what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.finished = 0

    def forward(self, past_key_values: Cache, use_cache: bool, order: list[int]) -> None:
        assert use_cache
        for layer in order:
            past_key_values.update(torch.full((1, 1, 1, 2), 1.0), torch.zeros(1, 1, 1, 2), layer)
        self.finished += 1


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [0, 1, 1], [0]])
def test_the_first_pass_shows_where_later_ones_end(order):
    decoder = Writing()
    passes = PrefillPasses(decoder)
    keys_values = passes.run((), order=order)
    assert decoder.finished == 1
    for columns in (2, 3):
        keys_values = passes.run(keys_values, order=order)
        assert decoder.finished == 1
        for layer, (keys, values) in enumerate(keys_values):
            assert keys.shape == values.shape == (1, 1, columns * order.count(layer), 2)


@pytest.mark.parametrize("order", [[0, 2, 1], [0, 1], [1, 0, 2], [0, 1, 1, 2]])
def test_a_pass_that_writes_in_another_order_is_a_whole_one(order):
    decoder = Writing()
    passes = PrefillPasses(decoder)
    passes.run((), order=[0, 1, 2])
    keys_values = passes.run((), order=order)
    assert decoder.finished == 2
    assert [keys.shape[2] for keys, _ in keys_values] == [
        order.count(layer) for layer in range(max(order) + 1)
    ]


def test_passes_that_are_to_be_whole():
    decoder = Writing()
    passes = PrefillPasses(decoder, whole=True)
    for _ in range(3):
        passes.run((), order=[0, 1])
    assert decoder.finished == 3


# Models -----------------------------------------------------------------------------------------


class Calls:
    """How often a module is called."""

    def __init__(self, module: nn.Module) -> None:
        self.number = 0
        module.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.number += 1


@pytest.mark.parametrize("architecture", CONFIGS)
def test_keys_and_values_are_the_same_to_the_last_bit(architecture):
    model = tiny_model(architecture)  # its own: hooks stay on it
    style = MaskStyle.PER_TYPE if "gemma" in architecture else MaskStyle.SINGLE
    if architecture == "qwen2_sliding":
        style = MaskStyle.PER_TYPE
    ending, whole = Prefiller(model, style, RUN), Prefiller(model, style, RUN)
    whole.passes.whole = True
    down = Calls(find_ffn_layers(model).modules[-1])
    n_calls = []
    for prefiller in (ending, whole):
        down.number = 0
        found = [prefiller.prefill(contexts(question)) for question in QUESTIONS]
        n_calls.append(down.number)
        if prefiller is ending:
            kept = found
    # The run's shared tokens, then stems and rests of three questions.
    assert n_calls == [1, 1 + 3 * 2]
    for one, other in zip(kept, found, strict=True):
        assert torch.equal(one.positions, other.positions)
        for ones, others in zip(one.keys_values, other.keys_values, strict=True):
            # Rows end with padding, which is never seen.
            assert torch.equal(ones[0], others[0])
            assert torch.equal(ones[1], others[1])


def last_attention_calls(model: nn.Module) -> Calls:
    return Calls(model.model.layers[-1].self_attn.o_proj)


def test_attribution_conditions_and_forks_end_their_prefills():
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    calls = last_attention_calls(model)
    for savings, prefills in ((Savings.STAIRCASE, [1, 0, 0]), (Savings.NONE, [1, 1, 1])):
        engine = FanOutEngine(model, layers, contexts=RUN, savings=savings)
        found = []
        for question in QUESTIONS:
            calls.number = 0
            engine.score(question, random_scales(layers.shape))
            found.append(calls.number - 1)  # the copies' pass
        assert found == prefills
        calls.number = 0
        engine.integrate(QUESTIONS[0], NODES, WEIGHTS, option_cross_entropy)
        assert calls.number - 1 == (savings is Savings.NONE)
    forks = [[Fork(prompt.context, prompt.options) for prompt in each] for each in QUESTIONS]
    scorer = ForkScorer(model, MaskStyle.SINGLE, [fork for each in forks for fork in each])
    found = []
    for each in forks:
        calls.number = 0
        scorer.score(each)
        found.append(calls.number - 1)
    assert found == [1, 0, 0]


def test_no_trace_is_left():
    model = tiny_model("llama")
    update = vars(Cache).get("update"), vars(DynamicCache).get("update")
    prefiller = Prefiller(model, MaskStyle.SINGLE, RUN)
    for question in QUESTIONS:
        prefix = prefiller.prefill(contexts(question))
    assert (vars(Cache).get("update"), vars(DynamicCache).get("update")) == update
    assert type(prefix.cache()) is DynamicCache
    assert n_hooks(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())
    # Passes of others, over the prefix or not, run to their end.
    calls = last_attention_calls(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6]]), past_key_values=DynamicCache(), use_cache=True)
        model(input_ids=torch.tensor([[5]] * 3), past_key_values=prefix.cache(), use_cache=True)
    assert calls.number == 2


def test_an_error_of_the_model_is_the_model_s(monkeypatch):
    model = tiny_model("llama")
    prefiller = Prefiller(model, MaskStyle.SINGLE)
    calls = last_attention_calls(model)
    handle = model.model.layers[1].register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="in a layer"):
            prefiller.prefill(contexts(QUESTIONS[0]))
    handle.remove()
    prefiller.prefill(contexts(QUESTIONS[0]))  # stem and rests: what failed has taught nothing
    assert calls.number == 1
    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in a layer"):
        prefiller.prefill(contexts(QUESTIONS[0]))
    handle.remove()
    assert n_hooks(model) == 1
    prefiller.prefill(contexts(QUESTIONS[0]))
    assert calls.number == 1


def fail(*_: object) -> None:
    raise ZeroDivisionError("in a layer")


class Nothing(ModelHook):
    """A hook of accelerate's, as `device_map` puts them on modules."""


def behind(model: nn.Module) -> None:
    model.model.layers[0].register_forward_hook(lambda *_: None)


def behind_whatever_happens(model: nn.Module) -> None:
    model.model.layers[0].register_forward_hook(lambda *_: None, always_call=True)


def before(model: nn.Module) -> None:
    model.model.layers[0].register_forward_pre_hook(lambda *_: None)


def of_accelerate(model: nn.Module) -> None:
    add_hook_to_module(model.model.layers[2], Nothing())


@pytest.mark.parametrize(
    ("hook", "ends"),
    [(behind, False), (behind_whatever_happens, True), (before, True), (of_accelerate, False)],
)
def test_hooks_that_must_follow_a_pass_are_waited_for(hook, ends):
    model = tiny_model("llama")
    prefiller = Prefiller(model, MaskStyle.SINGLE, RUN)
    prefiller.prefill(contexts(QUESTIONS[0]))
    hook(model)
    calls = last_attention_calls(model)
    found: Tensor = prefiller.prefill(contexts(QUESTIONS[1])).keys_values[2][0]
    assert calls.number == (0 if ends else 2)
    assert found.shape[2] == 12 + 9 + 5
