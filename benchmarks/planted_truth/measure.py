"""The self-test: methods are asked for neurons of known parts (`planted`).

1. At every strength two models are planted. One has neurons of the kinds `right`, `wrong`, `alike`
   and `silent`; the other has `position` in place of the last two, since a letter that is pushed
   whatever is asked helps or hurts a little, as the other letters happen to stand, and would stand
   in the ranking of the first.
2. Every method scores all neurons of both, from one pass. Neurons of earlier layers than those
   planted in are ranked apart: they feed what is planted, so a path along which their layer grows
   gives them a share of it. What those that `ace` puts among its first are worth alone is measured.
3. Of each kind, the K neurons that the method puts first are looked at, where K is how many there
   are: the highest scores for `right`, the lowest for `wrong`, the largest of either sign for
   `alike` and `silent`. At this K precision and recall are the same number; recall is taken again
   among `WIDE`, the share of neurons that `identify` chooses by default.
4. Neurons of kind `position` are looked for among the highest scores twice: over all orders of a
   question, and over those with the right option under the neuron's letter, as in data that is not
   shuffled.
5. `promises` are what has to come out.
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
    POSITION,
    RIGHT,
    SILENT,
    WRONG,
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
from neuronllm_eval.attribution.integrated_gradients import Quadrature
from neuronllm_eval.attribution.methods import ACE, KN, METHODS, Activation, make_method
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.explain.single_neuron_ablation import worth_alone
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt, Question

Scores = NDArray[np.float64]  # [layers, neurons]

SKILL_KINDS = (RIGHT, WRONG, ALIKE, SILENT)
POSITION_KINDS = (RIGHT, WRONG, POSITION)
WIDE = 0.02
# Down to this strength, in log-nats, the promises are kept.
FLOOR = 0.125
_BATCH_SIZE = 48
_QUADRATURE = Quadrature("gauss_lobatto")
# A neuron that pushes its letter whatever is asked has sums by right letter that cancel out; so
# much of their sizes may be left.
_MOST_LEFT = 0.5


@dataclass(frozen=True)
class Found:
    """What a method made of one kind.

    Attributes:
        at_k: share of its first K neurons that are of the kind, K as many as there are of it.
        wide: share of the kind among its first `WIDE` of the neurons.
        whole: `at_k` where the neurons of all layers are ranked, not only of those planted in.
    """

    at_k: float
    wide: float
    whole: float


class Worth(NamedTuple):
    """A neuron's attribution a prompt, and its knockout: what it is worth alone. Log-nats."""

    attribution: float
    knockout: float


@dataclass(frozen=True)
class Trial:
    """What came out at one strength.

    Attributes:
        strength: log-nats.
        kinds: by method and kind of `SKILL_KINDS`.
        intruders: neurons that push all letters alike, or write nothing, among the first good or
            bad ones of `ace`, as many of each as there are of `right`.
        unshuffled: by method, the share of `position` neurons among the first good ones, as many
            as there are of `right`, where the right option is always under the neuron's letter.
        shuffled: by method, the same over all orders.
        worth: of every planted `right` neuron, what `ace` says of it a prompt and what it is worth
            alone (`knockouts`), log-nats.
        ahead: the same of neurons of earlier layers that `ace` puts among its first, as many as
            there are of `right`, where all layers are ranked.
        exposed: share of `position` neurons that `ace`'s sums by right letter show for what they
            are: positive for their own letter alone, and cancelling out by half at least.
        effects: least and largest size of what was planted, as measured in the end, log-nats.
    """

    strength: float
    kinds: dict[str, dict[str, Found]]
    intruders: int
    unshuffled: dict[str, float]
    shuffled: dict[str, float]
    worth: tuple[Worth, ...]
    ahead: tuple[Worth, ...]
    exposed: float
    effects: tuple[float, float]


@dataclass(frozen=True)
class Promise:
    """What has to hold at one strength, whether it does, and by which figure."""

    name: str
    strength: float
    kept: bool
    figure: str


def run_trial(
    model: nn.Module,
    fitting: Sequence[Question],
    asked: Sequence[Question],
    strength: float,
    seed: int,
) -> Trial:
    """Plant, and ask every method.

    Args:
        model: as `plant` wants it, of two layers at least.
        fitting: questions to plant by.
        asked: others, to find the neurons by; each with its right option under every letter once.
        strength: of what is planted, log-nats.
        seed: which neurons are replaced.

    Raises:
        ModelError: as `plant`.
        UsageError: as `plant`.
    """
    prompts = [prompt for question in fitting for prompt in question.prompts]
    last = find_ffn_layers(model).n_layers - 1
    skilled = plant(model, prompts, (last - 1, last), SKILL_KINDS, strength, seed)
    biased = plant(model, prompts, (last,), POSITION_KINDS, strength, seed)
    return judge(skilled, biased, asked, strength)


