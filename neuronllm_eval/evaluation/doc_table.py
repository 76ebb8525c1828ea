"""`conditions.jsonl` -> right or wrong of every doc under every condition. Pure, and strict.

The file is the evidence that all figures rest on, so every line is checked: known keys, one task,
one split, each doc once, the same conditions everywhere, and finite log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.stats.confidence import predictions, softmax_confidence
from neuronllm_eval.interventions.conditions import UNMASKED, ConditionName

_ROUNDING = 1e-3  # log-nats
_KINDS = {
    "task": str,
    "split": str,
    "doc_id": int,
    "question_id": str,
    "gold": int,
    "loglikelihoods": dict,
}


@dataclass(frozen=True)
class DocTable:
    """Right or wrong and confidence of every doc under every condition.

    Attributes:
        conditions: names, in order.
        split: the split the docs are of.
        doc_ids: [docs] of the harness.
        question_ids: [docs] of the question that a doc is a copy of.
        question_index: [docs] int64.
        n_options: [docs] int64.
        gold: [docs] int64.
        predicted: condition -> [docs] int64.
        correct: condition -> [docs] float64, 0 or 1.
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
    def from_lines(cls, lines: Sequence[Mapping[str, Any]], path: Path, task: str) -> DocTable:
        """Read the lines of `conditions.jsonl`.

        Args:
            lines: what `run_directory.read_lines` gives.
            path: the file, for error messages.
            task: the task that they must be of.

        Raises:
            ArtifactError: no line, or lines that do not fit the task or each other.
        """
        if not lines:
            raise _refusal(path, "the file is empty")
        for number, line in enumerate(lines, 1):
            _require_line(line, path, number)
        names = tuple(lines[0]["loglikelihoods"])
        _require_conditions(names, path)
        docs: set[int] = set()
        for number, line in enumerate(lines, 1):
            _require_same(line, lines[0], task, path, number)
            if line["doc_id"] in docs:
                raise _refusal(path, f"line {number} is of doc {line['doc_id']} again")
            docs.add(line["doc_id"])
        question_ids = tuple(line["question_id"] for line in lines)
        golds = np.array([line["gold"] for line in lines], dtype=np.int64)
        predicted = np.empty((len(lines), len(names)), dtype=np.int64)
        confidence = np.empty(predicted.shape)
        n_options = np.array([len(line["loglikelihoods"][UNMASKED]) for line in lines])
        for count in set(n_options.tolist()):  # docs may differ in their number of options
            rows_of = np.flatnonzero(n_options == count).tolist()
            rows = _rows([lines[row] for row in rows_of], names, path)
            predicted[rows_of] = predictions(rows)
            gold = np.broadcast_to(golds[rows_of, np.newaxis], rows.shape[:2])
            confidence[rows_of] = softmax_confidence(rows, gold)
        correct = (predicted == golds[:, np.newaxis]).astype(np.float64)
        return cls(
            names,
            lines[0]["split"],
            tuple(line["doc_id"] for line in lines),
            question_ids,
            numbered(question_ids),
            n_options,
            golds,
            dict(zip(names, predicted.T, strict=True)),
            dict(zip(names, correct.T, strict=True)),
            dict(zip(names, confidence.T, strict=True)),
        )


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Equal names as equal numbers, from 0 in the order of their first appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _refusal(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what}",
        expected="a line per doc, with its finite log-likelihoods under the same conditions",
        remedy="run validate again",
    )


def _require_line(line: Mapping[str, Any], path: Path, number: int) -> None:
    """Refuse other keys, values of other types, and a gold that is none of the options."""
    if set(line) != set(_KINDS):
        differing = sorted(set(line) ^ set(_KINDS))
        raise _refusal(path, f"line {number} has other keys: {', '.join(differing):.100}")
    for name, kind in _KINDS.items():
        if type(line[name]) is not kind:
            raise _refusal(path, f"line {number} has {name} {line[name]!r:.100}")
    unmasked = line["loglikelihoods"].get(UNMASKED)
    n_options = len(unmasked) if isinstance(unmasked, list) else 0
    if n_options < 2:
        raise _refusal(path, f"line {number} has {UNMASKED} {unmasked!r:.100}")
    if not 0 <= line["gold"] < n_options:
        raise _refusal(path, f"line {number} has gold {line['gold']!s:.100} of {n_options} options")


def _require_conditions(names: tuple[str, ...], path: Path) -> None:
    """Refuse names that are no conditions; some become names of files."""
    for name in names:
        try:
            ConditionName.parse(name)
        except UsageError as error:
            raise _refusal(path, error.found) from error


def _require_same(
    line: Mapping[str, Any], first: Mapping[str, Any], task: str, path: Path, number: int
) -> None:
    """Refuse a line of another task, split or list of conditions."""
    for name, wanted in (("task", task), ("split", first["split"])):
        if line[name] != wanted:
            raise _refusal(path, f"line {number} is of {name} {line[name]!r:.100}, not {wanted!r}")
    if line["loglikelihoods"].keys() != first["loglikelihoods"].keys():
        differing = sorted(line["loglikelihoods"].keys() ^ first["loglikelihoods"].keys())
        raise _refusal(path, f"line {number} has other conditions: {', '.join(differing):.100}")


def _rows(
    lines: Sequence[Mapping[str, Any]], names: tuple[str, ...], path: Path
) -> NDArray[np.float64]:
    """[docs, conditions, options] log-likelihoods of docs with equally many options."""
    values = [[line["loglikelihoods"][name] for name in names] for line in lines]
    try:
        rows = np.array(values)
    except ValueError as error:  # rows of different lengths
        raise _refusal(path, "a line has conditions of different numbers of options") from error
    if rows.ndim != 3 or rows.dtype.kind not in "if" or not np.isfinite(rows).all():
        raise _refusal(path, "a line has a log-likelihood that is no finite number")
    if rows.max() > _ROUNDING:  # of a probability of 1, whose logarithm is 0
        raise _refusal(path, f"a line has the log-likelihood {rows.max():g}, above 0")
    return rows.astype(np.float64)
