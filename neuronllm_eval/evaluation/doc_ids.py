"""Which docs a validation asked: the start of each line of `conditions.jsonl`.

Answers under hundreds of conditions are most of that file: not parsing them takes 7 ms in place of
120, for 3.4 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.formats.json_files import exact_keys, parse_json, require_file, require_size
from neuronllm_eval.runs.directory import MOST_LINE_LENGTH, MOST_LINES_BYTES

_AGAIN = "run validate again"
# What `validate` writes between what was asked and what was answered. Within a text its quotes
# would have backslashes.
_ANSWERS = b',"loglikelihoods":{'


@dataclass(frozen=True)
class AskedDocs:
    """What was asked, without what was answered.

    Attributes:
        split: that judged.
        docs: (id of the question, gold option) of each, in order.
        conditions: names of the conditions and points, random controls aside.
    """

    split: str
    docs: tuple[tuple[str, int], ...]
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, table: DocTable) -> AskedDocs:
        """What a table of answers was asked."""
        docs = zip(table.question_ids, table.gold.tolist(), strict=True)
        return cls(table.split, tuple(docs), _chosen(table.conditions))

    @property
    def questions(self) -> frozenset[str]:
        """Ids of the questions."""
        return frozenset(question for question, _ in self.docs)


def asked_docs(path: Path, task: str) -> AskedDocs:
    """Read the start of each line of a `conditions.jsonl`.

    Args:
        path: the file.
        task: that it must be of.

    Raises:
        ArtifactError: the file is missing or too large, or a line is not as validation writes it.
    """
    require_file(path)
    require_size(path, MOST_LINES_BYTES, _AGAIN)
    splits, docs, ids, first = set(), [], set(), b""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_LENGTH), b""), 1):
                start, sign, _ = line.partition(_ANSWERS)
                if not sign or not line.endswith(b"}}\n"):
                    raise _damaged(path, f"line {number} is not whole")
                values = _start(start, path, number)
                if values["task"] != task:
                    raise _damaged(path, f"line {number} is of task {values['task']!r:.100}")
                if values["doc_id"] in ids:
                    raise _damaged(path, f"line {number} is of doc {values['doc_id']} again")
                ids.add(values["doc_id"])
                splits.add(values["split"])
                docs.append((values["question_id"], values["gold"]))
                first = first or line
        answers = parse_json(first.decode(), path, _AGAIN)["loglikelihoods"] if first else {}
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if len(splits) != 1:
        raise _damaged(path, f"there are docs of {len(splits)} splits")
    return AskedDocs(splits.pop(), tuple(docs), _chosen(answers))


def _chosen(conditions: Iterable[str]) -> tuple[str, ...]:
    """Those of the chosen neurons, without their random controls."""
    return tuple(name for name in conditions if ".random_" not in name)


def _start(start: bytes, path: Path, number: int) -> dict[str, Any]:
    """The keys of a line before the answers, which are not read."""
    where = f"{path}, line {number},"
    values = parse_json(start.decode() + "}", where, _AGAIN)
    kinds = {"task": str, "split": str, "doc_id": int, "question_id": str, "gold": int}
    known = exact_keys(values, set(kinds), path, f"line {number}", _AGAIN)
    for name, kind in kinds.items():
        if type(known[name]) is not kind:
            raise _damaged(path, f"line {number} has {name} {known[name]!r:.100}")
    return known


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what}",
        expected="a file written by `neuronllm-eval validate`",
        remedy=_AGAIN,
    )
