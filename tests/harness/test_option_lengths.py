"""What options are compared by, by task and setting, and the lengths of their texts."""

from __future__ import annotations

import pytest

from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.harness.option_lengths import option_lengths, resolved_option_scores
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings
from tests.fixtures.harness import TaskFolder, a_doc, harness_model, model_dir, some_docs

CHOICES = ["because of the cat", "because of the Übermut", "because of it"]


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


def a_task(folder: TaskFolder, *metrics: str, aqua: bool = False, **config):
    docs = {"train": some_docs(0), "test": some_docs(100)}
    listed = [{"metric": metric} for metric in metrics]
    if not aqua:
        config = {"metric_list": listed or None, **config}
    return folder.load(folder.write("words", docs, aqua=aqua, **config))


def test_lengths_by_hand():
    assert option_lengths(CHOICES, "per_character") == (18.0, 22.0, 13.0)
    assert option_lengths(CHOICES, "per_byte") == (18.0, 23.0, 13.0)  # Ü is two bytes
    assert option_lengths(CHOICES, "sum") == ()


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["acc"], "sum"),
        (["acc", "acc_norm"], "sum"),
        (["acc_norm"], "per_character"),
        (["acc_norm", "acc"], "per_character"),
        (["exact_match", "acc_bytes", "acc"], "per_byte"),
        (["f1"], "sum"),
        ([], "sum"),  # the harness's default list is acc, acc_norm
    ],
)
def test_auto_is_what_the_first_of_three_metrics_compares(folder, metrics, expected):
    task = a_task(folder, *metrics)
    assert resolved_option_scores(task, "auto") == expected
    for chosen in ("sum", "per_character", "per_byte"):
        assert resolved_option_scores(task, chosen) == chosen


def test_letters_of_aqua_tasks_are_compared_as_they_are(folder):
    task = a_task(folder, aqua=True)
    assert resolved_option_scores(task, "auto") == "sum"
    assert resolved_option_scores(task, "sum") == "sum"
    with pytest.raises(UsageError, match=r"per_byte, and words is an AQUA task\.\n.*letters\.\n"):
        resolved_option_scores(task, "per_byte")


@pytest.mark.parametrize("tokenizer", ["words", "split_space"])
def test_prompts_have_the_lengths_of_the_texts_alone(folder, tokenizer):
    # Neither the delimiter nor tokens that moved to the context change them.
    task = a_task(folder, "acc_norm", doc_to_choice=CHOICES, doc_to_target=0)
    built = build_questions(harness_model(model_dir(tokenizer)), task, PromptSettings())
    assert built.option_scores == "per_character"
    assert {prompt.lengths for prompt in built.prompts} == {(18.0, 22.0, 13.0)}
    assert {prompt.n_shared > 0 for prompt in built.prompts} == {True}
    plain = build_questions(
        harness_model(model_dir(tokenizer)), task, PromptSettings(option_scores="sum")
    )
    assert plain.option_scores == "sum"
    assert {prompt.lengths for prompt in plain.prompts} == {()}
    assert plain.prompts[0].options == built.prompts[0].options


def test_an_option_without_text_cannot_be_divided(folder):
    docs = [a_doc(1), {**a_doc(2), "choices": ["", "one", "two", "three"]}]
    folder.write(
        "empty",
        {"train": some_docs(0), "test": docs},
        metric_list=[{"metric": "acc_norm"}],
        doc_to_choice="choices",
    )
    lm = harness_model(model_dir("split_space"))
    built = build_questions(lm, folder.load("empty"), PromptSettings())
    assert built.skipped == {"an option without text": 1}
    with pytest.raises(DocError, match="doc 1 has 4 options of lengths"):
        build_questions(lm, folder.load("empty"), PromptSettings(on_bad_doc="fail"))
