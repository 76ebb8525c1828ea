"""`--method auto`: chosen on halves of the selection questions, resumed, and told of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neuronllm_eval.attribution.methods import make_method
from neuronllm_eval.cli import main as cli
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.method_choice import MethodChoice
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.stages import choose
from neuronllm_eval.stages.choose import PENALTIES, SHARES
from tests.fixtures.cli import assert_one_message, call, identify, jsonl, without_the_harness_tasks
from tests.fixtures.processes import after_units

TASK = "demo_topic"
AUTO = ("--method", "auto", "--top_k", 64)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def auto(tmp_path_factory):
    """A finished run, what was scored to choose its settings, and what was said."""
    output = tmp_path_factory.mktemp("auto")
    scored = []
    score_conditions = choose.score_conditions

    def spy(engine, questions, factors, *more):
        scored.append(([question.question_id for question in questions], factors.copy()))
        return score_conditions(engine, questions, factors, *more)

    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        patch.setattr(choose, "score_conditions", spy)
        code, out, err = call(*identify(output, *AUTO))
    assert code == 0, err
    return RunDirectory(output / TASK), scored, out


def test_each_halfs_neurons_are_compared_on_the_other_half(auto):
    run, scored, _ = auto
    names = [line["question_id"] for line in jsonl(run.questions)]
    assert [questions for questions, _ in scored] == [names[1::2], names[::2]]
    scores = NeuronScores.load(run.path)
    for half, (_, factors) in enumerate(scored):
        assert len(factors) == 1 + 2 * len(PENALTIES) * len(SHARES)
        assert (factors[0] == 1).all()
        # The stored halves are of the penalty that was chosen.
        choice = MethodChoice.load(run.choice)
        number = choice.chosen
        best = np.argsort(-scores.half_sums[half].ravel(), kind="stable")[: choice.best.top_k]
        enhance, degrade = factors[1 + 2 * number].ravel(), factors[2 + 2 * number].ravel()
        assert (enhance[best] == 2).all()
        assert (degrade[best] == 0).all()
        assert (enhance == 2).sum() == choice.best.top_k


def test_the_run_is_of_what_was_chosen(auto):
    run, _, _ = auto
    choice = MethodChoice.load(run.choice)
    counts = sorted({each.top_k for each in choice.candidates})
    assert counts == [1, 4, 16, 64]
    assert sorted({each.penalty for each in choice.candidates}) == list(PENALTIES)
    assert choice.n_docs == sum(len(line["doc_ids"]) for line in jsonl(run.questions))
    neurons = NeuronSet.load(run.neurons)
    assert neurons.top_k == len(neurons.good) == choice.best.top_k
    assert neurons.provenance.method == "auto"
    assert json.loads(neurons.provenance.method_args) == {"penalty": choice.best.penalty}
    assert len(neurons.provenance.priors) == 4
    code, out, err = call("verify", run.path)
    assert code == 0, out + err


def test_the_report_has_what_was_tried(auto):
    run, _, _ = auto
    best = MethodChoice.load(run.choice).best
    lines = run.report.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if "Choice of the settings" in line)
    (taken,) = [line for line in lines[start:] if "| taken" in line]
    cells = [cell.strip() for cell in taken.split("|")[1:]]
    assert cells[:2] == [f"{best.penalty:g}", str(best.top_k)]
    assert cells[2] == f"{best.difference:+.1f} ± {best.error:.1f}"
    assert sum("| left out" in line for line in lines) == sum(
        not each.is_sound for each in MethodChoice.load(run.choice).candidates
    )


def test_an_interrupted_choice_is_resumed(auto, tmp_path):
    run, _, _ = auto
    n_units = len(jsonl(run.questions))  # of one question each
    with pytest.MonkeyPatch.context() as patch:

        def stop() -> None:
            raise KeyboardInterrupt

        patch.setattr(Part, "add", after_units(n_units + 1, stop))
        assert call(*identify(tmp_path, *AUTO))[0] == 130
    folder = RunDirectory(tmp_path / TASK)
    assert (folder.path / "checkpoint/choose_0").is_dir()
    assert not folder.neurons.exists()
    code, _, err = call(*identify(tmp_path, *AUTO))
    assert code == 0, err
    for name in ("method_choice.json", "neurons.json", "scores.safetensors"):
        assert (folder.path / name).read_bytes() == (run.path / name).read_bytes()
    assert not (folder.path / "checkpoint").exists()
    code, _, err = call(*identify(tmp_path, *AUTO, "--resume"))  # of the same settings
    assert code == 0, err


def test_a_given_penalty_leaves_the_number_of_neurons_to_choose(tmp_path):
    arguments = (*AUTO, "--method_args", "penalty=2")
    code, _, err = call(*identify(tmp_path, *arguments))
    assert code == 0, err
    choice = MethodChoice.load(tmp_path / TASK / "method_choice.json")
    assert [each.penalty for each in choice.candidates] == [2.0] * 4
    assert make_method("auto").penalty is None


def test_docs_that_are_not_finite_under_a_candidate_are_counted(tmp_path, monkeypatch, caplog):
    real = choose.score_conditions

    def first_fails(*arguments):
        for number, (question, docs) in enumerate(real(*arguments)):
            yield (
                question,
                DocError("NaN", expected="numbers", remedy="none") if number == 0 else docs,
            )

    monkeypatch.setattr(choose, "score_conditions", first_fails)
    code, _, err = call(*identify(tmp_path, *AUTO))
    assert code == 0, err
    n_docs = sum(len(line["doc_ids"]) for line in jsonl(RunDirectory(tmp_path / TASK).questions))
    counted = MethodChoice.load(tmp_path / TASK / "method_choice.json").n_docs
    assert counted < n_docs
    assert f"{TASK}: settings are chosen on {counted} of {n_docs} docs: the others" in caplog.text


def test_several_numbers_of_neurons_are_refused(tmp_path):
    result = call(*identify(tmp_path, "--method", "ace,auto", "--top_k", "4,8"))
    assert_one_message(result, 2, "top_k")


def test_all_that_was_taken_is_validated(tmp_path):
    first = identify(tmp_path, *AUTO)[1:]  # without the command
    arguments = (*first, "--conditions", "degrade", "--n_random", 1)
    code, _, err = call(*arguments, entry=cli.run_eval_main)
    assert code == 0, err
    run = RunDirectory(tmp_path / TASK)
    assert (
        json.loads(run.validation.read_text())["top_k"] == MethodChoice.load(run.choice).best.top_k
    )
    code, out, err = call("verify", run.path)
    assert code == 0, out + err
