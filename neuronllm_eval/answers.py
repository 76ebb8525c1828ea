"""What was answered before and under a condition: flips, letters, groups of questions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.conditions import UNMASKED
from neuronllm_eval.doc_table import DocTable


@dataclass(frozen=True)
class Flip:
    """A doc whose answer became right, or wrong.

    Attributes:
        row: the doc's place in the table.
        gold: the right option.
        before: what the unmasked model said.
        after: what was said under the condition.
    """

    row: int
    gold: int
    before: int
    after: int


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on a group of questions, before and under a condition.

    Attributes:
        name: of the group.
        n_questions: in it.
        n_docs: of these questions.
        before: percent.
        after: percent.
    """

    name: str
    n_questions: int
    n_docs: int
    before: float
    after: float


def flips(table: DocTable, condition: str, gained: bool, most: int) -> list[Flip]:
    """The docs that a condition won, or lost, by how far their confidence moved.

    Args:
        table: of all docs.
        condition: its name.
        gained: those that became right; else those that became wrong.
        most: how many; one of each question.
    """
    change = table.correct[condition] - table.correct[UNMASKED]
    moved = table.confidence[condition] - table.confidence[UNMASKED]
    rows = np.flatnonzero(change == (1 if gained else -1))
    rows = rows[np.argsort(moved[rows] * (-1 if gained else 1), kind="stable")]
    _, first = np.unique(table.question_index[rows], return_index=True)
    before, after = table.predicted[UNMASKED], table.predicted[condition]
    return [
        Flip(row, int(table.gold[row]), int(before[row]), int(after[row]))
        for row in rows[np.sort(first)[:most]].tolist()
    ]


def letter_counts(said: NDArray[np.int64], n_letters: int) -> list[int]:
    """[letters] how many docs were answered with each."""
    return np.bincount(said, minlength=n_letters).tolist()


def group_accuracies(table: DocTable, groups: Sequence[str], condition: str) -> list[GroupAccuracy]:
    """Accuracy by group, by name; docs without a group are left out.

    Args:
        table: of all docs.
        groups: [docs], the name of each doc's group, or empty.
        condition: what is compared to the unmasked run.
    """
    names = np.array(groups, dtype=object)
    found = []
    for name in sorted(set(filter(None, groups))):
        rows = np.flatnonzero(names == name)
        before, after = (table.correct[each][rows].mean() for each in (UNMASKED, condition))
        n_questions = np.unique(table.question_index[rows]).size
        found.append(
            GroupAccuracy(name, n_questions, rows.size, 100 * float(before), 100 * float(after))
        )
    return found
