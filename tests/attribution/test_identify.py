"""From attributions to ACE: by hand, against plain numpy, and on models with planted neurons."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from neuronllm_eval.attribution.identify import (
    IdentificationSettings,
    QuestionRecord,
    add_question,
    vote,
)
from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    attribute,
)
from neuronllm_eval.attribution.methods import ACE, to_scores
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine, option_cross_entropy
from neuronllm_eval.errors import DocError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import select_neurons
from neuronllm_eval.prompts import Prompt, Question
from tests.fixtures.tiny_models import (
    identify_all,
    llama_with_biases,
    provenance,
    random_prompt,
    relative_difference,
    tiny_model,
)


def question(number: int, golds: Sequence[int] = (0, 1, 2), n_options: int = 4) -> Question:
    """A question with one random prompt per gold letter, of lengths 3 to 9."""
    return Question(
        f"q{number}",
        tuple(
            random_prompt(10 * number + proxy, 3 + (2 * number + 3 * proxy) % 7, n_options, gold)
            for proxy, gold in enumerate(golds)
        ),
    )


QUESTIONS = tuple(question(number) for number in range(5))


@functools.cache
def llama_engine() -> Engine:
    model = tiny_model("llama")
    prompts = [prompt for each in QUESTIONS for prompt in each.prompts]
    return build_engine(model, find_ffn_layers(model), prompts)


def run(
    questions: Sequence[Question] = QUESTIONS, top_z: float = 5, batch_size: int = 1
) -> tuple[ScoreSums, list[QuestionRecord]]:
    settings = IdentificationSettings(top_z=top_z, batch_size=batch_size)
    sums, records = identify_all(llama_engine(), questions, settings)
    return sums["ace"], records


def scores_of(sums: ScoreSums) -> NeuronScores:
    return to_scores(ACE(), sums, [], provenance())


def attribution(values: list[list[float]], gap: Sequence[float] = (0.0,)) -> Attribution:
    return Attribution(
        torch.tensor(values), torch.tensor(gap), torch.zeros(4), torch.ones(len(gap))
    )


def add(
    sums: ScoreSums, index: int, each: Question, own: Sequence[Attribution], top_z: int
) -> None:
    """Add a question's attributions to ACE's sums."""
    assert ACE.quantity is not None
    found = [Attributions({ACE.quantity: one}, torch.zeros_like(one.values)) for one in own]
    add_question(sums, ACE(), index, each, found, top_z)


# The vote ---------------------------------------------------------------------------------------


def test_vote_by_hand():
    score = torch.tensor([[0.5, -0.1, 3.0, 0.0, 2.0], [-1.0, -2.0, -3.0, 0.0, 0.25]])
    good, bad = vote(score, 2)
    # Layer 0: highest 3.0 and 2.0; lowest -0.1 and 0.0, of which zero is not negative.
    # Layer 1: highest 0.25 and 0.0, of which zero is not positive; lowest -3.0 and -2.0.
    assert good.tolist() == [[False, False, True, False, True], [False] * 4 + [True]]
    assert bad.tolist() == [[False, True, False, False, False], [False, True, True, False, False]]


def test_vote_of_all_neurons_splits_them_by_sign():
    score = torch.tensor([[0.5, -0.1, 0.0]])
    good, bad = vote(score, 3)
    assert good.tolist() == [[True, False, False]]
    assert bad.tolist() == [[False, True, False]]


@given(
    st.lists(
        st.lists(st.integers(-4, 4).map(float), min_size=6, max_size=6), min_size=1, max_size=3
    ),
    st.integers(1, 6),
)
def test_vote_takes_the_extremes_of_each_layer(rows, top_z):
    score = torch.tensor(rows)
    good, bad = vote(score, top_z)
    for values, ups, downs in zip(rows, good.tolist(), bad.tolist(), strict=True):
        for sign, members in ((1, ups), (-1, downs)):
            chosen = sorted(sign * v for v, member in zip(values, members, strict=True) if member)
            positive = sorted(sign * v for v in values if sign * v > 0)
            assert chosen == positive[-top_z:]


# Sums by hand -----------------------------------------------------------------------------------


def test_sums_by_hand():
    # One layer of four neurons, top_z = 1.
    sums = ScoreSums.zeros((1, 4), n_letters=3)
    first, second = question(0, golds=(0, 2)), question(1, golds=(2,))
    # ES of the first: 1 + 2, -1 + 0, 0.5 + 0.25, -4 + 1 = 3, -1, 0.75, -3.
    add(
        sums,
        0,
        first,
        [
            attribution([[1.0, -1.0, 0.5, -4.0]], gap=[0.5]),
            attribution([[2.0, 0.0, 0.25, 1.0]], gap=[0.125]),
        ],
        top_z=1,
    )
    # ES of the second: -0.5, 2, 1, 0.
    add(sums, 1, second, [attribution([[-0.5, 2.0, 1.0, 0.0]], gap=[0.25])], top_z=1)
    scores = scores_of(sums)
    # G: neuron 0, then 1. B: neuron 3, then 0. Only their ES count.
    assert scores.half_sums.tolist() == [[[3.0, 0.0, 0.0, -3.0]], [[-0.5, 2.0, 0.0, 0.0]]]
    assert scores.score.tolist() == [[2.5, 2.0, 0.0, -3.0]]
    assert scores.good_count.tolist() == [[1, 1, 0, 0]]
    assert scores.bad_count.tolist() == [[1, 0, 0, 1]]
    # By gold letter all attributions count: letter 0 once, letter 1 never, letter 2 twice.
    assert scores.letter_sums.tolist() == [
        [[1.0, -1.0, 0.5, -4.0]],
        [[0.0, 0.0, 0.0, 0.0]],
        [[1.5, 2.0, 1.25, 1.0]],
    ]
    assert (sums.n_questions, sums.n_prompts) == (2, 3)
    assert sums.gap_max == 0.5
    assert sums.gap_mean == (0.5 + 0.125 + 0.25) / 3


def test_example_score_is_the_sum_over_proxies_and_not_a_vote_of_each():
    # Neuron 0 is the highest of either proxy's, but neuron 1 is of their sum.
    sums = ScoreSums.zeros((1, 3), n_letters=2)
    proxies = [attribution([[4.0, 3.0, -9.0]]), attribution([[-2.0, 3.0, 4.0]])]
    add(sums, 0, question(0, golds=(0, 1)), proxies, top_z=1)
    assert scores_of(sums).score.tolist() == [[0.0, 6.0, -5.0]]


def test_empty_sums():
    sums = ScoreSums.zeros((2, 3), n_letters=4)
    assert sums.gap_mean == 0.0
    assert scores_of(sums).letter_sums.shape == (4, 2, 3)
    assert not scores_of(sums).score.any()


def test_order_of_adding_does_not_change_a_byte():
    generator = torch.Generator().manual_seed(3)
    added = []
    for number in range(24):
        # Sizes over nine decades: sums of floats in 64 bits would depend on the order.
        sizes = 10.0 ** torch.randint(-6, 3, (3, 2, 5), generator=generator)
        values = torch.randn(3, 2, 5, generator=generator) * sizes
        gaps = torch.rand(3, 2, generator=generator)
        own = [
            Attribution(v, g, torch.zeros(4), torch.ones_like(g))
            for v, g in zip(values, gaps, strict=True)
        ]
        added.append((number, question(number), own))
    results = []
    for seed in range(4):
        random.Random(seed).shuffle(added)
        sums = ScoreSums.zeros((2, 5), n_letters=3)
        for number, each, own in added:
            add(sums, number, each, own, top_z=2)
        results.append((scores_of(sums).to_bytes(), sums.gap_max, sums.gap_mean))
    assert results == [results[0]] * 4


def test_fixed_point_keeps_what_a_float_has():
    # 2**-40 log-nats is the unit: a third is kept to half of it.
    sums = ScoreSums.zeros((1, 1), n_letters=1)
    add(sums, 0, question(0, golds=(0,)), [attribution([[1 / 3]])], top_z=1)
    assert abs(scores_of(sums).score.item() - float(np.float32(1 / 3))) <= 2.0**-41


def test_gap_share_is_what_is_missed_of_the_change():
    # Gaps 0.5 and 0.25 of changes -1.0 and 2.0: 0.75 of 3.0.
    one = Attribution(
        torch.ones(2, 1), torch.tensor([0.5, 0.25]), torch.zeros(4), torch.tensor([-1.0, 2.0])
    )
    sums = ScoreSums.zeros((2, 1), n_letters=1)
    assert sums.gap_share == 0
    add(sums, 0, question(0, golds=(0,)), [one], top_z=1)
    assert sums.gap_share == 0.25


# The pass over questions ------------------------------------------------------------------------


def test_ace_equals_plain_numpy_over_stored_attributions():
    top_z = 5
    sums, _ = run(top_z=top_z)
    ace = np.zeros((3, 48))
    halves = np.zeros((2, 3, 48))
    letters = np.zeros((4, 3, 48))
    good, bad = np.zeros((3, 48), int), np.zeros((3, 48), int)
    gaps = []
    for number, each in enumerate(QUESTIONS):
        own = attribute(llama_engine(), each.prompts, Quadrature())
        stored = np.stack([one.values.numpy() for one in own]).astype(np.float64)
        gaps += [one.completeness_gap.numpy() for one in own]
        for prompt, values in zip(each.prompts, stored, strict=True):
            letters[prompt.gold] += values
        example = stored.sum(0)
        for layer in range(3):
            order = np.argsort(example[layer])
            for place in [*order[:top_z], *order[-top_z:]]:
                value = example[layer, place]
                low = place in order[:top_z]
                if (value < 0) if low else (value > 0):
                    ace[layer, place] += value
                    halves[number % 2, layer, place] += value
                    (bad if low else good)[layer, place] += 1
    scores = scores_of(sums)
    assert np.allclose(scores.score, ace, rtol=0, atol=1e-6)
    assert np.allclose(scores.half_sums, halves, rtol=0, atol=1e-6)
    assert np.allclose(scores.letter_sums, letters, rtol=0, atol=1e-6)
    assert (scores.good_count == good).all()
    assert (scores.bad_count == bad).all()
    assert np.abs(ace).max() > 0.1
    assert sums.gap_max == pytest.approx(np.max(gaps), rel=1e-6)
    assert sums.gap_mean == pytest.approx(np.mean(gaps), rel=1e-6)


def test_parts_add_up():
    sums, _ = run()
    scores = scores_of(sums)
    assert (scores.half_sums.sum(0) == scores.score).all()
    # Five neurons a layer, fewer where signs are wanting, in each of five questions.
    assert scores.good_count.sum() <= 5 * 3 * 5
    assert scores.good_count.max() <= 5
    assert sums.n_questions == 5
    assert sums.n_prompts == 15
    assert sums.n_gaps == 15 * 3


@pytest.mark.parametrize("batch_size", [4, 7, 100])
def test_batch_size_changes_nothing_but_rounding(batch_size):
    one, alone = run()
    many, together = run(batch_size=batch_size)
    found, expected = scores_of(many), scores_of(one)
    for name in ("score", "half_sums", "letter_sums"):
        difference = relative_difference(
            torch.from_numpy(getattr(found, name)), torch.from_numpy(getattr(expected, name))
        )
        assert difference <= 1e-5
    assert (found.good_count == expected.good_count).all()
    assert (found.bad_count == expected.bad_count).all()
    assert many.gap_mean == pytest.approx(one.gap_mean, abs=1e-5)
    assert [record.question_id for record in together] == [r.question_id for r in alone]


def test_top_z_may_be_a_share_of_the_layer():
    # A tenth of 48 neurons is 4.8, hence 5.
    assert scores_of(run(top_z=0.1)[0]).to_bytes() == scores_of(run(top_z=5)[0]).to_bytes()
    assert scores_of(run(top_z=0.1)[0]).to_bytes() != scores_of(run(top_z=4)[0]).to_bytes()


def test_records_say_what_the_unmasked_model_answers():
    questions = [question(1), question(2, golds=(1, 0), n_options=3)]
    _, records = run(questions, batch_size=8)
    engine = llama_engine()
    unedited = torch.ones(1, *engine.layers.shape)
    for each, record in zip(questions, records, strict=True):
        assert record.question_id == each.question_id
        assert record.doc_ids == tuple(prompt.doc_id for prompt in each.prompts)
        assert record.gold == tuple(prompt.gold for prompt in each.prompts)
        for prompt, found, right in zip(
            each.prompts, record.loglikelihoods, record.right, strict=True
        ):
            (scores,) = engine.score([prompt], unedited)
            expected = scores.loglikelihoods[0]
            assert found == pytest.approx(expected.tolist(), abs=1e-4)
            assert right is (int(expected.argmax()) == prompt.gold)
        gaps = [one.completeness_gap.max() for one in attribute(engine, each.prompts, Quadrature())]
        assert record.completeness_gap["ace"] == pytest.approx(float(max(gaps)), abs=1e-5)


def test_nan_in_the_model_is_refused_with_the_name_of_the_doc():
    model = tiny_model("gpt2")
    layers = find_ffn_layers(model)
    with torch.no_grad():
        layers.modules[1].weight[0, 0] = float("nan")
    engine = build_engine(model, layers, QUESTIONS[0].prompts, "replay")
    with pytest.raises(DocError) as refusal:
        identify_all(engine, QUESTIONS[2:], IdentificationSettings())
    assert str(refusal.value) == (
        "doc 20 gives NaN or infinite log-likelihoods or gradients.\n"
        "Expected: finite numbers.\n"
        "Remedy: load the model in float32 or bfloat16 (--model_args dtype=float32)."
    )


# Planted neurons --------------------------------------------------------------------------------

GOLD, WRONG = 2, 0  # letters, the same in every question
HELPERS = ((1, 7), (2, 40))
HURTERS = ((0, 21), (2, 3))


def planted_model() -> nn.Module:
    """A random llama in which chosen neurons always fire and write one letter's output vector.

    A helper writes the gold letter's, a hurter a wrong letter's. Biases make them fire: their gate
    is silu(4) = 3.93 and their up projection 1, whatever comes in.
    """
    model = llama_with_biases()
    letters = model.lm_head.weight.detach()[10:14]
    with torch.no_grad():
        for letter, places in ((GOLD, HELPERS), (WRONG, HURTERS)):
            # Apart from what all letters share, which the softmax over options would ignore.
            direction = letters[letter] - letters.mean(0)
            for layer, index in places:
                mlp = model.model.layers[layer].mlp
                for projection, constant in ((mlp.gate_proj, 4.0), (mlp.up_proj, 1.0)):
                    projection.weight[index] = 0.0
                    projection.bias[index] = constant
                mlp.down_proj.weight[:, index] = direction
    return model


@pytest.mark.parametrize("engine_name", ["fan_out", "replay"])
def test_planted_neurons_are_found_first(engine_name):
    model = planted_model()
    layers = find_ffn_layers(model)
    n_questions = 12
    questions = [question(number, golds=(GOLD,) * 3) for number in range(n_questions)]
    prompts = [prompt for each in questions for prompt in each.prompts]
    engine = build_engine(model, layers, prompts, engine_name)
    settings = IdentificationSettings(top_z=5, batch_size=12)
    scores = scores_of(identify_all(engine, questions, settings)[0]["ace"])
    found = select_neurons(scores, top_k=len(HELPERS))
    assert {neuron.location for neuron in found.good} == set(HELPERS)
    assert {neuron.location for neuron in found.bad} == set(HURTERS)
    for place in HELPERS:
        assert scores.good_count[place] == n_questions
        assert scores.bad_count[place] == 0

    # And they do what they were wired to do: suppress the helpers, the hurters, one at a time.
    scales = torch.ones(3, *layers.shape)
    for condition, places in ((1, HELPERS), (2, HURTERS)):
        for place in places:
            scales[condition][place] = 0.0
    targets = torch.stack(
        [option_cross_entropy(each.loglikelihoods, GOLD) for each in engine.score(prompts, scales)]
    ).mean(0)
    assert float(targets[1]) < float(targets[0]) - 0.1
    assert float(targets[2]) > float(targets[0]) + 0.1


def test_planted_neurons_change_places_with_the_gold_letter():
    # The same model asked questions whose gold is the other letter: who helped now hurts.
    model = planted_model()
    questions = [question(number, golds=(WRONG,) * 3) for number in range(6)]
    prompts: list[Prompt] = [prompt for each in questions for prompt in each.prompts]
    engine = build_engine(model, find_ffn_layers(model), prompts)
    settings = IdentificationSettings(top_z=5, batch_size=9)
    sums = identify_all(engine, questions, settings)[0]["ace"]
    ace = scores_of(sums).score
    assert all(ace[place] < 0 for place in HELPERS)
    found = select_neurons(scores_of(sums), top_k=len(HURTERS))
    assert {neuron.location for neuron in found.good} == set(HURTERS)


def test_tensor_of_a_question_is_not_changed_by_adding_it():
    values: Tensor = torch.ones(1, 3)
    one = Attribution(values, torch.zeros(1), torch.zeros(4), torch.ones(1))
    sums = ScoreSums.zeros((1, 3), n_letters=1)
    add(sums, 0, question(0, golds=(0, 0)), [one, one], top_z=3)
    assert values.tolist() == [[1.0, 1.0, 1.0]]
    assert scores_of(sums).score.tolist() == [[2.0, 2.0, 2.0]]
