"""Which docs a validation was on: `conditions.jsonl` without the answers.

Answers under hundreds of conditions are most of that file: not making values of them takes a tenth
of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ConfigDict, with_config

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocLine, DocTable
from neuronllm_eval.formats.typed_files import iterate_lines

_REMEDY = "run validate again"


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
class AskedDocs:
    """The docs of a validation, without the answers.

    Attributes:
        split: the validation split.
        docs: (id of the question, gold option) of each, in order.
        conditions: names of the conditions and points, random controls aside.
    """

    split: str
    docs: tuple[tuple[str, int], ...]
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, table: DocTable) -> AskedDocs:
        """The docs of a table of answers."""
        docs = zip(table.question_ids, table.gold.tolist(), strict=True)
        return cls(table.split, tuple(docs), _without_controls(table.conditions))

    @property
    def questions(self) -> frozenset[str]:
        """Ids of the questions."""
        return frozenset(question for question, _ in self.docs)


def asked_docs(path: Path, task: str) -> AskedDocs:
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
    return AskedDocs(splits.pop(), pairs, _without_controls(first.loglikelihoods))


def _without_controls(conditions: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in conditions if ".random_" not in name)
