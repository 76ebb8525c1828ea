"""`neuronllm-eval compare` over real runs: found, read, refused, and never changed."""

from __future__ import annotations

import io
import json
import math
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.comparison.ranking import COLUMNS
from neuronllm_eval.comparison.rows import read_run
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import StoredSummary
from neuronllm_eval.evaluation.doc_table import doc_table, evaluated_docs
from neuronllm_eval.runs.directory import RunDirectory, runs_below
from tests.fixtures import damage
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    jsonl,
    without_the_harness_tasks,
)

CONDITIONS = ["unmasked", "suppress_good", "enhance"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Runs at several depths: whole, of another seed, of fewer neurons, swept, and unfinished."""
    top = tmp_path_factory.mktemp("runs")
    run = finished_run()
    copy_of(run, top / "model" / "seed_0" / "ace" / "demo_topic")
    seed = copy_of(run, top / "seed_1")
    damage.as_json("neurons.json", lambda values: values["provenance"].update(seed=1))(seed)
    fewer = copy_of(run, top / "fewer")
    swept = copy_of(run, top / "deep" / "er" / "swept")
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for at, flags in ((fewer, ("--top_k", 3)), (swept, ("--top_k", "2,6"))):
            code, _, err = call("validate", at.path, *QUICK, *flags)
            assert code == 0, err
    for name in ("conditions", "validation", "summary"):
        getattr(copy_of(run, top / f"without_{name}"), name).unlink()
    unfinished = top / "without_conditions"
    RunDirectory(unfinished).summary.unlink()
    (top / "without_validation").rename(top / ".hidden")
    return top


def rows_of(*flags) -> pd.DataFrame:
    code, out, err = call("compare", "--rank", *flags, "--format", "csv")
    assert code == 0, err
    return pd.read_csv(io.StringIO(out), dtype=COLUMNS)


# What it shows ------------------------------------------------------------------------------------


def test_rows_are_what_the_run_says():
    run = finished_run()
    found = rows_of(run.path)
    assert list(found.columns) == list(COLUMNS)
    assert list(found["condition"]) == CONDITIONS
    summary = json.loads(run.summary.read_text())
    table = doc_table(run, "demo_topic")
    neurons = json.loads(run.neurons.read_text())
    for row, known in zip(found.itertuples(), summary["conditions"], strict=True):
        assert row.accuracy == pytest.approx(100 * table.correct[row.name].mean())
        assert row.consistent == pytest.approx(100 * known["metrics"]["acc_consistent"])
        assert row.majority == pytest.approx(100 * known["metrics"]["acc_majority"])
        assert row.position_bias == pytest.approx(100 * known["metrics"]["position_bias"])
        assert (row.n_questions, row.n_docs) == (4, 12)
        assert (row.n_good, row.n_bad) == (len(neurons["good"]), len(neurons["bad"]))
        if row.name == "unmasked":
            assert pd.isna(row.delta)
            assert pd.isna(row.controls_outdone)
            continue
        assert row.delta == pytest.approx(known["accuracy"]["delta"])
        assert (row.low, row.high) == pytest.approx(
            (known["accuracy"]["low"], known["accuracy"]["high"])
        )
        assert row.p_holm == pytest.approx(known["corrected"]["p_value"])
        assert (row.controls_outdone, row.n_controls) == (known["n_beyond"], 2)
        before = summary["conditions"][0]["metrics"]
        for name, metric in (("consistent", "acc_consistent"), ("position_bias", "position_bias")):
            change = 100 * (known["metrics"][metric] - before[metric])
            assert getattr(row, f"{name}_delta") == pytest.approx(change)


def test_a_tree_of_runs_is_searched_and_parted_into_sets(tree):
    code, out, err = call("compare", "--rank", tree)
    assert code == 0, err
    assert "demo_topic has results that cannot be compared" in out
    assert "a: 3 runs, 4 questions of the validation split, K 6; b: 1 run, K 3 instead of 6." in (
        " ".join(out.split())
    )
    assert "Not validated yet" in out
    assert f"neuronllm-eval validate {tree / 'without_conditions'}" in out
    assert "Validated, but without summary.json" in out
    assert ".hidden" not in out
    found = rows_of(tree, "--conditions", "enhance")
    assert found.groupby("set")["run"].count().to_dict() == {"a": 3, "b": 1}
    assert sorted(found["seed"]) == [0, 0, 0, 1]
    assert dict(zip(found["set"], found["n_ranked"], strict=True)) == {"a": 3, "b": 1}


def test_points_are_shown_when_asked_for(tree):
    swept = tree / "deep" / "er" / "swept"
    assert list(rows_of(swept)["name"]) == CONDITIONS
    names = list(rows_of(swept, "--points")["name"])
    assert names == ["unmasked", "suppress_good", "suppress_good.k2.x0", "enhance", "enhance.k2"]
    only = rows_of(tree, "--points", "--conditions", "*.k2*")
    assert list(only["top_k"]) == [2, 2]


def test_formats_and_files(tree, tmp_path):
    for suffix, start in ((".html", "<!DOCTYPE"), (".md", "The same"), (".tex", "% \\usepackage"),
                          (".txt", "The same"), (".csv", "task,set,")):  # fmt: skip
        path = tmp_path / "new" / f"board{suffix}"
        code, out, _ = call("compare", "--rank", tree / "fewer", "--output_path", path)
        assert (code, out) == (0, f"written to {path}\n")
        assert path.read_text().startswith(start)
    code, out, _ = call("compare", "--rank", tree, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert len(found["rows"]) == 4 * len(CONDITIONS)
    assert {each["missing"] for each in found["unfinished"]} == {"validate", "report"}
    assert len(found["overlaps"]) == 4 * math.comb(6, 2)  # also of runs without results


def test_columns_that_are_asked_for_in_every_format(tree):
    def said(kind, names):
        return call("compare", "--rank", tree / "fewer", "--columns", names, "--format", kind)[1]

    assert said("csv", "delta,condition").splitlines()[0] == "delta,condition"
    rows = json.loads(said("json", "condition,low"))["rows"]
    assert [set(row) for row in rows] == [{"condition", "low"}] * len(CONDITIONS)
    assert re.search(r"\| delta \(points\) +\| condition +\|", said("markdown", "delta,condition"))
    assert "\\begin{tabular}{rl}" in said("latex", "delta,condition")
    assert '<th class="figure">delta (points)</th><th>condition</th></tr>' in said(
        "html", "delta,condition,delta"
    )
    table = [line.split() for line in said("table", "seed,condition").splitlines()]
    assert ["seed", "condition"] in table
    assert ["0", "enhance"] in table


def test_latex_fits_a_page(tree):
    text = call("compare", "--rank", tree, "--format", "latex")[1]
    heads = [line for line in text.splitlines() if line.startswith(("set &", "condition &"))]
    assert heads
    assert len(heads[0].split("&")) < 10
    assert "Neurons shared" not in text
    assert "Neurons shared" in call("compare", "--rank", tree, "--format", "html")[1]


def test_overlaps_alone(tree):
    code, out, _ = call("compare", "--rank", tree, "--overlaps", "--format", "csv")
    assert code == 0
    found = pd.read_csv(io.StringIO(out))
    same = found[found["neurons"] == found["other_neurons"]]
    assert (same["jaccard"] == 1).all()  # all are copies of one run
    assert (same["shared"] == same["size"]).all()
    code, out, _ = call("compare", "--rank", tree, "--overlaps", "--format", "markdown")
    assert "accuracy" not in out
    assert out.startswith("## Neurons shared by runs of ")
    code, out, _ = call("compare", "--rank", tree, "--overlaps", "--format", "json")
    assert list(json.loads(out)) == ["overlaps"]


def test_nothing_is_changed(tree):
    before = damage.contents(tree)
    assert call("compare", "--rank", tree, "--points", "--group_by", "model")[0] == 0
    assert damage.contents(tree) == before


# What is not comparable ---------------------------------------------------------------------------


def told(tmp_path, spoil) -> str:
    """What is said of a run and a changed copy of it; two of the one, so that it is set a."""
    run = finished_run()
    copy_of(run, tmp_path / "twin")
    spoil(copy_of(run, tmp_path / "other"))
    code, out, err = call("compare", "--rank", run.path, tmp_path)
    assert code == 0, err
    return " ".join(out.split())


def _other_version(run):
    lines = jsonl(run.commands)
    lines[-1]["versions"]["neuronllm-eval"] = "0.0.9"
    run.commands.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _other_gold(run):
    text = run.conditions.read_text().replace('"gold":0,', '"gold":1,', 1)
    run.conditions.write_text(text)


def _other_question(run):
    first = jsonl(run.conditions)[0]["question_id"]
    run.conditions.write_text(run.conditions.read_text().replace(f'"{first}"', '"elsewhere"'))


def _config(name, value):
    def change(values):
        values["configs"]["demo_topic"][name] = value

    return damage.as_json("results/unmasked.json", change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_other_version, "neuronllm-eval 0.0.9 instead of "),
        (_other_gold, "other orders of the questions or of their options."),
        (_other_question, "b: 1 run, other questions."),
        (_config("num_fewshot", 5), "b: 1 run, 5 demonstrations instead of 1."),
        (_config("description", "Be bold."), "b: 1 run, other description."),
        (_config("doc_to_text", "{{question}}"), "b: 1 run, other definition of the task."),
        (_config("metadata", {"version": 9}), ""),  # which hold what does not matter
        (damage.settings(system_instruction="Be brief."), "b: 1 run, other system instruction."),
        (damage.settings(apply_chat_template=True), "chat template: the model's own instead of"),
        (
            damage.as_json("results/unmasked.json", lambda v: v.update(lm_eval_version="0.5")),
            "b: 1 run, lm_eval 0.5 instead of 0.4.",
        ),
        (
            damage.as_json("validation.json", lambda v: v["docs"]["asked"].update(orders="swap")),
            "b: 1 run, orders swap instead of original.",
        ),
        (
            damage.as_json("neurons.json", lambda v: v["provenance"].update(n_questions=3)),
            "b: 1 run, neurons selected on 3 questions instead of 4.",
        ),
    ],
)  # fmt: skip
def test_what_differs_is_read_from_the_files(tmp_path, spoil, words):
    found = told(tmp_path, spoil)
    assert words in found
    assert ("cannot be compared" in found) == bool(words)


def test_a_run_without_its_commands_is_of_the_version_that_chose(tmp_path):
    assert "cannot be compared" not in told(tmp_path, lambda run: run.commands.unlink())


# What is refused ----------------------------------------------------------------------------------


def test_one_damaged_run_leaves_the_others(tree, tmp_path):
    copy_of(finished_run(), tmp_path / "whole")
    damaged = copy_of(finished_run(), tmp_path / "damaged")
    damaged.neurons.write_text("{")
    result = call("compare", "--rank", tmp_path, "--format", "csv")
    assert_one_message(result, 1, "neurons.json is not valid JSON")
    assert len(pd.read_csv(io.StringIO(result[1]))) == len(CONDITIONS)
    copy_of(damaged, tmp_path / "second").settings.write_text("settings: 3")
    result = call("compare", "--rank", tmp_path, "--format", "json")
    assert_one_message(result, 1, "2 runs cannot be read", "/damaged: ", "/second: ")
    found = json.loads(result[1])
    assert len(found["damaged"]) == 2
    assert len(found["rows"]) == len(CONDITIONS)


DAMAGES = {
    "a summary of other neurons": damage.as_json("validation.json", lambda v: v.update(top_k=2)),
    "a summary of other factors": damage.as_json(
        "validation.json", lambda v: v.update(suppress_scale=0.5)
    ),
    "a summary of other docs": lambda run: run.conditions.write_text(
        "".join(run.conditions.read_text().splitlines(keepends=True)[:-1])
    ),
    "a summary of fewer conditions": damage.as_json(
        "summary.json", lambda v: v["conditions"].pop()
    ),
    "a summary without a key": damage.as_json("summary.json", lambda v: v.pop("split")),
    "a summary of a text": damage.as_json(
        "summary.json", lambda v: v["conditions"][1]["accuracy"].update(delta="low")
    ),
    "a summary of an unknown condition": damage.as_json(
        "summary.json", lambda v: v["conditions"][1].update(condition="luck")
    ),
    "a summary of one condition twice": damage.as_json(
        "summary.json", lambda v: v["conditions"].append(v["conditions"][1])
    ),
    "metrics that are none": damage.as_json(
        "summary.json", lambda v: v["conditions"][1].update(metrics=[1])
    ),
    "a line that is cut": lambda run: run.conditions.write_text(run.conditions.read_text()[:-9]),
    "a line of another task": damage.replaced("conditions.jsonl", "demo_topic", "other"),
    "a line of another split": damage.replaced("conditions.jsonl", "validation", "selection"),
    "a doc twice": damage.replaced("conditions.jsonl", '"doc_id":1,', '"doc_id":0,'),
    "a line with no gold": damage.replaced("conditions.jsonl", '"gold":', '"bold":'),
    "lines that are not text": damage.as_bytes(
        "conditions.jsonl", b'{"task":"\xff","loglikelihoods":{"a":1}}\n'
    ),
    "no lines": damage.as_bytes("conditions.jsonl", ""),
    "no result file": damage.gone("results/unmasked.json"),
    "a result file of another task": damage.as_json(
        "results/unmasked.json", lambda v: v["configs"].clear()
    ),
    "a folder for a summary": damage.folder("summary.json"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage(tmp_path, what):
    run = copy_of(finished_run(), tmp_path / "run")
    DAMAGES[what](run)
    for flags in ((), ("--rank",)):
        assert_one_message(call("compare", run.path, *flags), 1, str(run.path))


def test_leaderboard_is_the_former_name_of_compare_rank():
    former = call("leaderboard", finished_run().path, "--format", "csv")
    assert former[:2] == call("compare", "--rank", finished_run().path, "--format", "csv")[:2]
    assert "leaderboard is now `neuronllm-eval compare --rank`" in former[2]


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (["--sort_by", "luck"], 2, ("no column 'luck'", "accuracy")),
        (["--tasks", "demo_*,law"], 2, ("no run has tasks that fit 'law'", "demo_topic")),
        (["--group_by", "luck"], 2, ("--group_by",)),
        (["--output_path", "board.doc"], 2, ("board.doc", ".html", "--format")),
        (["--against", "ace"], 2, ("--against with --rank",)),
        (
            ["--columns", "delta,luck"],
            2,
            ("table has no column 'luck'", "interval", "check --columns"),
        ),
        (["--columns", "interval", "--format", "csv"], 2, ("csv has no column 'interval'", "low")),
        (["--columns", "low", "--format", "latex"], 2, ("latex has no column 'low'", "interval")),
        (["--columns", "delta", "--overlaps"], 2, ("--columns with --overlaps",)),
        (["--overlaps"], 1, ("no two of 1 runs are of one model",)),
    ],
)
def test_flags_that_cannot_be(flags, code, parts):
    assert_one_message(call("compare", "--rank", finished_run().path, *flags), code, *parts)


def test_folders_without_results(tree, tmp_path):
    assert_one_message(call("compare", "--rank", tmp_path), 1, "holds no run")
    assert_one_message(call("compare", "--rank", tmp_path / "none"), 1, "holds no run")
    result = call("compare", "--rank", tree / "without_conditions")
    assert_one_message(result, 1, "none of 1 runs has results", "neuronllm-eval validate")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.yaml").touch()
    result = call("compare", "--rank", tree / "without_conditions", tmp_path)
    assert_one_message(
        result, 1, "none of 1 runs has results", f"{tmp_path / 'bad'} cannot be read"
    )


def test_a_file_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    result = call("compare", "--rank", finished_run().path, "-o", tmp_path / "file" / "board.csv")
    assert_one_message(result, 2, "cannot be written", "--output_path")


# The parts ----------------------------------------------------------------------------------------


def test_runs_are_found_once_at_any_depth(tmp_path):
    for name in ("b/c/run", "a", "a/results", ".git/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.yaml").touch()
    os.symlink(tmp_path, tmp_path / "b" / "again")
    os.symlink(tmp_path / "a", tmp_path / "link")
    found = [run.path.relative_to(tmp_path).as_posix() for run in runs_below([tmp_path] * 2)]
    assert found == ["a", "b/c/run", "b/run"]
    with pytest.raises(ArtifactError, match="holds no run"):
        runs_below([tmp_path, tmp_path / "a" / "results" / "none"])


def test_a_stored_summary_is_the_one_that_was_written():
    run = finished_run()
    again = StoredSummary.load(run.summary).to_json()
    assert again == run.summary.read_text()


def test_asked_docs_are_those_of_the_whole_lines():
    run = finished_run()
    lines = jsonl(run.conditions)
    found = evaluated_docs(run.conditions, "demo_topic")
    assert found.docs == tuple((line["question_id"], line["gold"]) for line in lines)
    assert found.split == lines[0]["split"]
    assert list(found.conditions) == CONDITIONS
    assert found.questions == {line["question_id"] for line in lines}


def test_a_question_named_like_the_key_of_the_answers(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    first = jsonl(run.conditions)[0]["question_id"]
    odd = ',"loglikelihoods":{'
    text = run.conditions.read_text().replace(f'"{first}"', json.dumps(odd))
    run.conditions.write_text(text)
    assert odd in evaluated_docs(run.conditions, "demo_topic").questions


def test_other_methods_settings_are_no_other_set(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    change_settings(run, top_z=3.0, batch_size=7)
    one, other = read_run(finished_run()), read_run(run)
    assert one.rows[0].terms == other.rows[0].terms
    assert json.loads(other.facts.settings)["top_z"] == 3.0


def test_a_closed_pipe_ends_the_command_quietly(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)

        def closed() -> int:
            out.write("more")
            raise BrokenPipeError

        assert cli._guarded(closed) == 141
    assert (tmp_path / "out").read_text() == ""  # what was left went nowhere
