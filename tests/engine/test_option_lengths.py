"""Options compared by log-likelihoods per length: by hand, and both engines against plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neuronllm_eval.attribution.identify import is_correct
from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    Quantity,
)
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.interface import (
    Engine,
    gold_loglikelihood,
    gold_probability,
    option_cross_entropy,
    target_values,
)
from neuronllm_eval.engine.option_logits import counted_shared, score_shared_tokens
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.errors import DocError
from neuronllm_eval.explain.evidence import single_neuron_effects
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.prompts import ALL, SCORED, Prompt, Question
from tests.fixtures.tiny_models import (
    LOG_NATS,
    NODES,
    WEIGHTS,
    assert_same_integrals,
    loaded,
    random_prompt,
    relative_difference,
)

LONG, SHORT = random_prompt(0, 14).context, random_prompt(2, 5).context
# One-token options of different lengths and of one length, with shared tokens and without.
LETTERS = (
    Prompt(0, LONG, ((10,), (11,), (12,)), 1, 0, (3.0, 1.0, 7.0)),
    Prompt(1, SHORT, ((10,), (11,), (12,), (13,)), 2, 2, (2.0, 5.0, 3.0, 4.0)),
    Prompt(2, LONG[:9], ((10,), (11,)), 0, 0, (4.0, 4.0)),
    Prompt(3, LONG[:7], ((10,), (11,)), 1, 1, (4.0, 4.0)),
)
TEXTS = (
    Prompt(4, LONG, ((5,), (6, 7), (6, 8, 9), (50, 51)), 2, 3, (4.0, 9.0, 13.0, 6.0)),
    Prompt(5, SHORT, ((10, 11, 12), (10, 11), (20, 21)), 1, 0, (11.0, 7.0, 8.0)),
    Prompt(6, LONG[:8], ((10, 11), (12, 13)), 1, 1, (5.0, 5.0)),
    replace(LETTERS[1], doc_id=7),
    Prompt(8, SHORT, ((10, 11), (12, 13)), 1),  # log-likelihoods as they are
)
BATCHES = {"letters": LETTERS, "texts": TEXTS}
ARCHITECTURES = ("llama", "gpt2", "gemma3_mixed")


# By hand ----------------------------------------------------------------------------------------


def test_f_by_hand():
    prompt = Prompt(0, (1, 2), ((5, 6, 7), (8,)), 0, 0, (3.0, 1.0))
    loglikelihoods = torch.tensor([-6.0, -4.0], dtype=torch.float64)
    # As they are -6 and -4; per length -2 and -4.
    plain = target_values(option_cross_entropy, loglikelihoods, replace(prompt, lengths=()))
    divided = target_values(option_cross_entropy, loglikelihoods, prompt)
    assert float(plain) == pytest.approx(-math.log(1 + math.exp(2)))
    assert float(divided) == pytest.approx(-math.log(1 + math.exp(-2)))


def test_shared_tokens_count_before_the_division_by_hand():
    prompt = Prompt(0, (1, 2), ((5, 6, 7), (8,)), 0, 1, (3.0, 1.0))
    loglikelihoods = torch.tensor([[-6.0, -4.0], [-3.0, 0.0]], dtype=torch.float64)
    # With -3 more: -9 / 3 and -7 / 1; with -6 more: -9 / 3 and -6 / 1.
    shared = torch.tensor([-3.0, -6.0], dtype=torch.float64)
    found = target_values(option_cross_entropy, loglikelihoods, prompt, shared)
    expected = [-math.log(1 + math.exp(-4)), -math.log(1 + math.exp(-3))]
    assert found.tolist() == pytest.approx(expected)
    # Of one length they cancel out.
    equal = replace(prompt, lengths=(2.0, 2.0))
    with_any = target_values(option_cross_entropy, loglikelihoods[0], equal, -3.0)
    assert float(with_any) == pytest.approx(-math.log(1 + math.exp(1)))


@pytest.mark.parametrize("target", [gold_loglikelihood, gold_probability])
def test_the_gold_options_own_probability_is_not_divided(target):
    prompt = Prompt(0, (1, 2), ((5,), (8,)), 1, 1, (3.0, 1.5))
    loglikelihoods = torch.tensor([-6.0, -4.0])
    expected = target(loglikelihoods, 1)
    assert torch.equal(target_values(target, loglikelihoods, prompt, -3.0), expected)


@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 2.0, 3.0), (0.0, 2.0), (-1.0, 2.0)])
def test_lengths_that_cannot_be_divided_by(lengths):
    with pytest.raises(DocError, match=r"doc 9 has 2 options of lengths .*\n.*above 0.*\n.*sum"):
        Prompt(9, (1, 2), ((5,), (6,)), 0, 0, lengths)


@pytest.mark.parametrize(("lengths", "correct"), [((), False), ((3.0, 1.0), True)])
def test_the_answer_is_the_likeliest_per_length(lengths, correct):
    prompt = Prompt(0, (1, 2), ((5,), (6,)), 0, 0, lengths)
    values = torch.zeros(1, 1)
    attribution = Attribution(values, None, torch.tensor([-6.0, -4.0]), None)
    attributions = Attributions({Quantity(option_cross_entropy): attribution}, values)
    assert is_correct(attributions, prompt) is correct


# Against plain loops ----------------------------------------------------------------------------


@contextmanager
def own_hook(module: nn.Module, change) -> Iterator[None]:
    """The module's input replaced by `change` of it."""
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


