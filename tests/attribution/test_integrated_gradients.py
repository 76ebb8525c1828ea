"""Quadrature by hand, integrated gradients against a plain loop, and completeness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from neuronllm_eval.attribution.integrated_gradients import Quantity, attribute, attribute_all
from neuronllm_eval.attribution.quadrature import QUADRATURES, Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.interface import Engine, option_cross_entropy
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt
from tests.fixtures.tiny_models import (
    loaded,
    random_prompt,
    relative_difference,
    tiny_model,
)

PROMPT = random_prompt(3, 7)
LONG_OPTIONS = Prompt(8, PROMPT.context, ((5,), (6, 7), (6, 8, 9)), 1)


def both_engines(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[Engine, Engine]:
    model = tiny_model(architecture, dtype)
    layers = find_ffn_layers(model)
    return build_engine(model, layers, [PROMPT], "fan_out"), ReplayEngine(model, layers)


class LastNeurons:
    """This file's own hook on one down-projection: read or replace the last position's input."""

    def __init__(self, module: nn.Module, replacement: Tensor | None = None) -> None:
        self.module = module
        self.replacement = replacement
        self.neurons = torch.empty(0)

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = args[0].reshape(-1, args[0].shape[-1])  # one sequence: [positions, neurons]
        self.neurons = rows[-1].detach().clone()
        if self.replacement is not None:
            rows = torch.cat((rows[:-1], self.replacement[None]))
        return (rows.reshape(args[0].shape), *args[1:])

    def __enter__(self) -> LastNeurons:
        self.handle = self.module.register_forward_pre_hook(self)
        return self

    def __exit__(self, *_error: object) -> None:
        self.handle.remove()


def plain_target(model: nn.Module, prompt: Prompt) -> Tensor:
    """F as its definition has it: minus the cross-entropy of a softmax over the options alone."""
    logits = model(input_ids=torch.tensor([prompt.context]), use_cache=False).logits[0, -1]
    letters = logits[[option[0] for option in prompt.options]]
    return -nn.functional.cross_entropy(letters[None].double(), torch.tensor([prompt.gold]))


# The quadrature ---------------------------------------------------------------------------------


def test_two_gauss_legendre_nodes_are_the_known_ones():
    nodes, weights = Quadrature("gauss_legendre", 2).rule()
    half = 0.5 / math.sqrt(3)
    assert nodes.tolist() == pytest.approx([0.5 - half, 0.5 + half], abs=1e-7)
    assert weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-7)


def test_three_gauss_legendre_nodes_are_the_known_ones():
    # On [-1, 1]: 0 and +-sqrt(3/5) with weights 8/9 and 5/9; halved on [0, 1].
    nodes, weights = Quadrature("gauss_legendre", 3).rule()
    half = 0.5 * math.sqrt(0.6)
    assert nodes.tolist() == pytest.approx([0.5 - half, 0.5, 0.5 + half], abs=1e-7)
    assert weights.tolist() == pytest.approx([5 / 18, 8 / 18, 5 / 18], abs=1e-7)


def test_right_riemann_nodes_are_the_right_ends_of_equal_steps():
    nodes, weights = Quadrature("right_riemann", 4).rule()
    assert nodes.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert weights.tolist() == [0.25] * 4
    assert nodes.dtype is weights.dtype is torch.float32


@given(st.sampled_from(sorted(QUADRATURES)), st.integers(1, 40))
def test_every_rule_lies_in_the_interval_and_weighs_one(name, n_steps):
    n_steps = max(n_steps, QUADRATURES[name].least_n_steps)
    rule = Quadrature(name, n_steps)
    nodes, weights = rule.rule()
    assert len(nodes) == len(weights) == n_steps
    assert bool((nodes >= 0).all())
    assert bool((weights > 0).all())
    assert rule.n_copies == len({0.0, *nodes.tolist()} - {1.0})
    assert bool((nodes <= 1).all())
    assert bool((nodes.diff() > 0).all())
    assert float(weights.double().sum()) == pytest.approx(1.0, abs=1e-6)


@given(st.integers(1, 8), st.data())
def test_gauss_legendre_is_exact_for_polynomials_of_twice_its_nodes(n_steps, data):
    degree = data.draw(st.integers(0, 2 * n_steps - 1))
    nodes, weights = Quadrature("gauss_legendre", n_steps).rule()
    # The integral of x**d over [0, 1] is 1 / (d + 1).
    assert float((weights * nodes**degree).sum()) == pytest.approx(1 / (degree + 1), abs=1e-6)


@given(st.integers(2, 8), st.data())
def test_gauss_lobatto_is_as_exact_with_one_node_more_and_takes_a_copy_less(n_steps, data):
    degree = data.draw(st.integers(0, 2 * n_steps - 3))
    rule = Quadrature("gauss_lobatto", n_steps)
    nodes, weights = rule.rule()
    assert float((weights * nodes**degree).sum()) == pytest.approx(1 / (degree + 1), abs=1e-6)
    assert (float(nodes[0]), float(nodes[-1])) == (0.0, 1.0)
    assert rule.n_copies == Quadrature("gauss_legendre", n_steps - 1).n_copies - 1


def test_three_gauss_lobatto_nodes_are_simpsons_rule():
    nodes, weights = Quadrature("gauss_lobatto", 3).rule()
    assert nodes.tolist() == pytest.approx([0, 0.5, 1])
    assert weights.tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6])


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_seeing", "olmo2"])
def test_where_the_output_is_normalised_one_step_says_the_same(architecture, n_steps):
    # norm(W alpha h) = norm(W h), so dF/dh at alpha h is 1 / alpha of that at h.
    prompts = [random_prompt(number, 12 + number) for number in range(3)]
    model, layers = loaded(architecture)
    engine = build_engine(model, layers, prompts, n_nodes=8)
    rule = Quadrature("gauss_legendre", n_steps)
    along = Quantity(option_cross_entropy)
    at_once = Quantity(option_cross_entropy, path=False)
    nodes, weights = rule.rule()
    for found in attribute_all(engine, prompts, rule, [along, at_once]):
        expected = float((weights / nodes).sum()) * found.by_quantity[at_once].values
        assert relative_difference(found.by_quantity[along].values, expected) < 1e-3


def test_numbers_of_nodes_unless_told():
    assert Quadrature("gauss_lobatto") == Quadrature("gauss_lobatto", 5)
    assert Quadrature() == Quadrature("gauss_legendre", 4)
    assert Quadrature("right_riemann") == Quadrature("right_riemann", 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("simpson", 4),
            "unknown quadrature 'simpson'.\n"
            "Expected: gauss_lobatto or gauss_legendre or right_riemann.\n"
            "Remedy: check --quadrature.",
        ),
        (
            ("gauss_legendre", 0),
            "n_steps is 0.\nExpected: 1 to 1000 nodes for gauss_legendre.\n"
            "Remedy: check --n_steps (the default is 4).",
        ),
        (
            ("right_riemann", -3),
            "n_steps is -3.\nExpected: 1 to 1000 nodes for right_riemann.\n"
            "Remedy: check --n_steps (the default is 16).",
        ),
        (
            ("gauss_lobatto", 1),
            "n_steps is 1.\nExpected: 2 to 1000 nodes for gauss_lobatto.\n"
            "Remedy: check --n_steps (the default is 5).",
        ),
    ],
)
def test_an_impossible_rule_is_refused(arguments, message):
    with pytest.raises(UsageError) as refusal:
        Quadrature(*arguments)
    assert str(refusal.value) == message


# The target -------------------------------------------------------------------------------------


def test_target_by_hand():
    # Probabilities 0.1, 0.3 and 0.4 of the whole vocabulary: 1/8, 3/8, 4/8 among the options.
    loglikelihoods = torch.tensor([0.1, 0.3, 0.4]).log()
    found = [option_cross_entropy(loglikelihoods, gold).exp().item() for gold in range(3)]
    assert found == pytest.approx([1 / 8, 3 / 8, 4 / 8])


@given(
    st.lists(st.floats(-30, 0), min_size=2, max_size=6),
    st.floats(-20, 20),
    st.data(),
)
def test_target_ignores_what_all_options_share(loglikelihoods, shift, data):
    gold = data.draw(st.integers(0, len(loglikelihoods) - 1))
    values = torch.tensor(loglikelihoods, dtype=torch.float64)
    expected = option_cross_entropy(values, gold)
    assert expected <= 0
    assert torch.allclose(option_cross_entropy(values + shift, gold), expected, atol=1e-9)
    stacked = option_cross_entropy(torch.stack([values, values + shift]), gold)
    assert stacked.shape == (2,)


# Integrated gradients against a plain loop ------------------------------------------------------


def integrate_by_loop(model: nn.Module, module: nn.Module, prompt: Prompt, n: int) -> Tensor:
    """[neurons]: h/n times the sum over k = 1..n of the gradient of F at (k/n) h."""
    with torch.no_grad(), LastNeurons(module) as hook:
        plain_target(model, prompt)
    h = hook.neurons
    total = torch.zeros_like(h)
    for k in range(1, n + 1):
        point = (k / n * h).requires_grad_(True)
        with LastNeurons(module, point):
            plain_target(model, prompt).backward()
        total += point.grad
    return h * total / n


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "opt"])
def test_attribution_equals_a_plain_loop(architecture):
    engines = both_engines(architecture)
    model = tiny_model(architecture)
    expected = torch.stack(
        [integrate_by_loop(model, each, PROMPT, 3) for each in find_ffn_layers(model).modules]
    )
    for engine in engines:
        (found,) = attribute(engine, [PROMPT], Quadrature("right_riemann", 3))
        assert found.values.shape == expected.shape
        assert relative_difference(found.values, expected) <= 1e-5


@pytest.mark.parametrize("kind", [0, 1], ids=["fan_out", "replay"])
def test_gradient_of_a_neuron_equals_a_finite_difference(kind):
    # One right-Riemann step sits at alpha = 1, so the attribution is h * dF/dh of the model as is.
    # GPT-2 is in 64 bits throughout; llama's norms work in 32, too coarse for so small a step.
    engine = both_engines("gpt2", torch.float64)[kind]
    model = tiny_model("gpt2", torch.float64)
    module = find_ffn_layers(model).modules[1]
    (found,) = attribute(engine, [PROMPT], Quadrature("right_riemann", 1))
    with torch.no_grad():
        with LastNeurons(module) as hook:
            plain_target(model, PROMPT)
        h = hook.neurons
        index = int(found.values[1].abs().argmax())
        values = []
        for step in (-1e-5, 1e-5):
            point = h.clone()
            point[index] += step
            with LastNeurons(module, point):
                values.append(float(plain_target(model, PROMPT)))
    slope = (values[1] - values[0]) / 2e-5
    assert abs(slope) > 0.01
    assert float(found.values[1, index]) == pytest.approx(float(h[index]) * slope, rel=1e-4)


# Completeness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["fan_out", "replay"])
def test_completeness_gap_by_its_definition(kind):
    engine = both_engines("llama")[kind]
    model = tiny_model("llama")
    (found,) = attribute(engine, [PROMPT], Quadrature("gauss_legendre", 1))
    with torch.no_grad():
        whole = plain_target(model, PROMPT)
        for layer, module in enumerate(find_ffn_layers(model).modules):
            with LastNeurons(module, torch.zeros(48)):
                without = plain_target(model, PROMPT)
            gap = abs(float(found.values[layer].double().sum() - (whole - without)))
            assert float(found.completeness_gap[layer]) == pytest.approx(gap, abs=1e-5)
            assert gap > 1e-3  # one node is coarse: the gap is not merely rounding


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "phi"])
@pytest.mark.parametrize(
    ("rule", "counts", "limit"),
    [
        ("gauss_legendre", (1, 2, 4, 8), 2e-3),
        ("gauss_lobatto", (2, 3, 5, 9), 2e-3),
        # The error of equal steps falls only as 1 / n.
        ("right_riemann", (1, 4, 16, 64), 0.1),
    ],
)
def test_completeness_gap_shrinks_with_the_number_of_nodes(architecture, rule, counts, limit):
    engine, _ = both_engines(architecture)
    prompts = [random_prompt(number, 4 + number) for number in range(4)]
    means = []
    for n_steps in counts:
        found = attribute(engine, prompts, Quadrature(rule, n_steps))
        means.append(float(torch.stack([each.completeness_gap for each in found]).mean()))
    assert means == sorted(means, reverse=True)
    assert means[-1] < limit
    assert means[-1] < 0.1 * means[0]


class ScoredNeurons(LastNeurons):
    """The same for all scored positions of a sequence: from the context's last token on."""

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = args[0].reshape(-1, args[0].shape[-1])
        first = len(LONG_OPTIONS.context) - 1
        self.neurons = rows[first:].detach().clone()
        if self.replacement is not None:
            rows = torch.cat((rows[:first], self.replacement))
        return (rows.reshape(args[0].shape), *args[1:])


