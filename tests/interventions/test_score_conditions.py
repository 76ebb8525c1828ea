"""Condition plans, scores per doc and condition, and their lines in `conditions.jsonl`."""

from __future__ import annotations

import json
import math
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.interface import OptionScores
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, Scales
from neuronllm_eval.interventions.score_conditions import DocScores, answers_under, score_conditions
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.stages.validate import _condition_line
from tests.fixtures.harness import (
    N_LAYERS,
    WIDTH,
    demo_task,
    harness_model,
    many_neurons,
    model_dir,
    neuron_set,
)
from tests.fixtures.tiny_models import score_all

# Plans ------------------------------------------------------------------------------------------


def test_names_of_the_whole_plan():
    plan = ConditionPlan(n_random=2)
    assert plan.names[: len(CONDITIONS)] == CONDITIONS
    assert plan.names[len(CONDITIONS) :] == tuple(
        f"{name}.random_{seed}" for name in CONDITIONS[1:] for seed in (0, 1)
    )
    assert len(ConditionPlan().names) == 7 + 6 * 20


def test_unmasked_comes_first_and_once():
    plan = ConditionPlan(("enhance", UNMASKED, "degrade", "enhance"), n_random=1, seed=4)
    assert plan.names == (
        "unmasked",
        "enhance",
        "degrade",
        "enhance.random_4",
        "degrade.random_4",
    )
    assert ConditionPlan(("degrade",), n_random=0).names == ("unmasked", "degrade")
    assert ConditionPlan((), n_random=3).names == ("unmasked",)


def test_controls_of_a_condition():
    plan = ConditionPlan(n_random=3, seed=8)
    assert plan.controls("suppress_good") == (
        "suppress_good.random_8",
        "suppress_good.random_9",
        "suppress_good.random_10",
    )
    assert plan.controls(UNMASKED) == ()


def test_a_named_control_is_a_condition_like_another():
    # A control may be asked for by name; it is scored once and has no controls of its own.
    plan = ConditionPlan(("suppress_good", "suppress_good.random_1"), n_random=2)
    assert sorted(plan.names) == [
        "suppress_good",
        "suppress_good.random_0",
        "suppress_good.random_1",
        "unmasked",
    ]
    assert len(plan.factors(many_neurons())) == 4


def test_a_named_point_is_a_condition_with_controls():
    plan = ConditionPlan(("suppress_good.k2.x0.5",), n_random=1, seed=3)
    assert plan.names == (
        "unmasked",
        "suppress_good.k2.x0.5",
        "suppress_good.k2.x0.5.random_3",
    )
    for factors in plan.factors(many_neurons())[1:]:
        assert (factors == 0.5).sum() == 2


def test_perplexity_is_measured_of_the_first_controls():
    plan = ConditionPlan(("degrade", "degrade.random_9"), n_random=7, seed=1, perplexity=True)
    assert plan.with_perplexity == (
        *("unmasked", "degrade", "degrade.random_9"),
        *(f"degrade.random_{seed}" for seed in range(1, 6)),
    )
    _, swept = ConditionPlan(
        ("degrade",), n_random=1, sweep=Sweep((2.0, 5.0)), perplexity=True
    ).over(many_neurons())
    assert set(swept.with_perplexity) == set(swept.names)
    assert "degrade.k2" in swept.with_perplexity
    assert ConditionPlan().with_perplexity == ()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"conditions": ("degrade", "harm")},
            r"unknown condition 'harm'\.\n.*unmasked, suppress_g",
        ),
        ({"conditions": ("degrade.random_",)}, r"unknown condition 'degrade\.random_'"),
        ({"n_random": -1}, r"n_random is -1\.\nExpected: 0 to 1000\.\nRemedy: check --n_random"),
    ],
)
def test_plans_that_are_refused(settings, match):
    with pytest.raises(UsageError, match=match):
        ConditionPlan(**settings)


def test_factors_in_the_order_of_the_names():
    neurons = neuron_set(good=((0, 1), (1, 2)), bad=((1, 5),))
    plan = ConditionPlan(("enhance", "suppress_bad"), n_random=1, scales=Scales(0.5, 3.0))
    factors = plan.factors(neurons)
    assert factors.shape == (5, N_LAYERS, WIDTH)
    assert factors.dtype == np.float16  # which holds 0.5 and 3
    by_name = dict(zip(plan.names, factors, strict=True))
    ones = np.ones((N_LAYERS, WIDTH), dtype=np.float32)
    assert (by_name["unmasked"] == ones).all()
    wanted = ones.copy()
    wanted[0, 1] = wanted[1, 2] = 3.0
    wanted[1, 5] = 0.5
    assert (by_name["enhance"] == wanted).all()
    control = by_name["enhance.random_0"]
    assert [(row == 3).sum() for row in control] == [1, 1]
    assert [(row == 0.5).sum() for row in control] == [0, 1]
    assert (control[wanted != 1] == 1).all()  # none of the chosen neurons


# Scores -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions():
    return build_questions(harness_model(model_dir()), demo_task(), PromptSettings(), 3)


