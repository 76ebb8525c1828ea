"""The methods against straight loops over full forward passes, written from their formulas."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuronllm_eval.attribution.identify import (
    IdentificationSettings,
    add_question,
)
from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    Quantity,
    attribute_all,
)
from neuronllm_eval.attribution.methods import (
    ACE,
    METHODS,
    QRNCA,
    ContrastActivation,
    Method,
    Random,
    make_method,
    register,
    to_scores,
)
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import (
    gold_loglikelihood,
    gold_probability,
    option_cross_entropy,
)
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.prompts import Prompt, Question
from tests.fixtures import tiny_models
from tests.fixtures.tiny_models import provenance, random_prompt, tiny_model

STEPS = Quadrature("right_riemann", 16)
RELATIVE = 1e-5
QUESTIONS = tuple(
    Question(
        f"q{number}",
        tuple(
            random_prompt(10 * number + proxy, 5 + (number + proxy) % 4, 4, (number + proxy) % 4)
            for proxy in range(3)
        ),
    )
    for number in range(6)
)
PROMPTS = [prompt for question in QUESTIONS for prompt in question.prompts]


@functools.cache
def loaded() -> tuple[nn.Module, FFNLayers]:
    model = tiny_model("llama")
    return model, find_ffn_layers(model)


def identified(
    *methods: Method, engine: str = "fan_out", quadrature: Quadrature = STEPS, top_z: float = 5
) -> dict[str, NeuronScores]:
    """Scores by method, from one pass."""
    model, layers = loaded()
    built = build_engine(model, layers, PROMPTS, engine, quadrature.n_steps or 1)
    settings = IdentificationSettings(methods, quadrature, top_z, batch_size=6)
    sums, records = tiny_models.identify_all(built, QUESTIONS, settings)
    return {
        method.name: to_scores(
            method,
            sums[method.name],
            [record.notes[method.name] for record in records if method.name in record.notes],
            provenance(),
        )
        for method in methods
    }


# Straight loops ---------------------------------------------------------------------------------


def logits_with(prompt: Prompt, layer: int, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits behind the context, and the layer's neurons there, put in place of the model's own."""
    model, layers = loaded()
    seen = {}

    def swap(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen["neurons"] = inputs[0][0, -1].detach()
        if value is None:
            return None
        changed = inputs[0].clone()
        changed[0, -1] = value
        return (changed,)

    handle = layers.modules[layer].register_forward_pre_hook(swap)
    try:
        logits = model(input_ids=torch.tensor([prompt.context])).logits[0, -1]
    finally:
        handle.remove()
    return logits, seen["neurons"]


def gradients(
    prompt: Prompt, target: Callable[[Tensor, int], Tensor], alphas: Sequence[float]
) -> np.ndarray:
    """[layers, neurons] mean over the alphas of h * dF/dh at alpha * h.

    Args:
        prompt: behind whose context the target is read.
        target: of the logits and the gold option's token.
        alphas: the steps.
    """
    (token,) = prompt.options[prompt.gold]
    rows = []
    for layer in range(loaded()[1].n_layers):
        own = logits_with(prompt, layer, None)[1]
        total = torch.zeros_like(own)
        for alpha in alphas:
            leaf = (alpha * own).requires_grad_(True)
            value = target(logits_with(prompt, layer, leaf)[0], token)
            total += torch.autograd.grad(value, leaf)[0]
        rows.append((own * total / len(alphas)).double().numpy())
    return np.stack(rows)


def probability(logits: Tensor, token: int) -> Tensor:
    return logits.softmax(-1)[token]


def loss(logits: Tensor, token: int) -> Tensor:
    return -logits.log_softmax(-1)[token]


@functools.cache
def probability_gradients() -> list[list[np.ndarray]]:
    """Per question and proxy [layers, neurons] IG of p(gold) with 16 right-Riemann steps."""
    alphas = [step / 16 for step in range(1, 17)]
    return [
        [gradients(prompt, probability, alphas) for prompt in question.prompts]
        for question in QUESTIONS
    ]


def relative_gap(found: np.ndarray, expected: np.ndarray) -> float:
    assert np.abs(expected).max() > 0
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def largest_own_gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Of each score above a thousandth of the largest, relative to itself."""
    counted = np.abs(expected) > 1e-3 * np.abs(expected).max()
    assert counted.sum() > 10
    return float(np.abs(found / np.where(counted, expected, 1) - 1)[counted].max())


@pytest.mark.parametrize("engine", ["fan_out", "replay"])
def test_kn_is_its_papers_formula(engine):
    found = identified(make_method("kn"), engine=engine)["kn"]
    expected = np.sum([sum(each) for each in probability_gradients()], axis=0)
    assert relative_gap(found.score, expected) <= RELATIVE
    assert largest_own_gap(found.score, expected) <= 1e-4


@pytest.mark.parametrize("engine", ["fan_out", "replay"])
@pytest.mark.parametrize("settings", [{}, {"threshold": 0.05, "common": 0.5, "top_v": 3}])
def test_qrnca_is_its_papers_formula(settings, engine):
    threshold, common, top_v = ({"threshold": 0.2, "common": 0.3, "top_v": 10} | settings).values()
    clusters: list[dict[int, float]] = []
    n_parted = 0
    for proxies in probability_gradients():
        sums: dict[int, float] = {}
        for attribution in proxies:
            flat = attribution.ravel()
            for i in range(flat.size):
                if flat[i] > threshold * flat.max():
                    sums[i] = sums.get(i, 0.0) + flat[i]
        total = sum(sums.values())
        clusters.append({i: value / total for i, value in sums.items()})
        together = sum(proxies).ravel()
        n_parted += set(sums) != set(np.flatnonzero(together > threshold * together.max()).tolist())
    assert n_parted  # a threshold of the sums would not do
    expected = np.zeros(flat.size)
    n_dropped = 0
    for cluster in clusters:
        naica = {}
        for neuron, share in cluster.items():
            having = sum(neuron in other for other in clusters)
            naica[neuron] = share * math.log(len(clusters) / (having + 1))
        for neuron in sorted(naica, key=naica.__getitem__, reverse=True)[:top_v]:
            if naica[neuron] <= 0:
                continue
            if sum(neuron in other for other in clusters) > int(common * len(clusters)):
                n_dropped += 1
                continue
            expected[neuron] += naica[neuron]
    found = identified(make_method("qrnca", settings), engine=engine)["qrnca"]
    assert relative_gap(found.score.ravel(), expected) <= RELATIVE
    assert n_dropped or settings  # so that common neurons are met
    assert not (found.score < 0).any()


def test_tn_is_its_papers_formula():
    expected = np.sum([np.abs(gradients(prompt, loss, [1.0])) for prompt in PROMPTS], axis=0)
    assert relative_gap(identified(make_method("tn"))["tn"].score, expected) <= RELATIVE


def test_gradxact_is_ace_with_one_right_riemann_step():
    one_step = identified(ACE(), quadrature=Quadrature("right_riemann", 1))["ace"]
    found = identified(make_method("gradxact"))["gradxact"]
    assert relative_gap(found.score, one_step.score) <= RELATIVE
    assert np.array_equal(found.good_count, one_step.good_count)


def test_activations_are_those_of_the_scored_position():
    neurons = np.stack(
        [
            [logits_with(prompt, layer, None)[1].double().numpy() for layer in range(3)]
            for prompt in PROMPTS
        ]
    )
    right = np.array(
        [
            max(range(4), key=lambda option, row=row, p=p: row[p.options[option][0]]) == p.gold
            for p in PROMPTS
            for row in [logits_with(p, 0, None)[0].tolist()]
        ]
    )
    assert 0 < right.sum() < len(right)
    found = identified(make_method("activation"), make_method("contrast_activation"))
    assert relative_gap(found["activation"].score, neurons.mean(0)) <= RELATIVE
    expected = neurons[right].mean(0) - neurons[~right].mean(0)
    assert relative_gap(found["contrast_activation"].score, expected) <= RELATIVE
    for scores in found.values():
        assert scores.activation_mean is not None
        assert relative_gap(scores.activation_mean, np.abs(neurons).mean(0)) <= RELATIVE


# One pass for all -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "quadrature"),
    [
        ("fan_out", Quadrature("gauss_lobatto")),
        ("fan_out", Quadrature("gauss_legendre")),
        ("replay", Quadrature("gauss_lobatto")),
    ],
)
def test_methods_say_the_same_together_and_alone(engine, quadrature):
    methods = [make_method(name) for name in METHODS]
    together = identified(*methods, engine=engine, quadrature=quadrature)
    for method in methods:
        alone = identified(method, engine=engine, quadrature=quadrature)[method.name]
        assert relative_gap(together[method.name].score, alone.score) <= RELATIVE
        assert relative_gap(together[method.name].half_sums, alone.half_sums) <= RELATIVE


def test_all_methods_take_one_forward_pass_and_few_backward_passes(monkeypatch):
    model, layers = loaded()
    engine = build_engine(model, layers, PROMPTS, "fan_out", 5)
    quantities = IdentificationSettings(tuple(make_method(name) for name in METHODS)).quantities
    counts = {"forward": 0, "backward": 0}
    differentiate = torch.autograd.grad

    def backward(*args: Any, **kwargs: Any) -> Any:
        counts["backward"] += 1
        return differentiate(*args, **kwargs)

    def forward(*_: Any) -> None:
        counts["forward"] += 1

    monkeypatch.setattr(torch.autograd, "grad", backward)
    attribute_all(engine, PROMPTS[:3], Quadrature("gauss_lobatto"), quantities[:1])
    handle = model.register_forward_hook(forward)
    try:
        before = dict(counts)
        attribute_all(engine, PROMPTS[:3], Quadrature("gauss_lobatto"), quantities[:1])
        alone = {name: counts[name] - before[name] for name in counts}
        before = dict(counts)
        attribute_all(engine, PROMPTS[:3], Quadrature("gauss_lobatto"), quantities)
    finally:
        handle.remove()
    n_targets = len({quantity.target for quantity in quantities})
    assert n_targets == 4
    assert counts["forward"] - before["forward"] == alone["forward"]
    # p(gold) and log p(gold) share theirs.
    assert counts["backward"] - before["backward"] == alone["backward"] + n_targets - 2


@pytest.mark.parametrize("name", ["fan_out", "replay"])
def test_a_probabilitys_gradient_is_that_of_its_logarithm_times_itself(name):
    model, layers = loaded()
    engine = build_engine(model, layers, PROMPTS, name, 5)
    power, log = Quantity(gold_probability, path=False), Quantity(gold_loglikelihood, path=False)
    rule = Quadrature("gauss_lobatto")
    (found,) = attribute_all(engine, PROMPTS[:1], rule, (power, log))
    expected = found.by_quantity[log].values * found.first.loglikelihoods[PROMPTS[0].gold].exp()
    assert relative_gap(found.by_quantity[power].values.numpy(), expected.numpy()) <= RELATIVE


# By hand ----------------------------------------------------------------------------------------


def added(method: Method, rows: list[list[float]], loglikelihoods: list[list[float]]) -> ScoreSums:
    """Sums over questions of one proxy, gold 0, whose activations and attributions are rows."""
    sums = ScoreSums.zeros((1, len(rows[0])), 2, method.n_groups(2), method.unit)
    for index, (row, likely) in enumerate(zip(rows, loglikelihoods, strict=True)):
        values, zero = torch.tensor([row]), torch.zeros(1)
        one = Attribution(values, zero, torch.tensor(likely), zero)
        found = Attributions({method.quantity or ACE.quantity: one}, values)
        question = Question(f"q{index}", (random_prompt(index, 4, 2, 0),))
        add_question(sums, method, index, question, [found], top_z=1)
    return sums


def test_contrast_of_activations_by_hand():
    method = ContrastActivation()
    right, wrong = [-1.0, -2.0], [-2.0, -1.0]
    sums = added(method, [[1.0, 4.0], [2.0, 0.0], [5.0, 0.0]], [right, wrong, right])
    assert method.score(sums, []).tolist() == [[3.0 - 2.0, 2.0 - 0.0]]
    # Even questions were all right, odd ones all wrong: neither half says anything.
    assert method.halves(sums, []).tolist() == [[[0.0, 0.0]], [[0.0, 0.0]]]
    all_right = added(method, [[1.0, 4.0]], [right])
    assert method.score(all_right, []).tolist() == [[0.0, 0.0]]


def test_the_random_method_keeps_each_layers_scores():
    found = identified(ACE(), Random())
    ace, dealt = found["ace"], found["random"]
    assert not np.array_equal(ace.score, dealt.score)
    for own, other in zip(ace.score, dealt.score, strict=True):
        assert sorted(own) == sorted(other)
    again = identified(Random(seed=1))["random"]
    assert not np.array_equal(again.score, dealt.score)
    # Counts stay with their scores; other questions are another draw.
    assert ((dealt.good_count + dealt.bad_count > 0) == (dealt.score != 0)).all()
    sums = [ScoreSums.zeros((1, 9), 2, questions=asked) for asked in ("one", "other")]
    for each in sums:
        each.group_sums[0, 0, 0] = np.arange(9) << 40
    one, other = (Random().score(each, []) for each in sums)
    assert not np.array_equal(one, other)
    assert sorted(one[0]) == sorted(other[0])


def test_activations_of_thousands_do_not_overflow():
    method = make_method("activation")
    sums = added(method, [[3e4, -3e4]] * 100, [[-1.0, -2.0]] * 100)
    sums.group_sums *= 10_000  # as of a million prompts
    sums.n_prompts *= 10_000
    assert method.score(sums, []).tolist() == [[3e4, -3e4]]


def test_sums_that_would_overflow_are_refused():
    with pytest.raises(DocError, match="add up to too much"):
        added(ACE(), [[1e6, 1.0]] * 3, [[-1.0, -2.0]] * 3)


def test_a_question_that_no_neuron_helps_has_an_empty_cluster():
    method = QRNCA()
    assert method.quantity is not None
    attributions = torch.tensor([[-1.0, 0.0]])
    found = Attribution(attributions, torch.zeros(1), torch.zeros(2), torch.zeros(1))
    values = method.values(Attributions({method.quantity: found}, attributions))
    note = method.note(3, values)
    assert note == {"half": 1, "neurons": [], "shares": []}


# The registry -----------------------------------------------------------------------------------


def test_a_method_of_ones_own():
    class Largest(Method):
        """Sum of the largest activation's share."""

        name = "largest"

        def values(self, found: Attributions) -> Tensor:
            return found.activations / found.activations.max()

    try:
        assert register(Largest) is Largest
        assert identified(make_method("largest"))["largest"].score.max() > 0
        with pytest.raises(UsageError, match="a method 'largest' exists already"):
            register(type("Other", (Method,), {"name": "largest"}))
    finally:
        METHODS.pop("largest")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    assert METHODS[name].__doc__
    assert METHODS[name]().name == name


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("magic", {}, ("unknown method 'magic'", "ace, ace_balanced, kn, qrnca")),
        ("ace", {"seed": 1}, ("method ace has no setting 'seed'", "none")),
        ("qrnca", {"top_v": 1.5}, ("top_v of method qrnca is 1.5", "a valid integer")),
        ("qrnca", {"top_v": 0}, ("top_v of method qrnca is 0", "greater than or equal to 1")),
        ("qrnca", {"threshold": 1}, ("threshold of method qrnca is 1", "less than 1")),
        ("qrnca", {"common": "many"}, ("common of method qrnca is 'many'", "a valid number")),
        ("random", {"seed": -1}, ("seed of method random is -1", "greater than or equal to 0")),
        ("random", {"seed": True}, ("seed of method random is True", "a valid integer")),
    ],
)
def test_impossible_methods_are_refused(name, settings, parts):
    with pytest.raises(UsageError) as refusal:
        make_method(name, settings)
    for part in parts:
        assert part in str(refusal.value)


def test_the_first_target_decides_what_a_record_is_about():
    settings = IdentificationSettings((make_method("activation"),))
    assert [each.target for each in settings.quantities] == [option_cross_entropy]