def texts_by_loop(model: nn.Module, module: nn.Module, n: int) -> Tensor:
    """[neurons]: as `integrate_by_loop`, one sequence for each option of `LONG_OPTIONS`."""

    def loglikelihood(option: tuple[int, ...]) -> Tensor:
        tokens = [*LONG_OPTIONS.context, *option[:-1]]
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        scored = logits[len(LONG_OPTIONS.context) - 1 :].log_softmax(-1)
        return sum(scored[index, token] for index, token in enumerate(option))

    unedited = []
    with torch.no_grad():
        for option in LONG_OPTIONS.options:
            with ScoredNeurons(module) as hook:
                loglikelihood(option)
            unedited.append(hook.neurons)
    total = torch.zeros(unedited[0].shape[-1])
    for k in range(1, n + 1):
        points = [(k / n * h).requires_grad_(True) for h in unedited]
        scores = []
        for option, point in zip(LONG_OPTIONS.options, points, strict=True):
            with ScoredNeurons(module, point):
                scores.append(loglikelihood(option))
        torch.stack(scores).log_softmax(-1)[LONG_OPTIONS.gold].backward()
        for h, point in zip(unedited, points, strict=True):
            total += (h * point.grad).sum(0)
    return total / n


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "opt"])
def test_attribution_over_texts_equals_a_plain_loop(architecture):
    engines = both_engines(architecture)
    model = tiny_model(architecture)
    modules = find_ffn_layers(model).modules
    expected = torch.stack([texts_by_loop(model, module, 3) for module in modules])
    for engine in engines:
        (found,) = attribute(engine, [LONG_OPTIONS], Quadrature("right_riemann", 3))
        assert relative_difference(found.values, expected) <= 1e-5


