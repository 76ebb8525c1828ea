"""`validation_docs.jsonl`, read back: what the docs say that judged the neurons. Strict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.runs.directory import read_lines

_KINDS = {"doc_id": int, "question": str, "options": list, "group": str}


@dataclass(frozen=True)
class JudgedDoc:
    """A doc in few words.

    Attributes:
        question: its first words.
        options: first words of the options, in the order that they were shown in.
        group: family or subject; empty where the data name none.
    """

    question: str
    options: tuple[str, ...]
    group: str


def read_judged_docs(path: Path, table: DocTable) -> tuple[JudgedDoc, ...]:
    """[docs] in the table's order; empty where an earlier version wrote no such file.

    Raises:
        ArtifactError: the file is damaged, or of other docs.
    """
    if not path.exists():
        return ()
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        if {name: type(value) for name, value in line.items()} != _KINDS or not all(
            isinstance(option, str) for option in line["options"]
        ):
            raise _refusal(path, f"line {number} is not of a doc")
        options = tuple(line["options"])
        found[line["doc_id"]] = JudgedDoc(line["question"], options, line["group"])
    if set(found) != set(table.doc_ids):
        raise _refusal(path, f"it has {len(found)} docs, of which some are not those that judged")
    return tuple(found[doc_id] for doc_id in table.doc_ids)


def _refusal(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what}",
        expected="a line per doc of conditions.jsonl, with question, options and group",
        remedy="run validate again",
    )
