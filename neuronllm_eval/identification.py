"""The streaming pass over questions: attributions -> ES -> G_e, B_e -> ACE.

1. Questions are taken in a fixed order, in micro-batches of whole questions.
2. Every prompt is attributed (`attribution.attribute`); a question's attributions are summed over
   its proxies: the example score ES_e.
3. Per layer, the `top_z` highest positive neurons of ES_e form G_e, the lowest negative B_e.
4. The ACE score of a neuron is the sum of ES_e over the questions where it is in G_e or B_e.

Sums are kept in 64-bit fixed point, so that the order of adding cannot change a bit of the result,
and their size does not depend on the number of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from neuronllm_eval.attribution import METHODS, Attribution, Quadrature, attribute
from neuronllm_eval.batch_sizes import in_batches
from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons import NeuronScores, Provenance
from neuronllm_eval.prompts import Question
from neuronllm_eval.scoring import Engine
from neuronllm_eval.selection import resolve_count

# One unit of the sums is 2**-40 log-nats; sums up to 2**23 log-nats fit.
_FIXED_POINT = 2.0**40


@dataclass(frozen=True)
class IdentificationSettings:
    """What is attributed and how questions vote.

    Attributes:
        method: what is attributed; one of `attribution.METHODS`.
        quadrature: rule for the path integral.
        top_z: neurons per layer in G_e and in B_e, a count or a share of the layer (our reading).
        batch_size: prompts per pass; a batch holds whole questions, so at least one question's.
    """

    method: str = "ace"
    quadrature: Quadrature = field(default_factory=Quadrature)
    top_z: float = 0.1
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"unknown method {self.method!r}",
                expected=", ".join(METHODS),
                remedy="check --method",
            )
        if self.batch_size < 1:
            raise UsageError(
                f"batch_size is {self.batch_size}",
                expected="1 or more",
                remedy="check --batch_size",
            )


@dataclass(frozen=True)
class QuestionRecord:
    """One line of `questions.jsonl`.

    Attributes:
        question_id: the question.
        doc_ids: per proxy, the doc's index in the task.
        gold: per proxy, the index of the right option.
        loglikelihoods: per proxy and option, log-nats of the unmasked model, of the tokens that
            the options do not share.
        right: per proxy, whether the likeliest option is the gold one.
        completeness_gap: the largest over proxies and layers, log-nats.
    """

    question_id: str
    doc_ids: tuple[int, ...]
    gold: tuple[int, ...]
    loglikelihoods: tuple[tuple[float, ...], ...]
    right: tuple[bool, ...]
    completeness_gap: float


@dataclass
class ScoreSums:
    """Running sums over questions, all int64, so adding is exact in any order.

    Shapes: ace, good_count, bad_count [layers, neurons]; half_sums [2, layers, neurons];
    letter_sums [letters, layers, neurons].
    """

    half_sums: NDArray[np.int64]
    letter_sums: NDArray[np.int64]
    good_count: NDArray[np.int64]
    bad_count: NDArray[np.int64]
    gap_max: float = 0.0
    gap_sum: int = 0
    change_sum: int = 0
    n_gaps: int = 0
    n_questions: int = 0
    n_prompts: int = 0

    @classmethod
    def zeros(cls, shape: tuple[int, int], n_letters: int) -> ScoreSums:
        """Empty sums for a model of `shape` [layers, neurons]."""

        def empty(*leading: int) -> NDArray[np.int64]:
            return np.zeros((*leading, *shape), dtype=np.int64)

        return cls(empty(2), empty(n_letters), empty(), empty())

    def add(
        self, index: int, question: Question, attributions: Sequence[Attribution], top_z: int
    ) -> None:
        """Add question number `index` with its proxies' attributions."""
        example_score = torch.zeros_like(attributions[0].values)
        for prompt, attribution in zip(question.prompts, attributions, strict=True):
            example_score += attribution.values
            self.letter_sums[prompt.gold] += _fixed(attribution.values)
            gaps = attribution.completeness_gap.cpu().double()
            self.gap_max = max(self.gap_max, float(gaps.max()))
            self.gap_sum += int(_fixed(gaps).sum())
            self.change_sum += int(_fixed(attribution.target_change.abs()).sum())
            self.n_gaps += gaps.numel()
        good, bad = vote(example_score, top_z)
        self.half_sums[index % 2] += _fixed(torch.where(good | bad, example_score, 0.0))
        self.good_count += good.cpu().numpy()
        self.bad_count += bad.cpu().numpy()
        self.n_questions += 1
        self.n_prompts += len(question.prompts)

    def to_scores(self, provenance: Provenance) -> NeuronScores:
        """The sums as floats, log-nats."""
        return NeuronScores(
            ace=self.half_sums.sum(0) / _FIXED_POINT,
            good_count=self.good_count,
            bad_count=self.bad_count,
            half_sums=self.half_sums / _FIXED_POINT,
            letter_sums=self.letter_sums / _FIXED_POINT,
            provenance=provenance,
        )

    @property
    def gap_mean(self) -> float:
        """Mean completeness gap over prompts and layers, log-nats."""
        return self.gap_sum / _FIXED_POINT / max(1, self.n_gaps)

    @property
    def gap_share(self) -> float:
        """The gaps' sum over that of |F(h_l) - F(0)|: the share of the change that is missed."""
        return self.gap_sum / max(1, self.change_sum)


