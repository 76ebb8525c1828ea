"""The command distinguishes a correct scorer from a broken one, by its exit code too."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks.planted_truth import __main__ as planted_truth
from benchmarks.planted_truth.measure import (
    FLOOR,
    SKILL_KINDS,
    Recovery,
    SingleEffect,
    Trial,
    evaluate,
    promises,
)
from benchmarks.planted_truth.neuron_kinds import KINDS
from neuronllm_eval.attribution.integrated_gradients import Quantity
from neuronllm_eval.attribution.methods import ACE, METHODS
from neuronllm_eval.engine.interface import gold_probability
from tests.fixtures.cli import assert_one_message, call, without_the_harness_tasks
from tests.fixtures.planted_models import STRENGTH, biased, embedded, skilled

CORRECT_FIRST = "ace ranks neurons that write the gold letter first"
INCORRECT_LAST = "ace ranks neurons that write an incorrect letter last"
NONE_HARMLESS = "ace ranks no alike or silent neuron there"
EXPOSED = "where options are shuffled, ace's sums by letter expose it"


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    return call(*arguments, entry=planted_truth.main)


def evaluated() -> Trial:
    return evaluate(skilled(), biased(), embedded()[2], STRENGTH)


def broken(trial: Trial) -> set[str]:
    return {promise.name for promise in promises(trial) if not promise.kept}


def test_the_scorer_keeps_every_promise():
    trial = evaluated()
    assert broken(trial) == set()
    assert set(trial.kinds) == set(METHODS)
    assert trial.kinds["random"]["correct"].at_k < 1, "a method that knows nothing does not"
    for found in trial.kinds["ace"].values():  # earlier layers only add neurons to the ranking
        assert found.whole <= found.at_k
    whole = trial.kinds["ace"]["correct"].whole
    assert whole > 0
    assert len(trial.planted_effects) == 8
    # In the layers planted in, the eight come first: what is before them is of earlier layers.
    assert trial.kinds["ace"]["correct"].at_k == 1
    assert len(trial.ahead_effects) == round(8 * (1 - whole))
    # One neuron at a time, the path and the knockout say much the same of what is planted.
    assert all(0.3 < each.attribution / each.knockout < 1.1 for each in trial.planted_effects)


@pytest.mark.slow
def test_the_command_keeps_every_promise_at_the_floor(monkeypatch):
    without_the_harness_tasks(monkeypatch)
    code, out, err = run("--device", "cpu", "--strengths", FLOOR)
    assert code == 0, err
    assert "All promises hold." in out


def test_a_score_over_the_whole_vocabulary_breaks_them(monkeypatch):
    monkeypatch.setattr(ACE, "quantity", Quantity(gold_probability))
    assert {CORRECT_FIRST, NONE_HARMLESS} <= broken(evaluated())


def test_a_score_of_the_wrong_sign_breaks_them(monkeypatch):
    right = ACE.values
    monkeypatch.setattr(ACE, "values", lambda self, found: -right(self, found))
    assert {CORRECT_FIRST, INCORRECT_LAST, EXPOSED} <= broken(evaluated())


KEPT = Trial(
    strength=1.0,
    kinds={name: dict.fromkeys(SKILL_KINDS, Recovery(1.0, 1.0, 1.0)) for name in METHODS},
    intruders=0,
    unshuffled=dict.fromkeys(METHODS, 1.0),
    shuffled=dict.fromkeys(METHODS, 0.0),
    planted_effects=(SingleEffect(0.06, 0.11), SingleEffect(0.2, 0.35)),
    ahead_effects=(),
    exposed=1.0,
    effects=(0.97, 1.02),
)


def command(monkeypatch, trial: Trial, *arguments: object):
    """The command, where planting comes to this."""

    def run_trial(model, fitting, questions, strength, seed):
        assert (len(questions), seed) == (3, 0)
        return dataclasses.replace(trial, strength=strength)

    without_the_harness_tasks(monkeypatch)
    monkeypatch.setattr(planted_truth, "run_trial", run_trial)
    monkeypatch.setattr(planted_truth, "N_FITTING", 2)
    return run("--device", "cpu", "--limit", 3, *arguments)


def test_the_command_shows_what_was_found_and_writes_it(monkeypatch, tmp_path):
    path = tmp_path / "new" / "planted_truth.json"
    code, out, err = command(monkeypatch, KEPT, "--output_path", path)
    assert code == 0, err
    assert "All promises hold." in out
    assert all(name in out for name in (*METHODS, *KINDS))
    written = json.loads(path.read_text())
    assert [trial["strength"] for trial in written["trials"]] == [1.0, 0.125]
    assert all(promise["kept"] for promise in written["promises"])
    weak = dataclasses.replace(KEPT, strength=0.125)
    assert len(written["promises"]) == len(promises(KEPT)) + len(promises(weak))


def test_effects_of_neurons_ahead_of_planted_ones_are_shown(monkeypatch):
    assert "all layers: among" not in command(monkeypatch, KEPT)[1]
    one = dataclasses.replace(KEPT, ahead_effects=(SingleEffect(0.15, -0.04),))
    said = "among the first 2 of ace is 1 neuron of earlier layers, with attributions of 0.1500"
    assert said in command(monkeypatch, one)[1]
    two = dataclasses.replace(
        KEPT, ahead_effects=(SingleEffect(0.15, -0.04), SingleEffect(0.12, 0.01))
    )
    said = (
        "are 2 neurons of earlier layers, with attributions of 0.1200 to 0.1500 log-nats per "
        "prompt and single-neuron effects of -0.0400 to 0.0100. The correct ones have 0.0600 to "
        "0.2000 and 0.1100 to 0.3500."
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
        (("--strengths", "1,2"), "strengths is '1,2', and neurons that move all letters alike"),
        (("--limit", "0"), "limit is 0"),
        (("--seed", "-1"), "seed is -1"),
        (("--output_path", "."), ". is a folder"),
    ],
)
def test_invalid_arguments(arguments, said):
    assert_one_message(run(*arguments), 2, said)
