"""The sentence and the table of tests, word for word."""

from __future__ import annotations

import dataclasses
import math

import pytest

from neuronllm_eval.interventions.conditions import EXPECTED_SIGN, ConditionName
from neuronllm_eval.reporting import wording
from neuronllm_eval.reporting.condition_tables import TEST_HEADERS, significance_table
from neuronllm_eval.reporting.detail_tables import gap_table
from tests.fixtures.summaries import CONTROLS, NO_CONTROLS, UNMASKED, delta, summary
from tests.fixtures.tiny_models import provenance

FEW = dataclasses.replace(CONTROLS, n_controls=4, n_as_extreme=1, p_value=2 / 5)


# The sentence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "controls", "n_beyond", "rest"),
    [
        (
            delta(-12.36, -15.06, -9.84),
            CONTROLS,
            20,
            "lowers accuracy by 12.4 points (95% 9.8 to 15.1), more than all 20 random controls.",
        ),
        (
            delta(-12.36, -15.06, -9.84),
            CONTROLS,
            17,
            "lowers accuracy by 12.4 points (95% 9.8 to 15.1), more than 17 of 20 random controls.",
        ),
        (
            delta(-2.0, -3.0, -1.0),
            FEW,
            4,
            "lowers accuracy by 2.0 points (95% 1.0 to 3.0), more than all 4 random controls (a "
            "rank needs 20).",
        ),
        (
            delta(-2.0, -3.0, -1.0),
            NO_CONTROLS,
            0,
            "lowers accuracy by 2.0 points (95% 1.0 to 3.0).",
        ),
        (
            delta(-0.5, -2.0, 1.04),
            CONTROLS,
            7,
            "has no clear effect on accuracy: -0.5 points (95% -2.0 to +1.0, Holm p 0.04), and "
            "accuracy is lower than under 7 of 20 random controls.",
        ),
        (
            delta(-0.5, -2.0, 1.04),
            CONTROLS,
            20,
            "has no clear effect on accuracy: -0.5 points (95% -2.0 to +1.0, Holm p 0.04), though "
            "accuracy is lower than under all 20 random controls.",
        ),
        (
            delta(2.0, 0.56, 3.4),
            CONTROLS,
            0,
            "raises accuracy, unexpectedly, by 2.0 points (95% 0.6 to 3.4), and accuracy is "
            "lower than under 0 of 20 random controls.",
        ),
        (
            delta(0.0, 0.0, 0.0),
            NO_CONTROLS,
            0,
            "has no clear effect on accuracy: +0.0 points (95% +0.0 to +0.0, Holm p 0.04).",
        ),
    ],
)
def test_the_sentence(change, controls, n_beyond, rest):
    own = summary("suppress_good", change, controls=controls, n_beyond=n_beyond)
    assert wording.sentence(100, 7, own) == f"Suppressing 100 good neurons {rest}"


@pytest.mark.parametrize(("p_holm", "effect"), [(0.049, "lowers"), (0.05, "no clear effect")])
def test_an_effect_is_clear_by_the_corrected_p(p_holm, effect):
    own = summary("suppress_good", delta(-2.0, -3.0, -1.0, p_value=0.001), p_holm=p_holm)
    assert effect in wording.sentence(3, 3, own)


DONE = {
    "suppress_good": "Suppressing 41 good neurons",
    "suppress_bad": "Suppressing 7 bad neurons",
    "enhance_good": "Enhancing 41 good neurons",
    "enhance_bad": "Enhancing 7 bad neurons",
    "degrade": "Suppressing 41 good and enhancing 7 bad neurons",
    "enhance": "Enhancing 41 good and suppressing 7 bad neurons",
    "enhance.k3": "Enhancing 3 good and suppressing 3 bad neurons",
    "degrade.k9": "Suppressing 9 good and enhancing 7 bad neurons",
    "suppress_good.k9.x0.5": "Suppressing 9 good neurons (factor 0.5)",
    "enhance_bad.k9.x4": "Enhancing 7 bad neurons (factor 4)",
}


def test_there_is_a_sentence_for_each_condition():
    assert set(DONE) > set(EXPECTED_SIGN)


@pytest.mark.parametrize("name", DONE)
def test_the_sentence_of_each_condition(name):
    sign = EXPECTED_SIGN[ConditionName.parse(name).condition]
    changes = {step: delta(step * 2.0, step * 2.0 - 1, step * 2.0 + 1) for step in (-1, 0, 1)}
    said = {
        step: wording.sentence(
            41, 7, summary(name, change, controls=CONTROLS, n_beyond=20 if step == sign else 2)
        )
        for step, change in changes.items()
    }
    verbs, side = {1: "raises", -1: "lowers"}, {1: "higher", -1: "lower"}[sign]
    size = "by 2.0 points (95% 1.0 to 3.0)"
    assert said == {
        sign: f"{DONE[name]} {verbs[sign]} accuracy {size}, more than all 20 random controls.",
        0: f"{DONE[name]} has no clear effect on accuracy: +0.0 points (95% -1.0 to +1.0, Holm p "
        f"0.04), and accuracy is {side} than under 2 of 20 random controls.",
        -sign: f"{DONE[name]} {verbs[-sign]} accuracy, unexpectedly, {size}, and accuracy is "
        f"{side} than under 2 of 20 random controls.",
    }


