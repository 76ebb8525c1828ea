"""The docs of a validation, and the answer to each of them under every condition. Pure, and strict.

1. `doc_table`: `conditions.jsonl` with its answers. All figures are computed from this file, so
   every line is checked: known keys, one task, one split, each doc once, the same conditions
   everywhere, and finite log-likelihoods.
2. `evaluated_docs`: the same file without the answers, which under hundreds of conditions are most
   of it; that takes a tenth of the time.
3. `read_doc_texts`: the first words of the docs, from `validation_docs.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, with_config

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.stats.significance import ChanceTest, chance_test
from neuronllm_eval.formats.typed_files import artifact, iterate_lines, load_lines
from neuronllm_eval.interventions.conditions import UNMASKED, ConditionName, is_control
from neuronllm_eval.runs.directory import RunDirectory

_REMEDY = "run validate again"
# Log-nats, at most 0 up to rounding.
LogLikelihood = Annotated[float, Field(le=1e-3)]
Divergence = Annotated[float, Field(ge=0)]


@artifact
@dataclass(frozen=True)
class DocLine:
    """A line of `conditions.jsonl`.

    Attributes:
        loglikelihoods: condition -> [options].
        lengths: [options] by which log-likelihoods are divided before options are compared; empty
            where they are compared as they are, and left out of the file.
        kl: condition -> KL divergence of the unmasked model's distribution of the token behind the
            context from that under the condition, nats; empty in files of earlier versions.
    """

    task: str
    split: str
    doc_id: int
    question_id: str
    gold: int
    loglikelihoods: dict[str, list[LogLikelihood]]
    lengths: tuple[Annotated[float, Field(gt=0)], ...] = ()
    kl: dict[str, Divergence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(options) for options in self.loglikelihoods.values()}
        n_options = min(lengths, default=0)
        if UNMASKED not in self.loglikelihoods or len(lengths) != 1 or n_options < 2:
            raise ValueError(
                f"there are not {UNMASKED} and equally many options, 2 or more, under every "
                "condition"
            )
        if not 0 <= self.gold < n_options:
            raise ValueError(f"gold is {self.gold!s:.100} of {n_options} options")
        if self.lengths and len(self.lengths) != n_options:
            raise ValueError(f"there are {len(self.lengths)} lengths of {n_options} options")

    def to_record(self) -> dict[str, Any]:
        """The JSON values of the line."""
        record = asdict(self)
        for name in ("lengths", "kl"):
            if not record[name]:
                del record[name]
        return record


@dataclass(frozen=True)
class DocTable:
    """Prediction and confidence of every doc under every condition.

    Attributes:
        doc_ids: [docs] of the harness.
        question_ids: [docs] of the question that a doc is a proxy of.
        question_index: [docs] int64.
        n_options: [docs] int64.
        gold: [docs] int64.
        predicted: condition -> [docs] int64.
        correct: condition -> [docs] float64, 1 if the prediction is the gold option, else 0.
        confidence: condition -> [docs] float64, softmax over options at gold, of what options are
            compared by.
        calibrated: condition -> [docs] float64, 1 if the prediction after batch calibration
            (`calibrated_scores`) is the gold option, else 0.
        option_mass: condition -> [docs] float64, total probability of the options' tokens.
        kl: condition -> [docs] float64, see `DocLine`; empty where some doc has none.
    """

    conditions: tuple[str, ...]
    split: str
    doc_ids: tuple[int, ...]
    question_ids: tuple[str, ...]
    question_index: NDArray[np.int64]
    n_options: NDArray[np.int64]
    gold: NDArray[np.int64]
    predicted: Mapping[str, NDArray[np.int64]]
    correct: Mapping[str, NDArray[np.float64]]
    confidence: Mapping[str, NDArray[np.float64]]
    calibrated: Mapping[str, NDArray[np.float64]]
    option_mass: Mapping[str, NDArray[np.float64]]
    kl: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def unmasked_against_chance(self) -> ChanceTest:
        """Whether the unmasked model is above chance."""
        n_questions = len(set(self.question_ids))
        return chance_test(self.correct[UNMASKED], self.n_options, n_questions)

    @classmethod
    def load(cls, path: Path, task: str) -> DocTable:
        """Read `conditions.jsonl`.

        Args:
            task: the task that every line must name.

        Raises:
            ArtifactError: the file is missing or damaged, or lines do not fit the task or each
                other.
        """
        return cls.from_lines(load_lines(DocLine, path, _REMEDY), path, task)

    @classmethod
    def from_lines(cls, docs: list[DocLine], path: Path, task: str) -> DocTable:
        """The same of lines that have been read; `path` is for error messages."""
        if not docs:
            raise _damaged(path, "the file is empty")
        names = tuple(docs[0].loglikelihoods)
        _require_conditions(names, path)
        doc_ids: set[int] = set()
        for number, doc in enumerate(docs, 1):
            _require_same(doc, docs[0], task, path, number)
            if doc.doc_id in doc_ids:
                raise _damaged(path, f"line {number} repeats doc {doc.doc_id}")
            doc_ids.add(doc.doc_id)
        gold = np.array([doc.gold for doc in docs], dtype=np.int64)
        n_options = np.array([len(doc.loglikelihoods[UNMASKED]) for doc in docs])
        scores = [np.array([doc.loglikelihoods[name] for name in names]) for doc in docs]
        answers = answers_of(scores, [doc.lengths for doc in docs], gold)
        correct, calibrated_correct = (
            (predicted == gold[:, np.newaxis]).astype(np.float64)
            for predicted in (answers.predicted, answers.calibrated)
        )
        question_ids = tuple(doc.question_id for doc in docs)
        return cls(
            names,
            docs[0].split,
            tuple(doc.doc_id for doc in docs),
            question_ids,
            numbered(question_ids),
            n_options,
            gold,
            dict(zip(names, answers.predicted.T, strict=True)),
            dict(zip(names, correct.T, strict=True)),
            dict(zip(names, answers.confidence.T, strict=True)),
            dict(zip(names, calibrated_correct.T, strict=True)),
            dict(zip(names, answers.option_mass.T, strict=True)),
            {name: np.array([doc.kl[name] for doc in docs]) for name in names}
            if all(doc.kl for doc in docs)
            else {},
        )


def doc_table(run: RunDirectory, task: str) -> DocTable:
    """The answers of a validated run.

    Raises:
        ArtifactError: as `DocTable.load`.
    """
    return run.once(run.conditions, lambda: DocTable.load(run.conditions, task))


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Equal names as equal numbers, from 0 in the order of their first appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


class Answers(NamedTuple):
    """What log-likelihoods say, each [docs, conditions].

    Attributes:
        predicted: int64, index of the likeliest option, the first of equals as in the harness.
        confidence: softmax over options at gold, of what options are compared by.
        calibrated: int64, as `predicted` after batch calibration (`calibrated_scores`).
        calibrated_confidence: as `confidence`, likewise.
        option_mass: total probability of the options' tokens.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    calibrated: NDArray[np.int64]
    calibrated_confidence: NDArray[np.float64]
    option_mass: NDArray[np.float64]


