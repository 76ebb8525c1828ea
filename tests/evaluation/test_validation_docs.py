"""What validation docs say: written by `validate`, read strictly by reports."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import DocText, read_doc_texts
from neuronllm_eval.harness.requests import doc_lines, question_words
from tests.fixtures.cli import finished_run, jsonl
from tests.fixtures.doc_tables import the_table

LINES = [
    {"doc_id": doc, "question": f"Question {doc}?", "options": ["x", "y"], "group": "odd"}
    for doc in range(4)
]


def written(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_docs_are_read_in_the_order_of_the_table(tmp_path):
    path = written(tmp_path / "docs.jsonl", LINES[::-1])
    assert read_doc_texts(path, the_table()) == tuple(
        DocText(doc, f"Question {doc}?", ("x", "y"), "odd") for doc in range(4)
    )


def test_runs_of_earlier_versions_have_no_such_file(tmp_path):
    assert read_doc_texts(tmp_path / "none.jsonl", the_table()) == ()


@pytest.mark.parametrize(
    "lines",
    [
        LINES[:3],
        [*LINES[:3], {**LINES[3], "doc_id": 9}],
        [*LINES[:3], {**LINES[3], "doc_id": "3"}],
        [*LINES[:3], {**LINES[3], "question": None}],
        [*LINES[:3], {**LINES[3], "options": [1]}],
        [*LINES[:3], {**LINES[3], "options": "xy"}],
        [*LINES[:3], {**LINES[3], "more": 1}],
        [],
    ],
)
def test_a_file_of_other_docs_is_refused(tmp_path, lines):
    path = written(tmp_path / "docs.jsonl", lines)
    with pytest.raises(ArtifactError, match="run validate again"):
        read_doc_texts(path, the_table())


def test_what_a_run_keeps():
    run = finished_run()
    lines = jsonl(run.validation_docs)
    assert [line["doc_id"] for line in lines] == [line["doc_id"] for line in jsonl(run.conditions)]
    assert {len(line["options"]) for line in lines} == {4}
    assert {line["group"] for line in lines} <= {"with an intruder", "of one topic"}
    assert all(line["question"].count(" ") > 5 for line in lines)


def task_of(*docs, choices=("left", "right")):
    prompts = tuple(SimpleNamespace(doc_id=i, options=((1,), (2,))) for i in range(len(docs)))
    task = SimpleNamespace(
        eval_docs=docs, doc_to_text=lambda doc: "The prompt", doc_to_choice=lambda doc: [*choices]
    )
    return SimpleNamespace(task=task, prompts=prompts)


@pytest.mark.parametrize(
    ("doc", "options", "group"),
    [
        ({"choices": ["a", "b"], "subject": "law"}, ["a", "b"], "law"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}}, ["a", "b"], ""),
        ({"choices": ["a", "b", "c"]}, ["left", "right"], ""),
        ({"subject": 3, "category": "history"}, ["left", "right"], "history"),
        ({"subject": "long " * 30}, ["left", "right"], ""),
    ],
)
def test_options_and_groups_of_any_task(doc, options, group):
    (line,) = doc_lines(task_of(doc))
    assert line == {"doc_id": 0, "question": "The prompt", "options": options, "group": group}


def test_only_the_first_words_are_kept():
    task = task_of({}).task
    long = {"question": " ".join(f"w{i}" for i in range(40))}
    assert question_words(task, long).split()[-1] == "w11..."
    assert question_words(task, {"question": "漢" * 500}) == "漢" * 200 + "..."
