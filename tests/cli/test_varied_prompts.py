"""`--n_proxies` on a task as it is, through the commands: files, report and verification."""

from __future__ import annotations

import json

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import call, identify, jsonl, without_the_harness_tasks
from tests.fixtures.harness import TaskFolder, include_paths, model_dir, some_docs

N_TEST = 12
PATH = model_dir()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> TaskFolder:
    folder = TaskFolder(tmp_path_factory.mktemp("tasks"))
    folder.write(
        "words",
        {"train": some_docs(0, 9), "test": some_docs(100, N_TEST)},
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        fewshot_split="train",
    )
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> RunDirectory:
    """A finished run with three prompts of each question; not to be changed."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "words")
    command = identify(run.path.parent, "--top_k", 6, "--n_proxies", 3, "-f", 2, "-L", 8,
                       task="words", path=PATH)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for words in (
            (*command, "--include_path", folder.path),
            ("validate", run.path, "--n_random", 1, "--conditions", "degrade", "-L", N_TEST),
        ):
            code, _, err = call(*words)
            assert code == 0, err
    return run


def test_files_and_report_are_those_of_questions_with_several_prompts(run):
    origin = NeuronScores.load(run.path).provenance
    assert (origin.n_questions, origin.n_prompts, origin.n_proxies) == (8, 24, 3)
    lines = jsonl(run.conditions)
    assert [line["doc_id"] for line in lines] == list(range(3 * N_TEST))
    assert [line["question_id"] for line in lines] == [f"words-{n // 3}" for n in range(3 * N_TEST)]
    right = {line["question_id"]: [] for line in lines}
    for line in lines:
        scores = line["loglikelihoods"]["degrade"]
        right[line["question_id"]].append(max(scores) == scores[line["gold"]])
    found = json.loads(run.result("degrade").read_text())["results"]["words"]
    share = {
        "acc": sum(map(sum, right.values())) / (3 * N_TEST),
        "acc_consistent": sum(map(all, right.values())) / N_TEST,
        "fortuity": sum(each[0] and not all(each) for each in right.values()) / N_TEST,
    }
    assert {name: found[f"{name},none"] for name in share} == pytest.approx(share)
    report = run.report.read_text()
    assert "| condition | consistent % | majority % | fortuity % |" in " ".join(report.split())
    assert "n_proxies=3" in report


def test_the_first_prompts_are_those_of_stock_lm_eval(run, folder):
    manager = TaskManager(include_path=include_paths(folder), include_defaults=False)
    stock = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(PATH)}, tasks=["words"], task_manager=manager,
        num_fewshot=2, batch_size=1, device="cpu", bootstrap_iters=0,
    )  # fmt: skip
    expected = [
        [pair[0] for pair in sample["filtered_resps"]] for sample in stock["samples"]["words"]
    ]
    lines = jsonl(run.conditions)[::3]
    assert len(expected) == len(lines) == N_TEST
    for line, loglikelihoods in zip(lines, expected, strict=True):
        own = line["loglikelihoods"]["unmasked"]
        gap = own[0] - loglikelihoods[0]  # of tokens that all options share
        assert [each - gap for each in own] == pytest.approx(loglikelihoods, abs=1e-3)


def test_it_is_verified(run, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    code, out, err = call("verify", run.path, "--limit", 4)
    assert code == 0, out + err
