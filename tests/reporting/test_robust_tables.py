"""Tables of calibrated and balanced accuracy, of answers and of chance, cell by cell."""

from __future__ import annotations

import dataclasses

from neuronllm_eval.evaluation.condition_effects import summarise
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.reporting import charts
from neuronllm_eval.reporting.condition_tables import conditions_table
from neuronllm_eval.reporting.robust_tables import robust_tables
from neuronllm_eval.reporting.wording import chance_sentence_of_deltas
from tests.evaluation.test_robust_effects import planted
from tests.fixtures.harness import neuron_set
from tests.fixtures.summaries import UNMASKED, delta, summary


def planted_summaries():
    return summarise(planted(), neuron_set(), Scales())


def test_a_label_neuron_in_the_tables():
    accuracy, answers = robust_tables(planted_summaries())
    rows = {row[0]: row[1:] for row in accuracy.rows}
    assert list(rows) == ["chance", "unmasked", "suppress_good (one answer)", "suppress_bad"]
    assert rows["chance"] == ("50.0", "", "", "", "50.0", "", "", "")
    assert rows["unmasked"] == ("100.0", "", "", "", "100.0", "", "", "")
    assert rows["suppress_good (one answer)"] == (
        "100.0", "+0.0 (+0.0 to +0.0)", "1.0000", "+0.0 (+0.0 to +0.0)",
        "50.0", "-50.0 (-50.0 to -50.0)", "<0.001", "+0.0 (+0.0 to +0.0)",
    )  # fmt: skip
    assert rows["suppress_bad"][3] == ""  # has no controls
    assert {len(row) for row in accuracy.rows} == {len(accuracy.headers)}
    assert answers.rows == (
        ("unmasked", "75.0", "1", "", ""),
        ("suppress_good (one answer)", "100.0", "1", "100", "100 (100 to 100)"),
        ("suppress_bad", "50.0", "1", "100", ""),
    )


def test_the_first_table_has_chance_and_marks_one_answer():
    table = conditions_table(planted_summaries())
    assert table.rows[0][:2] == ("chance", "50.0")
    assert [row[0] for row in table.rows[1:]] == ["unmasked", "suppress_good (one answer)",
                                                  "suppress_bad"]  # fmt: skip
    assert "One answer: 90% or more of the docs have the same answer" in table.note
    plain = [each for each in planted_summaries() if not each.collapsed]
    assert "One answer" not in conditions_table(plain).note


def test_summaries_of_earlier_versions_have_no_such_table():
    old = [UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0))]
    assert robust_tables(old) == []
    assert chance_sentence_of_deltas(old) == ""
    assert "chance" not in str(charts.deltas(old))


def test_chance_is_where_it_belongs_among_deltas():
    _, label, task = planted_summaries()
    # Of 100% unmasked to 50% by chance; the deltas go down to -75.
    assert chance_sentence_of_deltas([label, task]) == (
        " Unmasked accuracy is 100.0%, chance (guessing) 50.0%: -50.0 points."
    )
    assert "chance" in str(charts.deltas([label, task]))
    far = [dataclasses.replace(task, chance=1.0)]
    assert "chance" not in str(charts.deltas(far))
