"""What the top neurons of a run do, as values: the content of `explain.json`.

Whether a neuron is about the letter or about what the letter stands for shows in its attributions,
averaged by gold letter: m_g for letter g, over the prompts whose gold option has it. The index of
letter bias (our definition) is the share of their second moment that lies between letters:

    index = variance of m_g over letters / mean of m_g squared = 1 - (mean of m_g)^2 / mean of m_g^2

1. 0: the same for every gold letter, in either direction: a content neuron.
2. 1: the letters cancel out. A neuron that only raises the logit of one letter helps where that is
   the gold one, and hurts as much in sum where it is not.
3. In between: helping one letter of L and leaving the others alone gives 1 - 1 / L.

AQUA prompts each question with its gold option under several letters, so content is much the same
for all of them; of other tasks the index also has what questions of each gold letter differ in. So
does chance: with few prompts for each letter it is too high.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from lm_eval.api.task import ConfigurableTask
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.explain.evidence import Evidence, Mean
from neuronllm_eval.explain.token_effects import NeuronTokens, Promotion, SetName
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.harness.requests import question_words
from neuronllm_eval.neurons.neuron_set import Neuron, Overlap

SCHEMA_VERSION = 1
# From this index on, more than half of the second moment lies between letters.
LETTER_NEURON = 0.5


@dataclass(frozen=True)
class QuestionEffect:
    """What a neuron did at one question: the method's value, summed over its prompts."""

    question_id: str
    text: str
    attribution: float


@dataclass(frozen=True)
class LetterProfile:
    """A neuron's attribution by gold letter.

    Attributes:
        means: per letter, the method's mean value per prompt; None for a letter that is never gold.
        index: the letter-bias index, 0 to 1; None where it is not defined.
    """

    means: tuple[float | None, ...]
    index: float | None

    @property
    def reading(self) -> Literal["", "letter", "content"]:
        """`letter`, `content`, or empty where the index is not defined."""
        if self.index is None:
            return ""
        return "letter" if self.index >= LETTER_NEURON else "content"


@dataclass(frozen=True)
class NeuronExplanation:
    """What one neuron does.

    Attributes:
        kind: `good` or `bad`.
        neuron: its layer, index and score.
        tokens: what its output direction promotes and demotes.
        positive: share of the prompts on which its activation is above 0.
        letters: its attribution by gold letter, over the whole run.
        right: mean activation on prompts that are answered correctly.
        wrong: mean activation on the others.
        value: the method's mean value per prompt, of the questions re-evaluated.
        knockout: F minus F without the neuron, log-nats; above 0 it helps by itself.
        doubling: F with twice the neuron minus F, log-nats.
        helped: the questions it helped most, best first.
        hurt: those it hurt most, worst first.
    """

    kind: SetName
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

    def listed_tokens(self) -> NeuronTokens:
        """What `tokens.json` keeps of it, and tables show."""
        promotes, demotes = self.tokens.promotes, self.tokens.demotes
        layer, index, reading = *self.neuron.location, self.letters.reading
        return NeuronTokens(self.kind, layer, index, promotes, demotes, self.positive, reading)


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
        method: that its neurons are selected by.
        measures: what the method's values are, and so those by letter and of questions.
        n_questions: number of questions re-evaluated.
        n_chosen_on: number of questions that the neurons were selected on.
        letter_counts: [letters] prompts of the latter by gold letter.
        notes: what the reading of tokens leaves out.
        neurons: the good ones, best first, then the bad ones.
        spread: for `good` and `bad`, all selected neurons by layer.
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
        neuron: its index in the evidence.
        task: that the questions are of.
        count: the most of each.
    """
    values = evidence.attributions[:, neuron]

    def listed(signed: NDArray[np.float64]) -> tuple[QuestionEffect, ...]:
        found = []
        for index in np.argsort(-signed, kind="stable")[:count]:
            if signed[index] > 0:
                question = evidence.questions[index]
                text = question_words(task, task.eval_docs[question.prompts[0].doc_id])
                found.append(QuestionEffect(question.question_id, text, float(values[index])))
        return tuple(found)

    return listed(values), listed(-values)


def letter_bias(means: ArrayLike) -> float | None:
    """The letter-bias index of means [letters]; None with fewer than two, or if all are 0."""
    values = np.asarray(means, dtype=np.float64)
    largest = np.abs(values).max(initial=0.0)
    if values.size < 2 or largest == 0:
        return None
    values = values / largest  # squares stay within what a float can hold
    return float(np.clip(1 - values.mean() ** 2 / (values**2).mean(), 0.0, 1.0))


def letter_profile(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> LetterProfile:
    """A neuron's profile, from the method's values summed by gold letter, and prompts of each."""
    occurs = counts > 0
    means = sums / np.maximum(counts, 1)
    return LetterProfile(
        tuple(float(mean) if known else None for mean, known in zip(means, occurs, strict=True)),
        letter_bias(means[occurs]),
    )
