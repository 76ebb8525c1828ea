"""Flips, letters and groups, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from neuronllm_eval.evaluation.answer_changes import Flip, flips, group_accuracies, letter_counts
from tests.fixtures.doc_tables import line, odds, the_table

# unmasked -> degrade, gold 0 of two options; confidence at gold.
LINES = [
    line("q1", 0, 0, unmasked=odds(3, 1), degrade=odds(1, 3)),  # lost, 0.75 -> 0.25
    line("q1", 1, 0, unmasked=odds(9, 1), degrade=odds(1, 9)),  # lost, 0.9 -> 0.1
    line("q2", 2, 0, unmasked=odds(2, 1), degrade=odds(1, 2)),  # lost, 0.67 -> 0.33
    line("q3", 3, 0, unmasked=odds(1, 3), degrade=odds(3, 1)),  # won, 0.25 -> 0.75
    line("q4", 4, 0, unmasked=odds(1, 3), degrade=odds(1, 9)),  # wrong in both
]


def test_flips_are_those_that_moved_most_and_one_of_each_question():
    table = the_table(LINES)
    assert flips(table, "degrade", False, 5) == [Flip(1, 0, 0, 1), Flip(2, 0, 0, 1)]
    assert flips(table, "degrade", False, 1) == [Flip(1, 0, 0, 1)]
    assert flips(table, "degrade", True, 5) == [Flip(3, 0, 1, 0)]
    assert flips(table, "unmasked", True, 5) == []


def test_letters_that_nobody_said_count_as_none():
    assert letter_counts(np.array([0, 2, 2]), 4) == [1, 0, 2, 0]


def test_accuracy_by_group():
    groups = ["b", "b", "a", "a", ""]
    found = group_accuracies(the_table(LINES), groups, ("unmasked", "degrade"))
    assert [(each.name, each.n_questions, each.n_docs) for each in found] == [
        ("a", 2, 2),
        ("b", 1, 2),
    ]
    assert [each.accuracy for each in found] == [(50.0, 50.0), (100.0, 0.0)]


def test_the_table_keeps_what_was_said():
    table = the_table(LINES)
    assert table.doc_ids == (0, 1, 2, 3, 4)
    assert table.question_ids == ("q1", "q1", "q2", "q3", "q4")
    assert table.predicted["degrade"].tolist() == [1, 1, 1, 0, 1]
    assert table.gold.tolist() == [0] * 5
    assert table.n_options.tolist() == [2] * 5


@pytest.mark.parametrize("groups", [["", ""], []])
def test_docs_without_groups(groups):
    table = the_table(LINES[:2])
    assert group_accuracies(table, groups or ["", ""], ("unmasked",)) == []
