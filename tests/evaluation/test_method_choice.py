"""The choice among candidates, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.method_choice import MethodChoice, Scored, choose

SETTINGS = [(0.0, 4), (2.0, 4)]
# Unmasked, then enhance and degrade of two candidates; two options.
ROW = np.log([[0.3, 0.2], [0.4, 0.1], [0.2, 0.3], [0.34, 0.12], [0.3, 0.2]])


def docs(shift: float = 0.0) -> list[Scored]:
    """Four docs of alternating gold; `shift` is added to an option of the second's enhance."""
    found = []
    for number in range(4):
        gold = number % 2
        rows = ROW[:, ::-1].copy() if gold else ROW.copy()
        rows += 0.01 * number
        rows[3, 0] += shift
        found.append(Scored(gold, rows))
    return found


def by_hand(half: list[Scored], condition: int) -> np.ndarray:
    logs = np.array([log_softmax(doc.loglikelihoods[condition]) for doc in half])
    logs -= logs.mean(0)
    return np.array([softmax(row)[doc.gold] for row, doc in zip(logs, half, strict=True)])


def test_differences_are_of_calibrated_confidence():
    halves = [docs(), docs()[:2]]
    choice = choose(SETTINGS, halves)
    assert choice.n_docs == 6
    for number, candidate in enumerate(choice.candidates):
        assert (candidate.penalty, candidate.top_k) == SETTINGS[number]
        enhance, degrade, unmasked = (
            np.concatenate([by_hand(half, condition) for half in halves])
            for condition in (1 + 2 * number, 2 + 2 * number, 0)
        )
        assert candidate.difference == pytest.approx(100 * (enhance - degrade).mean(), abs=1e-6)
        expected = 100 * (enhance - degrade).std() / np.sqrt(6)
        assert candidate.error == pytest.approx(expected, abs=1e-6)
        assert candidate.gain == pytest.approx(100 * (enhance - unmasked).mean(), abs=1e-6)
        masses = np.exp([doc.loglikelihoods.tolist() for half in halves for doc in half]).sum(-1)
        share = masses[:, 1 + 2 * number].mean() / masses[:, 0].mean()
        assert candidate.option_mass == pytest.approx(share)
        assert candidate.top_answer == 50.0
    assert choice.best is choice.candidates[0]  # it moves more, both ways


def test_one_answer_for_all_is_not_sound():
    # What is added to one option in every doc changes no calibrated confidence, but all answers.
    plain, shifted = choose(SETTINGS, [docs()]), choose(SETTINGS, [docs(shift=5.0)])
    assert shifted.candidates[1].difference == pytest.approx(plain.candidates[1].difference)
    assert shifted.candidates[1].top_answer == 100.0
    assert [candidate.is_sound for candidate in shifted.candidates] == [True, False]


def test_a_candidate_that_takes_the_options_probability_is_not_chosen():
    half = docs()
    for doc in half:
        doc.loglikelihoods[1] -= np.log(2)  # enhance of the first, which is the best
    choice = choose(SETTINGS, [half])
    assert choice.candidates[0].option_mass == pytest.approx(0.5)
    assert not choice.candidates[0].is_sound
    assert choice.chosen == 1


def test_of_equals_the_fewest_neurons_and_of_unsound_ones_the_best():
    rows = ROW[[0, 1, 2, 1, 2]]
    equal = [Scored(0, rows), Scored(1, rows[:, ::-1])]
    assert choose([(0.0, 9), (0.0, 4)], [equal]).best.top_k == 4
    unsound = docs()
    for doc in unsound:
        doc.loglikelihoods[[1, 3]] -= 5.0
    choice = choose(SETTINGS, [unsound])
    assert not any(candidate.is_sound for candidate in choice.candidates)
    assert choice.chosen == 0


def test_options_of_other_lengths_and_numbers():
    of_three = Scored(2, np.log([[0.1, 0.1, 0.2]] * 5))
    choice = choose(SETTINGS, [[*docs(), of_three]])
    assert choice.n_docs == 5
    halved = [Scored(doc.gold, doc.loglikelihoods * 2, (2.0, 2.0)) for doc in docs()]
    for candidate, plain in zip(
        choose(SETTINGS, [halved]).candidates, choose(SETTINGS, [docs()]).candidates, strict=True
    ):  # twice the log-likelihoods over twice the length
        assert candidate.difference == pytest.approx(plain.difference, abs=1e-4)


def test_no_docs_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no selection question has finite"):
        choose(SETTINGS, [[], []])
    path = tmp_path / "method_choice.json"
    values = json.loads(json.dumps(asdict(choose(SETTINGS, [docs()]))))
    path.write_text(json.dumps(values))
    assert MethodChoice.load(path).best.top_k == 4
    path.write_text(json.dumps({**values, "chosen": 2}))
    with pytest.raises(ArtifactError, match="chosen is 2 of 2 candidates"):
        MethodChoice.load(path)
