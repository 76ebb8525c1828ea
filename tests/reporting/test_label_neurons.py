"""What reports say of label neurons: in the neurons' table, the selection and the headline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neuronllm_eval.reporting.detail_tables import neurons_table
from neuronllm_eval.reporting.sections import headline
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.write_reports import console_text, render_markdown, render_page
from tests.fixtures.doc_tables import the_table
from tests.fixtures.summaries import UNMASKED
from tests.reporting.test_answer_tables import LINES, SUMMARIES, texts
from tests.reporting.test_report_markdown import NEURONS, scores

FIXED = texts(*[("negative", "positive")] * 4)
DIFFERING = texts(*[("negative", "positive")] * 3, ("positive", "negative"))
MEANT = "(values that vary more between gold options than they amount to on average)"
MOST = f"2 of 3 good and 0 of 1 bad neurons are label neurons {MEANT}."
ONE = f"1 of 3 good and 0 of 1 bad neurons are label neurons {MEANT}."


def report(n_label: int, **values) -> TaskReport:
    """Of two options, the first the gold one of 1 prompt, the other of 3.

    Args:
        n_label: so many good neurons have the means 1 and -3, the others 1 and 3.
        **values: other fields.
    """
    sums = np.zeros_like(scores().letter_sums)
    for number, neuron in enumerate(NEURONS.good):
        sums[:2, neuron.layer, neuron.index] = (1, -9) if number < n_label else (1, 9)
    found = dataclasses.replace(scores(), letter_sums=sums)
    values = {"gold_counts": (1, 3, 0, 0), **values}
    return TaskReport("t", "dev", NEURONS, found, tuple(SUMMARIES),
                      answers=the_table(LINES), **values)  # fmt: skip


def test_the_table_lists_task_part_and_label_index():
    table = neurons_table(report(1))
    assert table.headers == (
        "neuron", "set", "score", "good votes", "bad votes", "task part", "label index"
    )  # fmt: skip
    # Means 1 and -3: m -1, sd 2, (1 - 4) / 5; means 1 and 3: m 2, sd 1, (4 - 1) / 5.
    assert [(row[0], *row[-2:]) for row in table.rows] == [
        ("0:1", "-1", "-0.60"),
        ("1:2", "+2", "+0.60"),
        ("1:7", "+2", "+0.60"),
        ("0:3", "+0", ""),
    ]
    assert "below 0 a label neuron" in table.note


@pytest.mark.parametrize("counts", [(), (0, 4, 0, 0)])
def test_with_one_gold_option_nothing_is_said(counts):
    found = report(2, gold_counts=counts, doc_texts=FIXED)
    assert neurons_table(found).headers[-1] == "bad votes"
    assert "label" not in render_markdown(found).lower()


@pytest.mark.parametrize(
    ("n_label", "docs", "sentence", "is_in_headline"),
    [(2, FIXED, MOST, True), (1, FIXED, ONE, False), (2, DIFFERING, MOST, False)],
)
def test_the_sentence_is_in_the_headline_where_most_are_and_options_have_names(
    n_label, docs, sentence, is_in_headline
):
    found = report(n_label, doc_texts=docs)
    assert headline(found).endswith(f" {sentence}") is is_in_headline
    assert console_text(found).split("### Selection")[1].rstrip().endswith(sentence)
    assert render_page(found).count(sentence) == 1 + is_in_headline


def test_before_validation_the_selection_has_it():
    found = dataclasses.replace(report(2), summaries=(), answers=None, split="")
    assert "label" not in headline(found)
    assert console_text(found).rstrip().endswith(MOST)


def test_a_set_without_neurons_is_not_counted():
    without = dataclasses.replace(NEURONS, bad=())
    found = dataclasses.replace(report(2), neurons=without, summaries=(UNMASKED,), answers=None)
    assert console_text(found).rstrip().endswith(f"2 of 3 good neurons are label neurons {MEANT}.")
