"""Flips and groups, counted by hand."""

from __future__ import annotations

import dataclasses

import pytest

from neuronllm_eval.evaluation.doc_table import DocText
from neuronllm_eval.reporting.detail_tables import (
    GroupAccuracy,
    flipped_docs,
    group_accuracies,
    settings_text,
)
from neuronllm_eval.reporting.task_report import TaskReport
from tests.fixtures.doc_tables import line, odds, the_table
from tests.fixtures.pages import a_run

# unmasked -> degrade, gold 0 of two options; confidence at gold.
LINES = [
    line("q1", 0, 0, unmasked=odds(3, 1), degrade=odds(1, 3)),  # lost, 0.75 -> 0.25
    line("q1", 1, 0, unmasked=odds(9, 1), degrade=odds(1, 9)),  # lost, 0.9 -> 0.1
    line("q2", 2, 0, unmasked=odds(2, 1), degrade=odds(1, 2)),  # lost, 0.67 -> 0.33
    line("q3", 3, 0, unmasked=odds(1, 3), degrade=odds(3, 1)),  # gained, 0.25 -> 0.75
    line("q4", 4, 0, unmasked=odds(1, 3), degrade=odds(1, 9)),  # incorrect in both
]


def test_flips_are_the_largest_changes_one_per_question():
    table = the_table(LINES)
    assert flipped_docs(table, "degrade", False, 5) == [1, 2]
    assert flipped_docs(table, "degrade", False, 1) == [1]
    assert flipped_docs(table, "degrade", True, 5) == [3]
    assert flipped_docs(table, "unmasked", True, 5) == []


def with_groups(*groups: str) -> TaskReport:
    """A report on the first docs, each of which names a group, or none."""
    docs = tuple(DocText(n, "question", ("a", "b"), group) for n, group in enumerate(groups))
    table = the_table(LINES[: len(groups)])
    return dataclasses.replace(a_run(), answers=table, doc_texts=docs)


def test_accuracy_by_group():
    report = with_groups("b", "b", "a", "a", "")
    assert group_accuracies(report, ("unmasked", "degrade")) == [
        GroupAccuracy("a", 2, 50.0, (50.0, 50.0)),
        GroupAccuracy("b", 1, 50.0, (100.0, 0.0)),
    ]


@pytest.mark.parametrize("groups", [("", ""), ("a", "a")])
def test_docs_of_fewer_than_two_groups(groups):
    assert group_accuracies(with_groups(*groups), ("unmasked",)) == []


def test_the_table_holds_every_prediction():
    table = the_table(LINES)
    assert table.doc_ids == (0, 1, 2, 3, 4)
    assert table.question_ids == ("q1", "q1", "q2", "q3", "q4")
    assert table.predicted["degrade"].tolist() == [1, 1, 1, 0, 1]
    assert table.gold.tolist() == [0] * 5
    assert table.n_options.tolist() == [2] * 5


# Settings in the provenance table -----------------------------------------------------------------


def test_settings_are_pairs():
    text = '{"n_proxies": 3, "letter_style": "A.", "n_options": null}'
    assert settings_text(text) == "n_proxies=3, letter_style=A., n_options=null"
    assert settings_text("{}") == ""


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "3"])
def test_what_is_no_object_is_shown_unchanged(text):
    assert settings_text(text) == text
