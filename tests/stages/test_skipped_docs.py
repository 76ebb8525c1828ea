"""Docs that cannot be asked and prompts that are too long: skipped, counted, said everywhere."""

from __future__ import annotations

import json

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from benchmarks.kill_resume import without_commands
from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.cli import main as cli
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    QUICK,
    SCORED,
    assert_one_message,
    call,
    copy_of,
    identify,
    jsonl,
)
from tests.fixtures.harness import TaskFolder, include_paths, model_dir, scratch, some_docs

CONTEXT = 250
TOO_LONG = "longer than the model's context"
BAD_GOLD = "gold missing or out of range"


def odd_docs(first: int, repeated: bool):
    """Of nine docs, 1 has no usable gold, 3 is too long, 5 has no room for a demonstration."""
    docs = some_docs(first, 9)
    docs[1]["answer"] = 9
    if repeated:
        docs[2]["choices"][3] = docs[2]["choices"][1]
    docs[3]["question"] += " please" * 60
    docs[5]["question"] += " please" * 26
    return docs


SPLITS = {"train": odd_docs(0, True), "test": odd_docs(100, True)}
# The options of a task that is no AQUA task are letters: that texts repeat does not matter there.
PLAIN = {"train": odd_docs(0, False), "test": odd_docs(100, False)}
LINES = "".join(f"{letter}. {{{{choices[{at}]}}}}\n" for at, letter in enumerate("ABCD"))
# The prompts of the AQUA task.
ALIKE = {
    "description": load_yaml(tasks_dir() / "aqua" / "_aqua.yaml")["description"],
    "doc_to_text": "Question: {{question}}\n" + LINES + "Answer:",
    "fewshot_split": "demonstration",
    "fewshot_config": {"sampler": "first_n"},
    "num_fewshot": 1,
}


@pytest.fixture(scope="module")
def folder() -> TaskFolder:
    folder = TaskFolder(scratch() / "odd_tasks")
    more = {"demonstration": some_docs(300, 1)}
    folder.write("aqua_odd", {**SPLITS, **more}, aqua=True, data={"id": "question"})
    folder.write("plain_odd", {**PLAIN, **more}, **ALIKE)
    return folder


def run_all(folder: TaskFolder, output, task: str, *more):
    path = model_dir(context=CONTEXT)
    flags = ("--include_path", folder.path, "--limit", 20, "--top_k", 6)
    given = identify(output, *flags, *QUICK, *more, task=task, path=path)
    return call(*given[1:], entry=cli.run_eval_main)


@pytest.fixture(scope="module", params=["aqua_odd", "plain_odd"])
def run(request, folder, tmp_path_factory) -> RunDirectory:
    output = tmp_path_factory.mktemp("runs")
    code, _, err = run_all(folder, output, request.param)
    assert code == 0, err
    return RunDirectory(output / request.param)


# The settings of `aqua_odd`, with the orders that `auto` comes to.
ASKED = {"orders": "original"}


def expected(task: str) -> dict[str, dict]:
    """What became of the nine docs of each split; the numbers count docs, here proxies."""
    if task == "plain_odd":
        prompts = {"skipped": {BAD_GOLD: 1, TOO_LONG: 1}, "demonstrations_dropped": 1}
        return {"selection": {"prompts": prompts}, "validation": {"prompts": prompts}}
    skipped = {BAD_GOLD: 1, "repeated options": 1}
    prompts = {"skipped": {TOO_LONG: 3}, "demonstrations_dropped": 3}
    return {
        role: {
            "data": {"split": split, "docs": 9, "questions": 7, "skipped": skipped},
            "asked": AquaSettings(**ASKED).model_dump(),
            "prompts": prompts,
        }
        for role, split in (("selection", "train"), ("validation", "test"))
    }


def test_every_file_counts_the_docs_that_are_not_asked(run):
    docs = expected(run.path.name)
    assert yaml.safe_load(run.settings.read_text())["docs"] == docs["selection"]
    assert json.loads(run.validation.read_text())["docs"] == docs["validation"]
    assert json.loads(run.summary.read_text())["docs"] == docs
    for name in SCORED:
        config = json.loads(run.result(name).read_text())["configs"][run.path.name]
        assert config["metadata"]["docs"] == docs["validation"]


