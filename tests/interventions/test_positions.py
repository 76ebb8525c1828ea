"""All positions instead of the scored one: attributions and masks against loops of this file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuronllm_eval.attribution.identify import IdentificationSettings
from neuronllm_eval.attribution.integrated_gradients import (
    Attributions,
    Quantity,
    attribute_all,
)
from neuronllm_eval.attribution.methods import make_method
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import (
    gold_loglikelihood,
    gold_probability,
    option_cross_entropy,
)
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import ALL, POSITIONS, Prompt
from tests.fixtures.harness import demo_task, harness_model, many_neurons, model_dir
from tests.fixtures.tiny_models import (
    loaded,
    n_hooks,
    random_prompt,
    relative_difference,
    score_all,
)

# A batch of other lengths, so that there is padding.
PROMPTS = [random_prompt(0, 9), random_prompt(1, 23), random_prompt(2, 14)]
SEVERAL = Prompt(7, tuple(range(40, 52)), ((60, 61, 62), (60, 63), (64,)), 1)
ARCHITECTURES = ("llama", "gpt2", "mistral_sliding", "opt", "gemma2")
F = Quantity(option_cross_entropy)
ONE_STEP = Quantity(option_cross_entropy, path=False)
RULE = Quadrature("gauss_legendre", 3)
RELATIVE = 2e-5


def engine_of(architecture: str) -> ReplayEngine:
    model, layers = loaded(architecture)
    return ReplayEngine(model, layers, positions=ALL)


def at(engine: ReplayEngine, prompt: Prompt, layer: int, alpha: float | None) -> tuple[Tensor, ...]:
    """A layer's neurons at every position, F with them times alpha, and dF/dneurons.

    One prompt, one layer, one full pass: no hook, target or sequence of the package.
    """
    kept = []

    def edit(module, args):
        own = args[0].detach()
        kept[:] = [own, (alpha * own).requires_grad_(True)]
        return (kept[1],)

    hook = engine.layers.modules[layer].register_forward_pre_hook(edit)
    logits = engine.model(torch.tensor([prompt.context])).logits[0, -1]
    hook.remove()
    options = logits[[option[0] for option in prompt.options]].log_softmax(-1)
    target = options[prompt.gold]
    (gradient,) = torch.autograd.grad(target, kept[1])
    width = engine.layers.width
    return kept[0].reshape(-1, width), target.detach(), gradient.reshape(-1, width)


def by_hand(engine: ReplayEngine, prompt: Prompt, nodes: Tensor, weights: Tensor) -> Tensor:
    """[layers, neurons] h * sum of weight * dF/dh(alpha h), summed over all positions."""
    found = []
    for layer in range(engine.layers.n_layers):
        total = torch.zeros(engine.layers.width)
        for alpha, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            neurons, _, gradient = at(engine, prompt, layer, alpha)
            total += weight * (neurons * gradient).sum(0)
        found.append(total)
    return torch.stack(found)


def passes_of(engine: ReplayEngine, action) -> int:
    """How many forward passes an action takes."""
    seen = []
    hook = engine.model.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        action()
    finally:
        hook.remove()
    return len(seen)


# Attribution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_times_activation_is_that_of_a_loop_over_layers(architecture):
    engine = engine_of(architecture)
    found = attribute_all(engine, PROMPTS, RULE, [ONE_STEP])
    for prompt, each in zip(PROMPTS, found, strict=True):
        expected = by_hand(engine, prompt, torch.ones(1), torch.ones(1))
        assert relative_difference(each.first.values, expected) <= RELATIVE
        kept = [at(engine, prompt, layer, 1.0)[0].mean(0) for layer in range(3)]
        assert relative_difference(each.activations[:3], torch.stack(kept)) <= RELATIVE
    assert n_hooks(engine.model) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])
def test_integrated_gradients_are_those_of_a_loop_over_layers_and_nodes(architecture):
    engine, prompt = engine_of(architecture), PROMPTS[0]
    (found,) = attribute_all(engine, [prompt], RULE, [F, ONE_STEP])
    integrated, at_one = found.by_quantity[F], found.by_quantity[ONE_STEP]
    assert relative_difference(integrated.values, by_hand(engine, prompt, *RULE.rule())) <= RELATIVE
    ones = torch.ones(1)
    assert relative_difference(at_one.values, by_hand(engine, prompt, ones, ones)) <= RELATIVE
    gap, change = integrated.completeness_gap, integrated.target_change
    for layer in range(engine.layers.n_layers):
        before, after = (float(at(engine, prompt, layer, alpha)[1]) for alpha in (0.0, 1.0))
        assert float(change[layer]) == pytest.approx(after - before, abs=1e-5)
        missed = float(found.by_quantity[F].values[layer].sum()) - (after - before)
        assert float(gap[layer]) == pytest.approx(abs(missed), abs=1e-5)


def test_the_gap_closes_with_more_nodes():
    engine = engine_of("llama")
    means = []
    for n_steps in (1, 4, 12):
        found = attribute_all(engine, PROMPTS[:1], Quadrature("gauss_legendre", n_steps), [F])
        means.append(float(found[0].first.completeness_gap.mean()))
    assert means[0] > means[1] > means[2]
    assert means[2] < 1e-2


@pytest.mark.parametrize("rows_per_pass", [1, 16])
def test_a_batch_gives_what_prompts_give_alone(rows_per_pass):
    model, layers = loaded("llama")
    engine = ReplayEngine(model, layers, positions=ALL, rows_per_pass=rows_per_pass)
    prompts = [PROMPTS[0], SEVERAL, *PROMPTS[1:]]
    quantities = [ONE_STEP, Quantity(gold_loglikelihood, path=False)]
    together = attribute_all(engine, prompts, RULE, quantities)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = attribute_all(engine_of("llama"), [prompt], RULE, quantities)
        for quantity in quantities:
            values, own = found.by_quantity[quantity].values, alone.by_quantity[quantity].values
            assert relative_difference(values, own) <= RELATIVE
        assert torch.allclose(found.first.loglikelihoods, alone.first.loglikelihoods, atol=1e-5)
        assert relative_difference(found.activations, alone.activations) <= RELATIVE


def test_options_of_several_tokens_in_one_pass_and_layer_by_layer():
    engine = engine_of("llama")
    (fast,) = attribute_all(engine, [SEVERAL], RULE, [ONE_STEP])
    (slow,) = attribute_all(engine, [SEVERAL], RULE, [F, ONE_STEP])
    assert relative_difference(fast.first.values, slow.by_quantity[ONE_STEP].values) <= RELATIVE
    assert torch.allclose(fast.first.loglikelihoods, slow.first.loglikelihoods, atol=1e-5)


def test_one_pass_for_all_layers_and_no_gap_that_was_not_measured():
    engine = engine_of("llama")
    found: list[Attributions] = []
    count = passes_of(
        engine, lambda: found.extend(attribute_all(engine, PROMPTS, RULE, [ONE_STEP]))
    )
    assert count == 1
    assert {each.first.completeness_gap for each in found} == {None}
    # Where a path is integrated in any case, it is that of the path alone.
    (mixed,) = attribute_all(engine, PROMPTS[:1], RULE, [ONE_STEP, F])
    assert mixed.gaps(ONE_STEP) is mixed.gaps(None) is None
    assert mixed.gaps(F) is not None


def test_scored_and_all_positions_differ_but_in_what_is_not_edited():
    model, layers = loaded("llama")
    scored, everywhere = (ReplayEngine(model, layers, positions=where) for where in POSITIONS)
    (one,), (other,) = (
        attribute_all(engine, PROMPTS[1:2], RULE, [F]) for engine in (scored, everywhere)
    )
    assert relative_difference(one.first.values, other.first.values) > 0.1
    assert torch.equal(one.first.loglikelihoods, other.first.loglikelihoods)


def test_what_needs_no_path_at_all_positions():
    activation = (make_method("activation"),)
    assert IdentificationSettings(activation).quantities == (F,)
    assert IdentificationSettings(activation, positions=ALL).quantities == (ONE_STEP,)
    kn = IdentificationSettings((make_method("kn"),), positions=ALL).quantities
    assert kn == (Quantity(gold_probability),)


def test_fan_out_is_refused_and_replay_taken():
    model, layers = loaded("llama")
    with pytest.raises(
        UsageError, match=r"fan-out engine with positions=all\.\n.*\n.*--engine auto"
    ):
        build_engine(model, layers, PROMPTS, "fan_out", positions=ALL)
    built = build_engine(model, layers, PROMPTS, positions=ALL)
    assert (built.name, built.positions) == ("replay", ALL)
    assert build_engine(model, layers, PROMPTS).positions == "scored"


# Masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["words", "split_space"])
def test_conditions_at_all_positions_are_those_of_the_masked_model(tokenizer):
    # Where a letter is a space and a letter, the space's log-likelihood moves with the mask too.
    path, neurons = model_dir(tokenizer), many_neurons()
    task, plain = demo_task(), harness_model(path)
    questions = build_questions(plain, task, PromptSettings(num_fewshot=0), limit=3)
    assert {prompt.n_shared for prompt in questions.prompts} == {int(tokenizer != "words")}
    layers = find_ffn_layers(plain.model)
    plan = ConditionPlan(("degrade", "enhance_bad"), n_random=1, positions=ALL)
    engine = build_engine(plain.model, layers, questions.prompts, positions=plan.positions)
    docs = score_all(engine, questions.questions, plan.factors(neurons), 6)
    for row, name in enumerate(plan.names):
        given = {"device": "cpu", "batch_size": 8, "positions": ALL}
        answers = NeuronMaskedLM(str(path), neurons, name, **given).loglikelihood(
            task.instances, disable_tqdm=True
        )
        found = np.concatenate([doc.loglikelihoods[row] for doc in docs])
        np.testing.assert_allclose(found, [value for value, _ in answers], rtol=0, atol=1e-4)
        greedy = np.concatenate([doc.greedy[row] for doc in docs])
        assert greedy.tolist() == [flag for _, flag in answers]