class PlainF:
    """F of a prompt with one layer's neurons scaled: a full pass for each option.

    Attributes:
        value: F.
        products: [neurons], h * dF/dh summed over options and edited positions.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: FFNLayers,
        prompt: Prompt,
        layer: int,
        alpha: float,
        positions: str = SCORED,
    ) -> None:
        scores, leaves = [], []
        first = 0 if positions == ALL else len(prompt.context) - 1
        for option in prompt.options:

            def scaled(neurons: Tensor) -> Tensor:
                flat = neurons.detach().reshape(-1, neurons.shape[-1])
                leaf = (alpha * flat[first:]).requires_grad_(True)
                leaves.append((flat[first:], leaf))
                return torch.cat((flat[:first], leaf)).reshape(neurons.shape)

            tokens = torch.tensor([[*prompt.context, *option]])
            with own_hook(layers.modules[layer], scaled):
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
            rows = logits.log_softmax(-1)
            start = len(prompt.context) - prompt.n_shared
            total = sum(rows[at - 1, int(tokens[0, at])] for at in range(start, tokens.shape[1]))
            scores.append(total)
        divided = torch.stack(scores) / torch.tensor(prompt.lengths or [1.0] * len(scores))
        value = divided.log_softmax(0)[prompt.gold]
        gradients = torch.autograd.grad(value, [leaf for _, leaf in leaves])
        self.value = float(value.detach())
        self.products = sum(
            (neurons * gradient).sum(0)
            for (neurons, _), gradient in zip(leaves, gradients, strict=True)
        )


def assert_as_plain_loops(
    engine: Engine, model: nn.Module, layers: FFNLayers, prompts: Sequence[Prompt]
) -> None:
    """The engine's integrals of F against sums of plain loops in 64 bits."""
    integrals = engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy)
    for prompt, integral in zip(prompts, integrals, strict=True):
        for layer in range(layers.n_layers):
            plain = [
                PlainF(model, layers, prompt, layer, float(alpha), engine.positions)
                for alpha in NODES
            ]
            values = torch.tensor([one.value for one in plain])
            expected = sum(
                float(weight) * one.products for weight, one in zip(WEIGHTS, plain, strict=True)
            )
            assert float((integral.node_targets[layer] - values).abs().max()) <= LOG_NATS
            assert relative_difference(integral.attribution[layer], expected) <= 1e-5
        assert integral.target == pytest.approx(values[-1].item(), abs=LOG_NATS)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_engines_integrate_as_plain_loops_do(architecture, batch):
    model, layers = loaded(architecture)
    prompts = BATCHES[batch]
    fan_out = build_engine(model, layers, prompts, "fan_out", n_nodes=len(NODES))
    plain = loaded(architecture, torch.float64)
    replay = ReplayEngine(*plain)
    for engine in (fan_out, replay):
        assert_as_plain_loops(engine, *plain, prompts)
    integrals = [
        engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy)
        for engine in (fan_out, replay)
    ]
    assert_same_integrals(*integrals)
    one = torch.ones(1)
    assert_same_integrals(
        fan_out.integrate(prompts, one, one, option_cross_entropy),
        replay.integrate(prompts, one, one, option_cross_entropy),
    )
    # Lengths and shared tokens tell, where they differ.
    without = fan_out.integrate(
        [replace(prompt, lengths=()) for prompt in prompts], NODES, WEIGHTS, option_cross_entropy
    )
    for prompt, divided, undivided in zip(prompts, integrals[0], without, strict=True):
        gap = relative_difference(divided.attribution, undivided.attribution)
        assert (gap > 1e-3) == bool(prompt.lengths)


