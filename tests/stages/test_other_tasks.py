"""`validate --also`: the same conditions and controls on other tasks, known to every reader."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.finished_run import Run as FinishedRun
from neuronllm_eval.runs.artifacts import load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.stages import evaluate
from neuronllm_eval.stages.verify import check_files
from tests.fixtures.cli import (
    QUICK,
    SCORED,
    assert_one_message,
    call,
    change_settings,
    finished_run,
    without_the_harness_tasks,
)
from tests.fixtures.harness import TaskFolder
from tests.fixtures.processes import after_units


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> TaskFolder:
    tasks = TaskFolder(tmp_path_factory.mktemp("tasks"))
    tasks.write("letters", aqua=True)
    tasks.write("words")
    return tasks


def validate(run: RunDirectory, folder: TaskFolder, also: str, *more: object):
    return call("validate", run.path, *QUICK, "--device", "cpu", "--also", also,
                "--include_path", folder.path, *more)  # fmt: skip


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory) -> tuple[RunDirectory, str]:
    """A run validated on two other tasks, not to be changed, and what the command said."""
    run = RunDirectory(tmp_path_factory.mktemp("both") / "demo_topic")
    shutil.copytree(finished_run().path, run.path)
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        code, out, err = validate(run, folder, "words,letters")
    assert code == 0, err
    times = [run.conditions.stat().st_mtime_ns for run in (run, finished_run())]
    assert times[0] == times[1]  # the run's own validation is kept
    return RunDirectory(run.path), out


@pytest.fixture
def copied(both, tmp_path) -> RunDirectory:
    shutil.copytree(both[0].path, tmp_path / "demo_topic")
    return RunDirectory(tmp_path / "demo_topic")


def changed(before: RunDirectory, after: RunDirectory) -> set[str]:
    """The files that differ, but for those that name the time or the folder."""

    def content(run: RunDirectory) -> dict[str, bytes]:
        files = (path for path in run.path.rglob("*") if path.is_file())
        files = (path for path in files if path.parent.name != "results")
        return {str(path.relative_to(run.path)): path.read_bytes() for path in files}

    one, other = content(before), content(after)
    ignored = (".lock", "commands.jsonl", "SHA256SUMS", "report.md", "report.html", "README.md")
    names = (name for name in one.keys() | other.keys() if Path(name).name not in ignored)
    return {name for name in names if one.get(name) != other.get(name)}


def test_a_folder_per_task_has_the_files_of_a_validation(both, folder):
    run, _ = both
    assert [each.path.name for each in run.on_other_tasks] == ["letters", "words"]
    for other in run.on_other_tasks:
        table = DocTable.load(other.conditions, other.path.name)
        assert table.conditions == SCORED
        assert {path.stem for path in (other.path / "results").iterdir()} == set(SCORED)
    settings = load_settings(run.on_other_task("words"))
    assert (settings.task, settings.limit) == ("words", 4)
    assert str(folder.path) in settings.include_path
    assert settings.num_fewshot == load_settings(run).num_fewshot


def test_figures_are_those_of_the_masked_model_on_the_task(both, folder, tmp_path):
    run, _ = both
    other = run.on_other_task("words")
    pretrained = load_settings(run).model_args["pretrained"]
    for condition in ("enhance", "suppress_good.random_1"):
        code, _, err = call(
            "run",
            "--model", "neuronllm", "--tasks", "words", "--include_path", folder.path,
            "--num_fewshot", load_settings(other).num_fewshot, "--device", "cpu", "--limit", 4,
            "--output_path", tmp_path / condition, "--log_samples",
            "--model_args", f"pretrained={pretrained},neurons={run.path},condition={condition}",
        )  # fmt: skip
        assert code == 0, err
        (file,) = (tmp_path / condition).rglob("samples_words*.jsonl")
        samples = map(json.loads, file.read_text().splitlines())
        lines = map(json.loads, other.conditions.read_text().splitlines())
        for sample, line in zip(samples, lines, strict=True):
            stored = line["loglikelihoods"][condition]
            assert stored == pytest.approx([float(each[0]) for each in sample["filtered_resps"]],
                                           abs=1e-4)  # fmt: skip
        result = json.loads(other.result(condition).read_text())
        assert result["config"]["model_args"]["neurons"] == str(run.path)


def test_reports_and_runs_have_a_column_for_each_task(both):
    run, said = both
    table = said[said.index("### Effect on other tasks") :]
    head, _, unmasked, suppressed, *_ = [line for line in table.splitlines() if "|" in line]
    assert [cell.strip() for cell in head.split("|")][1:5] == [
        "condition", "demo_topic (own)", "letters", "words"]  # fmt: skip
    assert table[: table.index("### Selection")] in run.report.read_text()
    others = FinishedRun(run.path).other_tasks
    assert list(others) == ["letters", "words"]
    stored = json.loads(run.on_other_task("words").summary.read_text())
    effect = others["words"]["suppress_good"]
    assert stored["conditions"][1]["accuracy"]["delta"] == effect.accuracy.delta
    controls = effect.controls
    cell = suppressed.split("|")[4].strip()
    assert cell.startswith(f"{effect.accuracy.delta:+.1f} (")
    assert cell.endswith(f"random {controls.mean:+.1f}")
    accuracy = others["words"]["unmasked"].accuracy.condition
    assert unmasked.split("|")[4].strip() == f"{accuracy:.1f}% (25.0%)"


def test_comparisons_show_them(both):
    run, _ = both
    code, out, err = call("compare", run.path, "--rank", "--format", "markdown")
    assert code == 0, err
    assert "| condition " in out[out.index("## On other tasks") :]
    code, out, _ = call("compare", run.path, "--rank", "--format", "json")
    found = json.loads(out)
    deltas = {(each["name"], each["on"]): each["delta"] for each in found["other_tasks"]}
    assert deltas.keys() == {
        (name, task) for name in ("suppress_good", "enhance") for task in ("letters", "words")
    }
    (row,) = [row for row in found["rows"] if row["name"] == "enhance"]
    mean = (deltas["enhance", "letters"] + deltas["enhance", "words"]) / 2
    assert row["others_delta"] == pytest.approx(mean)


def test_repeating_it_changes_nothing_and_more_tasks_are_added(both, copied, folder, monkeypatch):
    monkeypatch.setattr(evaluate, "report_task", lambda *_, **__: "")
    code, _, err = validate(copied, folder, "words", "--resume")
    assert code == 0, err
    assert changed(both[0], copied) == set()
    shutil.rmtree(copied.path / "also" / "letters")
    code, _, err = validate(RunDirectory(copied.path), folder, "words,letters")
    assert code == 0, err
    differing = changed(both[0], copied)
    assert differing == {"also/letters/summary.json"}  # which the report would have written


def test_other_conditions_are_refused_and_a_replaced_validation_takes_them_away(copied, folder):
    shutil.rmtree(copied.path / "also" / "letters")
    result = validate(copied, folder, "words,letters", "--seed", 5)
    assert_one_message(result, 2, "seed is 5, there 0")
    code, _, err = call("validate", copied.path, *QUICK, "--device", "cpu", "--overwrite")
    assert code == 0, err
    assert not (copied.path / "also").exists()
    assert "other tasks" not in copied.report.read_text()


def test_a_task_that_asks_otherwise_than_before_is_not_kept(copied, folder, tmp_path):
    path = tmp_path / "tasks"
    shutil.copytree(folder.path, path)
    file = path / "words.yaml"
    file.write_text(file.read_text().replace("Answer:", "It is:"))
    # Here the name is found first, which the run's own folders would have.
    change_settings(copied.on_other_task("words"), include_path=[str(path)])
    shutil.rmtree(copied.path / "also" / "letters")
    result = validate(copied, TaskFolder(path), "words,letters")
    assert_one_message(result, 2, "also/words already holds a run of other settings: validation_pr")


def test_it_is_resumed_where_it_was_interrupted(both, folder, tmp_path):
    run = RunDirectory(tmp_path / "demo_topic")
    shutil.copytree(finished_run().path, run.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "add", after_units(2, lambda: signal.raise_signal(signal.SIGINT)))
        code, *_ = validate(run, folder, "words,letters")
    assert code == 130
    assert run.on_other_task("words").validating.is_dir()
    code, _, err = call("report", run.path)  # without the unfinished one
    assert code == 0, err
    assert "other tasks" not in run.report.read_text()
    code, _, err = validate(RunDirectory(run.path), folder, "words,letters")
    assert code == 0, err
    assert changed(both[0], run) == set()


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("words,wods", "unknown task 'wods'"),
        ("demo_topic", "also is 'demo_topic', which the neurons were selected on"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(
    folder, monkeypatch, tmp_path, also, message
):
    run = RunDirectory(tmp_path / "demo_topic")
    shutil.copytree(finished_run().path, run.path)
    monkeypatch.setattr(evaluate, "loaded_once", lambda load: pytest.fail)
    assert_one_message(validate(run, folder, also), None, message)
    assert not (run.path / "also").exists()


def test_a_dry_run_estimates_each_and_writes_nothing(both, folder, tmp_path):
    run = RunDirectory(tmp_path / "demo_topic")
    shutil.copytree(finished_run().path, run.path)
    code, out, err = validate(run, folder, "words", "--dry_run", "--overwrite")
    assert code == 0, err
    assert [line.split("|")[1].split()[0] for line in out.splitlines() if "validate" in line] == [
        "demo_topic", "words"]  # fmt: skip
    assert not (run.path / "also").exists()


def test_verify_recomputes_them(copied):
    code, out, err = call("verify", copied.path, "--device", "cpu", "--limit", 1)
    assert code == 0, err
    for task in ("letters", "words"):
        assert f"{task}: validation docs recomputed under {len(SCORED)} conditions" in out
    other = copied.on_other_task("words")
    other.result("enhance").write_text(other.result("enhance").read_text() + " ")
    check = check_files(other)
    assert not check.passed
    assert check.name == "words: files are as they were written"
    assert "enhance.json" in check.detail


def test_files_of_another_validation_are_refused(copied):
    other = copied.on_other_task("words")
    values = json.loads(other.validation.read_text())
    other.validation.write_text(json.dumps({**values, "enhance_scale": 3.0}))
    (other.path / "SHA256SUMS").unlink()
    result = call("report", copied.path)
    assert_one_message(result, 1, "is of other neurons, factors or positions than the run's own")


def test_task_files_inside_the_run_are_not_read(copied):
    other = copied.on_other_task("words")
    inside = copied.path / "tasks"
    inside.mkdir()
    change_settings(other, include_path=[str(inside)])
    assert yaml.safe_load(other.settings.read_text())["settings"]["include_path"] == [str(inside)]
    with pytest.raises(ArtifactError, match=r"settings\.include_path has"):
        load_settings(RunDirectory(copied.path).on_other_task("words"))
