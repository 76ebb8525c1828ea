"""Paired deltas from hand-worked tables, controls by name, and what is not a number."""

from __future__ import annotations

import json
import math

import pytest

from neuronllm_eval.evaluation.condition_effects import (
    Corrected,
    Positions,
    summarise,
    summary_of,
)
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.stats.significance import McNemar, SplitHalf
from neuronllm_eval.interventions.conditions import CONDITIONS, EXPECTED_SIGN, Edited, Scales
from tests.fixtures.doc_tables import answered, the_table
from tests.fixtures.harness import neuron_set

HALVES = SplitHalf(k=3, rank_correlation=math.nan, top_k_overlap=1.0, bottom_k_overlap=0.5)
PLACES = Positions("scored", "all")


def judged(table: DocTable, *settings, **more):
    """Summaries of conditions on 9 good and bad neurons, at factors of 0.25 and 3."""
    nine = [[(layer, index) for index in range(9)] for layer in (0, 1)]
    return summarise(table, neuron_set(*nine), Scales(0.25, 3.0), *settings, **more)


def test_summary_by_hand():
    unmasked, degrade = judged(the_table())
    assert (unmasked.condition, degrade.condition) == ("unmasked", "degrade")
    # accuracy 2/4 -> 1/4; confidence (.75 + .5 + .625 + .1)/4 -> (.25 + .8 + .125 + .1)/4
    accuracy, confidence = degrade.accuracy, degrade.confidence
    assert (accuracy.unmasked, accuracy.condition, accuracy.delta) == (50.0, 25.0, -25.0)
    assert (accuracy.n_docs, accuracy.n_questions) == (4, 3)
    assert accuracy.p_value == 1.0  # one question differs: both signs are as far from 0
    # Resampled questions: all q2 gives -100 points, none of it 0.
    assert (accuracy.low, accuracy.high) == (-100.0, 0.0)
    assert confidence.unmasked == pytest.approx(49.375)
    assert confidence.condition == pytest.approx(31.875)
    assert confidence.delta == pytest.approx(-17.5)
    assert degrade.rac == pytest.approx(-50.0)
    assert degrade.rcc == pytest.approx(-100 * 17.5 / 49.375)
    assert degrade.controls.n_controls == 0
    assert degrade.n_beyond == 0
    # Of three docs that changed, two were lost: 2 * (1 + 3) / 8 is 1. A single condition needs no
    # correction.
    assert degrade.mcnemar == McNemar(n_gained=1, n_lost=2, p_value=1.0)
    assert degrade.corrected == Corrected(n_tests=1, p_value=1.0, mcnemar_p_value=1.0)

    assert unmasked.controls is None
    assert unmasked.mcnemar is None
    assert unmasked.corrected is None
    assert (unmasked.accuracy.delta, unmasked.accuracy.low, unmasked.accuracy.high) == (0, 0, 0)
    assert unmasked.rac == unmasked.rcc == 0


def test_the_same_draws_every_time():
    table = the_table()
    assert judged(table) == judged(table)
    assert judged(table, seed=1)[1].accuracy.delta == -25.0


# Controls ---------------------------------------------------------------------------------------


def table_of(**accuracies: str) -> DocTable:
    """Right (1) or wrong (0) of each doc, by condition; a `__` stands for the dot."""
    rows = {name.replace("__", "."): digits for name, digits in accuracies.items()}
    return answered([str(doc) for doc in range(len(rows["unmasked"]))], **rows)


def test_controls_belong_to_their_own_condition():
    # Names that begin alike: enhance and enhance_good, random_1 and random_10.
    table = table_of(
        unmasked="1100000000",
        enhance="1111100000",
        enhance_good="1111000000",
        suppress_good="0000000000",
        enhance__random_1="1110000000",
        enhance__random_10="1000000000",
        enhance_good__random_1="1111110000",
        suppress_good__random_1="1000000000",
        suppress_good__random_10="1100000000",
        suppress_good__random_2="0000000000",
    )
    by_name = {summary.condition: summary for summary in judged(table, 100)}
    assert list(by_name) == ["unmasked", "enhance", "enhance_good", "suppress_good"]

    enhance = by_name["enhance"]  # +30 points against +10 and -10
    assert enhance.accuracy.delta == pytest.approx(30)
    assert enhance.controls.n_controls == 2
    assert (enhance.controls.low, enhance.controls.high) == pytest.approx((-10, 10))
    assert enhance.controls.mean == pytest.approx(0)
    assert enhance.n_beyond == 2

    enhance_good = by_name["enhance_good"]  # +20 points against +40
    assert enhance_good.controls.n_controls == 1
    assert enhance_good.controls.mean == pytest.approx(40)
    assert enhance_good.n_beyond == 0

    suppress_good = by_name[
        "suppress_good"
    ]  # -20 points against -10, 0 and -20: a tie is not beyond
    assert suppress_good.controls.n_controls == 3
    assert suppress_good.controls.mean == pytest.approx(-10)
    assert suppress_good.n_beyond == 2


