"""Tasks by name, which split chooses and which judges, and every refusal."""

from __future__ import annotations

import json
import random
import re

import datasets
import pytest
import yaml

from neuronllm_eval.aqua import dataset as aqua_task
from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness.leakage import doc_contents, overlapping_questions
from neuronllm_eval.harness.tasks import (
    is_aqua,
    load_tasks,
    on_split,
    selection_split,
    validation_split,
)
from neuronllm_eval.models.fingerprints import task_hash
from tests.fixtures.harness import TaskFolder, a_doc, demo_task, include_paths, some_docs


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


# Splits -------------------------------------------------------------------------------------------

SPLITS = {"train": some_docs(0), "validation": some_docs(50), "test": some_docs(100)}


@pytest.mark.parametrize(
    ("named", "override", "choosing", "judging"),
    [
        ({"training_split": "train", "test_split": "test"}, None, "train", "test"),
        ({"validation_split": "validation", "test_split": "test"}, None, "validation", "test"),
        (
            {"training_split": "train", "validation_split": "validation"},
            None,
            "train",
            "validation",
        ),
        (
            {"training_split": "train", "validation_split": "validation", "test_split": "test"},
            None,
            "train",
            "test",
        ),
        ({"training_split": "train", "test_split": "test"}, "validation", "validation", "test"),
        ({"test_split": "test"}, "train", "train", "test"),
    ],
)
def test_which_split_chooses_and_which_judges(folder, named, override, choosing, judging):
    splits = {"training_split": None, "validation_split": None, "test_split": None, **named}
    folder.write("plain", SPLITS, **splits)
    task = folder.load("plain")
    assert validation_split(task) == judging
    assert selection_split(task, override) == choosing


def test_no_split_to_choose_on(folder):
    folder.write("plain", SPLITS, training_split=None)
    with pytest.raises(
        TaskError, match=r"(?s)plain names no training or validation split.*train, validation, test"
    ):
        selection_split(folder.load("plain"))


def test_an_unknown_split(folder):
    folder.write("plain", SPLITS)
    with pytest.raises(
        TaskError, match=r"(?s)no split 'dev'.*train, validation, test.*--selection"
    ):
        selection_split(folder.load("plain"), "dev")


@pytest.mark.parametrize("override", ["test", None])
def test_one_split_for_both(folder, override):
    folder.write("plain", SPLITS, training_split="train" if override else "test")
    with pytest.raises(
        TaskError,
        match=r"(?s)the selection split 'test' is also the validation split.*different docs",
    ):
        selection_split(folder.load("plain"), override)


def test_a_copy_on_another_split_leaves_the_task_alone(folder):
    folder.write("plain")
    task = folder.load("plain")
    before = list(task.eval_docs)
    copy = on_split(task, "train")
    assert list(copy.eval_docs) != before
    assert list(task.eval_docs) == before
    assert (validation_split(task), validation_split(copy)) == ("test", "train")


def test_tasks_that_shuffle_when_they_are_read_are_as_in_stock(folder):
    # As lm_eval's GPQA: the options are shuffled by the module random, which lm_eval seeds before.
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "shuffling.py").write_text(
        "import random\n\n\ndef shuffled(dataset):\n"
        "    def one(doc):\n        order = random.sample(range(4), 4)\n"
        "        return {**doc, 'choices': [doc['choices'][i] for i in order],"
        " 'answer': order.index(doc['answer'])}\n    return dataset.map(one)\n",
        encoding="utf-8",
    )
    name = folder.write("shuffles", {"train": some_docs(0), "test": some_docs(50, 9)})
    text = (folder.path / f"{name}.yaml").read_text(encoding="utf-8")
    path = folder.path / f"{name}.yaml"
    path.write_text(text + "process_docs: !function shuffling.shuffled\n", encoding="utf-8")

    def golds():
        return [doc["answer"] for doc in folder.load(name).eval_docs]

    first = golds()
    random.random()  # what was drawn before must not matter
    assert golds() == first


def test_a_copy_shares_the_data_and_has_the_same_hash(folder):
    for aqua in (False, True):
        name = folder.write(f"once_{aqua}", aqua=aqua)
        task = folder.load(name)
        (folder.path / f"{name}.json").unlink()  # so that it cannot be read again
        aqua_task._load.cache_clear()
        for split in (selection_split(task), validation_split(task)):
            copy = on_split(task, split)
            assert copy.dataset is task.dataset
            assert copy.config.custom_dataset is task.config.custom_dataset
            assert is_aqua(copy) == is_aqua(task) == aqua
            assert task_hash(copy.dump_config()) == task_hash(task.dump_config())


