"""The demo's harness tasks: prompts to the letter, proxies side by side, usable offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from neuronllm_eval import harness
from neuronllm_eval.aqua import dataset as aqua_task
from neuronllm_eval.demo import FAMILIES, load_questions
from neuronllm_eval.demo import tasks as demo_tasks
from neuronllm_eval.errors import ArtifactError, TaskError
from neuronllm_eval.harness import tasks_dir
from tests.fixtures.harness import model_dir

TASKS = tuple(f"demo_{family}" for family in FAMILIES)
METRICS = ["acc", "acc_consistent", "acc_majority", "fortuity", "position_bias"]
ROLE = "You are a careful expert. Each question has one right option; answer with its letter.\n\n"


@pytest.fixture
def own_questions():
    """Data are remembered: neither the shipped ones here nor those of the test elsewhere."""
    aqua_task._load.cache_clear()
    yield
    aqua_task._load.cache_clear()


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


@pytest.fixture(scope="module")
def tasks(manager: TaskManager) -> dict[str, ConfigurableTask]:
    """The demo tasks with the requests of their first five questions."""
    loaded = manager.load(list(TASKS))["tasks"]
    for task in loaded.values():
        task.build_all_requests(limit=15)
    return loaded


def asked(question: str, choices: list[str]) -> str:
    """The prompt of a question, put together without the task's template."""
    return (
        f"Question: {question}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\n"
        f"D. {choices[3]}\nAnswer:"
    )


def first_shown(family: str) -> dict:
    """The first question of the split for demonstrations, as the data has it."""
    return load_questions(family, "demonstration")[0]


# Prompts ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_questions")
def test_the_whole_prompt_of_a_question(manager, monkeypatch):
    # A family of one question. The first proxy has the order of the data, 0, 1, 2, 3, and the seed
    # draws for "q1" 1, 2, 3, 0 and then 2, 3, 0, 1: the gold, Lima, is A, D, C in turn.
    # White space and signs of the options must come through as they are.
    questions = {
        "selection": ("s1", "Which is even?", ["1", "3", "4", "5"], 2),
        "validation": ("q1", "Capital of Peru?", ["Lima", "{{ Oslo }}", " Rome", "B. & Bern"], 0),
        "demonstration": ("d1", "Which is red?", ["grass", "blood", "milk", "coal"], 1),
    }

    def load(family: str, split: str) -> list[dict[str, Any]]:
        names = ("id", "question", "choices", "answer")
        return [dict(zip(names, questions[split], strict=True), subfamily=family)]

    monkeypatch.setattr(demo_tasks, "load_questions", load)
    task = manager.load(["demo_topic"])["tasks"]["demo_topic"]
    task.build_all_requests()
    third = (
        "You are a careful expert. Each question has one right option; answer with its letter.\n"
        "\n"
        "Question: Which is red?\n"
        "A. grass\n"
        "B. blood\n"
        "C. milk\n"
        "D. coal\n"
        "Answer: B\n"
        "\n"
        "Question: Capital of Peru?\n"
        "A.  Rome\n"
        "B. B. & Bern\n"
        "C. Lima\n"
        "D. {{ Oslo }}\n"
        "Answer:"
    )
    assert [instance.args for instance in task.instances[8:]] == [
        (third, " A"),
        (third, " B"),
        (third, " C"),
        (third, " D"),
    ]
    assert [task.doc_to_target(instance.doc) for instance in task.instances[::4]] == [0, 3, 2]


@pytest.mark.parametrize("name", TASKS)
def test_prompts_of_the_shipped_questions(tasks, name):
    family = name.removeprefix("demo_")
    shown = first_shown(family)
    by_id = {doc["id"]: doc for doc in load_questions(family, "validation")}
    demonstration = f"{asked(shown['question'], shown['choices'])} {'ABCD'[shown['answer']]}\n\n"
    instances = tasks[name].instances
    assert len(instances) == 15 * 4
    for first in range(0, len(instances), 4):
        doc = instances[first].doc
        original = by_id[doc["question_id"]]
        choices = [original["choices"][index] for index in doc["order"]]
        prompt = ROLE + demonstration + asked(original["question"], choices)
        for letter, instance in zip("ABCD", instances[first : first + 4], strict=True):
            assert instance.args == (prompt, f" {letter}")