@pytest.mark.parametrize("name", EXPECTED_SIGN)
def test_beyond_counts_on_the_side_that_is_expected(name):
    control = f"{name}__random_0"
    more = table_of(unmasked="1100", **{name: "1110", control: "1100"})
    less = table_of(unmasked="1100", **{name: "1000", control: "1100"})
    beyond = [judged(table, 10)[1].n_beyond for table in (more, less)]
    assert beyond == ([1, 0] if EXPECTED_SIGN[name] > 0 else [0, 1])


@pytest.mark.parametrize("before", ["000", "0000000", "1100000"])
def test_a_control_that_moves_just_as_far_is_a_tie(before):
    # One of three docs won: 100/3 points either way, but 100 * (1/3 - 0/3) is another number.
    after = before[:-1] + "1"
    _, found = judged(table_of(unmasked=before, enhance=after, enhance__random_0=after), 10)
    assert (found.n_beyond, found.controls.n_as_extreme) == (0, 1)
    assert found.controls.low == found.accuracy.delta


def test_points_of_a_sweep_have_their_own_controls():
    table = table_of(
        unmasked="1100000000",
        suppress_good="1000000000",
        suppress_good__k2__x0="0000000000",
        suppress_good__k5__x0="1110000000",
        degrade__k2="1100000000",
        suppress_good__random_0="1100000000",
        suppress_good__k2__x0__random_0="1000000000",
        suppress_good__k2__x0__random_1="1100000000",
        suppress_good__k5__x0__random_0="1111000000",
        degrade__k2__random_0="1110000000",
    )
    _, plain, two, five, degrade = judged(table, 10)
    # -10 against 0; -20 against -10 and 0; +10 against +20; 0 against +10
    assert [s.accuracy.delta for s in (plain, two, five, degrade)] == pytest.approx(
        [-10, -20, 10, 0]
    )
    assert [s.controls.mean for s in (plain, two, five, degrade)] == pytest.approx([0, -5, 20, 10])
    assert [s.controls.n_controls for s in (plain, two, five, degrade)] == [1, 2, 1, 1]
    assert [s.n_beyond for s in (plain, two, five, degrade)] == [1, 2, 1, 1]


def test_what_was_done_at_each_point():
    names = (
        "unmasked",
        "suppress_bad",
        "enhance_good",
        "degrade",
        "suppress_good__k2__x0__5",
        "enhance__k3",
    )
    summaries = judged(table_of(**dict.fromkeys(names, "10")), 10)
    found = [(s.name, s.condition, s.top_k, s.scale, s.is_point) for s in summaries]
    assert found == [
        ("unmasked", "unmasked", None, None, False),
        ("suppress_bad", "suppress_bad", 9, 0.25, False),  # the run's own number and factors
        ("enhance_good", "enhance_good", 9, 3.0, False),
        ("degrade", "degrade", 9, None, False),
        ("suppress_good.k2.x0.5", "suppress_good", 2, 0.5, True),
        ("enhance.k3", "enhance", 3, None, True),
    ]
    written = json.loads(
        summary_of("t", "s", summaries, {}, {"enhance.k3": {"acc": 0.5}}, HALVES, PLACES).to_json()
    )
    keys = ("name", "condition", "top_k", "scale")
    entries = [tuple(entry[key] for key in keys) for entry in written["conditions"]]
    assert entries == [entry[:4] for entry in found]
    assert [entry["metrics"] for entry in written["conditions"]] == [*({},) * 5, {"acc": 0.5}]


def test_every_condition_but_unmasked_has_an_expected_sign():
    assert set(EXPECTED_SIGN) == set(CONDITIONS) - {"unmasked"}
    assert EXPECTED_SIGN["suppress_good"] == EXPECTED_SIGN["degrade"] == -1
    assert EXPECTED_SIGN["suppress_bad"] == EXPECTED_SIGN["enhance"] == 1


# Corrections ------------------------------------------------------------------------------------


def lost(n_docs: int) -> str:
    """The answers under a condition that loses the first so many of 10 docs, all right before."""
    return "0" * n_docs + "1" * (10 - n_docs)


def test_conditions_are_corrected_for_each_other_and_points_for_everything():
    # p of n losses out of n is 2 / 2**n.
    table = table_of(
        unmasked=lost(0),
        suppress_good=lost(10),
        suppress_bad=lost(7),
        enhance=lost(8),
        suppress_good__k2__x0=lost(9),
        suppress_good__random_0=lost(1),
    )
    found = {each.name: each for each in judged(table, 10) if each.corrected}
    assert {name: each.accuracy.p_value for name, each in found.items()} == pytest.approx(
        {
            "suppress_good": 2 / 1024,
            "suppress_bad": 2 / 128,
            "enhance": 2 / 256,
            "suppress_good.k2.x0": 2 / 512,
        }
    )
    # Three conditions: 3 * 2/1024, 2 * 2/256, 1 * 2/128. With the point, it is second of four.
    assert {name: each.corrected.p_value for name, each in found.items()} == pytest.approx(
        {
            "suppress_good": 6 / 1024,
            "enhance": 4 / 256,
            "suppress_bad": 4 / 256,
            "suppress_good.k2.x0": 6 / 512,
        }
    )
    assert [each.corrected.n_tests for each in found.values()] == [3, 3, 3, 4]
    # One doc per question: McNemar's test is the same.
    for each in found.values():
        assert each.mcnemar.p_value == pytest.approx(each.accuracy.p_value)
        assert each.corrected.mcnemar_p_value == pytest.approx(each.corrected.p_value)


