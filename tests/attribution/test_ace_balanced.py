"""`ace_balanced`: by hand, and on a model with a neuron of a label and a neuron of the task."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from neuronllm_eval.attribution.identify import IdentificationSettings, add_question
from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    Quadrature,
    attribute,
)
from neuronllm_eval.attribution.methods import ACE, ACEBalanced, make_method, to_scores
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import (
    Engine,
    calibrated_cross_entropy,
    option_cross_entropy,
    target_values,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import select_neurons
from neuronllm_eval.prompts import Prompt, Question, with_priors
from neuronllm_eval.stages.priors import fitted_priors, option_priors
from tests.fixtures.tiny_models import (
    identify_all,
    llama_with_biases,
    provenance,
    random_prompt,
    random_tokens,
    relative_difference,
    tiny_model,
)

# By hand ------------------------------------------------------------------------------------------


def added(
    rows: list[list[float]],
    golds: list[int],
    at_one: list[list[float]] | None = None,
    n_options: int = 3,
) -> ScoreSums:
    """Sums over questions of one prompt, of IG(F) in rows and as much or `at_one` of h * dF/dh."""
    method = ACEBalanced()
    sums = ScoreSums.zeros(
        (1, len(rows[0])), n_options, method.n_groups(n_options), n_extras=method.n_extras
    )
    zero = torch.zeros(1)
    for index, (*both, gold) in enumerate(zip(rows, at_one or rows, golds, strict=True)):
        by_quantity = {
            quantity: Attribution(torch.tensor([row]), zero, torch.zeros(n_options), zero)
            for quantity, row in zip(method.quantities, both, strict=True)
        }
        found = Attributions(by_quantity, torch.tensor([both[0]]))
        question = Question(f"q{index}", (random_prompt(index, 4, n_options, gold),))
        add_question(sums, method, index, question, [found], top_z=1)
    return sums


def by_hand(ends: np.ndarray, golds: np.ndarray, penalty: float) -> float:
    """The score of one neuron in plain numpy, by [2, prompts] IG(F) and h * dF/dh."""
    values, halved = ends.mean(0), (ends[0] - ends[1]) / 2
    labels = np.unique(golds)
    of_labels = [values[golds == label] for label in labels]
    means = np.array([each.mean() for each in of_labels])
    pooled = sum(((each - each.mean()) ** 2).sum() for each in of_labels)
    pooled /= max(1, len(values) - len(labels))
    errors = np.array([pooled / len(each) for each in of_labels])
    n = len(labels)
    between = max(0.0, means.var() - (n - 1) / n * errors.mean())
    d = np.mean([halved[golds == label].mean() for label in labels])
    m, s2 = means.mean(), between + errors.sum() / n**2 + d**2
    return float(m * abs(m) / np.sqrt(m**2 + penalty**2 * s2))


def test_scores_equal_plain_numpy_in_all_and_in_halves():
    generator = np.random.default_rng(0)
    golds = np.array([0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0])  # 2 is never gold
    ends = generator.normal(0.3, 0.5, (2, len(golds), 4)).astype(np.float32)
    sums = added(ends[0].tolist(), golds.tolist(), ends[1].tolist())
    for penalty in (0.0, 1.0, 2.0):
        method = ACEBalanced(penalty)
        score, halves = method.score(sums, []), method.halves(sums, [])
        for neuron in range(4):
            assert score[0, neuron] == pytest.approx(by_hand(ends[:, :, neuron], golds, penalty))
            for half in (0, 1):
                expected = by_hand(ends[:, half::2, neuron], golds[half::2], penalty)
                assert halves[half, 0, neuron] == pytest.approx(expected)


def test_what_one_answer_gains_and_another_loses_counts_for_little():
    # F is steeper for gold 1, so a neuron of label 1 (second) does not cancel in a sum.
    of_task, of_label, of_none = [0.4, 0.4, 0.4, 0.4], [-0.1, -0.1, 2.0, 2.0], [0.0] * 4
    rows = [list(values) for values in zip(of_task, of_label, of_none, strict=True)]
    sums = added(rows, [0, 0, 1, 1])
    assert sums.floats(sums.half_sums.sum(0))[0].argmax() == 1
    task, label, none = ACEBalanced().score(sums, [])[0]
    assert task == pytest.approx(0.4)  # nothing varies
    # m = 0.95, s = 1.05.
    assert label == pytest.approx(0.95**2 / np.sqrt(0.95**2 + 4 * 1.05**2))
    assert none == 0.0


def test_what_shows_at_one_end_of_the_path_alone_counts_for_little():
    sums = added([[0.4], [0.4]], [0, 1], at_one=[[0.0], [0.0]])
    assert ACEBalanced().score(sums, [])[0, 0] == pytest.approx(0.2 / np.sqrt(5))  # m = d = 0.2


def test_frequent_answers_count_as_rare_ones():
    rows = [[0.1], [0.1], [0.1], [0.1], [0.7]]
    assert ACEBalanced(0.0).score(added(rows, [0, 0, 0, 0, 1]), [])[0, 0] == pytest.approx(0.4)


def test_one_question_has_a_score():
    assert ACEBalanced().score(added([[0.5, -0.25]], [1]), [])[0].tolist() == [0.5, -0.25]


def test_penalty_is_a_number_from_zero():
    assert make_method("ace_balanced", {"penalty": 0.5}) == ACEBalanced(0.5)
    with pytest.raises(UsageError, match=r"penalty of method ace_balanced is -1"):
        make_method("ace_balanced", {"penalty": -1})


# Calibrated targets -------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(), (2.0, 4.0, 8.0)])
def test_priors_are_taken_off_what_options_are_compared_by(lengths):
    prompt = Prompt(0, (5, 6), ((7,), (8,), (9,)), 1, lengths=lengths, priors=(0.5, -0.25, 0.0))
    loglikelihoods = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -1.0, -4.0]])
    compared = loglikelihoods.numpy() / np.array(lengths or 1.0)
    expected = log_softmax(compared - np.array([0.5, -0.25, 0.0]), axis=-1)[:, 1]
    found = target_values(calibrated_cross_entropy, loglikelihoods, prompt)
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    plain = target_values(option_cross_entropy, loglikelihoods, prompt)
    assert plain.numpy() == pytest.approx(log_softmax(compared, axis=-1)[:, 1], abs=1e-6)


def test_a_constant_added_to_an_option_has_no_effect_at_the_priors():
    generator = np.random.default_rng(0)
    gold = np.array([0, 0, 0, 1, 0, 2, 1, 0, 0, 2])
    rows = list(generator.normal([2.0, 0.0, -1.0], size=(len(gold), 3)))
    rows[3] = rows[3][:2]  # one with two options
    priors = np.array(fitted_priors(rows, gold))
    assert priors.sum() == pytest.approx(0, abs=1e-3)
    assert priors[0] > 1 > 0 > priors[2]

    def balanced_mean(shift: np.ndarray) -> float:
        values = np.array(
            [
                log_softmax(row - priors[: len(row)] + shift[: len(row)])[option]
                for row, option in zip(rows, gold, strict=True)
            ]
        )
        return float(np.mean([values[gold == option].mean() for option in range(3)]))

    for option in range(3):
        shift = 1e-3 * np.eye(3)[option]
        slope = (balanced_mean(shift) - balanced_mean(-shift)) / 2e-3
        assert slope == pytest.approx(0, abs=5e-3)  # of the ridge
    assert fitted_priors(rows[:3], gold[:3])[0] < 0  # the others are never gold, and finite


def test_priors_are_of_the_unmasked_model():
    questions = [
        Question(f"q{i}", (random_prompt(i, 5, 3 if i % 2 else 4, i % 3),)) for i in range(6)
    ]
    prompts = [question.prompts[0] for question in questions]
    model = tiny_model("llama")
    engine = build_engine(model, find_ffn_layers(model), prompts)
    scores = engine.score(prompts, torch.ones(1, *engine.layers.shape))
    rows = [each.loglikelihoods[0].double().numpy() for each in scores]
    expected = fitted_priors(rows, np.array([prompt.gold for prompt in prompts]))
    assert option_priors(engine, questions, 4) == pytest.approx(expected, abs=2e-3)
    (three,) = with_priors(questions[1:2], (1.0, 2.0, 3.0, 4.0))
    assert three.prompts[0].priors == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("n_tokens", [1, 3])
def test_calibrated_attributions_agree_between_engines(n_tokens):
    options = tuple(random_tokens(10 + option, n_tokens) for option in range(3))
    questions = [
        Question(f"q{number}", (Prompt(number, random_tokens(number, 6), options, 1),))
        for number in range(2)
    ]
    prompts = [each.prompts[0] for each in with_priors(questions, (0.5, -1.0, 0.5))]
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    fast, slow = (build_engine(model, layers, prompts, name) for name in ("fan_out", "replay"))
    found = [
        attribute(engine, prompts, Quadrature(), target)
        for engine, target in (
            (fast, calibrated_cross_entropy),
            (slow, calibrated_cross_entropy),
            (slow, option_cross_entropy),
        )
    ]
    for fast, slow, without in zip(*found, strict=True):
        assert relative_difference(fast.values, slow.values) <= 1e-5
        assert relative_difference(without.values, slow.values) > 1e-2


# A neuron of a label and a neuron of the task -----------------------------------------------------

LABEL, TASK = (1, 7), (0, 21)  # (layer, index)
OFTEN, SELDOM = 0, 1  # options
TOKENS = {OFTEN: 30, SELDOM: 31}  # the last token of the context tells which is right
N_OPTIONS = 2


@functools.cache
def planted() -> tuple[Engine, tuple[Question, ...]]:
    """A random llama with two more neurons, and questions of two kinds.

    The neuron of the label always fires and writes option OFTEN; the neuron of the task writes the
    right one of the two options, by the sign of what it reads from the last token.
    """
    model = llama_with_biases()
    options = model.lm_head.weight.detach()[10 : 10 + N_OPTIONS]
    embedding = model.model.embed_tokens.weight.detach()
    read = embedding[TOKENS[OFTEN]] - embedding[TOKENS[SELDOM]]
    with torch.no_grad():
        for (layer, index), up, bias, written in (
            (LABEL, 0.0 * read, 1.0, 4.0 * (options[OFTEN] - options.mean(0))),
            (TASK, 2.0 * read / read.norm(), 0.0, options[OFTEN] - options[SELDOM]),
        ):
            mlp = model.model.layers[layer].mlp
            mlp.gate_proj.weight[index], mlp.gate_proj.bias[index] = 0.0, 4.0
            mlp.up_proj.weight[index], mlp.up_proj.bias[index] = up, bias
            mlp.down_proj.weight[:, index] = written
    questions = []
    for number in range(24):
        gold = SELDOM if number % 2 else OFTEN
        prompt = random_prompt(number, 6, N_OPTIONS, gold)
        context = (*prompt.context[:-1], TOKENS[gold])
        questions.append(Question(f"q{number}", (Prompt(number, context, prompt.options, gold),)))
    prompts = [question.prompts[0] for question in questions]
    engine = build_engine(model, find_ffn_layers(model), prompts)
    return engine, with_priors(questions, option_priors(engine, questions, 8))


@functools.cache
def found() -> dict[str, NeuronScores]:
    engine, questions = planted()
    methods = (ACE(), ACEBalanced())
    settings = IdentificationSettings(methods, top_z=5, batch_size=12)
    sums, _ = identify_all(engine, questions, settings)
    return {
        method.name: to_scores(method, sums[method.name], [], provenance()) for method in methods
    }


def test_the_neuron_of_the_task_is_found_by_both():
    for scores in found().values():
        assert select_neurons(scores, top_k=1).good[0].location == TASK


def test_the_neuron_of_a_label_is_found_by_the_sum_and_refused_by_the_balanced_score():
    # The model says OFTEN too often, so that F is steep where SELDOM is right: the neuron is bad.
    summed, balanced = found()["ace"], found()["ace_balanced"]
    assert select_neurons(summed, top_k=1).bad[0].location == LABEL
    assert LABEL not in {neuron.location for neuron in select_neurons(balanced, top_k=20).bad}
    assert abs(balanced.score[LABEL]) < 0.25 * balanced.score[TASK]
