"""Whether methods find planted neurons of known function (`plant.py`).

1. At every strength two models are planted. One has `correct`, `incorrect`, `alike` and `silent`
   neurons; the other has `position` neurons in place of the last two, since a letter that is raised
   whatever the question helps or hurts a little, depending on the other letters, and would appear
   in the ranking of the first.
2. Every method scores all neurons of both, from one pass. Neurons of earlier layers than those
   planted in are ranked separately: they feed what is planted, so a path along which their layer
   grows gives them a share of it. The single-neuron effects of those that `ace` ranks first are
   measured.
3. For each kind, the method's first K neurons count, where K is the number planted: the highest
   scores for `correct`, the lowest for `incorrect`, the largest of either sign for `alike` and
   `silent`. At this K precision equals recall; recall is also taken among `WIDE`, the share of
   neurons that `identify` selects by default.
4. `position` neurons are searched for among the highest scores twice: over all orders of a
   question, and over those with the gold option under the neuron's letter, as in data that are not
   shuffled.
5. `promises` states what has to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.planted_truth.neuron_kinds import (
    ALIKE,
    CORRECT,
    INCORRECT,
    POSITION,
    SILENT,
    PlantedModel,
    PlantedNeuron,
)
from benchmarks.planted_truth.plant import plant
from neuronllm_eval.attribution.identify import (
    IdentificationSettings,
    QuestionRecord,
    empty_sums,
    identify,
)
from neuronllm_eval.attribution.methods import ACE, KN, METHODS, Activation, make_method
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.explain.evidence import single_neuron_effects
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt, Question

Scores = NDArray[np.float64]  # [layers, neurons]

SKILL_KINDS = (CORRECT, INCORRECT, ALIKE, SILENT)
POSITION_KINDS = (CORRECT, INCORRECT, POSITION)
WIDE = 0.02
# The promises hold from this strength upwards, in log-nats.
FLOOR = 0.125
_BATCH_SIZE = 48
_QUADRATURE = Quadrature("gauss_lobatto")
# A neuron that writes its letter whatever the question has sums by gold letter that cancel out; at
# most this share of their sizes remains.
_MOST_LEFT = 0.5


@dataclass(frozen=True)
class Recovery:
    """How well a method recovers one kind of planted neuron.

    Attributes:
        at_k: share of the method's first K neurons that are of the kind; K is the number planted.
        wide: share of the kind among the method's first `WIDE` of the neurons.
        whole: `at_k` where the neurons of all layers are ranked, not only of those planted in.
    """

    at_k: float
    wide: float
    whole: float


class SingleEffect(NamedTuple):
    """A neuron's attribution per prompt and its knockout effect, in log-nats."""

    attribution: float
    knockout: float


@dataclass(frozen=True)
class Trial:
    """The measurements at one strength.

    Attributes:
        strength: log-nats.
        kinds: recovery by method and kind of `SKILL_KINDS`.
        intruders: number of `alike` and `silent` neurons among the first K good and K bad ones of
            `ace`, K the number of `correct` neurons.
        unshuffled: by method, the share of `position` neurons among the first K good ones, where
            the gold option is always under the neuron's letter.
        shuffled: by method, the same over all orders.
        planted_effects: of every `correct` neuron.
        ahead_effects: of neurons of earlier layers among the first K of `ace` over all layers.
        exposed: share of `position` neurons that `ace`'s sums by gold letter expose: positive for
            their own letter only, and cancelling out by half at least.
        effects: smallest and largest size of the planted effects, as measured, log-nats.
    """

    strength: float
    kinds: dict[str, dict[str, Recovery]]
    intruders: int
    unshuffled: dict[str, float]
    shuffled: dict[str, float]
    planted_effects: tuple[SingleEffect, ...]
    ahead_effects: tuple[SingleEffect, ...]
    exposed: float
    effects: tuple[float, float]


@dataclass(frozen=True)
class Promise:
    """What has to hold at one strength, whether it does, and the figure that decides."""

    name: str
    strength: float
    kept: bool
    figure: str