def _fixed(values: Tensor) -> NDArray[np.int64]:
    return torch.round(values.cpu().double() * _FIXED_POINT).to(torch.int64).numpy()


def vote(example_score: Tensor, top_z: int) -> tuple[Tensor, Tensor]:
    """Members of G_e and B_e.

    Args:
        example_score: [layers, neurons] ES_e.
        top_z: most neurons per layer in each.

    Returns:
        two [layers, neurons] bool: among the `top_z` highest and positive, lowest and negative.
    """
    good = torch.zeros_like(example_score, dtype=torch.bool)
    bad = torch.zeros_like(good)
    good.scatter_(-1, example_score.topk(top_z, -1).indices, True)
    bad.scatter_(-1, example_score.topk(top_z, -1, largest=False).indices, True)
    return good & (example_score > 0), bad & (example_score < 0)


def identify(
    engine: Engine,
    questions: Sequence[Question],
    settings: IdentificationSettings,
    record: Callable[[QuestionRecord], object],
    description: str = "identify",
) -> ScoreSums:
    """Attribute every question and sum up.

    Args:
        engine: attributes the prompts.
        questions: the selection split's questions.
        settings: see `IdentificationSettings`.
        record: called with each question's record, in order.
        description: text of the progress bar; without any, there is none.
    """
    shape = engine.layers.shape
    top_z = resolve_count(settings.top_z, shape[1], "top_z")
    n_letters = max(len(prompt.options) for question in questions for prompt in question.prompts)
    sums = ScoreSums.zeros(shape, n_letters)
    target = METHODS[settings.method]
    hidden = None if description else True  # None: where nobody watches
    with tqdm(total=len(questions), desc=description, unit="question", disable=hidden) as progress:
        for index, own in in_batches(
            questions,
            settings.batch_size,
            lambda prompts: attribute(engine, prompts, settings.quadrature, target),
        ):
            sums.add(index, questions[index], own, top_z)
            record(_record(questions[index], own))
            progress.update()
    return sums


def _record(question: Question, attributions: Sequence[Attribution]) -> QuestionRecord:
    rows = [tuple(attribution.loglikelihoods.tolist()) for attribution in attributions]
    gold = tuple(prompt.gold for prompt in question.prompts)
    return QuestionRecord(
        question_id=question.question_id,
        doc_ids=tuple(prompt.doc_id for prompt in question.prompts),
        gold=gold,
        loglikelihoods=tuple(rows),
        right=tuple(int(np.argmax(row)) == answer for row, answer in zip(rows, gold, strict=True)),
        completeness_gap=max(float(each.completeness_gap.max()) for each in attributions),
    )
