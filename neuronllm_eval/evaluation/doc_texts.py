"""`validation_docs.jsonl`: the first words of the docs that the neurons were validated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.formats.typed_files import artifact, load_lines

_REMEDY = "run validate again"


@artifact
@dataclass(frozen=True)
class JudgedDoc:
    """A line of the file.

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


def read_judged_docs(path: Path, table: DocTable) -> tuple[JudgedDoc, ...]:
    """[docs] in the table's order; empty where an earlier version wrote no such file.

    Raises:
        ArtifactError: the file is damaged, or has other docs than the table.
    """
    if not path.exists():
        return ()
    docs = {doc.doc_id: doc for doc in load_lines(JudgedDoc, path, _REMEDY)}
    if docs.keys() != set(table.doc_ids):
        raise ArtifactError(
            f"{path} has {len(docs)} docs, which are not those of conditions.jsonl",
            expected="a line per doc of conditions.jsonl",
            remedy=_REMEDY,
        )
    return tuple(docs[doc_id] for doc_id in table.doc_ids)
