"""conditions.jsonl: read as worked out by hand, and refused line by line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import softmax_at
from tests.fixtures.doc_tables import LINES, odds, the_table


def test_table_with_different_numbers_of_options():
    table = the_table()
    assert table.conditions == ("unmasked", "degrade")
    assert table.question_index.tolist() == [0, 0, 1, 2]
    assert table.correct["unmasked"].tolist() == [1, 0, 1, 0]
    assert table.correct["degrade"].tolist() == [0, 1, 0, 0]
    assert table.confidence["unmasked"] == pytest.approx([0.75, 0.5, 0.625, 0.1])
    assert table.confidence["degrade"] == pytest.approx([0.25, 0.8, 0.125, 0.1])


def test_confidence_by_hand():
    # Log-likelihoods log 1, log 2, log 5 shifted by -1000: 1/8, 2/8, 5/8
    options = np.log([1.0, 2.0, 5.0]) - 1000.0
    confidence = softmax_at(np.stack([options] * 3), np.array([0, 1, 2]))
    np.testing.assert_allclose(confidence, [1 / 8, 2 / 8, 5 / 8])


def test_the_first_of_equal_options_is_predicted():
    lines = [{**old, "loglikelihoods": rows(unmasked=[-1.0, -1.0])} for old in LINES[:2]]
    assert the_table(lines).predicted["unmasked"].tolist() == [0, 0]


def test_the_likeliest_per_length_is_predicted():
    # -6 / 3 and -4 / 1: -2 and -4. The doc without lengths: -6 and -4.
    loglikelihoods = {"unmasked": [-6.0, -4.0], "degrade": [-6.0, -1.0]}
    divided = {**LINES[0], "loglikelihoods": loglikelihoods, "lengths": [3.0, 1.0]}
    table = the_table([divided, {**LINES[1], "loglikelihoods": loglikelihoods}])
    assert table.predicted["unmasked"].tolist() == [0, 1]
    assert table.predicted["degrade"].tolist() == [1, 1]
    assert table.correct["unmasked"].tolist() == [1, 1]  # golds are 0 and 1
    assert table.confidence["unmasked"] == pytest.approx([1 / (1 + math.exp(-2))] * 2)


def test_ties_of_float32_stay_ties_when_divided():
    # The float32 nearest to -0.1 and twice it, in nine digits: their ratio is not 2.
    one, two = -0.100000001, -0.200000003
    lines = [{**LINES[1], "loglikelihoods": rows(unmasked=[one, two]), "lengths": [1.0, 2.0]}]
    assert two / 2 > one or two / 2 < one
    assert the_table(lines).predicted["unmasked"].tolist() == [0]


def test_the_order_of_docs_with_different_numbers_of_options_is_kept():
    shuffled = [LINES[2], LINES[0], LINES[3], LINES[1]]
    table = the_table(shuffled)
    assert table.question_index.tolist() == [0, 1, 2, 1]
    assert table.correct["degrade"].tolist() == [0, 0, 0, 1]
    assert table.confidence["unmasked"] == pytest.approx([0.625, 0.75, 0.1, 0.5])


def changed(index: int, **changes) -> list[dict]:
    return [{**old, **(changes if i == index else {})} for i, old in enumerate(LINES)]


def without(index: int, name: str) -> list[dict]:
    return [
        {key: value for key, value in old.items() if i != index or key != name}
        for i, old in enumerate(LINES)
    ]


def rows(**changes: list) -> dict:
    return {"unmasked": odds(3, 1), "degrade": odds(1, 3), **changes}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], "the file is empty"),
        (without(0, "gold"), "line 1: gold is missing"),
        (without(1, "doc_id"), "line 2: doc_id is missing"),
        (changed(2, colour="red"), "line 3: colour is an unknown key"),
        (changed(0, gold="A"), "line 1: gold is 'A'"),
        (changed(0, gold=True), "line 1: gold is True"),
        (changed(0, gold=None), "line 1: gold is None"),
        (changed(0, gold=1.0), "line 1: gold is 1.0"),
        (changed(0, gold=-1), "line 1: gold is -1 of 2 options"),
        (changed(0, gold=2), "line 1: gold is 2 of 2 options"),
        (changed(0, gold=10**30), "line 1: gold is 1000"),
        (
            changed(3, question_id=[1]),
            "line 4: question_id is [1]",
        ),
        (changed(3, loglikelihoods=3), "line 4: loglikelihoods is 3"),
        (changed(3, loglikelihoods={}), "line 4: there are not unmasked"),
        (changed(3, loglikelihoods={"degrade": odds(1, 1)}), "line 4: there are not unmasked"),
        (
            changed(3, loglikelihoods=rows(unmasked=[-1.0])),
            "line 4: there are not unmasked and equally many options",
        ),
        (changed(1, loglikelihoods={"unmasked": odds(1, 1)}), "line 2 has other conditions: degr"),
        (changed(1, loglikelihoods=rows(enhance=odds(1, 1))), "line 2 has other conditions: enh"),
        (changed(1, lengths=[1.0]), "line 2: there are 1 lengths of 2 options"),
        (changed(1, lengths=[1.0, 0.0]), "line 2: lengths.1 is 0.0"),
        (changed(1, lengths=[1.0, "2"]), "line 2: lengths.1 is '2'"),
        (changed(1, lengths=None), "line 2: lengths is None"),
        (changed(1, task="other"), "line 2 has task 'other', not 'a_task'"),
        (changed(1, split="train"), "line 2 has split 'train', not 'test'"),
        (changed(1, doc_id=0), "line 2 repeats doc 0"),
        (
            changed(0, loglikelihoods=rows(degrade=[-1.0])),
            "line 1: there are not unmasked and equally many options",
        ),
        (
            changed(0, loglikelihoods=rows(degrade=[-1.0, [2]])),
            "degrade.1 is [2]",
        ),
        (changed(0, loglikelihoods=rows(degrade=[math.nan, -1.0])), "Expected: a finite number"),
        (changed(0, loglikelihoods=rows(degrade=[-math.inf, -1.0])), "Expected: a finite number"),
        (changed(0, loglikelihoods=rows(degrade=["-1.0", -1.0])), "Expected: a valid number"),
        (changed(0, loglikelihoods=rows(degrade=[None, -1.0])), "Expected: a valid number"),
        (changed(0, loglikelihoods=rows(degrade=[-(10**400), -1.0])), "Expected: a finite number"),
        (
            changed(0, loglikelihoods=rows(degrade=[0.5, -1.0])),
            "Expected: less than or equal to 0.001",
        ),
    ],
)
def test_lines_that_do_not_fit(lines, found):
    with pytest.raises(ArtifactError) as caught:
        the_table(lines)
    assert "conditions.jsonl" in caught.value.found
    assert found in str(caught.value)
    assert caught.value.remedy == "run validate again"


@pytest.mark.parametrize(
    "name",
    ["harm", "../../x", "../../x.random_1", "enhance.random_01", "enhance.random_" + "1" * 5000],
)
def test_names_that_are_no_conditions(name):
    lines = [
        {**old, "loglikelihoods": {**old["loglikelihoods"], name: odds(1, 1)}} for old in LINES[:2]
    ]
    with pytest.raises(ArtifactError, match=r"conditions\.jsonl: unknown condition"):
        the_table(lines)