def judge(
    skilled: PlantedModel, biased: PlantedModel, asked: Sequence[Question], strength: float
) -> Trial:
    """Ask every method for the neurons of two planted models; arguments as `run_trial`."""
    scores, _ = _score(skilled, asked)
    k = len(skilled.of_kind(RIGHT))
    of_ace = _ranked(skilled, scores[ACE.name])
    first = _first(of_ace, k) | _first(-of_ace, k)
    harmless = [*skilled.of_kind(ALIKE), *skilled.of_kind(SILENT)]
    shuffled, letter_sums = _score(biased, asked)
    position = biased.of_kind(POSITION)
    planted = skilled.neurons + biased.neurons
    right = {neuron.place for neuron in skilled.of_kind(RIGHT)}
    ahead = [place for place in _first(scores[ACE.name], k) if place[0] not in skilled.chosen]
    worth = _worth(skilled, asked, scores[ACE.name], [*sorted(right), *sorted(ahead)])
    sizes = [abs(neuron.effect) for neuron in planted if neuron.kind != SILENT]
    return Trial(
        strength=strength,
        kinds={
            name: {kind: _found(skilled, kind, values) for kind in SKILL_KINDS}
            for name, values in scores.items()
        },
        intruders=sum(neuron.place in first for neuron in harmless),
        unshuffled=_unshuffled(biased, asked),
        shuffled={name: _share_found(biased, position, each) for name, each in shuffled.items()},
        worth=worth[:k],
        ahead=worth[k:],
        exposed=sum(_exposed(neuron, letter_sums) for neuron in position) / len(position),
        effects=(min(sizes), max(sizes)),
    )


def _score(
    planted: PlantedModel, questions: Sequence[Question]
) -> tuple[dict[str, Scores], NDArray[np.int64]]:
    """Scores by method, and ACE's sums by right letter.

    The sums are [letters, layers, neurons].
    """
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


def _worth(
    planted: PlantedModel,
    questions: Sequence[Question],
    scores: Scores,
    places: Sequence[tuple[int, int]],
) -> tuple[Worth, ...]:
    n_prompts = sum(len(question.prompts) for question in questions)
    alone = worth_alone(_engine(planted, questions), questions, places, _BATCH_SIZE)
    knockouts = alone[:, 0].mean(0).tolist()
    return tuple(
        Worth(float(scores[place]) / n_prompts, knockout)
        for place, knockout in zip(places, knockouts, strict=True)
    )


def _ranked(planted: PlantedModel, scores: Scores) -> Scores:
    """Scores that are zero in layers not planted in."""
    known = np.zeros((planted.layers.n_layers, 1))
    known[list(planted.chosen)] = 1
    return known * scores


def _engine(planted: PlantedModel, questions: Sequence[Question]) -> Engine:
    prompts: list[Prompt] = [prompt for question in questions for prompt in question.prompts]
    return build_engine(planted.model, planted.layers, prompts, n_nodes=_QUADRATURE.n_steps or 0)


def _found(planted: PlantedModel, kind: str, scores: Scores) -> Found:
    signed = {RIGHT: scores, WRONG: -scores}.get(kind, np.abs(scores))
    ranked = _ranked(planted, signed)
    own = {neuron.place for neuron in planted.of_kind(kind)}
    k, wide = len(own), round(WIDE * len(planted.chosen) * planted.layers.width)
    found = (_first(ranked, k), _first(ranked, wide), _first(signed, k))
    return Found(*(len(own & each) / k for each in found))


def _first(scores: Scores, count: int) -> set[tuple[int, int]]:
    """Places of the `count` highest positive scores."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    places = [divmod(int(flat), scores.shape[1]) for flat in order]
    return {place for place in places if scores[place] > 0}


def _share_found(planted: PlantedModel, neurons: Sequence[PlantedNeuron], scores: Scores) -> float:
    first = _first(_ranked(planted, scores), len(planted.of_kind(RIGHT)))
    return sum(neuron.place in first for neuron in neurons) / len(neurons)


def _unshuffled(planted: PlantedModel, questions: Sequence[Question]) -> dict[str, float]:
    """Mean over letters of what is found where each is always right (see `Trial`)."""
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
    """Whether sums by right letter [letters, layers, neurons] show a neuron of `position`."""
    sums = letter_sums[:, neuron.layer, neuron.index].astype(np.float64)
    others = np.delete(sums, neuron.letter)
    cancels = abs(sums.sum()) <= _MOST_LEFT * np.abs(sums).sum()
    return bool(sums[neuron.letter] > 0 and (others < 0).all() and cancels)


def promises(trial: Trial) -> list[Promise]:
    """What this package promises of planted neurons, and whether this trial keeps it.

    Nothing below a strength of `FLOOR`.
    """
    if trial.strength < FLOOR:
        return []
    right, wrong = (trial.kinds[ACE.name][kind].at_k for kind in (RIGHT, WRONG))
    alike = trial.kinds[KN.name][ALIKE].wide
    silent = trial.kinds[Activation.name][SILENT].at_k
    unshuffled = trial.unshuffled[ACE.name]
    rows: list[tuple[str, Callable[[float], bool], float]] = [
        ("ace puts neurons that push the right letter first", _is_all, right),
        ("ace puts neurons that push a wrong letter last", _is_all, wrong),
        ("ace has none there that push all alike or write nothing", _is_none, trial.intruders),
        ("kn finds those that push all alike", _is_all, alike),
        ("activation finds those that write nothing", _is_all, silent),
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