def test_all_positions_edit_the_shared_tokens_too():
    model, layers = loaded("llama", torch.float64)
    prompts = [TEXTS[0], LETTERS[1]]
    replay = ReplayEngine(model, layers, positions=ALL)
    assert_as_plain_loops(replay, model, layers, prompts)
    one = torch.ones(1)
    for prompt, integral in zip(
        prompts, replay.integrate(prompts, one, one, option_cross_entropy), strict=True
    ):
        for layer in range(layers.n_layers):
            plain = PlainF(model, layers, prompt, layer, 1.0, ALL)
            assert relative_difference(integral.attribution[layer], plain.products) <= 1e-5
            assert float(integral.node_targets[layer, 0]) == pytest.approx(plain.value, abs=1e-4)


@pytest.mark.parametrize("prompts", BATCHES.values(), ids=BATCHES)
def test_targets_of_the_gold_option_do_not_know_lengths(prompts):
    model, layers = loaded("llama")
    without = [replace(prompt, lengths=()) for prompt in prompts]
    for engine in (FanOutEngine(model, layers), ReplayEngine(model, layers)):
        for target in (gold_loglikelihood, gold_probability):
            found, expected = (
                engine.integrate(some, NODES, WEIGHTS, target) for some in (prompts, without)
            )
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.attribution, other.attribution)
                assert one.target == other.target


def test_log_likelihoods_have_the_shared_tokens_where_they_count():
    model, layers = loaded("llama")
    for engine in (FanOutEngine(model, layers), ReplayEngine(model, layers)):
        for prompt in (LETTERS[0], LETTERS[1], TEXTS[0]):
            (found,) = engine.integrate([prompt], NODES, WEIGHTS, option_cross_entropy)
            (plain,) = engine.integrate(
                [replace(prompt, lengths=())], NODES, WEIGHTS, option_cross_entropy
            )
            shared, _ = score_shared_tokens(model, prompt)
            assert (shared < -0.1) == (prompt.n_shared > 0)
            gap = found.loglikelihoods - plain.loglikelihoods - shared
            assert float(gap.abs().max()) <= LOG_NATS
    assert counted_shared(model, replace(LETTERS[1], lengths=())) == 0.0
    assert counted_shared(model, LETTERS[1]) == score_shared_tokens(model, LETTERS[1])[0]


@pytest.mark.parametrize(
    ("prompts", "whole"),
    [(LETTERS[2:3], False), (LETTERS[2:4], False), (LETTERS[:1], True), (LETTERS, True)],
    ids=["one length", "one length, shared tokens", "lengths", "both"],
)
def test_different_lengths_need_the_whole_vocabulary(prompts, whole):
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers)
    widths: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda _module, _args, output: widths.append(output.shape[-1])
    )
    try:
        engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy)
    finally:
        handle.remove()
    assert widths[-1] == (97 if whole else 2)


# Single neurons ---------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [SCORED, ALL])
def test_a_neuron_alone_changes_f_as_a_plain_loop_says(positions):
    model, layers = loaded("llama", torch.float64)
    prompts = (TEXTS[0], LETTERS[0], LETTERS[1])
    engine = build_engine(model, layers, prompts, "auto", 0, positions)
    locations = [(1, 5), (2, 40)]
    found = single_neuron_effects(engine, [Question("q", prompts)], locations, 2)
    for row, prompt in enumerate(prompts):
        own = PlainF(model, layers, prompt, 0, 1.0).value
        for column, (layer, index) in enumerate(locations):
            off, twice = (
                scaled_f(model, layers, prompt, (layer, index), factor, positions)
                for factor in (0.0, 2.0)
            )
            assert found[row, 0, column] == pytest.approx(own - off, abs=LOG_NATS)
            assert found[row, 1, column] == pytest.approx(twice - own, abs=LOG_NATS)
    assert abs(found).max() > 1e-2


def scaled_f(model, layers, prompt, location, factor, positions) -> float:
    """F with one neuron scaled, its own pass for each option."""
    first = 0 if positions == ALL else len(prompt.context) - 1

    def scale(neurons: Tensor) -> Tensor:
        changed = neurons.clone().reshape(-1, neurons.shape[-1])
        changed[first:, location[1]] *= factor
        return changed.reshape(neurons.shape)

    with own_hook(layers.modules[location[0]], scale):
        return PlainF(model, layers, prompt, (location[0] + 1) % layers.n_layers, 1.0).value
