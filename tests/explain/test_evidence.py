"""Activations against plain hooks, attributions against the replay engine, means by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuronllm_eval.aqua.metrics import Answer, acc_stderr
from neuronllm_eval.attribution.identify import IdentificationSettings
from neuronllm_eval.attribution.integrated_gradients import (
    Quantity,
    attribute,
    attribute_all,
)
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.explain.evidence import Mean
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.stages.explain import gather
from neuronllm_eval.stages.verify import Attributing
from tests.fixtures.tiny_models import loaded, n_hooks, proxies

PLACES = [(2, 5), (0, 47), (1, 0), (2, 6)]
QUESTIONS = [
    Question("one", proxies(0, [7, 8, 9], [4, 9])),
    Question("two", proxies(2, [7, 8, 5], [12])),
    Question("three", proxies(3, [7, 8, 5], [3, 3, 6])),
]
PROMPTS = [prompt for question in QUESTIONS for prompt in question.prompts]


def hooked(model, layers, prompt: Prompt) -> torch.Tensor:
    """[neurons at PLACES] by a plain hook in a pass over one prompt."""
    noted: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, layer=layer: noted.update({layer: args[0].reshape(-1, 48)[-1]})
        )
        for layer, module in enumerate(layers.modules)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt.context]))
    for handle in handles:
        handle.remove()
    return torch.stack([noted[layer][index] for layer, index in PLACES])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mistral_sliding"])
def test_activations_are_those_of_a_plain_hook(architecture):
    model, layers = loaded(architecture)
    engine = build_engine(model, layers, PROMPTS, "fan_out", 3)
    rule = Quadrature("gauss_legendre", 3)
    layer, index = (list(each) for each in zip(*PLACES, strict=True))
    found = torch.stack(
        [
            each.activations[layer, index]
            for each in attribute_all(engine, PROMPTS, rule, [Quantity(option_cross_entropy)])
        ]
    )
    expected = torch.stack([hooked(model, layers, prompt) for prompt in PROMPTS])
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found, expected, atol=1e-5)
    assert n_hooks(model) == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evidence_is_what_the_replay_engine_says(batch_size):
    model, layers = loaded("llama")
    rule = Quadrature("gauss_legendre", 3)
    engine = build_engine(model, layers, PROMPTS, "fan_out", 3)
    attributing = Attributing(
        engine, IdentificationSettings(quadrature=rule, batch_size=batch_size)
    )
    evidence = gather(attributing, QUESTIONS, PLACES)
    replay = ReplayEngine(model, layers)
    number = 0
    for index, question in enumerate(QUESTIONS):
        total = np.zeros(len(PLACES))
        for prompt in question.prompts:
            (one,) = attribute(replay, [prompt], rule)
            total += [float(one.values[layer, index]) for layer, index in PLACES]
            scores = replay.score([prompt], torch.ones(1, *layers.shape))[0].loglikelihoods[0]
            assert evidence.correct[number] == (int(scores.argmax()) == prompt.gold)
            assert evidence.question_of[number] == index
            expected = hooked(model, layers, prompt)
            assert np.allclose(evidence.activations[number], expected, atol=1e-5)
            number += 1
        assert np.abs(total).max() > 1e-3
        assert np.allclose(evidence.attributions[index], total, rtol=1e-3, atol=1e-6)
    assert number == len(evidence.correct)
    assert {bool(each) for each in evidence.correct} == {True, False}
    for neuron in range(len(PLACES)):
        right = evidence.mean_activation(neuron, correct=True)
        wrong = evidence.mean_activation(neuron, correct=False)
        assert right.n_prompts + wrong.n_prompts == number
        assert right.value == pytest.approx(evidence.activations[evidence.correct, neuron].mean())
        positive = [value > 0 for value in evidence.activations[:, neuron]]
        assert evidence.share_positive(neuron) == sum(positive) / number


# Means ------------------------------------------------------------------------------------------


def test_a_mean_of_single_prompts_is_the_usual_one():
    found = Mean.of(np.array([1.0, 2.0, 6.0]), np.array([4, 5, 9]))
    # Mean 3, deviations -2, -1, 3: variance 14 / 2, over 3 prompts.
    assert found == Mean(3.0, pytest.approx(math.sqrt(7 / 3)), 3, 3)


def test_its_error_takes_the_question_as_the_unit():
    # As the harness's accuracy of an AQUA task does.
    values = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    questions = np.array([0, 0, 0, 1, 1, 2])
    answers = [
        Answer(str(question), proxy, 3, 0, 1 - int(value), 0)
        for proxy, (value, question) in enumerate(zip(values, questions, strict=True))
    ]
    found = Mean.of(values, questions)
    assert found == Mean(0.5, pytest.approx(acc_stderr(answers)), 6, 3)


def test_means_of_too_little():
    assert Mean.of(np.array([]), np.array([], dtype=np.int64)) == Mean(None, None, 0, 0)
    assert Mean.of(np.array([2.0, 4.0]), np.array([3, 3])) == Mean(3.0, None, 2, 1)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("positions", ["scored", "all"])
def test_a_neuron_alone_is_scaled_by_a_plain_hook(batch_size, positions):
    model, layers = loaded("llama")
    engine = build_engine(model, layers, PROMPTS, "auto", 3, positions)
    how = IdentificationSettings(
        quadrature=Quadrature("gauss_legendre", 1), batch_size=batch_size, positions=positions
    )
    evidence = gather(Attributing(engine, how), QUESTIONS, PLACES)

    def target(prompt: Prompt, location: tuple[int, int] | None, factor: float) -> float:
        def scale(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            neurons = args[0].clone()
            rows = slice(None) if positions == "all" else slice(-1, None)
            neurons[:, rows, location[1]] *= factor
            return (neurons,)

        handles = (
            []
            if location is None
            else [layers.modules[location[0]].register_forward_pre_hook(scale)]
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt.context])).logits[0, -1].double()
        for handle in handles:
            handle.remove()
        options = torch.tensor([option for (option,) in prompt.options])
        return float(logits[options].log_softmax(-1)[prompt.gold])

    for row, prompt in enumerate(PROMPTS):
        own = target(prompt, None, 1.0)
        off = [own - target(prompt, location, 0.0) for location in PLACES]
        twice = [target(prompt, location, 2.0) - own for location in PLACES]
        assert evidence.single_effects[row] == pytest.approx(np.array([off, twice]), abs=1e-5)
    assert np.abs(evidence.single_effects).max() > 1e-2
    assert evidence.knockout(1).value == pytest.approx(evidence.single_effects[:, 0, 1].mean())
    assert evidence.doubling(1).value == pytest.approx(evidence.single_effects[:, 1, 1].mean())
    assert evidence.value(2) == pytest.approx(evidence.attributions[:, 2].sum() / len(PROMPTS))