def test_a_copy_of_a_task_over_a_data_set_does_not_load_it_again(tmp_path, monkeypatch):
    rows = {split: some_docs(first) for split, first in (("train", 0), ("test", 100))}
    for split, docs in rows.items():
        lines = "".join(f"{json.dumps(doc)}\n" for doc in docs)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in rows}
    config = {
        **TaskFolder(tmp_path).defaults,
        "task": "on_disk",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "on_disk.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    task = load_tasks(["on_disk"], [tmp_path])["on_disk"]

    def refuse(*_, **__):
        raise AssertionError("the data set is loaded again")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    copy = on_split(task, "train")
    assert [doc["question"] for doc in copy.eval_docs] == [doc["question"] for doc in some_docs(0)]
    assert copy.config.custom_dataset is None
    assert task_hash(on_split(task, "test").dump_config()) == task_hash(task.dump_config())


# Overlap ------------------------------------------------------------------------------------------


def overlapping(folder) -> str:
    """Train question 2 is test question 1 in other letters, spaces and order of options."""
    train = some_docs(0, 3)
    asked = a_doc(77, 1)
    train[2] = {
        "question": "which  is NUMBER 77? ",
        "choices": [choice.upper() for choice in reversed(asked["choices"])],
        "answer": 2,
    }
    shown = "{{question}}{% for choice in choices %} {{choice}}{% endfor %}"
    return folder.write("both", {"train": train, "test": [a_doc(99), asked]}, doc_to_text=shown)


def shared_questions(one, other) -> set[str]:
    return overlapping_questions(one, frozenset(doc_contents(other)))


def test_shared_content_is_found_whatever_the_order_of_the_options(folder):
    overlapping(folder)
    task = folder.load("both")
    assert shared_questions(on_split(task, "train"), task) == {"both-2"}
    folder.write("apart")
    task = folder.load("apart")
    assert shared_questions(on_split(task, "train"), task) == set()


def test_passages_tell_questions_apart(folder):
    # The same question about two texts is two questions; about the same text it is one.
    asked = [{**a_doc(1), "story": text} for text in ("of cats", "of dogs")]
    shown = {"doc_to_text": "{{story}}\n{{question}}"}
    folder.write("read", {"train": asked[:1], "test": asked[1:]}, **shown)
    task = folder.load("read")
    assert shared_questions(on_split(task, "train"), task) == set()
    folder.write("same", {"train": asked[:1], "test": asked[:1]}, **shown)
    task = folder.load("same")
    assert shared_questions(on_split(task, "train"), task) == {"same-0"}


def test_the_demo_splits_share_nothing():
    for name in load_tasks(["demo"]):
        task = demo_task(name)
        choosing = on_split(task, selection_split(task))
        assert selection_split(task) == "selection"
        assert shared_questions(choosing, task) == set()


# Settings of AQUA tasks ---------------------------------------------------------------------------


def test_n_proxies_and_seed_override_the_tasks_own():
    def shown(**overrides):
        docs = list(load_tasks(["demo_topic"], overrides=overrides)["demo_topic"].eval_docs)[:20]
        return [(doc["question_id"], doc["proxy"], tuple(doc["order"])) for doc in docs]

    assert [proxy for _, proxy, _ in shown()[:6]] == [0, 1, 2] * 2
    assert [proxy for _, proxy, _ in shown(n_proxies=2)[:4]] == [0, 1] * 2
    assert len({question for question, _, _ in shown(n_proxies=1)}) == 20
    assert shown(seed=1) != shown()
    assert shown(seed=0) == shown()  # the YAML's seed
    assert shown(n_proxies="all", seed=1) != shown(n_proxies="all")
    assert [proxy for _, proxy, _ in shown(n_proxies="all")[:8]] == [0, 1, 2, 3] * 2
    message = (
        r"n_proxies is 'foo'\.\nExpected: a whole number, 1 or more, or all\.\nRemedy: check --n"
    )
    with pytest.raises(UsageError, match=message):
        shown(n_proxies="foo")


def test_what_every_task_takes_and_what_only_an_aqua_task_does(folder):
    folder.write("plain")
    assert list(folder.load("plain", n_proxies=1, seed=3, on_bad_doc="fail").eval_docs)
    with pytest.raises(
        TaskError,
        match=r"task plain is not an AQUA task, so --orders swap and --letter_style A\) cannot "
        r"apply\.\nExpected: .*aqua:plain.*\nRemedy: pass --tasks aqua:plain,",
    ):
        folder.load("plain", orders="swap", letter_style="A)", n_proxies=2, seed=3)


# Tasks that cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["DEMO_", "demo_topc"])
def test_an_unknown_task_and_those_close_to_it(typed):
    with pytest.raises(TaskError) as caught:
        load_tasks([typed])
    text = str(caught.value)
    assert text.startswith(f"unknown task {typed!r}.\nExpected: the name of a task or group")
    close = set(re.split(r", |\.\n", text.partition("close to it: ")[2])[:5])
    assert close & {"demo_arithmetic", "demo_knowledge", "demo_sentiment", "demo_topic"}
    assert "Remedy: see `lm_eval ls tasks`, or pass --include_path." in text


def test_an_unknown_family(tmp_path):
    text = (
        f"include: {include_paths()[0]}/demo/_demo.yaml\ntask: bad_family\ndataset_kwargs:\n"
        "  load: neuronllm_eval.demo.tasks.load_family\n  load_kwargs: {family: history}\n"
        "  selection_split: selection\n  validation_split: validation\n"
    )
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(
        TaskError, match=r"the demo has no family 'history'\.\nExpected: one of know"
    ):
        load_tasks(["bad_family"], [tmp_path])


def test_no_task():
    with pytest.raises(UsageError, match=r"no task given.*\n.*\nRemedy: pass --tasks"):
        load_tasks([])


def test_a_group_gives_its_leaves():
    assert list(load_tasks(["demo"])) == [
        "demo_knowledge",
        "demo_arithmetic",
        "demo_sentiment",
        "demo_topic",
    ]


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_task_that_is_not_multiple_choice(folder, kind):
    metric = {"generate_until": "exact_match", "loglikelihood": "acc"}[kind]
    folder.write(
        "said",
        output_type=kind,
        doc_to_choice=None,
        metric_list=[{"metric": metric}],
    )
    with pytest.raises(
        TaskError, match=rf"task said has output_type {kind}\.\nExpected: .*multiple_choice"
    ):
        folder.load("said")


def test_a_task_with_a_context_for_each_choice(folder):
    # As winogrande: doc_to_text is the gold's index, and the options are contexts.
    folder.write(
        "blanks",
        doc_to_text="answer",
        doc_to_choice="{{choices}}",
        doc_to_target="question",
    )
    with pytest.raises(TaskError, match=r"task blanks has output_type .* one context per choice"):
        folder.load("blanks")


def test_an_include_path_that_is_none(tmp_path):
    missing = tmp_path / "nowhere"
    with pytest.raises(UsageError, match=rf"--include_path {missing} is not a directory"):
        load_tasks(["demo_topic"], [missing])
    with pytest.raises(UsageError, match=r"is not a directory"):
        load_tasks(["demo_topic"], [__file__])


def test_a_task_whose_data_cannot_be_read(folder):
    folder.write("broken")
    (folder.path / "broken.json").unlink()
    with pytest.raises(
        TaskError, match=r"(?s)tasks broken cannot be loaded: FileNotFoundError.*lm_eval validate"
    ):
        folder.load("broken")


# Groups and patterns ------------------------------------------------------------------------------


def test_a_group_that_has_a_task_twice_with_different_settings(folder):
    folder.write("plain")
    twice = [{"task": "plain", "num_fewshot": shots} for shots in (0, 1)]
    (folder.path / "twice.yaml").write_text(yaml.safe_dump({"group": "twice", "task": twice}))
    with pytest.raises(TaskError, match="task plain occurs twice, with different settings"):
        folder.load("twice")


def test_a_pattern_stands_for_the_names_that_it_matches(folder):
    for name in ("like_a", "like_b", "other"):
        folder.write(name)
    assert list(load_tasks(["like_*"], [folder.path])) == ["like_a", "like_b"]
    with pytest.raises(TaskError, match=r"unknown task 'nothing_\*'"):
        load_tasks(["nothing_*"], [folder.path])
