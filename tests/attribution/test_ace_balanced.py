"""`ace_balanced`: by hand, and on a model with a neuron of a label and a neuron of the task."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import transformers as tf
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
from neuronllm_eval.stages.priors import option_priors
from tests.fixtures.tiny_models import (
    VOCABULARY,
    identify_all,
    provenance,
    random_model,
    random_prompt,
    random_tokens,
    relative_difference,
    tiny_model,
)

# By hand ------------------------------------------------------------------------------------------


def added(rows: list[list[float]], golds: list[int], n_options: int = 3) -> ScoreSums:
    """Sums over questions of one prompt, whose values at both ends of the path are rows."""
    method = ACEBalanced()
    sums = ScoreSums.zeros(
        (1, len(rows[0])), n_options, method.n_groups(n_options), squares=method.squares
    )
    zero = torch.zeros(1)
    for index, (row, gold) in enumerate(zip(rows, golds, strict=True)):
        one = Attribution(torch.tensor([row]), zero, torch.zeros(n_options), zero)
        found = Attributions(dict.fromkeys(method.quantities, one), torch.tensor([row]))
        question = Question(f"q{index}", (random_prompt(index, 4, n_options, gold),))
        add_question(sums, method, index, question, [found], top_z=1)
    return sums


def by_hand(values: np.ndarray, golds: np.ndarray, consistency: float) -> float:
    """The score of one neuron, in plain numpy."""
    labels = np.unique(golds)
    of_labels = [values[golds == label] for label in labels]
    means = np.array([each.mean() for each in of_labels])
    pooled = sum(((each - each.mean()) ** 2).sum() for each in of_labels)
    pooled /= max(1, len(values) - len(labels))
    errors = np.array([pooled / len(each) for each in of_labels])
    n = len(labels)
    between = max(0.0, means.var() - (n - 1) / n * errors.mean())
    m, s2 = means.mean(), between + errors.sum() / n**2
    return float(m * abs(m) / np.sqrt(m**2 + consistency**2 * s2))


def test_scores_equal_plain_numpy_in_all_and_in_halves():
    generator = np.random.default_rng(0)
    golds = np.array([0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0])  # 2 is never gold
    rows = generator.normal(0.3, 0.5, (len(golds), 4)).astype(np.float32)
    sums = added(rows.tolist(), golds.tolist())
    for consistency in (0.0, 1.0, 2.0):
        method = ACEBalanced(consistency)
        score, halves = method.score(sums, []), method.halves(sums, [])
        for neuron in range(4):
            assert score[0, neuron] == pytest.approx(by_hand(rows[:, neuron], golds, consistency))
            for half in (0, 1):
                expected = by_hand(rows[half::2, neuron], golds[half::2], consistency)
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


def test_frequent_answers_count_as_rare_ones():
    rows = [[0.1], [0.1], [0.1], [0.1], [0.7]]
    assert ACEBalanced(0.0).score(added(rows, [0, 0, 0, 0, 1]), [])[0, 0] == pytest.approx(0.4)


def test_one_question_has_a_score():
    assert ACEBalanced().score(added([[0.5, -0.25]], [1]), [])[0].tolist() == [0.5, -0.25]


def test_consistency_is_a_number_from_zero():
    assert make_method("ace_balanced", {"consistency": 0.5}) == ACEBalanced(0.5)
    with pytest.raises(UsageError, match=r"consistency of method ace_balanced is -1"):
        make_method("ace_balanced", {"consistency": -1})


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


def test_priors_are_means_of_what_the_unmasked_model_gives():
    questions = [Question(f"q{i}", (random_prompt(i, 5, 3 if i % 2 else 4, 0),)) for i in range(6)]
    prompts = [question.prompts[0] for question in questions]
    model = tiny_model("llama")
    engine = build_engine(model, find_ffn_layers(model), prompts)
    scores = engine.score(prompts, torch.ones(1, *engine.layers.shape))
    rows = [log_softmax(each.loglikelihoods[0].double().numpy()) for each in scores]
    centred = [row - row.mean() for row in rows]
    expected = [np.mean([row[i] for row in centred if len(row) > i]) for i in range(4)]
    assert option_priors(engine, questions, 4) == pytest.approx(expected, abs=6e-4)
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
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        mlp_bias=True,
    )
    model = random_model(config)
    options = model.lm_head.weight.detach()[10 : 10 + N_OPTIONS]
    embedding = model.model.embed_tokens.weight.detach()
    read = embedding[TOKENS[OFTEN]] - embedding[TOKENS[SELDOM]]
    with torch.no_grad():
        for (layer, index), up, bias, written in (
            (LABEL, 0.0 * read, 1.0, 4.0 * (options[OFTEN] - options.mean(0))),
            (TASK, 1.0 * read / read.norm(), 0.0, options[OFTEN] - options[SELDOM]),
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
    assert summed.score[LABEL] < -0.6 * summed.score[TASK]
    assert LABEL not in {neuron.location for neuron in select_neurons(balanced, top_k=20).bad}
    assert abs(balanced.score[LABEL]) < 0.5 * balanced.score[TASK]
