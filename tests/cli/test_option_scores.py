"""`--option_scores` of the commands: answers as the task's main metric, on disk and in reports."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.tasks import TaskManager

from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    identify,
    jsonl,
    without_the_harness_tasks,
)
from tests.fixtures.harness import TaskFolder, a_doc, include_paths, model_dir

QUICK = ("--n_random", 1, "--conditions", "degrade")
TASK = "words"
# Its tokens are characters, so that options share their first tokens, and short ones win by sums.
MODEL = model_dir("split_space")
N_TEST = 24


@pytest.fixture(autouse=True)
def quick_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> TaskFolder:
    """A task whose main metric is acc_norm; its options differ in characters and bytes."""
    folder = TaskFolder(tmp_path_factory.mktemp("tasks"))
    options = [[f"the {n} cats", f"the {n % 7} çàts", f"the {n}"] for n in range(40)]
    docs = [{**a_doc(n, (1, 1, 2, 0)[n % 4]), "choices": options[n]} for n in range(40)]
    folder.write(
        TASK,
        {"train": docs[N_TEST:], "test": docs[:N_TEST]},
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        metric_list=[{"metric": metric} for metric in ("acc_norm", "acc", "acc_bytes")],
    )
    return folder


def flags(folder: TaskFolder, output: Path, *more: object) -> tuple[object, ...]:
    return (*identify(output, *more, task=TASK, path=MODEL), "--include_path", folder.path)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> dict[str, RunDirectory]:
    """A finished run by each of the scores; not to be changed."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for scores in ("auto", "sum", "per_byte"):
            output = tmp_path_factory.mktemp(scores)
            chosen = () if scores == "auto" else ("--option_scores", scores)
            run = made[scores] = RunDirectory(output / TASK)
            for command in (
                flags(folder, output, "--top_k", 6, "--limit", 12, *chosen),
                ("validate", run.path, *QUICK, "--limit", N_TEST),
            ):
                code, _, err = call(*command)
                assert code == 0, err
    return made


@pytest.fixture(scope="module")
def stock(folder) -> dict[str, float]:
    """The metrics of `lm_eval --model hf`."""
    manager = TaskManager(include_path=include_paths(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(MODEL)}, tasks=[TASK], task_manager=manager,
        batch_size=1, device="cpu", log_samples=False,
    )  # fmt: skip
    return {
        metric: results["results"][TASK][f"{metric},none"]
        for metric in ("acc", "acc_norm", "acc_bytes")
    }


METRICS = {"auto": "acc_norm", "sum": "acc", "per_byte": "acc_bytes"}


@pytest.mark.parametrize("scores", METRICS)
def test_answers_are_those_of_the_metric(runs, stock, scores):
    run, metric = runs[scores], METRICS[scores]
    table = DocTable.load(run.conditions, TASK)
    assert table.correct["unmasked"].mean() == pytest.approx(stock[metric], abs=1e-9)
    for name in table.conditions[:2]:
        results = json.loads(run.result(name).read_text())["results"][TASK]
        assert table.correct[name].mean() == pytest.approx(results[f"{metric},none"], abs=1e-9)
    unmasked = json.loads(run.result("unmasked").read_text())["results"][TASK]
    assert {each: unmasked[f"{each},none"] for each in stock} == pytest.approx(stock)


def test_the_metrics_tell_them_apart(stock):
    assert len(set(stock.values())) == 3


@pytest.mark.parametrize(
    ("scores", "resolved"),
    [("auto", "per_character"), ("sum", "sum"), ("per_byte", "per_byte")],
)
def test_what_was_compared_is_on_disk(runs, scores, resolved):
    run = runs[scores]
    assert yaml.safe_load(run.settings.read_text())["settings"]["option_scores"] == resolved
    assert NeuronScores.load(run.path).provenance.option_scores == resolved
    lines = jsonl(run.conditions)
    # "the 0 cats", "the 0 çàts" with two characters of two bytes each, and "the 0".
    expected = {"per_character": [10.0, 10.0, 5.0], "per_byte": [10.0, 12.0, 5.0]}
    assert lines[0].get("lengths") == expected.get(resolved)
    assert ("lengths" in lines[0]) == (resolved != "sum")
    words = {"per_character": "per character, as in acc_norm", "per_byte": "per byte, as in acc_b"}
    for each, text in words.items():
        assert (text in run.report.read_text()) == (each == resolved)


def test_right_answers_of_the_selection_are_those_of_the_scores(runs):
    # The log-likelihoods of questions.jsonl have all tokens where they are divided.
    for scores in ("auto", "sum"):
        for line in jsonl(runs[scores].questions):
            n = int(line["question_id"].removeprefix(f"{TASK}-")) + N_TEST
            lengths = [len(f"the {n} cats"), 10, len(f"the {n}")] if scores == "auto" else [1.0] * 3
            (loglikelihoods,) = line["loglikelihoods"]
            answer = int(np.argmax(np.divide(loglikelihoods, lengths)))
            assert line["right"] == [answer == line["gold"][0]]


def test_neurons_depend_on_what_is_compared(runs):
    auto, plain, by_byte = (NeuronScores.load(runs[name].path).score for name in METRICS)
    for one, other in ((auto, plain), (auto, by_byte), (plain, by_byte)):
        assert np.abs(one - other).max() > 0.01 * np.abs(one).max()


@pytest.mark.parametrize("scores", ["auto", "sum"])
def test_verify_recomputes_it(runs, scores, tmp_path):
    code, out, err = call("verify", runs[scores].path, "--limit", 4)
    assert code == 0, out + err
    assert "result files follow from the docs" in out


def test_lengths_that_are_not_the_tasks_are_found(runs, tmp_path):
    run = copy_of(runs["auto"], tmp_path / TASK)
    lines = jsonl(run.conditions)
    for line in lines:
        line["lengths"] = [length + 1 for length in line["lengths"]]
    run.conditions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, out, _ = call("verify", run.path, "--limit", 4)
    assert code == 1
    assert "largest difference inf" in out


def test_a_run_of_one_is_not_resumed_as_another(runs, folder, tmp_path):
    run = copy_of(runs["auto"], tmp_path / TASK)
    command = flags(folder, tmp_path, "--top_k", 6, "--limit", 12, "--resume")
    assert call(*command)[0] == 0  # auto leaves it open
    result = call(*command, "--option_scores", "sum")
    assert_one_message(result, 2, "option_scores", "'sum'", "'per_character'")
    change_settings(run, option_scores="sum")
    assert_one_message(call("validate", run.path, *QUICK), 1, "has option_scores 'per_character'")


def test_a_run_of_an_earlier_version_compared_sums(runs, tmp_path):
    run = copy_of(runs["sum"], tmp_path / TASK)
    values = yaml.safe_load(run.settings.read_text())
    del values["settings"]["option_scores"]
    run.settings.write_text(yaml.safe_dump(values))
    code, _, err = call("validate", run.path, *QUICK, "--limit", 3, "--overwrite")
    assert code == 0, err
    assert not any("lengths" in line for line in jsonl(run.conditions))


def test_letters_of_an_aqua_task_have_no_lengths(tmp_path):
    command = identify(tmp_path / "run", "--option_scores", "per_byte")
    assert_one_message(call(*command), 2, "option_scores is per_byte", "AQUA task", "letters")
    command = identify(tmp_path / "run", "--option_scores", "per_word")
    assert_one_message(call(*command), 2, "invalid choice: 'per_word'", "'per_byte'")
