"""The report's sentences and tables, word for word."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.interventions.conditions import CONDITIONS, Scales
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.reporting.condition_tables import (
    HEADERS,
    Table,
    conditions_table,
    dose_tables,
    significance_table,
)
from neuronllm_eval.reporting.sections import headline
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.wording import docs_sentence
from neuronllm_eval.reporting.write_reports import (
    console_text,
    effect_line,
    render_markdown,
    render_page,
)
from tests.fixtures.doc_tables import answered
from tests.fixtures.harness import N_LAYERS, WIDTH, neuron_set, provenance
from tests.fixtures.summaries import CONTROLS, NO_CONTROLS, UNMASKED, delta, summary

NEURONS = neuron_set(good=((0, 1), (1, 2), (1, 7)), bad=((0, 3),))


def scores() -> NeuronScores:
    ace = np.zeros((N_LAYERS, WIDTH))
    half_sums = np.zeros((2, N_LAYERS, WIDTH))
    # The halves rank the scored neurons alike, but for the last good one.
    half_sums[0, 0, :4] = [3, 2, 1, -1]
    half_sums[1, 0, :5] = [6, 4, 0, -2, 2]
    counts = np.zeros((N_LAYERS, WIDTH), dtype=np.int64)
    return NeuronScores(
        ace, counts, counts, half_sums, np.zeros((4, N_LAYERS, WIDTH)),
        provenance(
            task="some_task", split="train", n_questions=50, n_prompts=150, method="ace",
            n_steps=4, quadrature="gauss_legendre", engine="fan_out",
            completeness_gap_max=0.01234, completeness_gap_mean=0.000567,
            completeness_gap_share=0.02344,
        ),
    )  # fmt: skip


def report(*summaries: ConditionSummary) -> TaskReport:
    return TaskReport("some_task", "dev", NEURONS, scores(), summaries)


# The headline -----------------------------------------------------------------------------------


def test_the_headline_is_what_suppressing_the_good_neurons_did():
    own = summary("suppress_good", delta(-12.34, -15.0, -9.94), controls=CONTROLS, n_beyond=20)
    other = summary("suppress_bad", delta(50.0, 40.0, 60.0))
    assert headline(report(UNMASKED, other, own)) == (
        "Suppressing 3 good neurons lowers accuracy by 12.3 points (95% 9.9 to 15.0), more than "
        "all 20 random controls."
    )


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (("enhance", "degrade", "suppress_bad.k1.x0.5"), "Enhancing 3 good and suppressing 1 bad"),
        (("degrade.k2", "enhance"), "Enhancing 3 good and suppressing 1 bad"),
        (("enhance_good.k2.x4", "degrade.k2"), "Enhancing 2 good neurons (factor 4)"),
    ],
)
def test_without_that_the_headline_is_of_the_first_condition(names, start):
    found = [summary(name, delta(-1.0, -2.0, 0.5)) for name in names]
    assert headline(report(UNMASKED, *found)).startswith(start)


@pytest.mark.parametrize("summaries", [(), (UNMASKED,)])
def test_headline_before_validation(summaries):
    assert headline(report(*summaries)) == "Selected 3 good and 1 bad neurons of 96."


def test_the_headline_begins_with_a_model_at_chance():
    # Two options: 3 of 5 by chance or more in (10 + 5 + 1) of 32, 5 of 5 in one.
    own = summary("suppress_good", delta(-12.34, -15.0, -9.94), controls=CONTROLS, n_beyond=20)
    base = report(UNMASKED, own)
    at_chance, above = (
        dataclasses.replace(
            base, answers=answered("abcde", unmasked=correct, suppress_good="10000")
        )
        for correct in ("11100", "11111")
    )
    assert headline(above) == headline(base)
    assert headline(at_chance) == (
        "The unmasked model is not clearly above chance on this task (accuracy 60.0%, chance "
        "50.0%, one-sided p 0.5 over 5 questions): neurons of a model at chance are about the "
        f"options' position or form, not about the task. {headline(base)}"
    )
    assert headline(at_chance) in render_page(at_chance).replace("&#39;", "'")
    assert "The unmasked model is not clearly above chance" in effect_line(at_chance)


def test_the_headline_ends_with_conditions_that_move_all_answers():
    own, others = summary("suppress_good", delta(-1.0, -2.0, 0.5)), ("enhance", "degrade")
    summaries = [own, *(summary(name, delta(-1.0, -2.0, 0.5)) for name in others)]
    table = answered("abcdefghij", **{name: "1" * 10 for name in ("unmasked", *others)},
                     suppress_good="1" * 10)  # fmt: skip
    answers = {"unmasked": 5, "suppress_good": 2, "enhance": 1, "degrade": 10}  # of option A

    def said(gold: int = 5, **changes: int) -> str:
        predicted = {
            name: np.array([0] * count + [1] * (10 - count))
            for name, count in (answers | changes).items()
        }
        right = np.array([0] * gold + [1] * (10 - gold))
        found = dataclasses.replace(table, predicted=predicted, gold=right)
        return headline(dataclasses.replace(report(UNMASKED, *summaries), answers=found))

    plain = headline(report(UNMASKED, *summaries))
    assert said() == (
        f"{plain} The edited model predicts `B` for 90% of the questions under enhance, `A` for "
        "every question under degrade: such an edit moves an answer, whatever the question."
    )
    assert "`A` for every question under enhance and degrade: such" in said(enhance=10)
    assert said(enhance=2, degrade=8) == plain
    assert "degrade" not in said(unmasked=10)  # as before the edit
    assert "degrade" not in said(gold=10)


# Tables -----------------------------------------------------------------------------------------


def test_rows():
    table = conditions_table(
        [
            UNMASKED,
            summary("degrade", delta(-12.34, -15.06, 0.04), controls=CONTROLS, n_beyond=9),
            summary("enhance", delta(3.0, 1.0, 5.0), controls=NO_CONTROLS, p_holm=0.00099),
            summary("enhance_bad", delta(0.0, 0.0, 0.0), p_holm=0.001),
        ]
    )
    rows = list(map(list, table.rows))
    assert rows == [
        ["unmasked", "80.0", "", "", "", "80.0", "", ""],
        ["degrade", "67.7", "-12.3", "-15.1 to +0.0", "0.0400", "-1.2", "-0.3 (-1.5 to +2.0)",
         "9 of 20"],
        ["enhance", "83.0", "+3.0", "+1.0 to +5.0", "<0.001", "-1.2", "", ""],
        ["enhance_bad", "80.0", "+0.0", "+0.0 to +0.0", "0.0010", "-1.2", "", ""],
    ]  # fmt: skip
    assert {len(row) for row in rows} == {len(HEADERS)}


def markdown(table: Table) -> str:
    return markdown_table(table.headers, table.rows)


def cells(table: str) -> list[list[str]]:
    """The cells of a markdown table, as a reader of markdown splits them."""
    lines = [line.replace("\\|", "\0") for line in table.splitlines()]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    assert set("".join(rows[1])) <= set("-:")
    return [[cell.replace("\0", "|") for cell in row] for row in (rows[0], *rows[2:])]


def without_bad_neurons() -> list[ConditionSummary]:
    """Four docs, one of which suppressing 2 good neurons loses; there are no bad ones."""
    answers = dict.fromkeys(CONDITIONS, "1111") | dict.fromkeys(
        ("suppress_good", "degrade"), "0111"
    )
    answers |= {"suppress_bad.k1.x0": "1111", "suppress_bad.k1.x0.5": "1111"}
    table = answered("abcd", **answers)
    return summarise(table, neuron_set(good=((0, 1), (1, 2)), bad=()), Scales(), 10)


def test_what_edits_nothing_has_a_word_in_place_of_figures():
    found = without_bad_neurons()
    # All but one of four docs have the same answer; the conditions that lose none all have.
    rows = {row[0].replace(" (one answer)", "").replace(", one answer", ""): row[1:]
            for row in conditions_table(found).rows}  # fmt: skip
    blank = ("", "no bad neurons", "", "", "", "", "")
    assert (rows["suppress_bad"], rows["enhance_bad"]) == (blank, blank)
    assert set(rows) == {"chance", "unmasked", "suppress_good", "suppress_bad", "enhance_good",
                         "enhance_bad", "degrade (good only)", "enhance (good only)"}  # fmt: skip
    assert rows["degrade (good only)"] == rows["suppress_good"]
    assert rows["suppress_good"][1] == "-25.0"
    assert dose_tables(found) == [], "no point of the bad neurons is judged"
    tests = significance_table(found)
    assert [row[0] for row in tests.rows] == ["suppress_good", "enhance_good", "degrade", "enhance"]
    assert "Holm: corrected for 2 conditions." in tests.note
    assert "degrade edits the same neurons as suppress_good, with the same factors" in tests.note
    assert "nan" not in console_text(report(*found))


def test_a_condition_of_both_kinds_names_the_one_that_there_is():
    found = [each for each in without_bad_neurons() if each.name in ("unmasked", "degrade")]
    neurons = neuron_set(good=((0, 1), (1, 2)), bad=())
    said = headline(TaskReport("some_task", "dev", neurons, scores(), tuple(found)))
    assert said.startswith("Suppressing 2 good neurons has no clear effect")


def test_cells_with_signs_of_markdown():
    rows = [["a|b", "two\nlines"], ["||", "plain"]]
    table = markdown_table(["left", "right"], rows)
    assert cells(table) == [["left", "right"], ["a|b", "two lines"], ["||", "plain"]]


def test_escaped_text_is_not_escaped_twice():
    table = markdown_table(["n"], [[escaped("a|b")], [escaped("a\\|b")]])
    assert [line.strip("| ") for line in table.splitlines()[2:]] == [r"a\|b", r"a\\\|b"]


def test_numbers_stay_as_they_are_written():
    table = markdown_table(["n"], [["10.0"], ["-0.50"], ["007"], ["+3.0"]])
    assert cells(table) == [["n"], ["10.0"], ["-0.50"], ["007"], ["+3.0"]]


# Dose-response ----------------------------------------------------------------------------------


SURFACE = (
    UNMASKED,
    summary("enhance_good", delta(1.0, 0.0, 2.0)),
    summary("suppress_good", delta(-9.0, -12.0, -6.04), controls=CONTROLS, n_beyond=20),
    summary("enhance_good.k1.x4", delta(0.5, -1.0, 1.5), controls=CONTROLS, n_beyond=4),
    summary("enhance_good.k3.x4", delta(2.0, 1.0, 3.0)),
    summary("suppress_good.k1.x0", delta(-3.0, -5.0, -1.0)),
    summary("suppress_good.k1.x0.5", delta(-0.04, -1.0, 1.0)),
    summary("suppress_good.k12.x0.5", delta(-4.0, -5.0, -3.0)),
)


def test_a_swept_condition_has_a_row_per_number_and_a_column_per_factor():
    (table,) = dose_tables(SURFACE)
    assert cells(markdown(table)) == [
        ["neurons", "suppress_good x0", "suppress_good x0.5", "enhance_good x2",
         "enhance_good x4"],
        ["1", "-3.0 (-5.0 to -1.0)", "-0.0 (-1.0 to +1.0)", "", "+0.5 (-1.0 to +1.5) 4/20"],
        ["3", "-9.0 (-12.0 to -6.0) 20/20", "", "+1.0 (+0.0 to +2.0)", "+2.0 (+1.0 to +3.0)"],
        ["12", "", "-4.0 (-5.0 to -3.0)", "", ""],
    ]  # fmt: skip


def test_conditions_of_two_operations_have_a_column_each():
    swept = [summary(f"{name}.k2", delta(1.0, 0.0, 2.0)) for name in ("enhance", "degrade")]
    (table,) = dose_tables([UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0)), *swept])
    assert cells(markdown(table)) == [
        ["neurons", "degrade", "enhance"],
        ["2", "+1.0 (+0.0 to +2.0)", "+1.0 (+0.0 to +2.0)"],
        ["3", "-1.0 (-2.0 to +0.0)", ""],
    ]


def test_the_present_tables_show_no_points():
    metrics = {each.name: CONSISTENCY for each in SURFACE}
    text = console_text(dataclasses.replace(report(*SURFACE), metrics=metrics))
    tables = [cells(part) for part in text.split("\n\n") if part.startswith("|")]
    assert [[row[0] for row in table] for table in tables] == [
        ["condition", "unmasked", "enhance_good", "suppress_good"],
        ["condition", "enhance_good", "suppress_good"],
        ["condition", "unmasked", "enhance_good", "suppress_good"],
        ["neurons", "1", "3", "12"],
    ]
    assert headline(report(*SURFACE)) == (
        "Suppressing 3 good neurons lowers accuracy by 9.0 points (95% 6.0 to 12.0), more than all "
        "20 random controls."
    )
    assert "\n\n\n" not in text


def test_without_a_sweep_there_is_no_dose_response():
    plain = [each for each in SURFACE if not each.is_point]
    assert dose_tables(plain) == []
    assert "Dose-response" not in console_text(report(*plain))


# The whole report -------------------------------------------------------------------------------

SELECTED = (
    "Selected on 50 questions (150 prompts) of the train split of some_task; ace, 4 nodes of "
    "gauss_legendre, fan_out engine; completeness gap at most 0.012 log-nats, 0.00057 on average, "
    "2.34% of the total change."
)


def test_report_before_validation():
    # Halves [3 2 1 -1 0] and [6 4 0 -2 2] over the five scored neurons: ranks 5 4 3 1 2 and
    # 5 4 2 1 3, squared differences 0 0 1 0 1, so Spearman 1 - 6 * 2 / (5 * 24) = 0.9.
    # Each half has one negative neuron, so the overlaps are those of the first neuron.
    assert console_text(report()) == (
        "## some_task\n"
        "\n"
        "Selected 3 good and 1 bad neurons of 96.\n"
        "\n"
        "### Selection\n"
        "\n"
        f"{SELECTED} "
        "Split-half rank correlation of the scores 0.90; 100% of the top good neurons and 100% of "
        "the top bad neurons are in both halves. "
        "Neurons by layer: good 1 2; bad 1 0.\n"
    )


def test_report_after_validation():
    degrade = summary("degrade", delta(-1.0, -2.0, 0.0))
    text = console_text(report(UNMASKED, degrade))
    lines = text.splitlines()
    assert lines[:3] == ["## some_task", "", headline(report(UNMASKED, degrade))]
    assert lines[2].startswith("Suppressing 3 good and enhancing 1 bad neurons ")
    table = cells(next(part for part in text.split("\n\n") if part.startswith("|")))
    assert table[0] == list(HEADERS)
    assert [row[0] for row in table[1:]] == ["unmasked", "degrade"]
    assert (
        "Evaluated on 10 questions (30 docs) of the dev split; intervals and p are paired" in text
    )
    assert SELECTED in text


def test_the_report_begins_with_what_the_console_shows():
    found = report(UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0)))
    assert render_markdown(found).startswith(console_text(found))


DATA = {
    "split": "train",
    "docs": 90,
    "questions": 60,
    "skipped": {"no question": 5, "repeated options": 1},
    "duplicates_dropped": 4,
    "demonstrations": 8,
    "not_drawn": 10,
    "options_cut": 3,
    "distractors_added": 2,
}


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, ""),
        ({"data": {"split": "train", "docs": 9, "questions": 9}}, ""),
        (
            {"data": DATA},
            "Docs of the selection split: 10 not sampled (max_selection), 4 excluded as duplicates "
            "of the other split, 8 reserved for demonstrations, 3 with options removed, 2 with "
            "distractors added, 5 skipped (no question), 1 skipped (repeated options).",
        ),
        (
            {"prompts": {"skipped": {"empty context": 2}, "demonstrations_dropped": 6}},
            "Docs of the selection split: 6 prompts with fewer demonstrations (context length), "
            "2 prompts skipped (empty context).",
        ),
    ],
)
def test_what_became_of_the_docs(counts, sentence):
    assert docs_sentence("selection", counts) == sentence


def test_the_report_says_what_became_of_the_docs_of_either_split():
    docs = {
        "selection": {"data": DATA},
        "validation": {"prompts": {"skipped": {"empty context": 2}}},
    }
    lines = console_text(dataclasses.replace(report(), doc_counts=docs)).splitlines()
    found = [line for line in lines if line.startswith("Docs of the ")]
    assert found == [docs_sentence(role, counts) for role, counts in docs.items()]
    assert found[1] == "Docs of the validation split: 2 prompts skipped (empty context)."
    assert not [line for line in console_text(report()).splitlines() if line.startswith("Docs of")]


def test_report_where_the_halves_agree_on_nothing():
    base = scores()
    empty = dataclasses.replace(base, half_sums=np.zeros_like(base.half_sums))
    text = console_text(TaskReport("t", "", NEURONS, empty))
    assert "rank correlation of the scores nan" in text


# Metrics of AQUA tasks --------------------------------------------------------------------------

CONSISTENCY = {"acc_consistent": 0.5, "acc_majority": 0.625, "fortuity": 0.25, "position_bias": 0.1}


def test_the_aqua_metrics_of_each_condition_have_a_table():
    metrics = {"unmasked": {"acc": 0.8, **CONSISTENCY}, "degrade": {"acc": 0.1}}
    text = console_text(dataclasses.replace(report(UNMASKED), metrics=metrics))
    table = text[text.index("| condition | consistent %") :].splitlines()
    assert table[2].replace(" ", "") == "|unmasked|50.0|62.5|25.0|10.0|"
    assert table[3] == ""
    assert "Consistent: questions answered correctly on every prompt" in text


def test_a_metric_that_a_task_does_not_have_has_no_column():
    values = {name: value for name, value in CONSISTENCY.items() if name != "position_bias"}
    text = console_text(dataclasses.replace(report(UNMASKED), metrics={"unmasked": values}))
    table = text[text.index("| condition | consistent %") :].splitlines()
    assert table[2].replace(" ", "") == "|unmasked|50.0|62.5|25.0|"


def test_other_tasks_have_no_such_table():
    text = console_text(dataclasses.replace(report(UNMASKED), metrics={"unmasked": {"acc": 0.8}}))
    assert "consistent %" not in text
    assert "Consistent" not in text


def test_nothing_from_data_tasks_or_models_is_markup():
    bad = "<img src=x>|`\n# x\x1b[31m"
    counts = {"data": {"skipped": {bad: 1}}, "prompts": {"skipped": {bad: 2}}}
    origin = provenance(task=bad, split=bad, method=bad, quadrature=bad, engine=bad)
    found = dataclasses.replace(
        report(UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0))),
        task=bad,
        split=bad,
        doc_counts={"selection": counts},
    )
    scores = dataclasses.replace(found.scores, provenance=origin)
    text = console_text(dataclasses.replace(found, scores=scores))
    title = "\\<img src=x\\>\\|\\` \\# x \\[31m"
    in_prose = title.replace("\\`", "'")
    assert (text.count(title), text.count(in_prose)) == (1, 8)
    assert "<img" not in text.replace(title, "").replace(in_prose, "")
    assert text.replace("\n", "").isprintable()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert [head for head in heads if "x" in head] == [f"## {title}"]


def test_a_brief_line_names_the_task_and_the_effect():
    own = summary("suppress_good", delta(-12.34, -15.0, -9.94), controls=CONTROLS, n_beyond=20)
    assert effect_line(report(UNMASKED, own)) == f"some_task: {headline(report(UNMASKED, own))}"
