"""A run's settings -> the questions that choose and those that judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.runs.settings import IdentifySettings, RunSettings
from neuronllm_eval.stages.load import (
    load_run_task,
    load_run_tasks,
    prompt_digests,
    selection_questions,
    validation_questions,
)
from tests.fixtures.harness import TaskFolder, a_doc, harness_model, model_dir, some_docs


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def lm():
    return harness_model(model_dir())


def chosen(lm, settings) -> QuestionSet:
    return selection_questions(lm, settings, load_run_task(settings))


# Which questions choose ---------------------------------------------------------------------------


def test_a_limit_draws_from_sorted_data_by_seed(folder, lm):
    # 40 docs sorted by label: the first ten would all have gold A.
    docs = [a_doc(number, number // 10) for number in range(40)]
    name = folder.write("sorted", {"train": docs, "test": some_docs(50)})
    golds = {}
    for seed in (0, 1):
        settings = RunSettings(
            model_args={}, task=name, include_path=(str(folder.path),), limit=10, seed=seed
        )
        found = chosen(lm, settings)
        golds[seed] = [prompt.gold for prompt in found.prompts]
        assert len(golds[seed]) == 10
        assert len(set(golds[seed])) > 1
        # Ids and docs stay together though only some docs are asked.
        for question in found.questions:
            doc_id = question.prompts[0].doc_id
            assert question.question_id == f"sorted-{doc_id}"
            assert question.prompts[0].gold == docs[doc_id]["answer"]
        again = chosen(lm, settings)
        assert again.questions == found.questions
    assert golds[0] != golds[1]


def test_a_column_named_question_id_is_aquas_only_in_aqua_tasks(folder, lm):
    docs = [{**a_doc(number), "question_id": "all the same"} for number in range(3)]
    name = folder.write("own_ids", {"train": docs, "test": some_docs(50)})
    settings = RunSettings(model_args={}, task=name, include_path=(str(folder.path),))
    found = chosen(lm, settings)
    assert [question.question_id for question in found.questions] == [
        "own_ids-0", "own_ids-1", "own_ids-2",
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_some_validation_questions_are_prompted_as_among_all(folder, lm, sampler):
    """The default sampler draws demonstrations doc by doc, so that no doc may be left out."""
    name = folder.write(
        "few_shot",
        {"train": some_docs(0), "test": some_docs(50, 9), "shots": some_docs(300, 30)},
        fewshot_split="shots",
        fewshot_config={"sampler": sampler},
    )
    settings = RunSettings(
        model_args={}, task=name, include_path=(str(folder.path),), num_fewshot=2
    )
    task = load_run_task(settings)
    every = validation_questions(lm, settings, task).questions
    some = [every[index].question_id for index in (1, 4, 6)]
    only = validation_questions(lm, settings, task, only=some).questions
    assert only == tuple(question for question in every if question.question_id in some)


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


def test_shared_content_is_refused(folder, lm):
    settings = RunSettings(
        model_args={}, task=overlapping(folder), include_path=(str(folder.path),)
    )
    with pytest.raises(
        TaskError,
        match=r"task both: 1 questions of the selection split are in the validation split too, "
        r"such as both-2\.\nExpected: .*\nRemedy: pass --overlap drop",
    ):
        chosen(lm, settings)


def test_shared_content_is_dropped_on_request(folder, lm, caplog):
    name = overlapping(folder)
    settings = RunSettings(
        model_args={}, task=name, include_path=(str(folder.path),), overlap="drop"
    )
    found = chosen(lm, settings)
    assert [question.question_id for question in found.questions] == ["both-0", "both-1"]
    assert "both: 1 questions dropped from the selection split" in caplog.text


def test_an_unknown_way_with_overlaps():
    with pytest.raises(UsageError, match=r"overlap is 'keep'\.\nExpected: refuse or drop"):
        IdentifySettings.read({"overlap": "keep"})


# Tasks of groups ----------------------------------------------------------------------------------


def in_groups(folder, shown: str) -> RunSettings:
    """A task with settings of a group, one that a group defines, and one with neither."""
    folder.write("plain")
    folder.write("other", doc_to_text=shown)
    files = {split: str(folder.path / f"{split}.jsonl") for split in ("train", "test")}
    for first, file in enumerate(files.values()):
        lines = map(json.dumps, some_docs(50 * first))
        Path(file).write_text("\n".join(lines), encoding="utf-8")
    told = {**folder.defaults, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    changed = {"task": "plain", "description": "Tales. ", "doc_to_text": shown}
    group = [changed, "other", {**told, "task": "told", "doc_to_text": shown}]
    (folder.path / "mine.yaml").write_text(yaml.safe_dump({"group": "mine", "task": group}))
    return RunSettings(model_args={}, task="mine", include_path=(str(folder.path),))


@pytest.mark.parametrize("prefix", ["", "aqua:"])
def test_a_run_has_the_settings_that_a_group_gave_its_task(folder, lm, prefix):
    options = "".join(f"\n{letter}. {{{{choices[{at}]}}}}" for at, letter in enumerate("ABCD"))
    asked = in_groups(folder, f"Say it. {{{{question}}}}{options}\nAnswer:")
    tasks = load_run_tasks(asked.model_copy(update={"task": f"{prefix}mine"}))
    groups = {name: settings.group for name, (settings, _) in tasks.items()}
    mine = f"{prefix}mine"
    assert groups == {f"{prefix}plain": mine, f"{prefix}other": "", f"{prefix}mine::told": mine}
    for settings, task in tasks.values():
        again = load_run_task(settings)  # as validate, verify and explain do
        for build in (selection_questions, validation_questions):
            assert build(lm, settings, again).prompts == build(lm, settings, task).prompts


def test_other_prompts_than_those_of_identify_are_refused(folder, lm):
    folder.write("plain")
    settings = RunSettings(model_args={}, task="plain", include_path=(str(folder.path),))
    digests = prompt_digests(validation_questions(lm, settings, load_run_task(settings)))
    assert len(set(digests.values())) == 4
    settings = settings.model_copy(update={"validation_prompts": digests})
    validation_questions(lm, settings, load_run_task(settings))
    validation_questions(lm, settings.model_copy(update={"limit": 2}), load_run_task(settings))
    folder.write("plain", doc_to_text="{{question}} It is")
    with pytest.raises(TaskError, match="the prompt of doc 0 of the validation split is not the"):
        validation_questions(lm, settings, load_run_task(settings))
