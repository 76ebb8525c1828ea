"""What was answered before and under a condition: flips, letters, groups of questions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.interventions.conditions import UNMASKED


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
    """Accuracy on a group of questions.

    Attributes:
        name: of the group.
        n_questions: in it.
        n_docs: of these questions.
        accuracy: [conditions], percent.
    """

    name: str
    n_questions: int
    n_docs: int
    accuracy: tuple[float, ...]


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


def group_accuracies(
    table: DocTable, groups: Sequence[str], conditions: Sequence[str]
) -> list[GroupAccuracy]:
    """Accuracy by group, by name; docs without a group are left out.

    Args:
        table: of all docs.
        groups: [docs], the name of each doc's group, or empty.
        conditions: names.
    """
    names = sorted(set(filter(None, groups)))
    place = {name: index for index, name in enumerate(names)}
    group_of = np.array([place.get(name, -1) for name in groups])
    found = []
    for index, name in enumerate(names):
        rows = np.flatnonzero(group_of == index)
        n_questions = np.unique(table.question_index[rows]).size
        accuracy = (100 * float(table.correct[each][rows].mean()) for each in conditions)
        found.append(GroupAccuracy(name, n_questions, rows.size, tuple(accuracy)))
    return found
