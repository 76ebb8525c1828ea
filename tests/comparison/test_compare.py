"""Several methods at once, and `compare-methods` and `compare`, through the command line."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from neuronllm_eval.attribution import identify as identification
from neuronllm_eval.attribution import methods
from neuronllm_eval.cli import compare as compare_command
from neuronllm_eval.cli import main as cli
from neuronllm_eval.cli.flags import config_path
from neuronllm_eval.comparison.pooling import PAPERS, SWAPPED
from neuronllm_eval.comparison.rows import read_run
from neuronllm_eval.comparison.several_tasks import render_overview
from neuronllm_eval.errors import ModelError
from neuronllm_eval.evaluation.doc_table import doc_table
from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory, find_runs
from neuronllm_eval.stages import evaluate
from tests.fixtures import damage
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    change_settings,
    copy_of,
    identify,
    settings_of,
    without_the_harness_tasks,
)
from tests.fixtures.harness import model_dir

METHODS = ("ace", "qrnca", "tn")
CONDITIONS = ("--conditions", "suppress_good,suppress_bad,degrade,enhance")


@pytest.fixture(autouse=True)
def _quick_harness(monkeypatch):
    without_the_harness_tasks(monkeypatch)


def flags(output: Path, *more: object) -> list[object]:
    return ["compare-methods", *identify(output, *more)[1:], *CONDITIONS]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    output = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        code, out, err = call(
            *flags(output, "--method", ",".join(METHODS), "--top_k", "2,5", "--seeds", 0, 1)
        )
    assert code == 0, err
    return output, out


def test_each_method_has_a_run_of_its_own(compared):
    output, _ = compared
    for seed in (0, 1):
        for method in METHODS:
            (run,) = find_runs(output / f"seed_{seed}" / method)
            neurons = NeuronSet.load(run.neurons)
            assert neurons.provenance.method == method
            assert (neurons.provenance.seed, neurons.top_k) == (seed, 5)
            assert len(doc_table(run, "demo_topic").doc_ids) > 4
    first, other = (
        NeuronScores.load(output / f"seed_0/{method}/demo_topic") for method in ("ace", "tn")
    )
    assert not np.array_equal(first.score, other.score)


def pooled_of(output: Path) -> dict[tuple[str, int, str], dict]:
    """The pooled rows by method, K and condition."""
    rows = json.loads((output / "comparison.json").read_text())["pooled"]
    return {(row["method"], row["top_k"], row["condition"]): row for row in rows if row["top_k"]}


def test_the_tables_are_what_the_runs_hold(compared):
    output, out = compared
    text = (output / "comparison.md").read_text()
    found = json.loads((output / "comparison.json").read_text())
    assert set(found["seconds"]) == {
        f"seed_{seed}: {stage}"
        for seed in (0, 1)
        for stage in ("identify demo_topic (ace, qrnca, tn together)",
                      *(f"validate demo_topic {method}" for method in METHODS))
    }  # fmt: skip
    for stage, value in found["seconds"].items():
        assert value > 0
        assert stage in out
    rows = {(r["method"], r["seed"], r["top_k"], r["condition"]): r for r in found["rows"]}
    for (method, seed, top_k, condition), row in rows.items():
        if condition != "degrade":
            continue
        run = RunDirectory(output / f"seed_{seed}" / method / "demo_topic")
        assert row["run"] == str(run.path)
        table = doc_table(run, row["task"])
        correct = 100 * table.correct[row["name"]].mean()
        unmasked = 100 * table.correct["unmasked"].mean()
        assert row["delta"] == pytest.approx(correct - unmasked)
        if method == "tn":
            assert row["n_bad"] == 0
            assert rows[method, seed, top_k, "suppress_bad"]["delta"] is None
            assert row["note"] == "good only"
    pooled = pooled_of(output)
    assert {row["n_tests"] for (m, _, c), row in pooled.items() if (m, c) == ("tn", "degrade")} == {
        2
    }
    assert {key[1] for key in pooled} == {2, 5}
    row = pooled["ace", 5, "degrade"]
    assert row["seeds"] == [0, 1]
    deltas = [rows["ace", seed, 5, "degrade"]["delta"] for seed in (0, 1)]
    assert row["delta"] == pytest.approx(statistics.fmean(deltas))
    shown = f"{row['delta']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
    assert shown in out
    assert shown.replace("[", "\\[").replace("]", "\\]") in text
    assert f"{row['rac']:+.1f} [{row['rac_low']:+.1f}, " in out
    swapped = pooled["ace", 5, SWAPPED]
    assert swapped["low"] <= swapped["delta"] <= swapped["high"]
    assert swapped["delta"] == pytest.approx(pooled["ace", 5, "enhance"]["delta"] - row["delta"])


def test_no_part_of_a_run_shows_figures_of_neurons_that_there_are_not(compared, tmp_path):
    output, _ = compared
    run = copy_of(RunDirectory(output / "seed_0" / "tn" / "demo_topic"), tmp_path / "tn")
    for text in (run.report.read_text(), run.page.read_text(), overview(run)):
        assert "no bad neurons" in text
        assert not re.search(r"\bnan\b", text)
    run_of = Run(run.path)
    assert run_of.summaries["degrade"].corrected.n_tests == 2
    assert run_of.summaries["degrade"].edited.same_as == "suppress_good"
    made = json.loads(run.summary.read_text())
    rows = {row["condition"]: row for row in board(run)}
    bad = rows["suppress_bad"]
    assert (bad["delta"], bad["accuracy"], bad["rank"], bad["consistent"]) == (None,) * 4
    assert (bad["note"], rows["degrade"]["note"]) == ("no bad neurons", "good only")
    assert rows["degrade"]["rank"] == 1
    # A summary of an earlier version is read as it is, but for what was not edited.
    for entry in made["conditions"]:
        del entry["edited"]
        entry["corrected"] = entry["corrected"] or made["conditions"][1]["corrected"]
        entry["accuracy"].update({name: 0.0 for name in ("delta", "low", "high")}, p_value=1.0)
    run.summary.write_text(json.dumps(made))
    again = {row["condition"]: row for row in board(run)}
    assert (again["suppress_bad"]["delta"], again["suppress_bad"]["note"]) == (None, bad["note"])
    assert call("report", run.path)[0] == 0
    assert {row["condition"]: row for row in board(run)} == rows


def board(run: RunDirectory) -> list[dict]:
    code, out, err = call("compare", "--rank", run.path, "--format", "json")
    assert code == 0, err
    return json.loads(out)["rows"]


def overview(run: RunDirectory) -> str:
    return render_overview("runs", [read_run(run, with_docs=True)] * 2)


def test_the_card_of_what_edits_nothing_has_no_figures(compared, tmp_path):
    output, _ = compared
    run = output / "seed_0" / "tn" / "demo_topic"
    for condition, is_evaluated in (("suppress_bad", False), ("suppress_good", True)):
        at = tmp_path / condition
        code, _, err = call("export", run, "--condition", condition, "--output_path", at)
        assert code == 0, err
        assert ("accuracy" in (at / "README.md").read_text()) == is_evaluated


def test_methods_are_held_against_ace_on_the_same_docs(compared):
    output, out = compared
    found = json.loads((output / "comparison.json").read_text())
    assert {(d["method"], d["top_k"]) for d in found["differences"]} == {
        (method, k) for method in ("qrnca", "tn") for k in (2, 5)
    }
    pooled = pooled_of(output)
    for each in found["differences"]:
        assert each["against"]["method"] == "ace"
        own, other = (
            pooled[method, each["top_k"], SWAPPED]["delta"] for method in (each["method"], "ace")
        )
        assert each["delta"] == pytest.approx(own - other)
        assert each["p_value"] <= each["p_holm"] <= 2 * each["p_value"]
        assert f"{each['delta']:+.1f} [{each['low']:+.1f}, {each['high']:+.1f}]" in out


def test_compare_reads_runs_that_are_there(compared, tmp_path):
    output, _ = compared
    folders = [output / "seed_0"]  # at any depth
    code, out, err = call("compare", *folders, "--points", "--output_path", tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "comparison.json").read_text())
    whole = json.loads((output / "comparison.json").read_text())["rows"]
    names = ("run", "name", "delta", "p_holm", "consistent")
    of_seed = [[row[name] for name in names] for row in whole if row["seed"] == 0]
    assert sorted([row[name] for name in names] for row in found["rows"]) == sorted(of_seed)
    assert f"written to {tmp_path}" in out
    row = pooled_of(tmp_path)["ace", 5, "degrade"]
    assert f"[{row['low']:+.1f}, " in out
    # Of one run, the pooled figures are the run's.
    (alone,) = (r for r in found["rows"] if (r["method"], r["name"]) == ("ace", "degrade"))
    assert {name: row[name] for name in names[2:4]} == {name: alone[name] for name in names[2:4]}
    csv = call("compare", *folders, "--conditions", "degrade", "--format", "csv")[1]
    assert len(csv.splitlines()) == 1 + 2 * len(METHODS)
    grouped = call("compare", *folders, "--group_by", "method")[1]
    assert "tn: Accuracy under each condition" in grouped
    assert "less that of ace" in grouped


def test_what_is_no_comparison_is_refused(compared, tmp_path):
    output, _ = compared
    run = RunDirectory(output / "seed_0" / "ace" / "demo_topic")
    twin = copy_of(run, tmp_path / "twin")
    assert_one_message(call("compare", run.path, twin.path), 1, "two of the runs", "each once")
    given = ("compare", run.path, "--against", "kn")
    assert_one_message(call(*given), 2, "no methods of the runs are 'kn'", "one of: ace")
    twin.conditions.unlink()
    twin.summary.unlink()
    assert_one_message(call("compare", twin.path), 1, "are validated", "neuronllm-eval validate")


def test_methods_are_found_anew_as_before(tmp_path):
    given = [*identify(tmp_path, "--method", ",".join(METHODS), "--top_k", 5)]
    assert call(*given)[0] == 0
    whole = {m: RunDirectory(tmp_path / m / "demo_topic").scores.read_bytes() for m in METHODS}
    code, _, err = call(*given)
    assert (code, "already holds a run" in err) == (2, True)
    RunDirectory(tmp_path / "ace" / "demo_topic").neurons.unlink()
    assert call(*given, "--overwrite")[0] == 0
    for method in METHODS:
        assert RunDirectory(tmp_path / method / "demo_topic").scores.read_bytes() == whole[method]


def test_methods_go_on_after_an_interruption_and_further_ones_join(tmp_path, monkeypatch):
    flags_of = functools.partial(identify, tmp_path, "--top_k", 5)
    given = flags_of("--method", "ace,tn")
    add = identification.add_question

    def interrupt(*arguments):
        if arguments[2] == 2:  # the third question
            raise KeyboardInterrupt
        return add(*arguments)

    monkeypatch.setattr(identification, "add_question", interrupt)
    assert call(*given)[0] == 130
    monkeypatch.setattr(identification, "add_question", add)
    code, _, err = call(*given)
    assert code == 0, err
    ace, tn = (RunDirectory(tmp_path / name / "demo_topic") for name in ("ace", "tn"))
    assert call("validate", ace.path, *CONDITIONS, *QUICK)[0] == 0
    kept = {path: path.read_bytes() for run in (ace, tn) for path in run.path.rglob("*.json*")}
    code, _, err = call(*flags_of("--method", "ace,tn,kn"))
    assert code == 0, err
    assert kept == {path: path.read_bytes() for path in kept}
    assert RunDirectory(tmp_path / "kn" / "demo_topic").neurons.is_file()
    code, _, err = call(*flags_of("--method", "ace,tn,kn", "--top_z", 5, "--resume"))
    assert (code, "top_z" in err) == (2, True)


def test_a_comparison_that_is_repeated_is_printed_again_with_its_times(compared, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(compared[0], output)
    out = compared[1].replace(str(compared[0]), str(output))
    known = json.loads((output / "comparison.json").read_text())
    given = ("--method", ",".join(METHODS), "--top_k", "2,5")
    code, again, err = call(*flags(output, *given, "--seeds", 0, 1))
    assert code == 0, err
    assert again == out
    repeated = json.loads((output / "comparison.json").read_text())
    for part in ("differences", "seconds"):
        assert repeated[part] == known[part]
    # What is found and judged anew has its new time, and others' times are not those of this call.
    shutil.rmtree(output / "seed_1" / "tn")
    code, again, err = call(*flags(output, *given, "--seeds", 1))
    assert code == 0, err
    found = json.loads((output / "comparison.json").read_text())["seconds"]
    mine = {stage: taken for stage, taken in known["seconds"].items() if "seed_1" in stage}
    alone = "seed_1: identify demo_topic tn"
    assert found.keys() == mine.keys() | {alone}
    fresh = {alone, "seed_1: validate demo_topic tn"}
    assert all(found[stage] == taken for stage, taken in mine.items() if stage not in fresh)
    assert found["seed_1: validate demo_topic tn"] != mine["seed_1: validate demo_topic tn"]


@pytest.mark.parametrize(
    "text", ["{", '{"seconds": []}', '{"seconds": {".: identify": "x"}}', "[]"]
)
def test_times_that_cannot_be_read_are_not_known(tmp_path, caplog, text):
    (tmp_path / "comparison.json").write_text(text)
    assert compare_command._earlier_seconds(tmp_path, ["."]) == {}
    assert "what stages took before is not known" in caplog.text


def test_random_controls_are_compared_too(tmp_path):
    given = ("--method", "ace,tn", "--seeds", 0, 1, "--n_random", 3, "--top_k", "2,5")
    code, out, err = call(*flags(tmp_path, *given))
    assert code == 0, err
    assert "Rank among random controls" in out
    pooled = pooled_of(tmp_path)
    assert {pooled[m, k, "enhance"]["n_controls"] for m in ("ace", "tn") for k in (2, 5)} == {3}
    code, _, err = call("compare", tmp_path / "seed_0", "-o", tmp_path / "alone")
    assert code == 0, err
    for (method, top_k, name), row in pooled_of(tmp_path / "alone").items():
        if name == SWAPPED:
            continue
        run = RunDirectory(tmp_path / "seed_0" / method / "demo_topic")
        whole = {each["name"]: each for each in json.loads(run.summary.read_text())["conditions"]}
        point = "" if top_k == 5 else f".k{top_k}" if name in PAPERS else f".k{top_k}.x0"
        of_run = whole[name + point]
        if not of_run["controls"]:
            assert row["n_controls"] is None
            continue
        assert row["control_p"] == of_run["controls"]["p_value"]
        assert row["n_lost"] == of_run["mcnemar"]["n_lost"]
        if not point:  # a point of a sweep is corrected for the whole of it
            assert row["p_holm"] == of_run["corrected"]["p_value"]
            assert row["mcnemar_p_holm"] == of_run["corrected"]["mcnemar_p_value"]


def test_other_settings_are_other_rows(compared, tmp_path):
    output, _ = compared
    code, _, err = call(*flags(tmp_path, "--method", "ace", "--top_z", 3, "--seed", 0))
    assert code == 0, err
    runs = [output / "seed_0" / "ace", tmp_path]
    code, out, err = call("compare", *runs)
    assert code == 0, err
    assert "ace top_z=3.0" in out
    assert "ace top_z=0.1" in out
    assert "less that of" not in out
    code, out, err = call("compare", *runs, "--against", "ace top_z=0.1")
    assert code == 0, err
    assert "Enhance minus degrade less that of ace top" in out


def test_other_numbers_of_questions_are_no_repeats(compared, tmp_path):
    output, _ = compared
    runs = [output / "seed_0" / "ace", output / "seed_1" / "ace"]
    fewer = copy_of(RunDirectory(runs[1] / "demo_topic"), tmp_path / "fewer")
    change_settings(fewer, limit=3)
    judged = copy_of(fewer, tmp_path / "judged")
    for run, limit in ((fewer, 3), (judged, 2)):
        damage.as_json("results/unmasked.json", lambda v, n=limit: v["config"].update(limit=n))(run)

    def repeats(*paths: Path) -> tuple[list[list[int]], str]:
        at = tmp_path / "tables"
        code, out, err = call("compare", *paths, "--output_path", at)
        assert code == 0, err
        found = json.loads((at / "comparison.json").read_text())["pooled"]
        of_five = [row for row in found if (row["top_k"], row["condition"]) == (5, "degrade")]
        return [row["seeds"] for row in of_five], " ".join(out.split())

    assert repeats(*runs)[0] == [[0, 1]]
    seeds, out = repeats(runs[0], fewer.path, judged.path)
    assert seeds == [[0], [1], [1]]
    assert "cannot be compared with each other, by set. a: 1 run, 2 questions of the" in out
    assert "b: 1 run, 3 questions instead of 2; c: 1 run, 4 questions instead of 2, neurons" in out


def test_verify_computes_a_methods_scores_again(compared):
    output, _ = compared
    code, out, _ = call("verify", output / "seed_0" / "qrnca", "--limit", 4)
    assert code == 0
    (line,) = (line for line in out.splitlines() if "scores recomputed" in line)
    # Batches of other questions round otherwise on some processors.
    difference = re.search(r"largest difference (\S+) of the largest score", line)
    assert "to the bit" in line or float(difference[1]) < 1e-6


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--method", "ace,ace"], ("method is 'ace,ace'", "each method once")),
        (["--method", "luck"], ("unknown method 'luck'", "ace, ace_balanced, kn, qrnca")),
        (["--method_args", "threshold=1"], ("no chosen method has a setting 'threshold'", "none")),
        (
            ["--method", "qrnca", "--method_args", "top_v=x"],
            ("top_v of method qrnca is 'x'", "a valid integer"),
        ),
        (["--method_args", "nonsense"], ("no chosen method has a setting 'nonsense'",)),
    ],
)
def test_methods_that_cannot_be(tmp_path, more, parts):
    assert_one_message(call(*identify(tmp_path, *more)), 2, *parts)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--seeds", 1, 1], ("seeds are 1 1", "each once")),
        (["--seeds", -1], ("seeds are -1",)),
        (
            ["--against", "knn"],
            ("--against is 'knn'", "compared: ace, ace_balanced, kn", "and --method"),
        ),
        (["--models", "a"], ("--models and pretrained= in --model_args", "one of them")),
    ],
)
def test_repeats_that_cannot_be(tmp_path, more, parts):
    assert_one_message(call(*flags(tmp_path, *more)), 2, *parts)


def test_models_in_turn(tmp_path):
    given = [each for each in flags(tmp_path) if not str(each).startswith("pretrained=")]
    given.remove("--model_args")
    code, out, err = call(*given, "--models", model_dir(), "--method", "ace,random")
    assert code == 0, err
    found = [read_run(run).facts.method for run in find_runs(next(tmp_path.glob("*/ace")))]
    assert found == ["ace"]
    assert out.count(" random ") >= 4


def test_a_model_that_fails_leaves_the_others_table(tmp_path, monkeypatch):
    done = evaluate.identify_task

    def failing(inputs, *rest):
        if inputs.settings.seed == 1:
            raise ModelError("no such weights")
        return done(inputs, *rest)

    monkeypatch.setattr(evaluate, "identify_task", failing)
    result = call(*flags(tmp_path, "--method", "ace,tn", "--seeds", 0, 1))
    assert result[0] == 1
    assert "no such weights" in result[2]
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert {(row["method"], row["seed"]) for row in rows} == {("ace", 0), ("tn", 0)}
    assert "Enhance minus degrade less that of ace" in result[1]


# --config ---------------------------------------------------------------------------------------


def test_flags_from_a_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"tasks: [demo_topic]\nlimit: 4\ntop_k: 3\noverwrite: true\nresume: false\n"
        f"model_args: {{pretrained: {model_dir()}, dtype: float32}}\nseed: 7\n"
    )
    output = tmp_path / "runs"
    given = ["identify", "--config", config, "--output_path", output, "--seed", 3]
    code, _, err = call(*given, "--device", "cpu")
    assert code == 0, err
    known = NeuronSet.load(output / "demo_topic" / "neurons.json")
    assert known.top_k == 3
    assert known.provenance.seed == 3  # the command line goes before
    code, _, err = call(*given[1:], *QUICK, entry=cli.run_eval_main)
    assert code == 0, err


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("task: demo", ("has 'task'", "flags of neuronllm-eval identify", "tasks")),
        ("overwrite: 3", ("overwrite is 3", "true or false")),
        ("- tasks", ("holds ['tasks']", "flags and their values")),
        ("tasks: [", ("cannot be read", "check --config")),
        ("limit: many", ("limit is 'many'", "check --limit")),
    ],
)
def test_a_file_that_cannot_be(tmp_path, content, parts):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    assert_one_message(call("identify", "--config", config), 2, *parts)


def test_a_file_that_is_not_there(tmp_path):
    result = call("identify", f"--config={tmp_path / 'none.yaml'}")
    assert_one_message(result, 2, "none.yaml", "a packaged one: paper", "check --config")
    assert_one_message(call("identify", "--config"), 2, "argument --config")


def test_a_recipe_is_found_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no recipes lie
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "paper.yaml"
    for name in ("paper", "paper.yaml", "recipes/paper.yaml"):
        assert config_path(name) == recipe
    for name in ("other", "runs/paper.yaml", str(tmp_path / "paper.yaml"), ""):
        assert config_path(name) == Path(name)
    Path("paper").mkdir()
    assert config_path("paper") == recipe
    Path("paper.yaml").touch()
    assert config_path("paper.yaml") == Path("paper.yaml")


def test_the_papers_recipe_is_one_that_can_be_run():
    asked, *_ = settings_of("compare-methods", "--config", "paper")
    assert len(asked.models) == 3
    assert asked.method == ("ace", "tn", "qrnca", "random")
    assert asked.n_random == 20
    assert (asked.n_steps, asked.n_proxies, asked.enhance_scale) == (16, 3, 2)
    assert "degrade" in evaluate.condition_plan(asked).names
    repeats = list(compare_command._repeats(asked))
    folders = [folder for folder, _ in repeats]
    assert folders[0] == "meta-llama_Llama-2-7b-hf"
    assert folders[2] == "baichuan-inc_Baichuan2-7B-Base"
    for number, (_, own) in enumerate(repeats):
        settings = evaluate.requested_settings(own)
        assert settings.model_args["dtype"] == "bfloat16"
        assert settings.model_args.get("trust_remote_code", False) == (number == 2)


def test_the_docs_method_of_ones_own_runs(tmp_path, monkeypatch):
    text = Path("docs/extending.md").read_text(encoding="utf-8")
    path = tmp_path / "my_methods.py"
    path.write_text(text.split("```python\n", 1)[1].split("```", 1)[0])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        importlib.import_module("my_methods")
        output = tmp_path / "runs"
        given = flags(output, "--method", "ace,activation_share", "--method_args", "power=2.0")
        code, out, err = call(*given)
        assert code == 0, err
        assert out.count("activation_share ") >= 5
        known = NeuronSet.load(output / "activation_share" / "demo_topic")
        assert known.provenance.method_args == '{"power": 2.0}'
    finally:
        methods.METHODS.pop("activation_share", None)
        sys.modules.pop("my_methods", None)
