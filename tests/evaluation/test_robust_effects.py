"""Effects without those of moving answers: hand calculations, and a planted label neuron."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from neuronllm_eval.evaluation.condition_effects import (
    Positions,
    StoredSummary,
    summarise,
    summary_of,
)
from neuronllm_eval.evaluation.doc_table import DocTable, calibrated_scores
from neuronllm_eval.evaluation.robust_effects import OptionMass, robust_effects
from neuronllm_eval.evaluation.stats.significance import SplitHalf
from neuronllm_eval.interventions.conditions import Scales
from tests.fixtures.doc_tables import line, odds, the_table
from tests.fixtures.harness import neuron_set

NEW = ("chance", "calibrated", "balanced", "by_gold", "collapsed", "option_mass", "top_answer")


def summaries(table: DocTable):
    return {each.name: each for each in summarise(table, neuron_set(), Scales(), n_resamples=100)}


# Calibration --------------------------------------------------------------------------------------


def test_calibration_by_hand():
    # Log-softmax of the options: log of 3/4, 1/4 and of 1/2, 1/2. Means: log of sqrt(3/8) for the
    # first and sqrt(1/8) for the second.
    scores = np.log([[[3.0, 1.0]], [[5.0, 5.0]]])
    expected = [
        [[math.log(3 / 4) - math.log(3 / 8) / 2, math.log(1 / 4) - math.log(1 / 8) / 2]],
        [[math.log(1 / 2) - math.log(3 / 8) / 2, math.log(1 / 2) - math.log(1 / 8) / 2]],
    ]
    expected -= np.mean(expected, axis=-1, keepdims=True)  # which compares the options as well
    (calibrated,) = calibrated_scores([scores])
    np.testing.assert_allclose(calibrated, expected, atol=1e-9)
    assert calibrated.argmax(-1).tolist() == [[0], [1]]


def test_a_constant_on_an_option_changes_nothing():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 1, 3))
    both = np.concatenate(
        [scores, scores + np.array([5.0, 0.0, -1.0])], axis=1
    )  # of two conditions
    calibrated = calibrated_scores([both])[0].argmax(-1)
    assert (calibrated[:, 0] == calibrated[:, 1]).all()
    assert (both.argmax(-1)[:, 1] == 0).all()


def test_equal_docs_are_ties_whatever_the_rounding():
    scores = np.log(np.full((7, 1, 3), [0.1, 0.7, 0.2]))
    assert calibrated_scores([scores])[0].argmax(-1).tolist() == [[0]] * 7


def test_docs_of_other_numbers_of_options_are_calibrated_together():
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=(12, 2, 2)), rng.normal(size=(1, 2, 3))]
    moved = [each + np.array([3.0, 0.0, -2.0])[: each.shape[-1]] for each in groups]
    calibrated, of_moved = calibrated_scores(groups), calibrated_scores(moved)
    for each, other in zip(calibrated, of_moved, strict=True):  # a constant changes nothing
        difference = other - each
        assert np.ptp(difference, axis=-1).max() < 1e-8
    (alone,) = calibrated[1]
    assert np.ptp(alone[:, :2], axis=-1).min() > 0.01  # it is compared with the others


def test_what_is_calibrated_are_scores_by_length():
    # Sums prefer the second, scores by length: -1, -2 and -1, -1.5; so the first doc leans to the
    # first option, more than both on average, and the second doc to the second.
    lines = [
        {**line("a", 0, 0, unmasked=[-6.0, -2.0]), "lengths": [6.0, 1.0]},
        {**line("b", 1, 1, unmasked=[-6.0, -1.5]), "lengths": [6.0, 1.0]},
    ]
    assert the_table(lines).calibrated["unmasked"].tolist() == [1, 1]
    # Without lengths: -6, -2 and -8, -1.5.
    other = [line("a", 0, 1, unmasked=[-6.0, -2.0]), line("b", 1, 0, unmasked=[-8.0, -1.5])]
    assert the_table(other).calibrated["unmasked"].tolist() == [0, 0]


# Option mass --------------------------------------------------------------------------------------


def with_mass(mass: float) -> list[float]:
    """Two options, 3:1, of so much probability together."""
    return [math.log(0.75 * mass), math.log(0.25 * mass)]


def test_option_mass_by_hand():
    rows = [(0.9, 0.02, 0.8, 0.6), (0.7, 0.06, 0.4, 0.2)]
    names = ("unmasked", "degrade", "degrade.random_0", "degrade.random_1")
    lines = [
        line(f"q{n}", n, 0, **dict(zip(names, map(with_mass, row), strict=True)))
        for n, row in enumerate(rows)
    ]
    found = summaries(the_table(lines))
    # Means 0.8, 0.04, 0.6 and 0.4: 5, 75 and 50% of the unmasked.
    mass = found["degrade"].option_mass
    values = (mass.mean, mass.relative, mass.controls_mean, mass.controls_low, mass.controls_high)
    assert values == pytest.approx((0.04, 5.0, 62.5, 50.0, 75.0))
    unmasked = found["unmasked"].option_mass
    assert unmasked == OptionMass(pytest.approx(0.8), 100.0, math.nan, math.nan, math.nan)
    # Confidence does not show it, and lengths make no difference to it.
    assert found["degrade"].confidence.delta == pytest.approx(0, abs=1e-9)
    by_length = the_table([{**each, "lengths": [2.0, 3.0]} for each in lines])
    assert summaries(by_length)["degrade"].option_mass == mass


def test_masses_of_several_numbers_of_options():
    lines = [line("a", 0, 0, unmasked=odds(1, 3)), line("b", 1, 0, unmasked=with_mass(0.5)),
             line("c", 2, 2, unmasked=[math.log(0.1)] * 3)]  # fmt: skip
    table = the_table(lines)
    assert table.option_mass["unmasked"] == pytest.approx([1.0, 0.5, 0.3])
    assert summaries(table)["unmasked"].chance == pytest.approx(100 * (1 / 2 + 1 / 2 + 1 / 3) / 3)


# A planted label neuron, and a planted task neuron -----------------------------------------------


def planted() -> DocTable:
    """30 docs of gold 0 and 10 of gold 1, all right unmasked by different odds.

    `suppress_good` takes a neuron away that gives the second option e^-9; `suppress_bad` turns the
    odds of half of the docs; the control changes nothing.
    """
    lines = []
    for doc in range(40):
        gold = int(doc >= 30)
        strength = 1.0 + 0.1 * (doc % 10)
        logits = np.array([strength, -strength]) * (1 - 2 * gold)
        turned = -logits if doc % 2 else logits
        rows = {
            "unmasked": logits,
            "suppress_good": logits + np.array([0.0, 9.0]),
            "suppress_bad": turned,
            "suppress_good.random_0": logits,
        }
        lines.append(line(f"q{doc}", doc, gold, **{n: odds(*np.exp(v)) for n, v in rows.items()}))
    return the_table(lines)


def test_a_label_neuron_is_told_from_a_task_neuron():
    found = summaries(planted())
    label, task, unmasked = (found[n] for n in ("suppress_good", "suppress_bad", "unmasked"))
    # To accuracy both are neurons of the task.
    assert (label.accuracy.delta, task.accuracy.delta) == (-75.0, -50.0)
    assert (label.top_answer, label.collapsed) == (100.0, True)
    assert (task.collapsed, unmasked.collapsed) == (False, False)
    assert label.by_gold == (0.0, 100.0)
    assert task.by_gold == (50.0, 50.0)
    assert (label.balanced.condition, task.balanced.condition) == (50.0, 50.0)
    assert unmasked.balanced.condition == 100.0
    assert (label.calibrated.delta, label.calibrated.p_value) == (0.0, 1.0)
    assert task.calibrated.delta < -40
    assert task.calibrated.p_value < 0.001
    assert task.calibrated.high < 0
    # Two conditions were tested: the smaller p counts twice.
    assert task.calibrated.p_holm == 2 * task.calibrated.p_value
    assert label.calibrated.p_holm == 1.0


def test_controls_stand_beside_them():
    label = summaries(planted())["suppress_good"]
    for change in (label.calibrated, label.balanced):
        assert (change.controls.n_controls, change.controls.mean) == (1, 0.0)
    assert label.balanced.controls.n_as_extreme == 0
    assert label.calibrated.controls.n_as_extreme == 1  # a tie
    unmasked = summaries(planted())["unmasked"]
    assert unmasked.calibrated.controls is unmasked.balanced.controls is None


def test_a_collapse_begins_at_nine_of_ten():
    def effects(n_first: int):
        lines = [line(f"q{n}", n, 0, unmasked=odds(3, 1) if n < n_first else odds(1, 3))
                 for n in range(10)]  # fmt: skip
        return robust_effects(the_table(lines), "unmasked", (), 0, n_resamples=10)

    assert [effects(n).collapsed for n in (8, 9, 1, 2)] == [False, True, True, False]
    assert effects(8).by_gold[0] == 80.0
    assert math.isnan(effects(8).by_gold[1])  # never gold


# summary.json -------------------------------------------------------------------------------------


def stored(tmp_path, change=lambda condition: None) -> StoredSummary:
    of_all = list(summaries(planted()).values())
    half = SplitHalf(3, 0.5, 0.5, 0.5)
    summary = summary_of("t", "test", of_all, {}, {}, half, Positions("scored", "scored"))
    values = json.loads(summary.to_json())
    for condition in values["conditions"]:
        change(condition)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(values))
    return StoredSummary.load(path)


def test_they_are_stored_and_read_back(tmp_path):
    for was, now in zip(summaries(planted()).values(), stored(tmp_path).conditions, strict=True):
        for name in NEW:
            assert str(getattr(now, name)) == str(getattr(was, name))


def test_summaries_of_earlier_versions_have_none_of_them(tmp_path):
    def strip(condition):
        for name in NEW:
            del condition[name]

    for condition in stored(tmp_path, strip).conditions:
        assert all(getattr(condition, name) is None for name in NEW)
        assert dataclasses.asdict(condition)["accuracy"]["n_docs"] == 40
