"""Repeats pooled, and methods held against each other: by hand, from tables made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from neuronllm_eval.comparison.method_comparison import as_json, compare
from neuronllm_eval.comparison.method_differences import differences, reference
from neuronllm_eval.comparison.method_effects import SWAPPED, effect
from neuronllm_eval.comparison.method_runs import Compared, Key
from neuronllm_eval.comparison.method_tables import (
    controls_table,
    delta_table,
    difference_table,
    edited_table,
    overview,
    p_table,
    relative_table,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.stats.paired_delta import mean_change, relative_change
from neuronllm_eval.evaluation.stats.significance import McNemar, holm
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.interventions.conditions import ConditionName, Scales, edited_by
from tests.fixtures.doc_tables import answered
from tests.fixtures.harness import neuron_set

TERMS = (("num_fewshot", "1"),)
SETTINGS = (("top_z", "0.1"),)
KEY = Key(("some/model", "weights:abc"), "topic", "test", TERMS, 5, "ace", SETTINGS)


GOOD, BAD = ([(layer, index) for index in range(5)] for layer in (0, 1))


def compared(
    *,
    key: Key = KEY,
    seed: int = 0,
    questions: str = "abcd",
    bad: Sequence[tuple[int, int]] = BAD,
    **answers: str,
) -> Compared:
    """A run whose docs are right (1) or wrong (0) under each condition; `__` is a dot."""
    answers = {name.replace("__", "."): digits for name, digits in answers.items()}
    table = answered(questions, key.split, **answers)
    parsed = {name: ConditionName.parse(name) for name in answers if name != "unmasked"}
    names = {name: name for name, parts in parsed.items() if parts.seed is None}
    controls: dict[str, list[str]] = {}
    for name, parts in parsed.items():
        if parts.seed is not None:
            controls.setdefault(parts.condition, []).append(name)
    edited = edited_by(names, neuron_set(GOOD, bad), Scales())
    return Compared(key, seed, 5, len(bad), table, names, edited, controls)


def test_repeats_are_pooled_over_all_docs():
    runs = [
        compared(seed=0, unmasked="1111", degrade="1000", enhance="1111"),
        compared(seed=1, questions="efgh", unmasked="1100", degrade="1100", enhance="1110"),
    ]
    found = effect(runs)
    assert found.seeds == (0, 1)
    assert found.accuracy["degrade"].delta == -100 * 3 / 8
    assert found.accuracy[SWAPPED].delta == 100 * 4 / 8
    assert found.accuracy["degrade"].n_questions == 8
    assert found.rac["degrade"].change == pytest.approx(-100 * 3 / 6)


def test_a_question_of_several_repeats_is_one_question():
    answers = {"unmasked": "11111111", "degrade": "11110000"}
    once = compared(questions="abcdefgh", **answers)
    again = dataclasses.replace(once, seed=1)
    alone, both = effect([once]), effect([once, again])
    assert both.accuracy == {
        name: dataclasses.replace(each, n_docs=16) for name, each in alone.accuracy.items()
    }
    other = dataclasses.replace(compared(seed=1, questions="ijklmnop", **answers), key=once.key)
    width = {
        name: found.accuracy["degrade"].high - found.accuracy["degrade"].low
        for name, found in (("same", both), ("others", effect([once, other])))
    }
    assert width["others"] < 0.9 * width["same"]


def test_a_condition_that_a_repeat_lacks_is_left_out():
    runs = [compared(unmasked="1111", degrade="1000", enhance="1111"),
            compared(seed=1, unmasked="1111", degrade="1000")]  # fmt: skip
    assert list(effect(runs).accuracy) == ["degrade"]


# Tests ------------------------------------------------------------------------------------------


def test_pooled_changes_are_tested_by_doc_and_corrected_for_the_conditions():
    runs = [
        compared(unmasked="1111", suppress_good="0000", enhance_good="1111", degrade="0111"),
        compared(seed=1, questions="efgh", unmasked="1110", suppress_good="0011",
                 enhance_good="1111", degrade="0111"),
    ]  # fmt: skip
    tests = effect(runs).tests
    # Suppressing loses 4 and 2 docs and wins one: p of 1 or fewer of 7. Enhancing wins one of one,
    # degrade loses one and one and wins one.
    one_of_7 = 2 * (1 + 7) / 2**7
    assert tests["suppress_good"].mcnemar == McNemar(1, 6, pytest.approx(one_of_7))
    assert tests["enhance_good"].mcnemar == McNemar(1, 0, 1.0)
    assert tests["degrade"].mcnemar == McNemar(1, 2, 1.0)
    corrected = [each.corrected for each in tests.values()]
    assert {each.n_tests for each in corrected} == {3}
    assert [each.mcnemar_p_value for each in corrected] == holm([one_of_7, 1.0, 1.0])
    accuracy = effect(runs).accuracy
    assert [each.p_value for each in corrected] == holm([accuracy[n].p_value for n in tests])
    row = next(line for line in p_table(compare(runs)).splitlines() if "0.3750 (6, 1)" in line)
    assert "| 3 " in row
    (pooled,) = as_json(compare(runs), {})["pooled"]
    assert pooled["tests"]["suppress_good"]["mcnemar"]["n_lost"] == 6
    assert pooled["tests"]["suppress_good"]["corrected"]["mcnemar_p_value"] == 3 * one_of_7


def test_a_question_of_several_repeats_is_one_to_p_and_several_docs_to_mcnemar():
    answers = {"unmasked": "11111", "suppress_good": "00000", "questions": "abcde"}
    found = effect([compared(seed=seed, **answers) for seed in (0, 1)])
    assert found.accuracy["suppress_good"].p_value == pytest.approx(2 / 2**5)
    assert found.tests["suppress_good"].mcnemar.p_value == pytest.approx(2 / 2**10)


ALL = dict.fromkeys(("suppress_good", "degrade"), "0011") | dict.fromkeys(
    ("suppress_bad", "enhance_good", "enhance_bad", "enhance"), "1111"
)


def test_a_method_without_bad_neurons_has_words_for_what_they_would_do():
    runs = [compared(seed=seed, bad=(), unmasked="1111", **ALL) for seed in (0, 1)]
    runs += [compared(key=KEY._replace(method="kn"), seed=seed, unmasked="1111", **ALL)
             for seed in (0, 1)]  # fmt: skip
    found = compare(runs)
    one_kind, both = found.effects
    assert set(one_kind.accuracy) == {
        "suppress_good",
        "enhance_good",
        "degrade",
        "enhance",
        SWAPPED,
    }
    assert set(both.accuracy) == {*ALL, SWAPPED}
    assert {each.corrected.n_tests for each in one_kind.tests.values()} == {2}
    assert {each.corrected.n_tests for each in both.tests.values()} == {6}
    assert one_kind.tests["degrade"] == one_kind.tests["suppress_good"]

    def cells(table: str, method: str) -> dict[str, str]:
        head, _, *rows = ([c.strip() for c in line.split("|")] for line in table.splitlines())
        return next(dict(zip(head, row, strict=True)) for row in rows if method in row)

    ace, kn = (cells(edited_table(found), method) for method in ("ace", "kn"))
    assert [ace[n] for n in ("suppress good", "suppress bad", "degrade")] == [
        "5", "no bad neurons", "5 (good only)",
    ]  # fmt: skip
    assert [kn[n] for n in ("suppress good", "suppress bad", "degrade")] == ["5", "5", "10"]
    for table in (delta_table(found), p_table(found)):
        row = cells(table, "ace")
        assert row["suppress bad"] == row["enhance bad"] == "no bad neurons"
        assert row["degrade"] == f"{row['suppress good']} (good only)"
        assert "no bad" not in "".join(cells(table, "kn").values())
    (row, *_) = as_json(found, {})["pooled"]
    assert [each["n_good"] + each["n_bad"] for each in row["edited"]["degrade"]] == [5, 5]
    assert {each["note"] for each in row["edited"]["suppress_bad"]} == {"no bad neurons"}
    assert "suppress_bad" not in row["accuracy"]


def test_a_condition_that_edits_nothing_in_one_repeat_alone_is_evaluated():
    runs = [compared(unmasked="1111", **ALL), compared(seed=1, bad=(), unmasked="1111", **ALL)]
    found = effect(runs)
    assert set(found.tests) == set(ALL)
    assert {each.corrected.n_tests for each in found.tests.values()} == {6}
    assert "5 / 0" in edited_table(compare(runs))
    assert "10 / 5" in edited_table(compare(runs))


def test_controls_are_pooled_in_their_order_whatever_their_seeds():
    runs = [
        compared(unmasked="1111", suppress_good="0000", suppress_good__random_0="0001",
                 suppress_good__random_1="1111", suppress_good__random_2="0000"),
        compared(seed=1, questions="efgh", unmasked="1111", suppress_good="0011",
                 suppress_good__random_7="0001", suppress_good__random_8="0111"),
    ]  # fmt: skip
    # -75 points against 3 and 3 of 8 docs lost by the first controls, 0 and 1 by the second.
    own = effect(runs).tests["suppress_good"].controls
    assert (own.n_controls, own.low, own.high) == (2, -75, -12.5)
    assert own.n_as_extreme == 1, "a tie counts against the condition"
    assert own.p_value == 2 / 3
    assert "2 of 3, 0.6667" in controls_table(compare(runs))
    (pooled,) = as_json(compare(runs), {})["pooled"]
    assert pooled["tests"]["suppress_good"]["controls"]["n_as_extreme"] == 1
    without = [compared(unmasked="1111", suppress_good="0000")]
    assert effect(without).tests["suppress_good"].controls is None
    assert controls_table(compare(without)) == ""


# Differences ------------------------------------------------------------------------------------


def against(runs, name):
    return differences(runs, reference(runs, name))


def rival(method: str, seed: int = 0, **more: str) -> Compared:
    return compared(key=KEY._replace(method=method), seed=seed, **more)


def test_methods_differ_by_what_they_do_to_the_same_docs():
    runs = [
        rival("kn", unmasked="1111", degrade="0111", enhance="1111"),
        rival("ace", unmasked="1111", degrade="0000", enhance="1111"),
        rival("tn", unmasked="1111", degrade="0000", enhance="1111"),
    ]
    kn, tn = against(runs, "ace")
    assert (kn.key.method, kn.against.method) == ("kn", "ace")
    assert kn.change.delta == -75
    assert kn.change.p_value == 2 * 0.5**3
    assert kn.corrected_p == 2 * kn.change.p_value
    assert (tn.change.delta, tn.change.p_value, tn.corrected_p) == (0, 1, 1)
    assert {each.key.method for each in against(runs, "tn")} == {"kn", "ace"}
    with pytest.raises(UsageError, match="no methods of the runs are 'activation'"):
        against(runs, "activation")


def test_a_method_with_other_settings_is_held_against_itself():
    answers = {"unmasked": "1111", "degrade": "0000", "enhance": "1111"}
    other = KEY._replace(settings=(("top_z", "0.2"),))
    runs = [
        compared(**answers),
        compared(key=other, **answers),
        rival("kn", unmasked="1111", degrade="0111", enhance="1111"),
    ]
    assert reference(runs, None) is None, "there are two of them"
    with pytest.raises(UsageError, match=r"2 methods .*\n.* ace top_z=0.1; ace top_z=0.2"):
        reference(runs, "ace")
    itself, kn = against(runs, "ace top_z=0.1")
    assert (itself.key, itself.against) == (other, KEY)
    assert (kn.key.method, kn.change.delta) == ("kn", -75)


def test_a_seed_whose_docs_differ_is_said_to_be_left_out():
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    runs = [rival("ace", **answers), rival("ace", seed=1, **answers), rival("kn", **answers)]
    runs.append(compared(key=KEY._replace(method="kn"), seed=1, questions="abce", **answers))
    assert "p 1.0000 (1 of 2 seeds)" in difference_table(compare(runs))


def test_runs_without_a_common_condition_have_no_effect():
    runs = [compared(unmasked="1111", degrade="1000"),
            compared(seed=1, unmasked="1111", suppress_good="1000")]  # fmt: skip
    found = compare(runs)
    assert (len(found.single), len(found.effects)) == (2, 0)
    assert "ace" not in delta_table(found)


@pytest.mark.parametrize(
    "other",
    [
        {"questions": "abce"},
        {"seed": 1},
        {"key": KEY._replace(method="kn", top_k=6)},
        {"key": KEY._replace(method="kn", split="train")},
        {"key": KEY._replace(method="kn", terms=(("num_fewshot", "0"),))},
        {"key": KEY._replace(method="kn", model=("some/model", "weights:abd"))},
    ],
)
def test_what_is_not_the_same_is_no_difference(other):
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    runs = [rival("ace", **answers), rival("kn", **answers)]
    assert len(against(runs, "ace")) == 1
    runs[1] = compared(**{"key": KEY._replace(method="kn"), **answers, **other})
    assert against(runs, "ace") == []


def test_nothing_right_has_no_relative_change():
    runs = [compared(unmasked="0000", degrade="0000", enhance="1000")]
    found = compare(runs)
    text = dump_json(as_json(found, {}))
    (row,) = json.loads(text)["rows"]
    assert set(row["relative"]["enhance"].values()) == {None}
    assert row["accuracy"]["enhance"]["delta"] == 25
    assert "nan" not in relative_table(found) + delta_table(found)


def test_rows_that_could_be_confused_are_told_apart():
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    keys = [
        KEY,
        KEY._replace(split="train"),
        KEY._replace(settings=(("top_z", "0.2"),)),
        KEY._replace(terms=(("num_fewshot", "0"),)),
        KEY._replace(model=("other/model", "weights:def")),
    ]
    found = compare([compared(key=key, **answers) for key in keys])
    wide = overview(found)
    assert wide.count("+25.0 [") == len(keys)
    for name in ("topic (test)", "topic (train)", "top_z=0.2", "num_fewshot=0", "model (abc)"):
        assert name in wide


def test_intervals_are_those_of_scipys_bootstrap():
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(60), 3)
    before = (rng.random(180) < 0.6).astype(float)
    after = np.where(rng.random(180) < 0.25, 1 - before, before)
    per_question = [np.bincount(index, each) for each in (after - before, before)]

    def ratio(changes, bases, axis):
        return 100 * changes.sum(axis) / bases.sum(axis)

    found = relative_change(before, after, index)
    oracle = scipy.stats.bootstrap(
        per_question, ratio, paired=True, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(oracle), abs=0.6)
    mean = mean_change(after - before, index)
    oracle = scipy.stats.bootstrap(
        per_question[:1],
        lambda changes, axis: 100 * changes.mean(axis) / 3,
        n_resamples=10_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert (mean.low, mean.high) == pytest.approx(tuple(oracle), abs=0.6)


def test_mean_change_is_that_of_the_questions():
    changes, index = [1.0, 1.0, 0.0, -1.0, 2.0], [0, 0, 1, 1, 2]
    found = mean_change(changes, index, n_resamples=2000)
    assert found.delta == 60
    assert found.low <= 60 <= found.high
    assert (found.n_docs, found.n_questions) == (5, 3)
    assert found.p_value == 4 / 8  # |sum| is 3 or more for ++-, +++ and their opposites


def test_relative_change_is_a_ratio_of_sums():
    before, after = [1, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]
    found = relative_change(before, after, [0, 0, 1, 1, 2, 2], n_resamples=2000)
    assert found.change == pytest.approx(-100 / 3)
    # Question 1 has no right answer: a draw of nothing else has no ratio.
    assert np.isnan([found.low, found.high]).all()
    many = relative_change(before * 40, after * 40, np.arange(240) // 2, n_resamples=2000)
    assert many.low < many.change < many.high < many.low + 40