def run_trial(
    model: nn.Module,
    fitting: Sequence[Question],
    questions: Sequence[Question],
    strength: float,
    seed: int,
) -> Trial:
    """Plant neurons, and score them by every method.

    Args:
        model: as for `plant`, with two layers at least.
        fitting: questions to fit the planted neurons on.
        questions: others, to score on; each with its gold option under every letter once.
        strength: of the planted neurons, log-nats.
        seed: which neurons are replaced.

    Raises:
        ModelError: as `plant`.
        UsageError: as `plant`.
    """
    prompts = [prompt for question in fitting for prompt in question.prompts]
    last = find_ffn_layers(model).n_layers - 1
    skilled = plant(model, prompts, (last - 1, last), SKILL_KINDS, strength, seed)
    biased = plant(model, prompts, (last,), POSITION_KINDS, strength, seed)
    return evaluate(skilled, biased, questions, strength)


def evaluate(
    skilled: PlantedModel, biased: PlantedModel, questions: Sequence[Question], strength: float
) -> Trial:
    """Score two planted models by every method; arguments as for `run_trial`."""
    scores, _ = _score(skilled, questions)
    k = len(skilled.of_kind(CORRECT))
    of_ace = _ranked(skilled, scores[ACE.name])
    first = _first(of_ace, k) | _first(-of_ace, k)
    harmless = [*skilled.of_kind(ALIKE), *skilled.of_kind(SILENT)]
    shuffled, letter_sums = _score(biased, questions)
    position = biased.of_kind(POSITION)
    planted = skilled.neurons + biased.neurons
    correct = {neuron.location for neuron in skilled.of_kind(CORRECT)}
    ahead = [place for place in _first(scores[ACE.name], k) if place[0] not in skilled.chosen]
    indices = [*sorted(correct), *sorted(ahead)]
    effects = _single_effects(skilled, questions, scores[ACE.name], indices)
    sizes = [abs(neuron.effect) for neuron in planted if neuron.kind != SILENT]
    return Trial(
        strength=strength,
        kinds={
            name: {kind: _found(skilled, kind, values) for kind in SKILL_KINDS}
            for name, values in scores.items()
        },
        intruders=sum(neuron.location in first for neuron in harmless),
        unshuffled=_unshuffled(biased, questions),
        shuffled={name: _share_found(biased, position, each) for name, each in shuffled.items()},
        planted_effects=effects[:k],
        ahead_effects=effects[k:],
        exposed=sum(_exposed(neuron, letter_sums) for neuron in position) / len(position),
        effects=(min(sizes), max(sizes)),
    )


def _score(
    planted: PlantedModel, questions: Sequence[Question]
) -> tuple[dict[str, Scores], NDArray[np.int64]]:
    """Scores by method, and ACE's sums by gold letter [letters, layers, neurons]."""
    methods = tuple(make_method(name) for name in METHODS)
    engine = _engine(planted, questions)
    settings = IdentificationSettings(methods, _QUADRATURE, batch_size=_BATCH_SIZE)
    sums = empty_sums(engine, questions, methods)
    notes: dict[str, list[Any]] = {name: [] for name in METHODS}
    for _, record in identify(engine, questions, settings, sums):
        assert isinstance(record, QuestionRecord)  # all numbers are finite
        for name, note in record.notes.items():
            notes[name].append(note)
    scores = {each.name: each.score(sums[each.name], notes[each.name]) for each in methods}
    return scores, sums[ACE.name].letter_sums


def _single_effects(
    planted: PlantedModel,
    questions: Sequence[Question],
    scores: Scores,
    places: Sequence[tuple[int, int]],
) -> tuple[SingleEffect, ...]:
    n_prompts = sum(len(question.prompts) for question in questions)
    alone = single_neuron_effects(_engine(planted, questions), questions, places, _BATCH_SIZE)
    knockouts = alone[:, 0].mean(0).tolist()
    return tuple(
        SingleEffect(float(scores[place]) / n_prompts, knockout)
        for place, knockout in zip(places, knockouts, strict=True)
    )


