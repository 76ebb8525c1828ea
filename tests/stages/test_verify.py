"""`verify`: a consistent run passes, and whatever was changed in one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from neuronllm_eval.attribution import identify as identification
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import load_settings
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    jsonl,
    list_all,
    without_the_harness_tasks,
)
from tests.fixtures.cli import identify as identify_flags
from tests.fixtures.harness import model_dir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "demo_topic")


def verdicts(run: RunDirectory, *more: object) -> tuple[int, dict[str, str]]:
    """The exit code, and per check the rest of its row."""
    code, out, err = call("verify", list_all(run).path, "--device", "cpu", *more)
    assert "Traceback" not in err
    rows = [line.split("|") for line in out.splitlines() if line.count("|") == 4]
    return code, {row[1].strip(): f"{row[2].strip()} {row[3].strip()}" for row in rows[2:]}


def unsound(found: dict[str, str]) -> set[str]:
    return {name for name, rest in found.items() if not rest.startswith("yes")}


def rewrite(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_sound_run_is_sound_to_the_bit(run):
    code, found = verdicts(run, "--limit", 4)
    assert (code, unsound(found)) == (0, set())
    assert found["scores recomputed"] == "yes to the bit"
    assert len(found) == 11


def test_files_that_changed_since_they_were_written_are_named(run):
    list_all(run)
    run.result("enhance").write_text(run.result("enhance").read_text() + " ")
    run.report.unlink()
    (run.path / "adapters" / "enhance" / "adapter_config.json").unlink()
    run.tokens.write_text("{}")
    code, out, _ = call("verify", run.path, "--device", "cpu")
    (row,) = [line for line in out.splitlines() if "files are as they were written" in line]
    assert code == 1
    assert "| NO " in row
    for problem in ("adapter_config.json is missing", "report.md is missing", "tokens.json was"):
        assert problem in row
    assert "(and 1 more)" in row
    assert "recomputed" not in out


def test_a_run_without_digests_is_not_verified(run):
    code, out, _ = call("verify", run.path, "--device", "cpu")
    assert code == 1
    assert "there is no SHA256SUMS" in out


def test_a_sample_leaves_the_scores_alone(run):
    code, found = verdicts(run, "--limit", 2)
    assert (code, unsound(found)) == (0, set())
    assert "scores recomputed" not in found
    assert "2 questions" in found["selection questions recomputed"]


def test_another_batch_size_is_only_rounding(run):
    code, found = verdicts(run, "--limit", 4, "--batch_size", 12)
    assert (code, unsound(found)) == (0, set())


def test_a_batch_size_that_was_chosen_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr("neuronllm_eval.stages.prepare.auto_batch_size", lambda *_: 6)
    out = tmp_path / "runs"
    assert call(*identify_flags(out, "--batch_size", "auto"))[0] == 0
    run = RunDirectory(out / "demo_topic")
    assert load_settings(run).batch_size == "auto"
    assert NeuronSet.load(run.neurons).provenance.batch_size == 6
    sizes = []
    attributed = identification.attribute_all

    def attribute_all(engine, prompts, **settings):
        sizes.append(len(prompts))
        return attributed(engine, prompts, **settings)

    monkeypatch.setattr(identification, "attribute_all", attribute_all)
    code, found = verdicts(run, "--limit", 4)
    assert (code, unsound(found)) == (0, set())
    assert found["scores recomputed"] == "yes to the bit"
    assert max(sizes) == 6
    sizes.clear()
    assert verdicts(run, "--limit", 4, "--batch_size", 3)[0] == 0
    assert max(sizes) == 3


def test_without_a_validation_only_the_selection_is_checked(run):
    run.clear_validation()
    code, found = verdicts(run, "--limit", 2)
    assert code == 0
    assert not any("validation" in name for name in found)


def test_changed_log_likelihoods_of_a_question(run):
    lines = jsonl(run.questions)
    lines[1]["loglikelihoods"][0][2] += 0.01
    rewrite(run.questions, lines)
    code, found = verdicts(run, "--limit", 4)
    assert (code, unsound(found)) == (1, {"selection questions recomputed"})


def test_a_missing_question(run):
    rewrite(run.questions, jsonl(run.questions)[:-1])
    code, found = verdicts(run, "--limit", 2)
    assert (code, unsound(found)) == (1, {"questions are all there"})


def test_a_question_of_another_task(run):
    lines = jsonl(run.questions)
    lines[0]["question_id"] = "stranger"
    rewrite(run.questions, lines)
    code, found = verdicts(run, "--limit", 2)
    assert code == 1
    assert "stranger" in found["questions are those of the task"]


def test_changed_log_likelihoods_of_a_condition(run):
    lines = jsonl(run.conditions)
    for line in lines:
        line["loglikelihoods"]["enhance"][0] += 0.01
    rewrite(run.conditions, lines)
    code, found = verdicts(run, "--limit", 4)
    assert code == 1
    assert any("recomputed under 7 conditions" in name for name in unsound(found))


def test_a_changed_result_file(run):
    path = run.result("enhance")
    values = json.loads(path.read_text())
    values["results"]["demo_topic"]["acc,none"] += 0.1
    path.write_text(json.dumps(values))
    code, found = verdicts(run, "--limit", 2)
    assert (code, unsound(found)) == (1, {"result files follow from the docs"})
    assert "enhance" in found["result files follow from the docs"]


def test_changed_scores(run):
    arrays = load_file(run.scores)
    with safe_open(run.scores, "numpy") as file:
        metadata = file.metadata()
    arrays["score"][0, :9] += 1.0
    arrays["half_sums"][0, 0, :9] += 1.0
    save_file(arrays, run.scores, metadata)
    code, found = verdicts(run, "--limit", 4)
    assert code == 1
    assert {"neurons follow from the scores", "scores recomputed"} <= unsound(found)


def test_other_weights(run):
    # The same words and sizes, other random numbers.
    change_settings(run, model_args={"pretrained": str(model_dir(seed=1))})
    code, found = verdicts(run, "--limit", 2)
    assert code == 1
    assert "weights are the run's" in unsound(found)
    assert "selection questions recomputed" in unsound(found)


def test_a_damaged_line_is_one_message(run):
    lines = jsonl(run.questions)
    for line in lines:
        line["loglikelihoods"] = [["x", "y", "z", "w"] for _ in line["doc_ids"]]
    rewrite(run.questions, lines)
    result = call("verify", list_all(run).path, "--device", "cpu", "--limit", 4)
    assert_one_message(result, 1, "line 1: loglikelihoods.0.0 is 'x'", "run identify again")


def test_a_sample_of_nothing_is_refused(run):
    result = call("verify", run.path, "--limit", 0)
    assert_one_message(result, 2, "limit is 0")


def test_neurons_attributed_in_another_type_than_the_models(tmp_path):
    out = tmp_path / "runs"
    flags = [
        f"pretrained={model_dir()},dtype=bfloat16" if str(each).startswith("pretrained=") else each
        for each in identify_flags(out, "--attribution_dtype", "float32")
    ]
    assert call(*flags)[0] == 0
    run = RunDirectory(out / "demo_topic")
    assert call("validate", run.path, "--device", "cpu", "--limit", 2)[0] == 0
    code, found = verdicts(run, "--limit", 4)
    assert (code, unsound(found)) == (0, set())
    assert found["scores recomputed"] == "yes to the bit"


def test_docs_that_are_no_list_are_one_message(run):
    lines = jsonl(run.questions)
    lines[0]["doc_ids"] = 5
    rewrite(run.questions, lines)
    result = call("verify", list_all(run).path, "--device", "cpu", "--limit", 2)
    assert_one_message(result, 1, "line 1: doc_ids is 5", "run identify again")
