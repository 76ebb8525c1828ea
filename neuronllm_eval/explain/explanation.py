"""What the top neurons of a run do, as values: the content of `explain.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask
from numpy.typing import NDArray

from neuronllm_eval.explain.evidence import Evidence, Mean
from neuronllm_eval.explain.letter_bias import LetterProfile
from neuronllm_eval.explain.logit_lens import Promotion, TokenEffect
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.harness.doc_excerpts import question_words
from neuronllm_eval.neurons.neuron_set import Neuron
from neuronllm_eval.neurons.overlap import Overlap

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class QuestionEffect:
    """What a neuron did at one question.

    Attributes:
        question_id: the question.
        text: its first words.
        attribution: the method's value summed over its prompts.
    """

    question_id: str
    text: str
    attribution: float


@dataclass(frozen=True)
class NeuronExplanation:
    """What one neuron does.

    Attributes:
        kind: `good` or `bad`.
        neuron: its place and its score.
        tokens: what its output direction promotes and demotes.
        positive: share of the prompts on which its activation is above 0.
        letters: its attribution by gold letter, over the whole run.
        right: mean activation on prompts that are answered right.
        wrong: the same of those answered wrong.
        value: the method's value a prompt, of the questions asked again.
        knockout: F less that without the neuron, log-nats; above 0 it helps by itself.
        doubling: F with twice the neuron less F, log-nats.
        helped: the questions it helped most, best first.
        hurt: those it hurt most, worst first.
    """

    kind: str
    neuron: Neuron
    tokens: Promotion
    positive: float
    letters: LetterProfile
    right: Mean
    wrong: Mean
    value: float
    knockout: Mean
    doubling: Mean
    helped: tuple[QuestionEffect, ...]
    hurt: tuple[QuestionEffect, ...]

    @property
    def mostly_promotes(self) -> tuple[TokenEffect, ...]:
        """What it promotes by the sign that its activation has on most prompts."""
        if self.positive >= 0.5:
            return self.tokens.promotes
        return tuple(replace(each, effect=-each.effect) for each in self.tokens.demotes)


@dataclass(frozen=True)
class SetOverlap:
    """How far a set of one run and one of another overlap.

    Attributes:
        runs: the directories' names; their paths where names repeat.
        sets: `good` or `bad`, of the first and of the second run.
        overlap: None where the runs are of different models, or of other weights of one.
    """

    runs: tuple[str, str]
    sets: tuple[str, str]
    overlap: Overlap | None


@dataclass(frozen=True)
class Explanation:
    """What the top neurons of one run do.

    Attributes:
        task: the run's.
        model: the run's.
        method: that its neurons are chosen by.
        measures: what the method's values are, and so those by letter and of questions.
        n_questions: how many were asked again.
        n_chosen_on: how many the neurons were chosen on.
        letter_counts: [letters] prompts by gold letter that the neurons were chosen on.
        notes: on the reading of tokens, what is left out.
        neurons: the good ones, best first, then the bad ones.
        spread: for `good` and `bad`, all chosen neurons by layer.
        overlaps: with the other runs that were given.
    """

    task: str
    model: str
    method: str
    measures: str
    n_questions: int
    n_chosen_on: int
    letter_counts: tuple[int, ...]
    notes: tuple[str, ...]
    neurons: tuple[NeuronExplanation, ...]
    spread: dict[str, list[int]]
    overlaps: tuple[SetOverlap, ...]

    def to_json(self) -> str:
        """The content of `explain.json`."""
        values: dict[str, Any] = asdict(self)
        for neuron, each in zip(values["neurons"], self.neurons, strict=True):
            neuron["letters"]["reading"] = each.letters.reading
        return dump_json({"schema_version": SCHEMA_VERSION, **values})


def extremes(
    evidence: Evidence, neuron: int, task: ConfigurableTask, count: int
) -> tuple[tuple[QuestionEffect, ...], tuple[QuestionEffect, ...]]:
    """The questions that a neuron helped and hurt most; fewer where fewer have that sign.

    Args:
        evidence: of the pass over questions.
        neuron: its place in it.
        task: that the questions are of.
        count: how many of each.
    """
    values = evidence.attributions[:, neuron]

    def listed(signed: NDArray[np.float64]) -> tuple[QuestionEffect, ...]:
        order = np.argsort(-signed, kind="stable")[:count].tolist()
        asked: Sequence[Any] = [evidence.questions[place] for place in order]
        return tuple(
            QuestionEffect(
                question.question_id,
                question_words(task, task.eval_docs[question.prompts[0].doc_id]),
                float(values[place]),
            )
            for place, question in zip(order, asked, strict=True)
            if signed[place] > 0
        )

    return listed(values), listed(-values)