def test_a_result_file_of_an_aqua_task_counts_the_docs_of_all_splits(run):
    config = json.loads(run.result("unmasked").read_text())["configs"][run.path.name]
    if run.path.name == "plain_odd":
        assert "counts" not in config["metadata"]
        return
    counts = config["metadata"]["counts"]
    docs = expected("aqua_odd")
    assert {role: counts[role] for role in docs} == {role: docs[role]["data"] for role in docs}
    assert counts["demonstration"] == {"split": "demonstration", "docs": 1, "questions": 1}


def test_the_report_says_so(run):
    counts = {
        "aqua_odd": f"1 skipped ({BAD_GOLD}), 1 skipped (repeated options), 3 prompts with fewer "
        f"demonstrations (context length), 3 prompts skipped ({TOO_LONG}).",
        "plain_odd": f"1 prompts with fewer demonstrations (context length), 1 prompts skipped "
        f"({BAD_GOLD}), 1 prompts skipped ({TOO_LONG}).",
    }[run.path.name]
    text = run.report.read_text()
    for role in ("selection", "validation"):
        assert f"\nDocs of the {role} split: {counts}\n" in text
    n_docs = 18 if run.path.name == "aqua_odd" else 7
    n_questions = 6 if run.path.name == "aqua_odd" else 7
    assert f"Evaluated on {n_questions} questions ({n_docs} docs) of the test split" in text
    assert f"Selected on {n_questions} questions ({n_docs} prompts) of the train split" in text


def test_lines_and_metrics_are_of_the_docs_that_are_asked(run, folder):
    name = run.path.name
    lines = jsonl(run.conditions)
    kept = [line["doc_id"] for line in lines]
    assert len(kept) == (18 if name == "aqua_odd" else 7)
    assert kept != list(range(len(kept)))  # what is left has gaps
    for condition in SCORED:
        right = [np.argmax(line["loglikelihoods"][condition]) == line["gold"] for line in lines]
        found = json.loads(run.result(condition).read_text())
        assert found["results"][name]["acc,none"] == np.mean(right)
        assert found["n-samples"][name]["effective"] == len(kept)
    # Stock lm_eval, asked for the docs that have lost no demonstration.
    path = model_dir(context=CONTEXT)
    stock = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(path)}, tasks=[name], samples={name: kept},
        task_manager=TaskManager(include_path=include_paths(folder), include_defaults=False),
        device="cpu", batch_size=1,
    )  # fmt: skip
    by_doc = {sample["doc_id"]: sample for sample in stock["samples"][name]}
    n_shorter = expected(name)["validation"]["prompts"]["demonstrations_dropped"]
    differing = []
    for line in lines:
        values = [response[0][0] for response in by_doc[line["doc_id"]]["resps"]]
        assert by_doc[line["doc_id"]]["target"] == line["gold"]
        if not np.allclose(values, line["loglikelihoods"]["unmasked"], rtol=0, atol=1e-4):
            differing.append(line["doc_id"])
    assert len(differing) == n_shorter  # those that stock cuts on the left


def test_the_report_and_the_validation_can_be_made_again(run, tmp_path):
    copied = copy_of(run, tmp_path / "copy")

    def reports() -> tuple[bytes, bytes]:
        return without_commands(copied.report.read_bytes()), copied.summary.read_bytes()

    before = reports()
    copied.report.unlink()
    assert call("report", copied.path)[0] == 0
    assert reports() == before
    lines = copied.conditions.read_bytes()
    assert call("validate", copied.path, *QUICK)[0] == 0
    assert copied.conditions.read_bytes() == lines
    assert reports() == before


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["aqua_odd", "plain_odd"])
def test_the_first_such_doc_ends_the_run_on_request(folder, tmp_path, task):
    found = run_all(folder, tmp_path / "runs", task, "--on_bad_doc", "fail")
    where = {"aqua_odd": "row 1: ", "plain_odd": "doc 1 of task plain_odd has gold 9"}[task]
    assert_one_message(found, 1, where, "0 to 3")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", ["aqua_odd", "plain_odd"])
