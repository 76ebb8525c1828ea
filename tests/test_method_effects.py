"""Repeats pooled, and methods held against each other: by hand, from tables made up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from neuronllm_eval.compared import Compared, Key
from neuronllm_eval.comparison import (
    as_json,
    compare,
    delta_table,
    difference_table,
    overview,
    relative_table,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.method_effects import SWAPPED, differences, effect, reference
from neuronllm_eval.statistics import mean_change, relative_change
from neuronllm_eval.strict_json import dump_json
from tests.doc_tables import answered

TERMS = (("num_fewshot", "1"),)
SETTINGS = (("top_z", "0.1"),)
KEY = Key(("some/model", "weights:abc"), "topic", "test", TERMS, 5, "ace", SETTINGS)


def compared(*, key: Key = KEY, seed: int = 0, questions: str = "abcd", **answers: str) -> Compared:
    """A run whose docs are right (1) or wrong (0) under each condition."""
    table = answered(questions, key.split, **answers)
    return Compared(key, seed, 5, 5, table, {name: name for name in answers if name != "unmasked"})


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