# The table --------------------------------------------------------------------------------------


def test_rows():
    table = significance_table(
        [
            UNMASKED,
            summary("degrade", delta(-12.3, -15.0, -9.0), controls=CONTROLS, rac=-15.43),
            summary("enhance", delta(3, 1, 5, p_value=1e-9), controls=FEW, p_holm=2e-9),
            summary("enhance.k2", delta(3.0, 1.0, 5.0)),
            summary("enhance_bad", delta(0.0, 0.0, 0.0), rac=math.nan),
        ]
    )
    docs = ["9, 1", "0.0215", "0.0430"]
    assert list(map(list, table.rows)) == [
        ["degrade", "0.0300", "0.0400", *docs, "1 of 21, 0.0476", "-15.4", "-2.1"],
        ["enhance", "<0.001", "<0.001", *docs, "2 of 5, 0.4000", "+0.0", "-2.1"],
        ["enhance_bad", "0.0300", "0.0400", *docs, "", "", "-2.1"],
    ]
    assert {len(row) for row in table.rows} == {len(TEST_HEADERS)}
    assert significance_table([UNMASKED]) is None


def test_the_note_says_how_the_docs_of_a_question_are_treated():
    several = significance_table([UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0))]).note
    assert several == (
        "p: exact sign-flip test by question; Holm: corrected for 2 conditions. Lost, gained: docs "
        "whose answer became incorrect or correct, with McNemar's exact test, which treats the "
        "docs of a question as independent. RAC, RCC: change of accuracy and of confidence, in "
        "percent of the unmasked value."
    )
    one = significance_table([UNMASKED, summary("degrade", delta(-1.0, -2.0, 0.0, n_docs=10))]).note
    assert "by question, which with one doc each is McNemar's test; Holm" in one
    assert "independent" not in one


def test_the_note_says_what_a_rank_is_and_whether_there_are_enough_controls():
    enough = summary("degrade", delta(-1.0, -2.0, 0.0), controls=CONTROLS)
    few = summary("enhance", delta(-1.0, -2.0, 0.0), controls=FEW)
    assert "(1: beyond all of them)" in significance_table([enough]).note
    assert "--n_random" not in significance_table([enough]).note
    assert (
        "With 4 controls this p cannot be below 0.2; a rank needs 20 or more (--n_random)."
        in significance_table([enough, few]).note
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0004, "<0.001"),
        (0.0412, "0.041"),
        (0.8864, "0.886"),
        (7.193, "7.19"),
        (46.05, "46"),
        (999.6, "1,000"),
        (183954.2, "183,954"),
        (2.5e9, "2.5e+09"),
        (math.inf, "not finite"),
        (math.nan, "not finite"),
    ],
)
def test_costs_in_about_three_digits(value, text):
    assert wording.cost_text(value) == text


def test_nodes_by_layer_and_layers_of_large_gaps():
    of_layers = provenance(layer_nodes="41@0.1 3 4@1", completeness_gap_layers=(0.31, 0.1, 0.012))
    expected = "3 to 41 nodes of graded gauss_lobatto by layer, 16.0 on average"
    assert wording.nodes_text(of_layers) == expected
    assert wording.large_gaps(of_layers) == "layers whose gap is over 10%: 0 (41 nodes, 31%)"
    table = gap_table(of_layers)
    assert table.note.endswith(
        "path. Layers whose gap is over 10%: 0 (41 nodes, 31%); the largest is 31.0% of the "
        "change, in layer 0."
    )
    alike = provenance(layer_nodes="3 3 3", completeness_gap_layers=(0.01, 0.02, 0.0))
    assert wording.nodes_text(alike) == "3 nodes of graded gauss_lobatto in each layer"
    assert gap_table(alike).note.endswith(
        "No layer's gap is over 10%; the largest is 2.0% of the change, in layer 1."
    )
    named = provenance(
        layer_nodes="", quadrature="right_riemann", n_steps=1, completeness_gap_layers=(0.9,)
    )
    assert wording.nodes_text(named) == "1 node of right_riemann"
    assert wording.large_gaps(named) == "layers whose gap is over 10%: 0 (1 node, 90%)"