@pytest.mark.parametrize("kind", [0, 1], ids=["fan_out", "replay"])
def test_attribution_over_options_of_several_tokens_is_complete(kind):
    # The sum over neurons is what zeroing the layer at the scored positions does, which scoring
    # with a scale of 0 tells independently.
    engine = both_engines("llama")[kind]
    (found,) = attribute(engine, [LONG_OPTIONS], Quadrature("gauss_legendre", 16))
    scales = torch.ones(4, *engine.layers.shape)
    for layer in range(3):
        scales[layer + 1, layer] = 0.0
    (scores,) = engine.score([LONG_OPTIONS], scales)
    targets = option_cross_entropy(scores.loglikelihoods, LONG_OPTIONS.gold)
    expected = targets[0] - targets[1:]
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found.values.sum(-1), expected, atol=2e-3)
    assert float(found.completeness_gap.max()) < 2e-3
    assert torch.allclose(found.loglikelihoods, scores.loglikelihoods[0], atol=1e-5)


def test_results_come_in_the_order_of_the_prompts():
    engine, _ = both_engines("llama")
    prompts = [random_prompt(number, 3 + number, n_options=3 + number % 2) for number in range(4)]
    for prompt, found in zip(prompts, attribute(engine, prompts, Quadrature()), strict=True):
        (alone,) = attribute(engine, [prompt], Quadrature())
        assert found.loglikelihoods.shape == (len(prompt.options),)
        assert relative_difference(found.values, alone.values) <= 1e-5
        assert torch.allclose(found.completeness_gap, alone.completeness_gap, atol=1e-4)


@pytest.mark.parametrize("kind", [FanOutEngine, ReplayEngine])
def test_a_model_that_gives_nan_is_refused_with_the_name_of_the_doc(kind):
    model = tiny_model("llama")
    token = PROMPT.context[-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")  # only prompts with this token fail
    engine = kind(model, find_ffn_layers(model))
    sound = random_prompt(11, 4)
    assert token not in sound.context
    attribute(engine, [sound], Quadrature())
    with pytest.raises(DocError) as refusal:
        attribute(engine, [sound, PROMPT], Quadrature())
    assert str(refusal.value) == (
        "doc 3 gives NaN or infinite log-likelihoods or gradients.\n"
        "Expected: finite numbers.\n"
        "Remedy: load the model in float32 or bfloat16 (--model_args dtype=float32)."
    )