def _ranked(planted: PlantedModel, scores: Scores) -> Scores:
    """Scores with zeros in the layers that were not planted in."""
    is_planted = np.zeros((planted.layers.n_layers, 1))
    is_planted[list(planted.chosen)] = 1
    return is_planted * scores


def _engine(planted: PlantedModel, questions: Sequence[Question]) -> Engine:
    prompts: list[Prompt] = [prompt for question in questions for prompt in question.prompts]
    return build_engine(planted.model, planted.layers, prompts, n_nodes=_QUADRATURE.n_steps or 0)


def _found(planted: PlantedModel, kind: str, scores: Scores) -> Recovery:
    signed = {CORRECT: scores, INCORRECT: -scores}.get(kind, np.abs(scores))
    ranked = _ranked(planted, signed)
    own = {neuron.location for neuron in planted.of_kind(kind)}
    k, wide = len(own), round(WIDE * len(planted.chosen) * planted.layers.width)
    found = (_first(ranked, k), _first(ranked, wide), _first(signed, k))
    return Recovery(*(len(own & each) / k for each in found))


def _first(scores: Scores, count: int) -> set[tuple[int, int]]:
    """(layer, index) of the `count` highest positive scores."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    places = [divmod(int(flat), scores.shape[1]) for flat in order]
    return {place for place in places if scores[place] > 0}


def _share_found(planted: PlantedModel, neurons: Sequence[PlantedNeuron], scores: Scores) -> float:
    first = _first(_ranked(planted, scores), len(planted.of_kind(CORRECT)))
    return sum(neuron.location in first for neuron in neurons) / len(neurons)


def _unshuffled(planted: PlantedModel, questions: Sequence[Question]) -> dict[str, float]:
    """`Trial.unshuffled`: the mean over letters, each of them always gold."""
    n_letters = len(questions[0].prompts[0].options)
    found = dict.fromkeys(METHODS, 0.0)
    for letter in range(n_letters):
        own = [neuron for neuron in planted.of_kind(POSITION) if neuron.letter == letter]
        once = [
            Question(question.question_id, (prompt,))
            for question in questions
            for prompt in question.prompts
            if prompt.gold == letter
        ]
        for name, scores in _score(planted, once)[0].items():
            found[name] += _share_found(planted, own, scores) / n_letters
    return found


def _exposed(neuron: PlantedNeuron, letter_sums: NDArray[np.int64]) -> bool:
    """Whether sums by gold letter [letters, layers, neurons] expose a `position` neuron."""
    sums = letter_sums[:, neuron.layer, neuron.index].astype(np.float64)
    others = np.delete(sums, neuron.letter)
    cancels = abs(sums.sum()) <= _MOST_LEFT * np.abs(sums).sum()
    return bool(sums[neuron.letter] > 0 and (others < 0).all() and cancels)


def promises(trial: Trial) -> list[Promise]:
    """What must hold for planted neurons, and whether it does; nothing below `FLOOR`."""
    if trial.strength < FLOOR:
        return []
    correct, incorrect = (trial.kinds[ACE.name][kind].at_k for kind in (CORRECT, INCORRECT))
    alike = trial.kinds[KN.name][ALIKE].wide
    silent = trial.kinds[Activation.name][SILENT].at_k
    unshuffled = trial.unshuffled[ACE.name]
    rows: list[tuple[str, Callable[[float], bool], float]] = [
        ("ace ranks neurons that write the gold letter first", _is_all, correct),
        ("ace ranks neurons that write an incorrect letter last", _is_all, incorrect),
        ("ace ranks no alike or silent neuron there", _is_none, trial.intruders),
        ("kn finds the alike neurons", _is_all, alike),
        ("activation finds the silent neurons", _is_all, silent),
        ("ace takes position for skill where nothing is shuffled", _is_all, unshuffled),
        ("where options are shuffled, ace's sums by letter expose it", _is_all, trial.exposed),
    ]
    return [
        Promise(name, trial.strength, holds(figure), f"{figure:.2f}")
        for name, holds, figure in rows
    ]


def _is_all(share: float) -> bool:
    return share > 1 - 1e-9


def _is_none(share: float) -> bool:
    return share == 0
