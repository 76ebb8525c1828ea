"""conditions.jsonl: read as worked out by hand, and refused line by line."""

from __future__ import annotations

import math

import pytest

from neuronllm_eval.errors import ArtifactError
from tests.doc_tables import LINES, odds, the_table


def test_table_with_different_numbers_of_options():
    table = the_table()
    assert table.conditions == ("unmasked", "degrade")
    assert table.question_index.tolist() == [0, 0, 1, 2]
    assert table.correct["unmasked"].tolist() == [1, 0, 1, 0]
    assert table.correct["degrade"].tolist() == [0, 1, 0, 0]
    assert table.confidence["unmasked"] == pytest.approx([0.75, 0.5, 0.625, 0.1])
    assert table.confidence["degrade"] == pytest.approx([0.25, 0.8, 0.125, 0.1])


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
        (without(0, "gold"), "line 1 has other keys: gold"),
        (without(1, "doc_id"), "line 2 has other keys: doc_id"),
        (changed(2, colour="red"), "line 3 has other keys: colour"),
        (changed(0, gold="A"), "line 1 has gold 'A'"),
        (changed(0, gold=True), "line 1 has gold True"),
        (changed(0, gold=None), "line 1 has gold None"),
        (changed(0, gold=1.0), "line 1 has gold 1.0"),
        (changed(0, gold=-1), "line 1 has gold -1 of 2 options"),
        (changed(0, gold=2), "line 1 has gold 2 of 2 options"),
        (changed(0, gold=10**30), "line 1 has gold 1000"),
        (changed(3, question_id=[1]), "line 4 has question_id [1]"),
        (changed(3, loglikelihoods=3), "line 4 has loglikelihoods 3"),
        (changed(3, loglikelihoods={}), "line 4 has unmasked None"),
        (changed(3, loglikelihoods={"degrade": odds(1, 1)}), "line 4 has unmasked None"),
        (changed(3, loglikelihoods=rows(unmasked=[-1.0])), "line 4 has unmasked [-1.0]"),
        (changed(1, loglikelihoods={"unmasked": odds(1, 1)}), "line 2 has other conditions: degr"),
        (changed(1, loglikelihoods=rows(enhance=odds(1, 1))), "line 2 has other conditions: enh"),
        (changed(1, task="other"), "line 2 is of task 'other', not 'a_task'"),
        (changed(1, split="train"), "line 2 is of split 'train', not 'test'"),
        (changed(1, doc_id=0), "line 2 is of doc 0 again"),
        (changed(0, loglikelihoods=rows(degrade=[-1.0])), "different numbers of options"),
        (changed(0, loglikelihoods=rows(degrade=[-1.0, [2]])), "different numbers of options"),
        (changed(0, loglikelihoods=rows(degrade=[math.nan, -1.0])), "no finite number"),
        (changed(0, loglikelihoods=rows(degrade=[-math.inf, -1.0])), "no finite number"),
        (changed(0, loglikelihoods=rows(degrade=["-1.0", -1.0])), "no finite number"),
        (changed(0, loglikelihoods=rows(degrade=[None, -1.0])), "no finite number"),
        (changed(0, loglikelihoods=rows(degrade=[-(10**400), -1.0])), "no finite number"),
        (changed(0, loglikelihoods=rows(degrade=[True, -1.0])), "log-likelihood 1, above 0"),
    ],
)
def test_lines_that_do_not_fit(lines, found):
    with pytest.raises(ArtifactError) as caught:
        the_table(lines)
    assert caught.value.found.startswith("conditions.jsonl: ")
    assert found in caught.value.found
    assert caught.value.remedy == "run validate again"


@pytest.mark.parametrize(
    "name",
    ["harm", "../../x", "../../x.random_1", "enhance.random_01", "enhance.random_" + "1" * 5000],
)
def test_names_that_are_no_conditions(name):
    lines = [
        {**old, "loglikelihoods": {**old["loglikelihoods"], name: odds(1, 1)}} for old in LINES
    ]
    with pytest.raises(ArtifactError, match=r"conditions\.jsonl: unknown condition"):
        the_table(lines)
