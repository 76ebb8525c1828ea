"""The self-test tells a sound scorer from one that is broken, and says so by its exit code."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks.planted_truth import __main__ as planted_truth
from benchmarks.planted_truth.measure import (
    FLOOR,
    SKILL_KINDS,
    Found,
    Trial,
    Worth,
    judge,
    promises,
)
from benchmarks.planted_truth.neuron_kinds import KINDS
from neuronllm_eval.attribution.integrated_gradients import Quantity
from neuronllm_eval.attribution.methods import ACE, METHODS
from neuronllm_eval.engine.interface import gold_probability
from tests.fixtures.cli import assert_one_message, call, without_the_harness_tasks
from tests.fixtures.planted_models import STRENGTH, biased, embedded, skilled

RIGHT_FIRST = "ace puts neurons that push the right letter first"
WRONG_LAST = "ace puts neurons that push a wrong letter last"
NONE_HARMLESS = "ace has none there that push all alike or write nothing"
EXPOSED = "where options are shuffled, ace's sums by letter expose it"


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    return call(*arguments, entry=planted_truth.main)


def judged() -> Trial:
    return judge(skilled(), biased(), embedded()[2], STRENGTH)


def broken(trial: Trial) -> set[str]:
    return {promise.name for promise in promises(trial) if not promise.kept}


def test_the_scorer_keeps_every_promise():
    trial = judged()
    assert broken(trial) == set()
    assert set(trial.kinds) == set(METHODS)
    assert trial.kinds["random"]["right"].at_k < 1, "a method that knows nothing does not"
    for found in trial.kinds["ace"].values():  # earlier layers only add neurons to the ranking
        assert found.whole <= found.at_k
    whole = trial.kinds["ace"]["right"].whole
    assert whole > 0
    assert len(trial.worth) == 8
    # In the layers planted in, the eight come first: what is before them is of earlier layers.
    assert trial.kinds["ace"]["right"].at_k == 1
    assert len(trial.ahead) == round(8 * (1 - whole))
    # One neuron at a time, the path and the knockout say much the same of what is planted.
    assert all(0.3 < each.attribution / each.knockout < 1.1 for each in trial.worth)


@pytest.mark.slow
def test_the_command_keeps_every_promise_at_the_floor(monkeypatch):
    without_the_harness_tasks(monkeypatch)
    code, out, err = run("--device", "cpu", "--strengths", FLOOR)
    assert code == 0, err
    assert "All promises are kept." in out


def test_a_score_over_the_whole_vocabulary_breaks_them(monkeypatch):
    monkeypatch.setattr(ACE, "quantity", Quantity(gold_probability))
    assert {RIGHT_FIRST, NONE_HARMLESS} <= broken(judged())


def test_a_score_of_the_wrong_sign_breaks_them(monkeypatch):
    right = ACE.values
    monkeypatch.setattr(ACE, "values", lambda self, found: -right(self, found))
    assert {RIGHT_FIRST, WRONG_LAST, EXPOSED} <= broken(judged())


KEPT = Trial(
    strength=1.0,
    kinds={name: dict.fromkeys(SKILL_KINDS, Found(1.0, 1.0, 1.0)) for name in METHODS},
    intruders=0,
    unshuffled=dict.fromkeys(METHODS, 1.0),
    shuffled=dict.fromkeys(METHODS, 0.0),
    worth=(Worth(0.06, 0.11), Worth(0.2, 0.35)),
    ahead=(),
    exposed=1.0,
    effects=(0.97, 1.02),
)


def command(monkeypatch, trial: Trial, *arguments: object):
    """The command, where planting comes to this."""

    def run_trial(model, fitting, asked, strength, seed):
        assert (len(asked), seed) == (3, 0)
        return dataclasses.replace(trial, strength=strength)

    without_the_harness_tasks(monkeypatch)
    monkeypatch.setattr(planted_truth, "run_trial", run_trial)
    monkeypatch.setattr(planted_truth, "N_FITTING", 2)
    return run("--device", "cpu", "--limit", 3, *arguments)


def test_the_command_shows_what_was_found_and_writes_it(monkeypatch, tmp_path):
    path = tmp_path / "new" / "selftest.json"
    code, out, err = command(monkeypatch, KEPT, "--output_path", path)
    assert code == 0, err
    assert "All promises are kept." in out
    assert all(name in out for name in (*METHODS, *KINDS))
    written = json.loads(path.read_text())
    assert [trial["strength"] for trial in written["trials"]] == [1.0, 0.125]
    assert all(promise["kept"] for promise in written["promises"])
    weak = dataclasses.replace(KEPT, strength=0.125)
    assert len(written["promises"]) == len(promises(KEPT)) + len(promises(weak))


def test_what_neurons_ahead_of_planted_ones_are_worth_is_said(monkeypatch):
    assert "all layers: among" not in command(monkeypatch, KEPT)[1]
    one = dataclasses.replace(KEPT, ahead=(Worth(0.15, -0.04),))
    said = "among the first 2 of ace is 1 neuron of earlier layers, for which it says 0.1500 log-"
    assert said in command(monkeypatch, one)[1]
    two = dataclasses.replace(KEPT, ahead=(Worth(0.15, -0.04), Worth(0.12, 0.01)))
    said = (
        "are 2 neurons of earlier layers, for which it says 0.1200 to 0.1500 log-nats a prompt; "
        "alone worth -0.0400 to 0.0100. Of the right ones it says 0.0600 to 0.2000; alone worth "
        "0.1100 to 0.3500."
    )
    assert said in command(monkeypatch, two)[1]


def test_a_broken_promise_is_exit_code_1_from_the_floor_up(monkeypatch):
    trial = dataclasses.replace(KEPT, intruders=2)
    code, out, _ = command(monkeypatch, trial, "--strengths", "0.125,0.1")
    assert code == 1
    weak = dataclasses.replace(KEPT, strength=0.125)
    assert f"1 of {len(promises(weak))} promises are broken." in out


def test_no_promise_is_made_below_the_floor(monkeypatch):
    trial = dataclasses.replace(KEPT, intruders=2)
    code, out, _ = command(monkeypatch, trial, "--strengths", "0.1")
    assert code == 0
    assert "No promise is made below a strength of 0.125" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strengths", "1,x"), "strengths is '1,x'"),
        (("--strengths", "0"), "strengths is '0'"),
        (("--strengths", "1,2"), "strengths is '1,2', and neurons that push all letters alike"),
        (("--limit", "0"), "limit is 0"),
        (("--seed", "-1"), "seed is -1"),
        (("--output_path", "."), ". is a folder"),
    ],
)
def test_arguments_that_cannot_be(arguments, said):
    assert_one_message(run(*arguments), 2, said)
