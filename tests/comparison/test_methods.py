"""Repeats pooled, and methods held against each other: by hand, from tables made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from neuronllm_eval.comparison.compare import Comparison, render, with_pooled
from neuronllm_eval.comparison.pooling import (
    SWAPPED,
    differences,
    key_of,
    pool,
    reference,
    repeats,
)
from neuronllm_eval.comparison.ranking import ranked
from neuronllm_eval.comparison.rows import ComparedRun, Row
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.comparison.tables import side_by_side
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.stats.paired_delta import mean_change, relative_change
from neuronllm_eval.evaluation.stats.significance import McNemar, holm
from tests.fixtures.compared_runs import FACTS, TERMS
from tests.fixtures.doc_tables import answered
from tests.fixtures.harness import neuron_set

VIEW = CompareSettings(run_dir=(Path("runs"),))
GOOD, BAD = ([(layer, index) for index in range(5)] for layer in (0, 1))
OTHER_SETTINGS = '{"top_z": 0.2}'


def compared(
    method: str = "ace",
    *,
    seed: int = 0,
    questions: str = "abcd",
    bad: Sequence[tuple[int, int]] = BAD,
    facts: dict[str, Any] | None = None,
    terms: dict[str, Any] | None = None,
    **answers: str,
) -> ComparedRun:
    """A run whose docs are correct (1) or not (0) under each condition; `__` is a dot."""
    answers = {name.replace("__", "."): digits for name, digits in answers.items()}
    own = {"method": method, "seed": seed, "settings": '{"top_z": 0.1}', **(facts or {})}
    own.setdefault("path", json.dumps([own, terms], default=str))
    return ComparedRun(
        dataclasses.replace(FACTS, **own),
        neuron_set(GOOD, bad),
        repeat_terms=dataclasses.replace(TERMS, **(terms or {})).of_repeats(60, 60),
        top_k=5,
        docs=answered(questions, **answers),
    )


def effect(runs: Sequence[ComparedRun]) -> dict[str, Row]:
    """The pooled rows of repeats, by condition."""
    ((key, group),) = repeats(runs).items()
    return {row.condition: row for row in pool(key, group)}


def masked(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    rows = {n: row.summary for n, row in effect(runs).items() if n not in ("unmasked", SWAPPED)}
    return {name: summary for name, summary in rows.items() if summary.mcnemar is not None}


def comparison(runs: Sequence[ComparedRun]) -> Comparison:
    return with_pooled(Comparison(tuple(runs), pd.DataFrame()), VIEW)


def tables(runs: Sequence[ComparedRun]) -> dict[str, pd.DataFrame]:
    """The tables side by side, by title; notes by their first word."""
    found = comparison(runs)
    sections = side_by_side(
        ranked(found.pooled), [key_of(row) for row in found.pooled], found.differences, None
    )
    return {each.title: each.table for each in sections if each.table is not None}


def as_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    return json.loads(render(comparison(runs), "json", VIEW))


def test_repeats_are_pooled_over_all_docs():
    runs = [
        compared(seed=0, unmasked="1111", degrade="1000", enhance="1111"),
        compared(seed=1, questions="efgh", unmasked="1100", degrade="1100", enhance="1110"),
    ]
    found = effect(runs)
    assert [run.seed for run in found["degrade"].runs] == [0, 1]
    assert found["degrade"].summary.accuracy.delta == -100 * 3 / 8
    assert found[SWAPPED].summary.accuracy.delta == 100 * 4 / 8
    assert found["degrade"].summary.accuracy.n_questions == 8
    assert found["degrade"].relative["rac"].change == pytest.approx(-100 * 3 / 6)
    assert found["degrade"].summary.rac == pytest.approx(-100 * 3 / 6)


def test_weights_with_two_names_are_one_model():
    runs = [compared(unmasked="1111", degrade="1000", enhance="1111"),
            compared(seed=1, facts={"model": "/copies/model"}, unmasked="1111", degrade="0000",
                     enhance="1111")]  # fmt: skip
    assert effect(runs)["degrade"].summary.accuracy.delta == -100 * 7 / 8


def test_a_question_of_several_repeats_is_one_question():
    answers = {"unmasked": "11111111", "degrade": "11110000"}
    once = compared(questions="abcdefgh", **answers)
    again = compared(questions="abcdefgh", seed=1, **answers)
    alone, both = (effect(runs)["degrade"].summary.accuracy for runs in ([once], [once, again]))
    assert both == dataclasses.replace(alone, n_docs=16)
    others = effect([once, compared(seed=1, questions="ijklmnop", **answers)])
    other = others["degrade"].summary.accuracy
    assert other.high - other.low < 0.9 * (both.high - both.low)


def test_a_condition_that_a_repeat_does_not_have_is_left_out():
    runs = [compared(unmasked="1111", degrade="1000", enhance="1111"),
            compared(seed=1, unmasked="1111", degrade="1000")]  # fmt: skip
    assert list(effect(runs)) == ["unmasked", "degrade"]


def test_one_run_twice_is_refused():
    runs = [compared(unmasked="1111", degrade="1000", facts={"path": p}) for p in ("a", "b")]
    with pytest.raises(ArtifactError, match=r"two of the runs .* such as a and b"):
        repeats(runs)


# Tests ------------------------------------------------------------------------------------------


def test_pooled_changes_are_tested_by_doc_and_corrected_for_the_conditions():
    runs = [
        compared(unmasked="1111", suppress_good="0000", enhance_good="1111", degrade="0111"),
        compared(seed=1, questions="efgh", unmasked="1110", suppress_good="0011",
                 enhance_good="1111", degrade="0111"),
    ]  # fmt: skip
    tests = masked(runs)
    # Suppressing loses 4 and 2 docs and wins one: p of 1 or fewer of 7. Enhancing wins one of one,
    # degrade loses one and one and wins one.
    one_of_7 = 2 * (1 + 7) / 2**7
    assert tests["suppress_good"].mcnemar == McNemar(1, 6, pytest.approx(one_of_7))
    assert tests["enhance_good"].mcnemar == McNemar(1, 0, 1.0)
    assert tests["degrade"].mcnemar == McNemar(1, 2, 1.0)
    corrected = [each.corrected for each in tests.values()]
    assert {each.n_tests for each in corrected} == {3}
    assert [each.mcnemar_p_value for each in corrected] == holm([one_of_7, 1.0, 1.0])
    p_values = [each.accuracy.p_value for each in tests.values()]
    assert [each.p_value for each in corrected] == holm(p_values)
    table = tables(runs)["Tests of these changes: p, McNemar's p"]
    (line,) = table.to_dict("records")
    assert line["suppress good"].endswith("0.3750 (6, 1)")
    assert line["tests"] == "3"
    (row,) = (each for each in as_json(runs)["pooled"] if each["condition"] == "suppress_good")
    assert (row["n_lost"], row["seeds"]) == (6, [0, 1])
    assert row["mcnemar_p_holm"] == 3 * one_of_7


def test_a_question_of_several_repeats_is_one_to_p_and_several_docs_to_mcnemar():
    answers = {"unmasked": "11111", "suppress_good": "00000", "questions": "abcde"}
    found = masked([compared(seed=seed, **answers) for seed in (0, 1)])["suppress_good"]
    assert found.accuracy.p_value == pytest.approx(2 / 2**5)
    assert found.mcnemar.p_value == pytest.approx(2 / 2**10)


ALL = dict.fromkeys(("suppress_good", "degrade"), "0011") | dict.fromkeys(
    ("suppress_bad", "enhance_good", "enhance_bad", "enhance"), "1111"
)


def test_a_method_without_bad_neurons_has_words_for_what_they_would_do():
    of_one_kind = [compared(seed=seed, bad=(), unmasked="1111", **ALL) for seed in (0, 1)]
    of_both = [compared("kn", seed=seed, unmasked="1111", **ALL) for seed in (0, 1)]
    one_kind, both = masked(of_one_kind), masked(of_both)
    assert set(one_kind) == {"suppress_good", "enhance_good", "degrade", "enhance"}
    assert set(both) == set(ALL)
    assert {each.corrected.n_tests for each in one_kind.values()} == {2}
    assert {each.corrected.n_tests for each in both.values()} == {6}
    assert one_kind["degrade"].corrected == one_kind["suppress_good"].corrected
    found = tables([*of_one_kind, *of_both])

    def cells(title: str, method: str) -> dict[str, str]:
        return found[title].set_index("method").loc[method].to_dict()

    ace, kn = (cells("Neurons that each condition edits", method) for method in ("ace", "kn"))
    assert [ace[n] for n in ("suppress good", "suppress bad", "degrade")] == [
        "5", "no bad neurons", "5 (good only)",
    ]  # fmt: skip
    assert [kn[n] for n in ("suppress good", "suppress bad", "degrade")] == ["5", "5", "10"]
    for title in ("Accuracy under each condition", "Tests of these changes: p, McNemar's p"):
        line = cells(title, "ace")
        assert line["suppress bad"] == line["enhance bad"] == "no bad neurons"
        assert line["degrade"] == f"{line['suppress good']} (good only)"
        assert line["good/bad"] == "5/0"
        assert "no bad" not in "".join(cells(title, "kn").values())
    rows = {(r["method"], r["condition"]): r for r in as_json([*of_one_kind, *of_both])["pooled"]}
    assert rows["ace", "degrade"]["n_edited"] == "5"
    nothing = rows["ace", "suppress_bad"]
    assert (nothing["note"], nothing["delta"], nothing["accuracy"]) == (
        "no bad neurons",
        None,
        None,
    )


def test_a_condition_that_edits_nothing_in_one_repeat_alone_is_evaluated():
    runs = [compared(unmasked="1111", **ALL), compared(seed=1, bad=(), unmasked="1111", **ALL)]
    found = masked(runs)
    assert set(found) == set(ALL)
    assert {each.corrected.n_tests for each in found.values()} == {6}
    (line,) = tables(runs)["Neurons that each condition edits"].to_dict("records")
    assert (line["suppress bad"], line["degrade"]) == ("5 or 0", "10 or 5")
    assert line["good/bad"] == "5/5 or 5/0"


def test_controls_are_pooled_in_their_order_whatever_their_seeds():
    runs = [
        compared(unmasked="1111", suppress_good="0000", suppress_good__random_0="0001",
                 suppress_good__random_1="1111", suppress_good__random_2="0000"),
        compared(seed=1, questions="efgh", unmasked="1111", suppress_good="0011",
                 suppress_good__random_7="0001", suppress_good__random_8="0111"),
    ]  # fmt: skip
    # -75 points against 3 and 3 of 8 docs lost by the first controls, 0 and 1 by the second.
    controls = masked(runs)["suppress_good"].controls
    assert (controls.n_controls, controls.low, controls.high) == (2, -75, -12.5)
    assert controls.n_as_extreme == 1, "a tie counts against the condition"
    assert controls.p_value == 2 / 3
    (line,) = tables(runs)["Rank among random controls"].to_dict("records")
    assert line["suppress good"] == "2 of 3, 0.6667"
    row = next(each for each in as_json(runs)["pooled"] if each["condition"] == "suppress_good")
    assert row["n_as_extreme"] == 1
    without = [compared(unmasked="1111", suppress_good="0000")]
    assert masked(without)["suppress_good"].n_controls == 0
    assert "Rank among random controls" not in tables(without)


# Differences ------------------------------------------------------------------------------------


def against(runs: Sequence[ComparedRun], name: str):
    groups = repeats(runs)
    return differences(groups, reference(list(groups), name))


def test_methods_differ_by_what_they_do_to_the_same_docs():
    runs = [
        compared("kn", unmasked="1111", degrade="0111", enhance="1111"),
        compared("ace", unmasked="1111", degrade="0000", enhance="1111"),
        compared("tn", unmasked="1111", degrade="0000", enhance="1111"),
    ]
    kn, tn = against(runs, "ace")
    assert (kn.key.method, kn.against.method) == ("kn", "ace")
    assert kn.change.delta == -75
    assert kn.change.p_value == 2 * 0.5**3
    assert kn.p_holm == 2 * kn.change.p_value
    assert (tn.change.delta, tn.change.p_value, tn.p_holm) == (0, 1, 1)
    assert {each.key.method for each in against(runs, "tn")} == {"kn", "ace"}
    with pytest.raises(UsageError, match="no methods of the runs are 'activation'"):
        against(runs, "activation")


def test_a_method_with_other_settings_is_held_against_itself():
    answers = {"unmasked": "1111", "degrade": "0000", "enhance": "1111"}
    runs = [
        compared(**answers),
        compared(facts={"settings": OTHER_SETTINGS}, **answers),
        compared("kn", unmasked="1111", degrade="0111", enhance="1111"),
    ]
    assert reference(list(repeats(runs)), None) is None, "there are two of them"
    with pytest.raises(UsageError, match=r"2 methods .*\n.* ace top_z=0.1; ace top_z=0.2"):
        against(runs, "ace")
    itself, kn = against(runs, "ace top_z=0.1")
    assert (itself.key.settings, itself.against.method) == (OTHER_SETTINGS, "ace")
    assert itself.against.settings != OTHER_SETTINGS
    assert (kn.key.method, kn.change.delta) == ("kn", -75)


def test_a_seed_whose_docs_differ_is_said_to_be_left_out():
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    runs = [
        compared("ace", **answers),
        compared("ace", seed=1, **answers),
        compared("kn", **answers),
    ]
    runs.append(compared("kn", seed=1, questions="abce", **answers))
    (line,) = tables(runs)["Enhance minus degrade less that of ace, points"].to_dict("records")
    assert (line["method"], line["p (Holm)"], line["seeds"]) == ("kn", "1.0000", "1 of 2")


def test_runs_without_a_common_condition_have_no_row():
    runs = [compared(unmasked="1111", degrade="1000"),
            compared(seed=1, unmasked="1111", suppress_good="1000")]  # fmt: skip
    assert effect(runs) == {}
    assert list(tables(runs)) == []
    for form in ("table", "json", "csv"):
        assert "ace" not in render(comparison(runs), form, VIEW)


@pytest.mark.parametrize(
    "other",
    [
        {"questions": "abce"},
        {"seed": 1},
        {"terms": {"split": "train"}},
        {"terms": {"num_fewshot": "0"}},
        {"facts": {"model_hash": "h2"}},
    ],
)
def test_what_is_not_the_same_is_no_difference(other):
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    assert len(against([compared("ace", **answers), compared("kn", **answers)], "ace")) == 1
    assert against([compared("ace", **answers), compared("kn", **answers, **other)], "ace") == []


def test_another_number_of_neurons_is_no_difference():
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    point = {"unmasked": "1111", "degrade__k3": "0111", "enhance__k3": "1111"}
    assert against([compared("ace", **answers), compared("kn", **point)], "ace") == []


def test_no_correct_answer_has_no_relative_change():
    runs = [compared(unmasked="0000", degrade="0000", enhance="1000")]
    rows = {each["condition"]: each for each in as_json(runs)["pooled"]}
    assert {rows["enhance"][name] for name in ("rac", "rac_low", "rac_high")} == {None}
    assert rows["enhance"]["delta"] == 25
    assert "nan" not in render(comparison(runs), "markdown", VIEW)


def test_rows_that_could_be_confused_are_told_apart():
    answers = {"unmasked": "1111", "degrade": "0111", "enhance": "1111"}
    runs = [
        compared(**answers),
        compared(**answers, terms={"split": "train"}),
        compared(**answers, facts={"settings": OTHER_SETTINGS}),
        compared(**answers, terms={"num_fewshot": "0"}),
        compared(**answers, facts={"model": "other/model", "model_hash": "h2"}),
    ]
    text = render(comparison(runs), "markdown", VIEW)
    (table,) = (
        part for part in text.split("## ") if part.startswith("Accuracy under each condition")
    )
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len({tuple(line.split("|")[1:5]) for line in rows}) == len(rows) == len(runs)
    for name in ("top_z=0.2", "other/model"):
        assert name in table
    for words in ("validation split train instead of test", "0 demonstrations instead of 1"):
        assert words in " ".join(text.split())


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