@pytest.mark.parametrize("name", TASKS)
def test_the_demonstration_is_not_shuffled(tasks, name):
    (shown,) = tasks[name].sampler.sample(1)
    first = first_shown(name.removeprefix("demo_"))
    assert shown["order"] == [0, 1, 2, 3]
    assert (shown["choices"], shown["answer"]) == (first["choices"], first["answer"])


# Docs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_three_proxies_side_by_side_with_the_gold_under_three_letters(tasks, name):
    task = tasks[name]
    docs = list(task.eval_docs)
    assert len(docs) == 3 * len(load_questions(name.removeprefix("demo_"), "validation"))
    for first in range(0, len(docs), 3):
        group = docs[first : first + 3]
        assert len({doc["question_id"] for doc in group}) == 1
        assert [doc["proxy"] for doc in group] == [0, 1, 2]
        assert len({task.doc_to_target(doc) for doc in group}) == 3
        assert len({doc["choices"][doc["answer"]] for doc in group}) == 1
    assert len({doc["question_id"] for doc in docs}) == len(docs) // 3


@pytest.mark.parametrize("name", TASKS)
def test_each_split_serves_its_purpose(tasks, name):
    task = tasks[name]
    ids = {
        "selection": {doc["question_id"] for doc in task.training_docs()},
        "validation": {doc["question_id"] for doc in task.eval_docs},
        "demonstration": {doc["question_id"] for doc in task.fewshot_docs()},
    }
    for split, found in ids.items():
        assert found == {doc["id"] for doc in load_questions(name.removeprefix("demo_"), split)}
    assert ids["selection"].isdisjoint(ids["validation"])


@pytest.mark.parametrize("name", TASKS)
def test_settings_can_be_written_into_result_files(tasks, name):
    config = json.loads(json.dumps(tasks[name].dump_config()))
    assert config["metadata"]["n_proxies"] == 3
    counts = config["metadata"]["counts"]
    for split, n_docs in (("selection", 600), ("validation", 600), ("demonstration", 8)):
        assert counts[split] == {"split": split, "docs": n_docs, "questions": n_docs}
    assert config["metric_list"][0] == {
        "metric": "acc", "aggregation": "mean", "higher_is_better": True,
    }  # fmt: skip
    assert " at 0x" not in json.dumps(config)


# Loading ----------------------------------------------------------------------------------------


def test_the_group_holds_the_four_tasks(manager):
    group = manager.load(["demo"])["groups"]["demo"]
    assert tuple(group.child_names) == TASKS
    assert [metric.metric for metric in group.aggregate_metric_list] == METRICS
    for metric in group.aggregate_metric_list:
        assert (metric.aggregation, metric.weight_by_size) == ("mean", True)


def test_a_group_averages_what_its_tasks_measure():
    # Stock lm_eval sums up a group's metrics by name: each must be one of every task's.
    seen = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(model_dir())}, tasks=["demo"], limit=6, device="cpu",
        task_manager=TaskManager(include_path=str(tasks_dir()), include_defaults=False),
        bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    for metric in METRICS:
        values = [seen["results"][name][f"{metric},none"] for name in TASKS]
        assert seen["groups"]["demo"][f"{metric},none"] == pytest.approx(sum(values) / 4)


def test_no_task_of_the_harness_has_the_same_name():
    folders = [Path(lm_eval.tasks.__file__).parent], [tasks_dir()]
    stock, packaged = (set(TaskIndex.build(folder)) for folder in folders)
    assert packaged >= {"demo", *TASKS}
    assert not stock & packaged


def test_an_unknown_family_is_refused_with_those_there_are():
    with pytest.raises(TaskError, match=r"no family 'history'\.\nExpected: one of knowledge, .*"):
        demo_tasks.load_family(family="history", version=1.0)


def test_tasks_of_a_wheel_come_before_those_of_a_checkout(monkeypatch, tmp_path):
    package = tmp_path / "neuronllm_eval"
    monkeypatch.setattr(harness, "_PACKAGE", package)
    with pytest.raises(ArtifactError, match=r"(?s)no demo/demo\.yaml in .*\nRemedy: reinstall"):
        tasks_dir()
    for parent in (tmp_path, package):
        (parent / "tasks" / "demo").mkdir(parents=True)
        (parent / "tasks" / "demo" / "demo.yaml").touch()
        assert tasks_dir() == parent / "tasks"
