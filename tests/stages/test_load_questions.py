"""A run's settings -> the questions that choose and those that judge."""

from __future__ import annotations

import pytest

from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.runs.settings import IdentifySettings, RunSettings
from neuronllm_eval.stages.load import load_run_task, selection_questions
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
    return folder.write("both", {"train": train, "test": [a_doc(99), asked]})


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
