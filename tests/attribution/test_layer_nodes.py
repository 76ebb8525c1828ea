"""Nodes that each layer has of its own: rules by hand, the choice, and what it is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuronllm_eval.attribution import layer_nodes
from neuronllm_eval.attribution.integrated_gradients import Attribution, attribute
from neuronllm_eval.attribution.layer_nodes import choose_quadrature
from neuronllm_eval.attribution.quadrature import LayerRule, Quadrature, parse_layer_rules
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.tiny_models import loaded, random_prompt, tiny_model

PROMPTS = tuple(random_prompt(number, 12 + number) for number in range(9))


def engine_of(architecture: str, name: str = "auto") -> Engine:
    model, layers = loaded(architecture)
    return build_engine(model, layers, PROMPTS, name, n_nodes=8)


def shares(found: list[Attribution]) -> torch.Tensor:
    """[layers] gap over change."""
    gaps = torch.stack([one.completeness_gap for one in found]).sum(0)
    return gaps / torch.stack([one.target_change for one in found]).abs().sum(0)


# Rules ------------------------------------------------------------------------------------------


def test_a_graded_rule_by_hand():
    # Three Gauss-Lobatto nodes t = 0, 1/2, 1 with weights 1/6, 4/6, 1/6. With s = 1 / sinh(2),
    # alpha = sinh(2 t) / sinh(2) and d alpha / dt = 2 cosh(2 t) / sinh(2).
    nodes, weights = LayerRule(3, 1 / math.sinh(2)).nodes_and_weights()
    assert nodes.tolist() == pytest.approx([0, math.sinh(1) / math.sinh(2), 1])
    slopes = [2 * math.cosh(t) / math.sinh(2) for t in (0, 1, 2)]
    assert weights.tolist() == pytest.approx([slopes[0] / 6, slopes[1] * 4 / 6, slopes[2] / 6])


@pytest.mark.parametrize("scale", [0.3, 1e-4, math.inf])
def test_the_variable_of_a_grading_has_an_inverse_and_a_slope(scale):
    rule, t = LayerRule(5, scale), np.linspace(0, 1, 9)
    assert rule.t(rule.alpha(t)) == pytest.approx(t)
    near = (rule.alpha(t + 1e-6) - rule.alpha(t - 1e-6)) / 2e-6
    assert rule.slope(t)[:-1] == pytest.approx(near[:-1], rel=1e-4)


def test_a_steep_integral_needs_a_grading():
    # The integral over [0, 1] of s / (alpha + s)**2, as behind a norm, is 1 / (1 + s).
    for rule, is_close in ((LayerRule(7), False), (LayerRule(7, 1e-3), True)):
        nodes, weights = rule.nodes_and_weights()
        value = float(weights @ (1e-3 / (nodes + 1e-3) ** 2))
        assert (abs(value - 1 / 1.001) < 0.01) == is_close


def test_layers_of_fewer_nodes_are_filled_up_with_ones_of_no_weight():
    rule = Quadrature("auto", layers=parse_layer_rules("3 5@0.1 2"))
    nodes, weights = rule.rule()
    assert nodes.shape == weights.shape == (3, 5)
    assert nodes[0].tolist() == [0, 0.5, 1, 1, 1]
    assert weights[2].tolist() == [0.5, 0.5, 0, 0, 0]
    assert rule.layer_nodes == "3 5@0.1 2"
    assert (rule.n_copies, rule.mean_nodes) == (3, 4)  # (2 + 4 + 1) / 3 and 10 / 3, rounded up


@pytest.mark.parametrize("text", ["1", "3,3", "3@", "3@0", "3@-1", "x", "3@x", "1001"])
def test_what_is_no_rule_is_refused(text):
    if text == "3@":
        assert parse_layer_rules(text) == (LayerRule(3),)
        return
    with pytest.raises(UsageError, match=r"layer_nodes is '3 .*\n.*'7@0.003 3 3'"):
        parse_layer_rules(f"3 {text}")


# The prediction ---------------------------------------------------------------------------------


def test_predicted_gaps_are_those_of_the_rules():
    measured = layer_nodes._COARSE
    nodes, weights = measured.nodes_and_weights()

    def slope(alpha):
        return np.stack([0.02 / (alpha + 0.02) ** 2, np.cos(3 * alpha)])  # two probes

    exact = slope(nodes) @ weights
    for rule, gap in layer_nodes._predicted_gaps(measured, slope(nodes)).items():
        at, of_at = rule.nodes_and_weights()
        assert gap == pytest.approx(np.abs(slope(at) @ of_at - exact).mean(), abs=2e-3)


def test_the_budget_counts_copies_by_the_layers_they_run_through():
    # 7 nodes (6 copies) are exact, 3 (2 copies) miss everything; of two layers, copies of the first
    # run through both.
    gaps = {LayerRule(3): 1.0, LayerRule(5): 0.2, LayerRule(7): 0.0}
    sizes = np.ones(2)
    for budget, expected in ((7, (7, 7)), (6, (5, 5)), (4, (3, 3)), (2, (3, 3))):
        rules = layer_nodes._within_budget([gaps, gaps], sizes, budget)
        assert tuple(rule.n_steps for rule in rules) == expected
    # 2 * 2 + 6 are no more than 4 * 3, and 2 * 6 + 2 are.
    rules = layer_nodes._within_budget([{LayerRule(3): 0.0}, gaps], sizes, 5)
    assert rules == (LayerRule(3), LayerRule(7))


def test_a_rule_that_is_close_by_chance_is_not_taken():
    gaps = {LayerRule(3): 0.0, LayerRule(4): 0.9, LayerRule(5): 0.0, LayerRule(6): 0.0}
    assert layer_nodes._cheapest(gaps, 0.1) == LayerRule(5)


# The choice -------------------------------------------------------------------------------------


def share(found: list[Attribution]) -> float:
    """Gaps over changes, of all layers together."""
    gaps, changes = (
        torch.stack([getattr(one, name) for one in found]).abs().sum()
        for name in ("completeness_gap", "target_change")
    )
    return float(gaps / changes)


@pytest.mark.parametrize(
    ("architecture", "most", "of_uniform"),
    [("llama", 0.05, 0.2), ("gpt2", 0.01, 0.02), ("gemma2", 0.12, 0.95), ("olmo2", 0.12, 0.95)],
)
def test_the_choice_misses_less_than_the_same_nodes_everywhere(architecture, most, of_uniform):
    # Where the FFN's output is normalised, all of the path lies next to alpha = 0.
    engine = engine_of(architecture)
    chosen = choose_quadrature(engine, PROMPTS, "auto")
    assert chosen == choose_quadrature(engine, PROMPTS, "auto")
    assert share(attribute(engine, PROMPTS, chosen)) < most
    assert share(attribute(engine, PROMPTS, Quadrature("gauss_legendre", 4))) > of_uniform


def test_a_steep_layer_gets_nodes_and_the_others_do_not():
    # A larger output of layer 0's FFN takes over the residual stream early on the path.
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    with torch.no_grad():
        layers.modules[0].weight.mul_(3)
    engine = build_engine(model, layers, PROMPTS, n_nodes=8)
    chosen = choose_quadrature(engine, PROMPTS, "auto")
    first, *others = (rule.n_steps for rule in chosen.layers)
    assert first > 3 == max(others)
    found, uniform, exact = (
        attribute(engine, PROMPTS, rule)
        for rule in (
            chosen,
            Quadrature("gauss_lobatto", 5),
            Quadrature("auto", layers=(LayerRule(65, 0.1),) * 3),
        )
    )
    for results, most in ((found, 0.1), (exact, 1e-3)):
        assert float(shares(results)[0]) < most
    assert float(shares(uniform)[0]) > 0.5
    values, expected = (torch.stack([one.values[0] for one in each]) for each in (found, exact))
    assert float((values - expected).abs().sum() / expected.abs().sum()) < 0.05


def test_engines_choose_the_same():
    one, other = (
        choose_quadrature(engine_of("llama", name), PROMPTS[:1], "auto")
        for name in ("fan_out", "replay")
    )
    assert one == other


@pytest.mark.parametrize(("name", "n_prompts", "n_probes"), [
    ("fan_out", 9, 3), ("replay", 9, 1), ("replay", 120, 2),
])  # fmt: skip
def test_a_slow_engine_has_few_probes(name, n_prompts, n_probes):
    prompts = (PROMPTS * 20)[:n_prompts]
    probes = layer_nodes.probe_prompts(prompts, is_slow=name == "replay")
    assert len(probes) == n_probes


def test_few_nodes_may_be_asked_for_and_a_named_rule_is_taken():
    engine = engine_of("gemma2")
    chosen = choose_quadrature(engine, PROMPTS, "auto", 3)
    assert {rule.n_steps for rule in chosen.layers} == {3}
    assert choose_quadrature(engine, PROMPTS, "gauss_lobatto", 4) == Quadrature("gauss_lobatto", 4)


def test_probes_that_are_not_finite_say_nothing(monkeypatch):
    engine = engine_of("llama")
    expected = choose_quadrature(engine, PROMPTS[:2], "auto")
    profiles = layer_nodes._profiles
    for broken, result in (([2], expected), ([0, 1, 2], Quadrature("gauss_legendre", 4))):

        def some_broken(*arguments, broken=broken):
            slopes, changes = profiles(*arguments)
            if len(slopes) == 3:
                slopes[broken, 0, 0] = np.nan
            return slopes, changes

        monkeypatch.setattr(layer_nodes, "_profiles", some_broken)
        assert choose_quadrature(engine, (*PROMPTS[:2], PROMPTS[5]), "auto") == result


def test_a_prompt_that_does_not_fit_is_an_error_with_a_remedy(monkeypatch):
    def full(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine = engine_of("llama")
    monkeypatch.setattr(engine, "integrate_all", full)
    with pytest.raises(ModelError, match=r"one prompt of 12 tokens: CUDA[\s\S]*bfloat16"):
        choose_quadrature(engine, PROMPTS, "auto")
