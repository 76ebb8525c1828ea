"""The command line, from identify to lm_eval's own run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from neuronllm_eval.cli import evaluate as commands
from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.tasks import load_tasks
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.artifacts import load_settings, load_validation
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import EvaluateSettings
from neuronllm_eval.stages import prepare as preparation
from neuronllm_eval.stages.evaluate import requested_settings
from tests.fixtures.cli import (
    QUICK,
    SCORED,
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished,
    finished_run,
    identify,
    jsonl,
    stock,
    without_the_harness_tasks,
)
from tests.fixtures.harness import (
    CHATML,
    N_LAYERS,
    WIDTH,
    TaskFolder,
    harness_model,
    include_paths,
    model_dir,
)

ROOT = Path(__file__).resolve().parents[2]
SAME_BYTES = (
    "scores.safetensors", "neurons.json", "questions.jsonl", "conditions.jsonl",
    "validation_docs.jsonl", "tokens.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def outputs() -> tuple[Path, dict[str, str]]:
    return finished()


@pytest.fixture(scope="module")
def run() -> RunDirectory:
    return finished_run()


@pytest.fixture
def copied(run, tmp_path) -> RunDirectory:
    return copy_of(run, tmp_path / "copy")


@pytest.fixture
def only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


# Artifacts --------------------------------------------------------------------------------------


def test_the_artifacts_of_a_run(run):
    assert sorted(path.name for path in run.path.iterdir()) == [
        ".lock",
        "README.md",
        "SHA256SUMS",
        "adapters",
        "commands.jsonl",
        "conditions.jsonl",
        "neurons.json",
        "questions.jsonl",
        "report.html",
        "report.md",
        "results",
        "run.yaml",
        "scores.safetensors",
        "summary.json",
        "tokens.json",
        "validation.json",
        "validation_docs.jsonl",
    ]
    results = {path.name for path in (run.path / "results").iterdir()}
    assert results == {f"{name}.json" for name in SCORED}
    adapters = {path.name for path in (run.path / "adapters").iterdir()}
    assert adapters == set(CONDITIONS) - {"unmasked"}


def test_the_commands_are_noted():
    lines = jsonl(finished_run().commands)
    assert [line["stage"] for line in lines] == ["identify", "validate"]
    assert lines[0]["command"][:2] == ["neuronllm-eval", "identify"]
    assert lines[1]["command"][:2] == ["neuronllm-eval", "validate"]
    assert lines[0]["processes"] == 1
    assert lines[0]["versions"]["lm_eval"] == importlib.metadata.version("lm_eval")


def test_settings_and_neurons(run):
    settings = load_settings(run)
    assert settings.model_args == {"pretrained": str(model_dir())}
    assert (settings.task, settings.limit, settings.top_k) == ("demo_topic", 4, 6)
    assert settings.n_steps == 8  # resolved: what layers may have on average
    assert len(settings.layer_nodes.split()) == N_LAYERS
    versions = yaml.safe_load(run.settings.read_text())["versions"]
    assert versions["lm_eval"] == lm_eval.__version__
    assert set(versions) >= {"neuronllm-eval", "torch", "transformers"}

    neurons, scores = NeuronSet.load(run.neurons), NeuronScores.load(run.path)
    assert neurons.shape == scores.shape == (N_LAYERS, WIDTH)
    assert (len(neurons.good), len(neurons.bad), neurons.top_k) == (6, 6, 6)
    assert neurons.provenance == scores.provenance
    origin = scores.provenance
    assert (origin.task, origin.split) == ("demo_topic", "selection")
    assert (origin.n_questions, origin.n_prompts, origin.n_proxies) == (4, 12, 3)
    assert (origin.num_fewshot, origin.engine, origin.top_z) == (1, "fan_out", 5)


def test_lines_of_questions_and_of_conditions(run):
    asked = jsonl(run.questions)
    assert len(asked) == 4
    for record in asked:
        rows = np.array(record["loglikelihoods"])
        assert rows.shape == (3, 4)
        assert record["right"] == (rows.argmax(1) == record["gold"]).tolist()
    judged = jsonl(run.conditions)
    assert [line["doc_id"] for line in judged] == list(range(12))
    assert {line["split"] for line in judged} == {"validation"}
    assert {tuple(line["loglikelihoods"]) for line in judged} == {SCORED}
    assert {line["question_id"] for line in judged}.isdisjoint(r["question_id"] for r in asked)


def test_result_files_agree_with_the_lines(run):
    judged = jsonl(run.conditions)
    for name in SCORED:
        right = [np.argmax(x["loglikelihoods"][name]) == x["gold"] for x in judged]
        metrics = json.loads(run.result(name).read_text())["results"]["demo_topic"]
        assert metrics["acc,none"] == np.mean(right)
    summary = json.loads(run.summary.read_text())["conditions"]
    assert [entry["condition"] for entry in summary] == ["unmasked", "suppress_good", "enhance"]
    for entry in summary:
        metrics = json.loads(run.result(entry["condition"]).read_text())["results"]["demo_topic"]
        assert entry["accuracy"]["condition"] == pytest.approx(100 * metrics["acc,none"])


def test_a_result_file_has_all_that_stock_writes(run, tmp_path):
    tracker = EvaluationTracker(output_path=str(tmp_path))
    stock = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(model_dir())}, tasks=["demo_topic"], limit=12,
        task_manager=TaskManager(include_path=include_paths(), include_defaults=False),
        device="cpu", batch_size=1, evaluation_tracker=tracker, log_samples=False,
    )  # fmt: skip
    tracker.save_results_aggregated(results=stock)
    (written,) = tmp_path.glob("**/results_*.json")
    stock, ours = json.loads(written.read_text()), json.loads(run.result("unmasked").read_text())
    assert ours["results"] == stock["results"]
    assert set(ours) == set(stock)
    assert set(stock["config"]) - set(ours["config"]) == set()


def test_a_run_with_a_chat_template_is_as_in_stock(tmp_path):
    path = model_dir("chat", chat_template=CHATML)
    flags = (
        "--apply_chat_template", "--system_instruction", "Think of birds.", "--num_fewshot", 2,
        "--letter_style", "(A)",
    )  # fmt: skip
    code, _, err = call(*identify(tmp_path, *flags, path=path)[1:], *QUICK, entry=cli.run_eval_main)
    assert code == 0, err
    run = RunDirectory(tmp_path / "demo_topic")
    manager = TaskManager(
        include_path=include_paths(), include_defaults=False, metadata={"letter_style": "(A)"}
    )
    stock = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(path)}, tasks=["demo_topic"], limit=12,
        task_manager=manager, device="cpu", batch_size=1, apply_chat_template=True,
        fewshot_as_multiturn=True, system_instruction="Think of birds.", num_fewshot=2,
    )  # fmt: skip
    found = json.loads(run.result("unmasked").read_text())
    assert found["results"]["demo_topic"] == stock["results"]["demo_topic"]
    assert found["system_instruction"] == "Think of birds."
    assert found["chat_template"] == CHATML
    assert found["fewshot_as_multiturn"] is True
    values = [
        [response[0][0] for response in sample["resps"]]
        for sample in stock["samples"]["demo_topic"]
    ]
    lines = [line["loglikelihoods"]["unmasked"] for line in jsonl(run.conditions)]
    np.testing.assert_allclose(lines, values, rtol=0, atol=1e-4)
    assert "\n(A) " in stock["samples"]["demo_topic"][0]["arguments"][0][0]


# What is said -----------------------------------------------------------------------------------


def test_what_the_commands_print(outputs, run):
    output, said = outputs
    report = run.report.read_text()
    assert said["validate"] == said["report"]
    assert report.startswith(said["validate"])  # and goes on with single answers and neurons
    assert report.startswith("## demo_topic\n\nThe unmasked model is not clearly above chance ")
    assert " about the task. Suppressing 6 good neurons " in report.splitlines()[2]
    assert said["identify"].startswith(
        "demo_topic: Selected 6 good and 6 bad neurons of 96. Unmasked accuracy "
    )
    assert said["identify"].endswith(f"written to {output}\n")


def test_the_report_can_be_made_again(copied):
    files = (copied.report, copied.summary, copied.page)
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    assert call("report", copied.path)[0] == 0
    assert [path.read_bytes() for path in files] == before


def test_version_and_help():
    code, out, _ = call("--version")
    assert (code, out.split()[0]) == (0, "neuronllm-eval")
    code, out, _ = call("--help")
    assert code == 0
    for command in ("identify", "validate", "report", "run"):
        assert f"    {command} " in out


def test_the_folder_of_the_packaged_tasks():
    assert call("tasks")[:2] == (0, f"{tasks_dir()}\n")


# Reproducing ------------------------------------------------------------------------------------


def test_the_same_commands_give_the_same_bytes(run, tmp_path):
    assert call(*identify(tmp_path, "--top_k", 6))[0] == 0
    assert call("validate", tmp_path, *QUICK)[0] == 0
    for name in (*SAME_BYTES, "run.yaml", "summary.json"):
        again = (tmp_path / "demo_topic" / name).read_bytes()
        assert again == (run.path / name).read_bytes(), name
    assert_same_reports(tmp_path / "demo_topic", run.path)


def assert_same_reports(folder: Path, other: Path) -> None:
    """The reports are the same, but for the commands of the run, with which they end."""
    for name in ("report.md", "report.html"):
        texts = [
            (path / name).read_text().split("Commands of this run") for path in (folder, other)
        ]
        assert texts[0][0] == texts[1][0], name
        assert len(texts[0]) == 2


def test_another_seed_gives_other_prompts_and_controls(run, tmp_path):
    assert call(*identify(tmp_path, "--top_k", 6, "--seed", 3))[0] == 0
    other = RunDirectory(tmp_path / "demo_topic")
    assert other.questions.read_bytes() != run.questions.read_bytes()
    assert NeuronScores.load(other.path).provenance.seed == 3
    assert call("validate", tmp_path, *QUICK, "--seed", 5)[0] == 0
    assert "suppress_good.random_6" in jsonl(other.conditions)[0]["loglikelihoods"]


def test_batches_and_engines_agree(run, tmp_path):
    ways = {"plain": (), "batch": ("--batch_size", 12), "replay": ("--engine", "replay")}
    for name, more in ways.items():
        output = tmp_path / name
        # The replay engine, being slow, chooses nodes by fewer prompts.
        arguments = identify(output, "--top_k", 6, "--quadrature", "gauss_legendre", *more)
        assert call(*arguments)[0] == 0
        assert call("validate", output, *QUICK)[0] == 0
        other = RunDirectory(output / "demo_topic")
        plain = RunDirectory(tmp_path / "plain" / "demo_topic")
        scores, expected = NeuronScores.load(other.path), NeuronScores.load(plain.path)
        np.testing.assert_allclose(scores.letter_sums, expected.letter_sums, rtol=0, atol=1e-4)
        rows = [
            [line["loglikelihoods"][condition] for condition in ("unmasked",)]
            for line in jsonl(other.conditions)
        ]
        wanted = [[line["loglikelihoods"]["unmasked"]] for line in jsonl(run.conditions)]
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-4)
    assert NeuronScores.load(other.path).provenance.engine == "replay"


def test_identify_in_a_run_that_is_there(copied, tmp_path):
    output = tmp_path / "runs"
    shutil.copytree(copied.path, output / "demo_topic")
    code, _, err = call(*identify(output))
    assert code == 2
    assert "already holds a run" in err
    assert call(*identify(output, "--overwrite"))[0] == 0
    assert not (output / "demo_topic" / "conditions.jsonl").exists()  # of the neurons before


# Validation's own flags -------------------------------------------------------------------------


def test_validate_with_fewer_neurons_says_so(copied):
    assert call("validate", copied.path, *QUICK, "--top_k", 2)[0] == 0
    assert "Suppressing 2 good neurons " in copied.report.read_text()
    assert len(NeuronSet.load(copied.neurons).good) == 6  # what was found stays


@pytest.mark.parametrize(("given", "there", "warned"), [
    ([], True, True), ([], False, False), (["--dry_run"], True, False), (["-L", "3"], True, False),
])  # fmt: skip
def test_the_demo_says_that_it_replaces_one(tmp_path, monkeypatch, caplog, given, there, warned):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.setattr(commands, "identify_runs", lambda *_: [])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert call(*given, entry=cli.run_eval_main)[0] == 0
    assert ("runs/demo: the demo that was there is replaced" in caplog.text) == warned


def test_validate_says_what_batch_size_auto_came_to(copied, monkeypatch):
    assert load_validation(RunDirectory(copied.path)).batch_size == 1
    monkeypatch.setattr(preparation, "auto_batch_size", lambda *_: 5)
    assert call("validate", copied.path, *QUICK, "--batch_size", "auto")[0] == 0
    assert load_validation(RunDirectory(copied.path)).batch_size == 5
    # Another time it may come to another number: that is no other validation.
    assert call("validate", copied.path, *QUICK, "--batch_size", 2, "--resume")[0] == 0
    assert load_validation(RunDirectory(copied.path)).batch_size == 5


def test_validate_with_other_scales_says_so(copied):
    assert call("validate", copied.path, *QUICK, "--suppress_scale", 0.5, "--top_k", 3)[0] == 0
    mask = json.loads(copied.result("suppress_good").read_text())["config"]["model_args"]
    assert mask["condition"] == "suppress_good"
    assert mask["suppress_scale"] == 0.5
    assert mask["top_k"] == 3


def test_a_result_files_arguments_give_the_same_answers(run):
    # The file names the model that was judged: loading just that gives its log-likelihoods.
    arguments = json.loads(run.result("suppress_good.random_1").read_text())["config"]["model_args"]
    lm = NeuronMaskedLM(**arguments, device="cpu", batch_size=4)
    task = load_tasks(["demo_topic"])["demo_topic"]
    task.build_all_requests(limit=12)
    answers = lm.loglikelihood(task.instances, disable_tqdm=True)
    expected = [line["loglikelihoods"]["suppress_good.random_1"] for line in jsonl(run.conditions)]
    np.testing.assert_allclose([v for v, _ in answers], np.ravel(expected), rtol=0, atol=1e-4)


def test_validate_with_another_limit(copied):
    assert call("validate", copied.path, *QUICK, "--limit", 2, "--batch_size", 3)[0] == 0
    assert len(jsonl(copied.conditions)) == 6


def test_validate_all_conditions_by_default(copied):
    assert call("validate", copied.path, "--limit", 1, "--n_random", 0)[0] == 0
    assert tuple(jsonl(copied.conditions)[0]["loglikelihoods"]) == CONDITIONS
    assert {path.stem for path in (copied.path / "results").iterdir()} == set(CONDITIONS)


def test_other_weights_of_the_same_shape_are_refused(copied):
    change_settings(copied, model_args={"pretrained": str(model_dir(seed=1))})
    before = copied.conditions.read_bytes()
    result = call("validate", copied.path, *QUICK, "--limit", 1)
    assert_one_message(result, 1, "the neurons were found in other weights than those of", "hash")
    assert copied.conditions.read_bytes() == before
    change_settings(copied, model_args={"pretrained": str(model_dir(seed=1)), "dtype": "bfloat16"})
    result = call("validate", copied.path, *QUICK, "--limit", 1)
    assert_one_message(result, 1, "the neurons were found in other weights than those of")


# Sweeps -----------------------------------------------------------------------------------------

SWEEP = ("--conditions", "suppress_good,enhance_good,degrade", "--n_random", 1)
POINTS = (
    "suppress_good.k2.x0",
    "suppress_good.k2.x0.5",
    "suppress_good.k4.x0.5",
    "enhance_good.k2.x3",
    "enhance_good.k4.x3",
    "degrade.k2",
)


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory) -> RunDirectory:
    swept = copy_of(run, tmp_path_factory.mktemp("swept") / "run")
    code, _, err = call("validate", swept.path, *SWEEP, "--top_k", "2,4", "--scale", "0,0.5,1,3")
    assert code == 0, err
    return swept


def test_the_artifacts_of_a_sweep(swept):
    plain = ("suppress_good", "enhance_good", "degrade")
    chosen = ("unmasked", *plain, *POINTS)
    controls = tuple(f"{name}.random_0" for name in (*plain, *POINTS))
    assert tuple(jsonl(swept.conditions)[0]["loglikelihoods"]) == (*chosen, *controls)
    # The controls of points have no result files.
    kept = {*chosen, *(f"{name}.random_0" for name in plain)}
    assert {path.stem for path in (swept.path / "results").iterdir()} == kept
    entries = json.loads(swept.summary.read_text())["conditions"]
    assert [(e["name"], e["condition"], e["top_k"], e["scale"]) for e in entries] == [
        ("unmasked", "unmasked", None, None),
        ("suppress_good", "suppress_good", 4, 0.0),
        ("enhance_good", "enhance_good", 4, 2.0),
        ("degrade", "degrade", 4, None),
        ("suppress_good.k2.x0", "suppress_good", 2, 0.0),
        ("suppress_good.k2.x0.5", "suppress_good", 2, 0.5),
        ("suppress_good.k4.x0.5", "suppress_good", 4, 0.5),
        ("enhance_good.k2.x3", "enhance_good", 2, 3.0),
        ("enhance_good.k4.x3", "enhance_good", 4, 3.0),
        ("degrade.k2", "degrade", 2, None),
    ]
    for entry in entries:
        metrics = json.loads(swept.result(entry["name"]).read_text())["results"]["demo_topic"]
        assert entry["accuracy"]["condition"] == pytest.approx(100 * metrics["acc,none"])
        assert (entry["controls"] or {}).get("n_controls", 1) == 1
    report = swept.report.read_text()
    assert report.startswith("## demo_topic\n\nThe unmasked model is not clearly above chance ")
    assert " about the task. Suppressing 4 good neurons " in report.splitlines()[2]
    assert "suppress_good x0.5" in report
    code, out, err = call("report", swept.path)
    assert (code, err) == (0, "")
    assert report.startswith(out)
    assert "--top_k=2,4" in report
    assert "Good neurons, by factor" in swept.page.read_text()


@pytest.mark.parametrize(("top_k", "scale"), [(2, 0.5), (4, 0.5), (2, 0), (4, 0)])
def test_a_point_is_the_condition_validated_alone(swept, run, tmp_path, top_k, scale):
    alone = copy_of(run, tmp_path / "alone")
    flags = ("--conditions", "suppress_good", "--n_random", 1)
    code = call("validate", alone.path, *flags, "--top_k", top_k, "--suppress_scale", scale)[0]
    assert code == 0
    point = f"suppress_good.k{top_k}.x{scale}" if (top_k, scale) != (4, 0) else "suppress_good"
    for suffix in ("", ".random_0"):
        found, expected = (
            [line["loglikelihoods"][name + suffix] for line in jsonl(each.conditions)]
            for each, name in ((swept, point), (alone, "suppress_good"))
        )
        # What else is in the pass moves the last bits; see test_validation for passes of one.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def entry(each, name):
        entries = json.loads(each.summary.read_text())["conditions"]
        (found,) = (entry for entry in entries if entry["name"] == name)
        # Of a sweep, p is corrected for more tests.
        differing = ("name", "confidence", "rcc", "corrected", "kl")
        return {key: found[key] for key in found if key not in differing}

    there, here = entry(swept, point), entry(alone, "suppress_good")
    assert there.pop("option_mass") == pytest.approx(here.pop("option_mass"), rel=1e-4)
    assert there == here  # to the last digit


@pytest.mark.parametrize("name", ["suppress_good.k2.x0.5", "enhance_good.k4.x3", "degrade.k2"])
def test_a_points_result_file_names_the_model_that_was_judged(swept, name):
    arguments = json.loads(swept.result(name).read_text())["config"]["model_args"]
    assert arguments["top_k"] == int(name.split(".k")[1][0])
    lm = NeuronMaskedLM(**arguments, device="cpu", batch_size=4)
    task = load_tasks(["demo_topic"])["demo_topic"]
    task.build_all_requests(limit=12)
    answers = lm.loglikelihood(task.instances, disable_tqdm=True)
    expected = [line["loglikelihoods"][name] for line in jsonl(swept.conditions)]
    np.testing.assert_allclose([v for v, _ in answers], np.ravel(expected), rtol=0, atol=1e-4)
    assert len(lm.options.neurons.good) == arguments["top_k"]
    assert (lm.options.scales.suppress, lm.options.scales.enhance) == {
        "suppress_good.k2.x0.5": (0.5, 2.0),
        "enhance_good.k4.x3": (0.0, 3.0),
        "degrade.k2": (0.0, 2.0),
    }[name]


def test_run_eval_selects_the_largest_number_and_judges_all(swept, tmp_path):
    flags = ("--top_k", "4,2", "--scale", "0,0.5,1,3")
    code, _, err = call(*identify(tmp_path, *flags)[1:], *SWEEP, entry=cli.run_eval_main)
    assert code == 0, err
    found = RunDirectory(tmp_path / "demo_topic")
    assert load_settings(found).top_k == 4
    assert len(NeuronSet.load(found.neurons).good) == 4
    assert found.conditions.read_bytes() == swept.conditions.read_bytes()
    assert found.summary.read_bytes() == swept.summary.read_bytes()


def test_run_eval_takes_shares_of_all_neurons(tmp_path):
    flags = ("--top_k", "0.02,0.05", "--conditions", "degrade", "--n_random", 0)
    assert call(*identify(tmp_path, *flags)[1:], entry=cli.run_eval_main)[0] == 0
    entries = json.loads((tmp_path / "demo_topic" / "summary.json").read_text())["conditions"]
    assert [entry["top_k"] for entry in entries] == [None, 5, 2]  # of 96 neurons


# run_eval.py ------------------------------------------------------------------------------------


def test_run_eval_does_it_all_in_one_go(run, tmp_path, monkeypatch):
    arguments = [*identify(tmp_path, "--top_k", 6)[1:], *QUICK]
    monkeypatch.setattr(sys, "argv", ["run_eval.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(ROOT / "run_eval.py"), run_name="__main__")
    assert stop.value.code == 0
    for name in (*SAME_BYTES, "summary.json"):
        assert (tmp_path / "demo_topic" / name).read_bytes() == (run.path / name).read_bytes(), name
    assert_same_reports(tmp_path / "demo_topic", run.path)
    report = (tmp_path / "demo_topic" / "report.md").read_text()
    assert report.splitlines()[2] in out.getvalue()


def test_run_eval_without_arguments_is_the_demo(monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "identify_runs", lambda *given: seen.append(given) or [])
    assert cli.run_eval_main([]) == 0
    ((asked, how, *_),) = seen
    assert isinstance(asked, EvaluateSettings)
    assert how.overwrite
    settings = requested_settings(asked)
    assert settings.model_args == {"pretrained": str(MODEL_DIR)}
    assert settings.task == "demo"
    assert settings.limit >= 100


def test_a_group_makes_a_run_for_each_task(tmp_path):
    arguments = identify(tmp_path, "--limit", 1, task="demo_topic,demo_sentiment")
    assert (
        call(*arguments[1:], "--conditions", "degrade", "--n_random", 1, entry=cli.run_eval_main)[0]
        == 0
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["demo_sentiment", "demo_topic", "report.html"]
    code, out, _ = call("report", tmp_path, "--yes")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("## ")] == [
        "## demo_sentiment",
        "## demo_topic",
    ]


def test_a_task_given_as_a_file(tmp_path, only_own_tasks):
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("by_file")
    code, _, err = call(*identify(tmp_path / "runs", task=folder.path / "by_file.yaml"))
    assert code == 0, err
    # A later stage finds it again, though it is known by its name only.
    assert call("validate", tmp_path / "runs", *QUICK)[0] == 0


# lm_eval's own command line ---------------------------------------------------------------------


def test_run_is_lm_eval_with_the_masked_model(run, tmp_path, only_own_tasks):
    before = list(sys.argv)
    code, out, err = call(
        "run", "--model", "neuronllm", "--tasks", "demo_topic", "--limit", 12, "--device", "cpu",
        "--model_args", f"pretrained={model_dir()},neurons={run.path},condition=suppress_good",
        "--output_path", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert sys.argv == before
    assert "demo_topic" in out
    (written,) = tmp_path.glob("**/results_*.json")
    found = json.loads(written.read_text())
    stored = json.loads(run.result("suppress_good").read_text())
    assert found["results"] == stored["results"]
    assert found["config"]["neuronllm"]["condition"] == "suppress_good"
    assert found["config"]["neuronllm"] == stored["config"]["neuronllm"]


def test_run_refuses_in_one_message(run, only_own_tasks):
    code, _, err = call(
        "run", "--model", "neuronllm", "--tasks", "demo_topic", "--limit", 3, "--device", "cpu",
        "--model_args", f"pretrained={model_dir()},neurons={run.path},condition=harm",
    )  # fmt: skip
    assert code == 2
    assert "error: unknown condition 'harm'.\nExpected: unmasked, " in err
    assert "Traceback" not in err


def test_the_stock_route(tmp_path):
    output = tmp_path / "stock_route"
    code, _, err = stock(
        "--model", "hf", "--tasks", "demo_topic", "--include_path", ROOT / "tasks",
        "--model_args", f"pretrained={model_dir()}", "--limit", 12, "--device", "cpu",
        "--output_path", output,
    )  # fmt: skip
    assert code == 0, err
    (written,) = output.glob("**/results_*.json")
    found = json.loads(written.read_text())["results"]["demo_topic"]
    task = load_tasks(["demo_topic"])["demo_topic"]
    task.build_all_requests(limit=12)
    answers = harness_model(model_dir()).loglikelihood(task.instances, disable_tqdm=True)
    best = np.array([value for value, _ in answers]).reshape(12, 4).argmax(1)
    gold = [instance.doc["answer"] for instance in task.instances[::4]]
    assert found["acc,none"] == np.mean(best == gold)


# What users of lm_eval type ---------------------------------------------------------------------


def test_model_is_hf_or_refused(tmp_path):
    assert call(*identify(tmp_path / "runs", "--model", "hf"))[0] == 0
    code, _, err = call(*identify(tmp_path / "other", "--model", "vllm"))
    assert code == 2
    assert "argument --model/-M: invalid choice: 'vllm'" in err


def test_no_flag_is_taken_for_another(tmp_path):
    # --model_arg would else be read as --model_args.
    code, _, err = call("identify", "--model_arg", "pretrained=m", "--output_path", tmp_path)
    assert code == 2
    assert "unrecognized arguments: --model_arg" in err


def test_run_names_an_unknown_task_without_a_traceback(only_own_tasks):
    found = call(
        "run", "--model", "neuronllm", "--tasks", "demo_topik", "--device", "cpu",
        "--model_args", f"pretrained={model_dir()}",
    )  # fmt: skip
    assert_one_message(found, 1, "demo_topik", "lm_eval ls tasks")


def test_a_second_validation_says_that_it_replaces_the_first(copied, caplog):
    assert call("validate", copied.path, *QUICK)[0] == 0
    assert "the earlier validation is replaced" in caplog.text
    assert "only 4 questions validate the neurons" in caplog.text


def test_weights_are_not_hashed_again_for_each_task(tmp_path, monkeypatch):
    run = copy_of(finished_run(), tmp_path / "demo_topic")
    monkeypatch.setattr(
        "neuronllm_eval.masked_lm.model.model_hash", None
    )  # calling it: a TypeError
    code, _, err = call("validate", run.path, *QUICK)
    assert code == 0, err


def test_a_large_completeness_gap_is_told_and_a_small_one_is_not(tmp_path, caplog):
    coarse = ("--quadrature", "right_riemann", "--n_steps", 1)
    for name, flags in (("coarse", coarse), ("fine", ("--n_steps", 16))):
        caplog.clear()
        assert call(*identify(tmp_path / name, *flags, path=MODEL_DIR))[0] == 0
        share = NeuronSet.load(tmp_path / name / "demo_topic").provenance.completeness_gap_share
        assert ("attributions miss" in caplog.text) == (share > 0.1) == (name == "coarse")
        assert ("layers whose gap is over 10%: 0 (1 node, " in caplog.text) == (name == "coarse")
        assert "only 4 questions select the neurons" in caplog.text


def test_as_many_prompts_as_fit_give_the_same_answers(tmp_path):
    for name, size in (("one", 1), ("auto", "auto")):
        code, _, err = call(*identify(tmp_path / name, "--batch_size", size))
        assert code == 0, err
        code, _, err = call("validate", tmp_path / name, *QUICK, "--batch_size", size)
        assert code == 0, err
    one, auto = (
        json.loads((tmp_path / name / "demo_topic" / "neurons.json").read_text())
        for name in ("one", "auto")
    )
    assert [each["index"] for each in one["good"]] == [each["index"] for each in auto["good"]]
    tables = [
        (tmp_path / name / "demo_topic" / "report.md").read_text().split("Selected on")[0]
        for name in ("one", "auto")
    ]
    assert tables[0] == tables[1]