def answers_of(
    loglikelihoods: Sequence[NDArray[np.floating[Any]]],
    lengths: Sequence[tuple[float, ...]],
    gold: NDArray[np.int64],
) -> Answers:
    """The answers to docs, which may differ in their number of options.

    Args:
        loglikelihoods: [docs] of [conditions, options] log-nats.
        lengths: [docs] the options' lengths; empty of docs without.
        gold: [docs] indices of the gold options.
    """
    n_options = np.array([scores.shape[-1] for scores in loglikelihoods])
    shape = len(loglikelihoods), len(loglikelihoods[0])
    answers = Answers(*(np.empty(shape, dtype) for dtype in (int, float, int, float, float)))
    groups = [np.flatnonzero(n_options == count).tolist() for count in np.unique(n_options)]
    compared = []
    for rows in groups:
        options = np.stack([loglikelihoods[row] for row in rows]).astype(np.float64)
        answers.option_mass[rows] = np.exp(options).sum(-1)
        options = ranking_scores(options, [lengths[row] for row in rows])
        answers.predicted[rows] = options.argmax(-1)
        answers.confidence[rows] = softmax_at(options, gold[rows][:, np.newaxis])
        compared.append(options)
    for rows, scores in zip(groups, calibrated_scores(compared), strict=True):
        answers.calibrated[rows] = scores.argmax(-1)
        answers.calibrated_confidence[rows] = softmax_at(scores, gold[rows][:, np.newaxis])
    return answers


def ranking_scores(
    loglikelihoods: NDArray[np.float64], lengths: Sequence[tuple[float, ...]]
) -> NDArray[np.float64]:
    """What options are compared by, [docs, conditions, options].

    Args:
        loglikelihoods: of the same shape, log-nats.
        lengths: [docs] the options' lengths; empty of docs without.
    """
    if not any(lengths):
        return loglikelihoods
    divisors = np.array([each or (1.0,) * loglikelihoods.shape[-1] for each in lengths])
    # The float32 that their nine digits stand for, so that ties are those of the harness.
    return loglikelihoods.astype(np.float32).astype(np.float64) / divisors[:, np.newaxis]


