"""`conditions.jsonl` -> the answer to every doc under every condition. Pure, and strict.

All figures are computed from this file, so every line is checked: known keys, one task, one split,
each doc once, the same conditions everywhere, and finite log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import scipy.special
from numpy.typing import NDArray
from pydantic import Field

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.typed_files import artifact, load_lines
from neuronllm_eval.interventions.conditions import UNMASKED, ConditionName
from neuronllm_eval.runs.directory import RunDirectory

_REMEDY = "run validate again"
# Log-nats, at most 0 up to rounding.
LogLikelihood = Annotated[float, Field(le=1e-3)]


@artifact
@dataclass(frozen=True)
class DocLine:
    """A line of `conditions.jsonl`.

    Attributes:
        loglikelihoods: condition -> [options].
    """

    task: str
    split: str
    doc_id: int
    question_id: str
    gold: int
    loglikelihoods: dict[str, list[LogLikelihood]]

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
        confidence: condition -> [docs] float64, softmax over options at gold.
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
        predicted = np.empty((len(docs), len(names)), dtype=np.int64)
        confidence = np.empty(predicted.shape)
        for count in set(n_options.tolist()):  # docs may differ in their number of options
            rows = np.flatnonzero(n_options == count)
            options = np.array(  # [docs, conditions, options]
                [[docs[row].loglikelihoods[name] for name in names] for row in rows]
            )
            predicted[rows] = options.argmax(-1)  # the first of equals, as the harness takes it
            confidence[rows] = softmax_at(options, gold[rows, np.newaxis])
        correct = (predicted == gold[:, np.newaxis]).astype(np.float64)
        question_ids = tuple(doc.question_id for doc in docs)
        return cls(
            names,
            docs[0].split,
            tuple(doc.doc_id for doc in docs),
            question_ids,
            numbered(question_ids),
            n_options,
            gold,
            dict(zip(names, predicted.T, strict=True)),
            dict(zip(names, correct.T, strict=True)),
            dict(zip(names, confidence.T, strict=True)),
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


def _damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="a line per doc, with its finite log-likelihoods under the same conditions",
        remedy=_REMEDY,
    )