def engines():
    model = harness_model(model_dir()).model
    layers = find_ffn_layers(model)
    return FanOutEngine(model, layers), ReplayEngine(model, layers)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_come_in_doc_order_whatever_the_batch(questions, batch_size):
    plan = ConditionPlan(("degrade",), n_random=2)
    factors = plan.factors(many_neurons())
    fan_out, replay = engines()
    docs = score_all(fan_out, questions.questions, factors, batch_size)
    assert [doc.doc_id for doc in docs] == list(range(9))
    assert [doc.gold for doc in docs] == [prompt.gold for prompt in questions.prompts]
    assert [doc.question_id for doc in docs[::3]] == [q.question_id for q in questions.questions]
    expected = replay.score(questions.prompts, torch.from_numpy(factors))
    for doc, result in zip(docs, expected, strict=True):
        assert doc.loglikelihoods.shape == (4, 4)
        assert doc.loglikelihoods.dtype == np.float32
        np.testing.assert_allclose(
            doc.loglikelihoods, result.loglikelihoods.numpy(), rtol=0, atol=1e-4
        )
        assert (doc.greedy == result.greedy.numpy()).all()
        assert np.abs(doc.loglikelihoods[1] - doc.loglikelihoods[0]).max() > 1e-3


def test_a_point_of_a_sweep_scores_as_the_same_condition_alone(questions):
    # One copy a pass: which others are scored beside it then changes no rounding either.
    model = harness_model(model_dir()).model
    engine = FanOutEngine(model, find_ffn_layers(model), rows_per_prompt=1)
    conditions = ("suppress_good", "enhance_bad", "degrade")

    def by_name(plan, top_k=None):
        neurons, plan = plan.over(many_neurons() if top_k is None else many_neurons().top(top_k))
        docs = score_all(engine, questions.questions, plan.factors(neurons), 9)
        rows = np.stack([doc.loglikelihoods for doc in docs], axis=1)
        return dict(zip(plan.names, rows, strict=True))

    surface = by_name(ConditionPlan(conditions, 1, sweep=Sweep((2.0, 5.0), (0.0, 0.3, 2.0, 4.0))))
    seen = set()
    for top_k, suppress, enhance in ((2, 0, 2), (2, 0.3, 4), (5, 0, 2), (5, 0.3, 4)):
        plan = ConditionPlan(conditions, 1, scales=Scales(suppress, enhance))
        for name, row in by_name(plan, top_k).items():
            condition, dot, control = name.partition(".")
            factor = {"suppress_good": f".x{suppress}", "enhance_bad": f".x{enhance}"}
            point = f"{condition}.k{top_k}{factor.get(condition, '')}{dot}{control}"
            if condition == "unmasked" or (top_k == 5 and suppress == 0):
                point = name
            elif condition == "degrade" and suppress:
                continue  # its own two factors are not swept
            assert surface[point].tobytes() == row.tobytes(), point
            seen.add(point)
    assert seen == set(surface)
    assert len({row.tobytes() for row in surface.values()}) == len(surface)  # all differ


class BrokenEngine:
    """Answers, but the last option of doc 7 under the second condition is not a number."""

    model = None
    positions = "scored"

    def score(self, prompts, scales):
        results = []
        for prompt in prompts:
            values = torch.zeros(len(scales), len(prompt.options))
            if prompt.doc_id == 7:
                values[1, -1] = math.nan
            results.append(OptionScores(values, values > 1, torch.zeros(len(scales))))
        return results


def test_a_log_likelihood_that_is_not_finite():
    asked = [Question(f"q{doc}", (Prompt(doc, (1,), ((2,), (3,)), 0),)) for doc in (6, 7, 8)]
    factors = np.ones((2, 1, 4), dtype=np.float32)
    first, broken, last = score_conditions(BrokenEngine(), asked, factors, 1)
    assert [question for question, _ in (first, broken, last)] == asked
    assert [doc.doc_id for _, docs in (first, last) for doc in docs] == [6, 8]
    assert re.match(r"(?s)doc 7 has NaN or infinite.*float32", str(broken[1]))


def test_answers_under_a_condition():
    docs = [
        DocScores(
            "q", 5, 1,
            np.array([[-1, -2], [-3, -0.5]], dtype=np.float32),
            np.array([[True, False], [False, True]]),
            np.zeros(2, dtype=np.float32),
        )
    ]  # fmt: skip
    assert answers_under(docs, 0) == {5: [(-1.0, True), (-2.0, False)]}
    assert answers_under(docs, 1) == {5: [(-3.0, False), (-0.5, True)]}
    assert type(answers_under(docs, 0)[5][0][1]) is bool


# conditions.jsonl -------------------------------------------------------------------------------


def line_of(rows, kl=(0, 0.123456789)) -> dict:
    values = np.array(rows, dtype=np.float32)
    doc = DocScores("q-1", 3, 1, values, values > 0, np.array(kl[: len(rows)], dtype=np.float32))
    names = [UNMASKED, "degrade"][: len(values)]
    return json.loads(json.dumps(_condition_line(doc, names, "some_task", "dev").to_record()))


def test_a_line_of_conditions():
    assert line_of([[-0.5, -1.25], [-2.0, -0.1]]) == {
        "task": "some_task",
        "split": "dev",
        "doc_id": 3,
        "question_id": "q-1",
        "gold": 1,
        # 0.1 has no float32; nine digits of the nearest are 0.100000001
        "loglikelihoods": {"unmasked": [-0.5, -1.25], "degrade": [-2.0, -0.100000001]},
        "kl": {"unmasked": 0.0, "degrade": 0.12346},
    }


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2))
def test_lines_keep_every_bit_of_a_float32(values):
    restored = np.array(line_of([values])["loglikelihoods"]["unmasked"], dtype=np.float32)
    before = np.array(values, dtype=np.float32)
    assert restored.tobytes() == before.tobytes()


def test_neighbouring_float32_stay_apart():
    bits = struct.unpack("<I", struct.pack("<f", -3.3))[0]
    pair = [struct.unpack("<f", struct.pack("<I", bits + step))[0] for step in (0, 1)]
    first, second = line_of([pair])["loglikelihoods"]["unmasked"]
    assert first != second