def calibrated_scores(groups: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Batch calibration (Zhou et al. 2024) of [docs, conditions, options] each.

    Of each option's log-softmax its mean over the docs, under the same condition, is subtracted:
    what a condition adds to one option in every doc is gone. Where docs differ in their number of
    options, means are the option effects of the additive model of docs and options, by least
    squares, which are the means where they do not.

    Args:
        groups: what options are compared by; one for each number of options.
    """
    logs = [scipy.special.log_softmax(scores, axis=-1) for scores in groups]
    logs = [scores - scores.mean(-1, keepdims=True) for scores in logs]
    most = max(scores.shape[-1] for scores in logs)
    totals, normal = np.zeros((logs[0].shape[1], most)), np.zeros((most, most))
    for scores in logs:
        n = scores.shape[-1]
        totals[:, :n] += scores.sum(0)
        normal[:n, :n] += len(scores) * (np.eye(n) - 1 / n)
    effects = totals @ np.linalg.pinv(normal, hermitian=True)
    # Far above rounding and below float32: what is equal but for the order of summation is a tie.
    return [np.asarray(np.round(each - effects[:, : each.shape[-1]], 9)) for each in logs]


def softmax_at(loglikelihoods: NDArray[np.float64], gold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Confidence: the softmax over [..., options] at the gold option, [...]."""
    probabilities = scipy.special.softmax(loglikelihoods, axis=-1)
    index = np.broadcast_to(gold, loglikelihoods.shape[:-1])[..., np.newaxis]
    return np.asarray(np.take_along_axis(probabilities, index, axis=-1)[..., 0])


def _require_conditions(names: tuple[str, ...], path: Path) -> None:
    """Refuse names that are not conditions; some become file names."""
    for name in names:
        try:
            ConditionName.parse(name)
        except UsageError as error:
            raise _damaged(path, error.found) from error


def _require_same(doc: DocLine, first: DocLine, task: str, path: Path, number: int) -> None:
    """Refuse a line of another task, split or list of conditions."""
    for name, found, expected in (("task", doc.task, task), ("split", doc.split, first.split)):
        if found != expected:
            raise _damaged(path, f"line {number} has {name} {found!r:.100}, not {expected!r}")
    if doc.loglikelihoods.keys() != first.loglikelihoods.keys():
        differing = sorted(doc.loglikelihoods.keys() ^ first.loglikelihoods.keys())
        raise _damaged(path, f"line {number} has other conditions: {', '.join(differing):.100}")
    if doc.kl and doc.kl.keys() != doc.loglikelihoods.keys():
        raise _damaged(path, f"line {number} has kl and loglikelihoods of different conditions")


def _damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="a line per doc, with its finite log-likelihoods under the same conditions",
        remedy=_REMEDY,
    )


# Docs without their answers -------------------------------------------------------------------


@with_config(ConfigDict(strict=True, extra="ignore"))
@dataclass(frozen=True)
class _Doc:
    """A line of `conditions.jsonl` without its answers."""

    task: str
    split: str
    doc_id: int
    question_id: str
    gold: int


@dataclass(frozen=True)
class EvaluatedDocs:
    """The docs of a validation, without the answers.

    Attributes:
        docs: (id of the question, gold option) of each, in order.
        conditions: names of the conditions and points, random controls aside.
    """

    split: str
    docs: tuple[tuple[str, int], ...]
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, table: DocTable) -> EvaluatedDocs:
        """The docs of a table of answers."""
        docs = zip(table.question_ids, table.gold.tolist(), strict=True)
        return cls(table.split, tuple(docs), without_controls(table.conditions))

    @property
    def questions(self) -> frozenset[str]:
        """Ids of the questions."""
        return frozenset(question for question, _ in self.docs)


def evaluated_docs(path: Path, task: str) -> EvaluatedDocs:
    """Read a `conditions.jsonl` without its answers.

    Args:
        path: the file.
        task: the task that it must be of.

    Raises:
        ArtifactError: the file is missing or damaged, or lines do not fit each other.
    """
    docs = list(iterate_lines(_Doc, path, _REMEDY))
    doc_ids, splits = {doc.doc_id for doc in docs}, {doc.split for doc in docs}
    if {doc.task for doc in docs} != {task} or len(splits) != 1 or len(doc_ids) < len(docs):
        raise ArtifactError(
            f"{path}: the lines are not distinct docs of one split of task {task}",
            expected="a file written by `neuronllm-eval validate`",
            remedy=_REMEDY,
        )
    (first,) = islice(iterate_lines(DocLine, path, _REMEDY), 1)
    pairs = tuple((doc.question_id, doc.gold) for doc in docs)
    return EvaluatedDocs(splits.pop(), pairs, without_controls(first.loglikelihoods))


def without_controls(conditions: Iterable[str]) -> tuple[str, ...]:
    """The names of conditions and points, random controls left out."""
    return tuple(name for name in conditions if not is_control(name))


@artifact
@dataclass(frozen=True)
class DocText:
    """A line of `validation_docs.jsonl`.

    Attributes:
        doc_id: of the harness.
        question: its first words.
        options: first words of the options, in the order of the prompt.
        group: family or subject; empty where the data name none.
    """

    doc_id: int
    question: str
    options: tuple[str, ...]
    group: str


def read_doc_texts(path: Path, table: DocTable) -> tuple[DocText, ...]:
    """[docs] in the table's order; empty where an earlier version wrote no such file.

    Raises:
        ArtifactError: the file is damaged, or has other docs than the table.
    """
    if not path.exists():
        return ()
    docs = {doc.doc_id: doc for doc in load_lines(DocText, path, _REMEDY)}
    if docs.keys() != set(table.doc_ids):
        raise ArtifactError(
            f"{path} has {len(docs)} docs, which are not those of conditions.jsonl",
            expected="a line per doc of conditions.jsonl",
            remedy=_REMEDY,
        )
    return tuple(docs[doc_id] for doc_id in table.doc_ids)