def test_a_sweep_takes_nothing_from_the_conditions_as_they_are():
    plain = {"unmasked": lost(0), "suppress_good": lost(7), "enhance": lost(6)}
    points = {f"suppress_good__k{k}__x0": lost(9) for k in range(1, 9)}
    alone, swept = judged(table_of(**plain), 10), judged(table_of(**plain, **points), 10)
    assert alone == swept[:3]
    assert {each.corrected.n_tests for each in swept[3:]} == {10}


# What edits nothing, and what edits the same -----------------------------------------------------


def test_what_edits_nothing_is_not_judged_and_what_edits_the_same_is_one_test():
    table = table_of(
        unmasked=lost(0),
        suppress_good=lost(8),
        suppress_bad=lost(0),
        enhance_good=lost(7),
        enhance_bad=lost(0),
        degrade=lost(8),
        enhance=lost(7),
        suppress_good__k2__x0=lost(6),
        suppress_bad__k2__x0=lost(0),
        degrade__k2=lost(6),
        suppress_bad__random_0=lost(0),
    )
    found = {each.name: each for each in summarise(table, neuron_set(bad=()), Scales(), 10)}
    p_holm = {n: each.corrected.p_value for n, each in found.items() if each.corrected}
    # Two tests: 2 * 2/256, 1 * 2/128; with the point as the last of three, 1 * 2/64.
    assert p_holm == pytest.approx(
        {
            "suppress_good": 4 / 256,
            "degrade": 4 / 256,
            "enhance_good": 2 / 128,
            "enhance": 2 / 128,
            "suppress_good.k2.x0": 2 / 64,
            "degrade.k2": 2 / 64,
        }
    )
    tests = {each.corrected.n_tests for each in found.values() if each.corrected}
    assert tests == {2, 3}
    assert found["degrade"].edited == Edited(4, 0, "suppress_good", "good only")
    assert found["degrade.k2"].edited.same_as == "suppress_good.k2.x0"
    nothing = found["suppress_bad"]
    assert nothing.edited == Edited(0, 0, None, "no bad neurons")
    assert (nothing.mcnemar, nothing.controls, nothing.corrected) == (None, None, None)
    assert math.isnan(nothing.accuracy.delta)
    text = summary_of("t", "s", list(found.values()), {}, {}, HALVES, PLACES).to_json()
    entry = next(e for e in strictly(text)["conditions"] if e["name"] == "suppress_bad")
    assert entry["accuracy"]["low"] is entry["rac"] is entry["confidence"]["p_value"] is None
    assert entry["edited"]["note"] == "no bad neurons"


# summary.json -----------------------------------------------------------------------------------


DOCS = {"data": {"split": "test", "docs": 9, "questions": 7, "skipped": {"no question": 2}}}


def strictly(text: str):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_a_number_is_null():
    # All wrong without intervention: a relative change has no meaning. No control: no range.
    table = table_of(unmasked="0000", degrade="0001")
    summaries = judged(table, 10)
    assert math.isnan(summaries[1].rac)
    text = summary_of(
        "some_task", "dev", summaries, {"validation": DOCS}, {}, HALVES, PLACES
    ).to_json()
    assert text.endswith("}\n")
    found = strictly(text)
    assert (found["task"], found["split"]) == ("some_task", "dev")
    assert found["docs"] == {"validation": DOCS}
    unmasked, degrade = found["conditions"]
    assert unmasked["controls"] is None
    assert degrade["rac"] is None
    assert {name for name, value in degrade["controls"].items() if value is None} == {
        "mean",
        "low",
        "high",
        "p_value",
    }
    assert degrade["controls"]["n_controls"] == 0


def test_summary_json_holds_every_number():
    summaries = judged(the_table())
    metrics = {"degrade": {"acc_consistent": 0.25}}
    whole = strictly(summary_of("t", "s", summaries, {}, metrics, HALVES, PLACES).to_json())
    found = whole["conditions"][1]
    assert whole["split_half"] == {
        "k": 3,
        "rank_correlation": None,
        "top_k_overlap": 1.0,
        "bottom_k_overlap": 0.5,
    }
    assert found["metrics"] == {"acc_consistent": 0.25}
    assert found["mcnemar"] == {"n_gained": 1, "n_lost": 2, "p_value": 1.0}
    assert found["corrected"] == {"n_tests": 1, "p_value": 1.0, "mcnemar_p_value": 1.0}
    assert found["condition"] == "degrade"
    assert found["accuracy"]["delta"] == -25.0
    assert found["accuracy"]["n_questions"] == 3
    assert found["rcc"] == summaries[1].rcc
    assert found["confidence"]["low"] == summaries[1].confidence.low