def test_where_no_doc_can_be_asked_nothing_is_written(folder, tmp_path, task):
    # A context that is too short for every question.
    flags = ("--include_path", folder.path, "--limit", 20, *QUICK)
    given = identify(tmp_path / "runs", *flags, task=task, path=model_dir(context=20))
    found = call(*given[1:], entry=cli.run_eval_main)
    assert_one_message(
        found, 1, f"doc 0 of task {task} has", "without any demonstration", "context of 20"
    )
    assert not (tmp_path / "runs").exists()


def test_a_validation_without_docs_leaves_the_earlier_one(run, folder, tmp_path):
    copied = copy_of(run, tmp_path / "copy")
    values = yaml.safe_load(copied.settings.read_text())
    values["settings"]["model_args"] = {"pretrained": str(model_dir(context=20))}
    copied.settings.write_text(yaml.safe_dump(values))
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    assert_one_message(call("validate", copied.path, *QUICK), 1, "without any demonstration")
    assert {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("run.yaml", {"docs": 3}, ("docs is 3", "dictionary")),
        ("run.yaml", {"schema_version": 1}, ("schema_version is 1", "Expected: 3")),
        ("validation.json", {"docs": None}, ("docs is None", "validate again")),
        ("validation.json", {"top_k": "six"}, ("top_k is 'six'", "validate again")),
    ],
)
def test_damaged_counts(run, tmp_path, name, change, parts):
    copied = copy_of(run, tmp_path / "copy")
    path = copied.path / name
    values = {**yaml.safe_load(path.read_text()), **change}
    path.write_text(json.dumps(values))
    assert_one_message(call("report", copied.path), 1, name, *parts)


# What was asked, and whether it still is --------------------------------------------------------


def test_the_neurons_say_how_the_questions_were_asked(run):
    provenance = json.loads(run.neurons.read_text())["provenance"]
    asked = json.loads(provenance["asked"])
    if run.path.name == "plain_odd":
        assert asked == {}
    else:
        assert asked == AquaSettings(**ASKED).model_dump()
        assert provenance["seed"] == asked["seed"]


def test_the_seed_of_the_yaml_is_the_one_that_is_recorded(tmp_path):
    folder = TaskFolder(tmp_path / "tasks")
    name = folder.write("seeded", aqua=True, metadata={"version": 1.0, "seed": 5, "n_proxies": 2})
    code, _, err = run_all(folder, tmp_path / "runs", name)
    assert code == 0, err
    provenance = json.loads((tmp_path / "runs" / name / "neurons.json").read_text())["provenance"]
    assert provenance["seed"] == 5
    assert json.loads(provenance["asked"])["n_proxies"] == 2


def test_a_task_that_has_changed_since_is_said_to_have(tmp_path, caplog):
    folder = TaskFolder(tmp_path / "tasks")
    name = folder.write("changing", aqua=True)
    assert run_all(folder, tmp_path / "runs", name)[0] == 0
    assert "the task is not the one" not in caplog.text
    folder.write("changing", aqua=True, metadata={"version": 1.0, "letter_style": "(A)"})
    refused = call("validate", tmp_path / "runs")
    assert_one_message(refused, 1, "the prompt of doc 0", "not the one that identify made")
    folder.write("changing", aqua=True, doc_to_decontamination_query="question")
    assert call("validate", tmp_path / "runs")[0] == 0
    assert "changing: the task is not the one the neurons were chosen on" in caplog.text


def test_a_bad_doc_of_the_validation_split_shows_before_anything_is_identified(tmp_path):
    folder = TaskFolder(tmp_path / "tasks")
    bad = [{"question": "Bad?", "choices": ["x", "x"], "answer": 9}]
    name = folder.write("late", {"train": some_docs(0, 8), "test": [*some_docs(100, 8), *bad]})
    flags = ("--include_path", folder.path, "--tasks", name, "--on_bad_doc", "fail")
    model = f"pretrained={model_dir()}"
    code, _, err = call(
        "identify", *flags, "--model_args", model, "--output_path", tmp_path / "runs"
    )
    assert code == 1
    assert "doc 8 of task late" in err
    assert not (tmp_path / "runs").exists()
