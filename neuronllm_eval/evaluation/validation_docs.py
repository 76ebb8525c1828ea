"""The docs of a validation: their ids and gold options, and their first words.

`conditions.jsonl` is read here without its answers, which under hundreds of conditions are most of
it: that takes a tenth of the time. The words are in `validation_docs.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ConfigDict, with_config

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocLine, DocTable
from neuronllm_eval.formats.typed_files import artifact, iterate_lines, load_lines

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
        return cls(table.split, tuple(docs), _without_controls(table.conditions))

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
    return EvaluatedDocs(splits.pop(), pairs, _without_controls(first.loglikelihoods))


def _without_controls(conditions: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in conditions if ".random_" not in name)


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
