"""Predicted options and accuracy by gold option, counted by hand, under names that mean them."""

from __future__ import annotations

import pytest

from neuronllm_eval.evaluation.doc_table import DocText
from neuronllm_eval.reporting.answer_tables import (
    gold_table,
    option_names,
    option_shares,
    shares_table,
)
from neuronllm_eval.reporting.sections import headline
from neuronllm_eval.reporting.task_report import TaskReport
from tests.fixtures.doc_tables import line, odds, the_table
from tests.fixtures.harness import neuron_set
from tests.fixtures.summaries import UNMASKED, delta, summary
from tests.reporting.test_report_markdown import scores

FIRST, SECOND = odds(3, 1), odds(1, 3)
# Gold A, A, A, B; predicted A, A, B, B -> B throughout.
LINES = [
    line("q1", 0, 0, unmasked=FIRST, degrade=SECOND),
    line("q2", 1, 0, unmasked=FIRST, degrade=SECOND),
    line("q3", 2, 0, unmasked=SECOND, degrade=SECOND),
    line("q4", 3, 1, unmasked=SECOND, degrade=SECOND),
]
SUMMARIES = [UNMASKED, summary("degrade", delta(-50.0, -60.0, -40.0))]


def texts(*options: tuple[str, ...]) -> tuple[DocText, ...]:
    return tuple(DocText(n, "question", each, "") for n, each in enumerate(options))


@pytest.mark.parametrize(
    ("docs", "names"),
    [
        ([("negative", "positive")] * 4, ("negative", "positive")),
        ([("bad `x`\n", "a text that is longer than names may be")] * 4,
         ("bad `x`", "a text that is longer t…")),
        ([("negative", "positive")] * 3 + [("positive", "negative")], ("A", "B")),
        ([("same", "same")] * 4, ("A", "B")),
        ([("", "positive")] * 4, ("A", "B")),
        ([("one",)] * 4, ("A", "B")),
        ([], ("A", "B")),
    ],
)  # fmt: skip
def test_options_are_named_by_texts_that_all_docs_have(docs, names):
    assert option_names(the_table(LINES), texts(*docs)) == names


def test_options_beyond_the_alphabet_are_one():
    n_options = 30
    last = odds(*[1.0] * 29, 2.0)
    table = the_table([line("q1", 0, 27, unmasked=last), line("q2", 1, 3, unmasked=last)])
    names = option_names(table, ())
    assert (names[:3], names[25:], len(names)) == (("A", "B", "C"), ("Z", "more"), 27)
    shares = option_shares(table, [], names)
    assert n_options > len(names)
    assert (shares.gold[3], shares.gold[26], sum(shares.gold)) == (50.0, 50.0, 100.0)
    assert shares.predicted["unmasked"][26] == 100.0
    found = gold_table(table, [], names)
    assert found.headers == ("gold option", "D %", "more %")
    assert found.rows[-1] == ("unmasked", "0.0", "0.0")


def test_shares():
    names = ("negative", "positive")
    table = shares_table(option_shares(the_table(LINES), SUMMARIES, names))
    assert table.headers == ("options", "negative %", "positive %")
    assert table.rows == (
        ("gold options", "75.0", "25.0"),
        ("unmasked", "50.0", "50.0"),
        ("degrade", "0.0", "100.0"),
    )


def test_accuracy_by_gold_option():
    table = gold_table(the_table(LINES), SUMMARIES, ("negative", "positive"))
    assert table.headers == ("gold option", "negative %", "positive %")
    assert table.rows == (
        ("docs", "3", "1"),
        ("chance", "50.0", "50.0"),
        ("unmasked", "66.7", "100.0"),
        ("degrade", "0.0", "100.0"),
    )


def test_the_headline_names_the_answer_by_its_text():
    docs = texts(*[("negative", "posi`tive")] * 4)
    report = TaskReport("t", "dev", neuron_set(), scores(), tuple(SUMMARIES),
                        answers=the_table(LINES), doc_texts=docs)  # fmt: skip
    assert headline(report).endswith(
        "The edited model predicts `posi'tive` for every question under degrade: such an edit "
        "moves an answer, whatever the question."
    )
