"""Harness tasks -> questions: the same tokens as stock lm_eval, and which docs are asked."""

from __future__ import annotations

import re

import lm_eval.api.task
import pytest

from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness.leakage import doc_contents
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tasks import load_tasks, on_split, selection_split, validation_split
from neuronllm_eval.harness.tokenize import PromptSettings
from tests.fixtures.harness import (
    CHAT_TEMPLATE,
    TaskFolder,
    a_doc,
    demo_task,
    harness_model,
    model_dir,
    sequences,
    some_docs,
    stock_requests,
    whole,
)

ASK = PromptSettings()


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def lm():
    return harness_model(model_dir())


# The same tokens as stock lm_eval -----------------------------------------------------------------

PROMPT_SETTINGS = {
    "as the task says": {},
    "zero-shot": {"num_fewshot": 0},
    "one-shot": {"num_fewshot": 1},
    "system instruction": {"system_instruction": "Think of birds."},
    "chat template": {"apply_chat_template": True},
    "chat, one turn": {"apply_chat_template": True, "fewshot_as_multiturn": False},
    "chat, all": {"apply_chat_template": True, "system_instruction": "Birds.", "num_fewshot": 1},
}


@pytest.mark.parametrize("case", PROMPT_SETTINGS)
@pytest.mark.parametrize("name", ["demo_arithmetic", "plain"])
def test_prompts_are_those_of_stock_lm_eval(case, name, folder):
    settings = {**PROMPT_SETTINGS[case]}
    # num_fewshot is left out, so that the settings decide; demonstrations are drawn by chance.
    folder.write("plain", {"train": some_docs(0, 9), "test": some_docs(100, 3)})
    path = model_dir(chat_template=CHAT_TEMPLATE)
    limit = 3  # docs: one question with its proxies, or three questions
    seen = stock_requests(path, name, folder, limit, **settings)

    task = load_tasks([name], [folder.path])[name]
    built = build_questions(
        harness_model(path),
        on_split(task, validation_split(task)),
        PromptSettings(**settings),
        limit=1 if name.startswith("demo") else 3,
    )
    pairs = [(p.context, option) for p in built.prompts for option in p.options]
    assert len(pairs) == 12
    assert pairs == seen
    letter = "A" if settings.get("apply_chat_template") else " A"
    assert harness_model(path).tokenizer.decode(pairs[0][1]) == letter
    assert built.num_fewshot == settings.get("num_fewshot", 1 if name.startswith("demo") else 0)


def test_settings_change_the_prompts():
    # Guards the comparison above: were the settings ignored by both sides, it would still pass.
    path = model_dir(chat_template=CHAT_TEMPLATE)
    contexts = {
        case: build_questions(harness_model(path), demo_task(), PromptSettings(**settings), limit=1)
        .prompts[0]
        .context
        for case, settings in PROMPT_SETTINGS.items()
    }
    assert contexts.pop("one-shot") == contexts["as the task says"]
    assert len(set(contexts.values())) == len(contexts)


def test_demonstrations_follow_the_seed(folder, lm):
    folder.write("plain", {"train": some_docs(0, 30), "test": some_docs(100, 1)}, num_fewshot=2)
    first, other = (
        build_questions(lm, folder.load("plain"), PromptSettings(fewshot_seed=seed)).prompts[0]
        for seed in (1234, 5)
    )
    assert first.context != other.context
    seen = stock_requests(model_dir(), "plain", folder, fewshot_random_seed=5)
    assert sequences([other]) == whole(seen)


def test_a_task_that_fixes_no_demonstration_keeps_none(folder, lm):
    folder.write("plain", num_fewshot=0)
    built = build_questions(lm, folder.load("plain"), PromptSettings(num_fewshot=2))
    assert built.num_fewshot == 0
    assert sequences(built.prompts) == whole(
        stock_requests(model_dir(), "plain", folder, num_fewshot=2)
    )


def test_prompts_of_the_selection_split(folder, lm):
    folder.write("judged")
    folder.write("chosen", test_split="train")  # stock lm_eval, asked about the selection split
    task = folder.load("judged")
    built = build_questions(lm, on_split(task, selection_split(task)), ASK)
    assert built.split == "train"
    assert [question.question_id for question in built.questions] == [
        f"judged-{doc}" for doc in range(4)
    ]
    assert sequences(built.prompts) == whole(stock_requests(model_dir(), "chosen", folder))
    assert [prompt.gold for prompt in built.prompts] == [0, 1, 2, 3]


def test_an_empty_context_becomes_the_prefix_token(folder, lm):
    folder.write("bare", doc_to_text="", target_delimiter="")
    built = build_questions(lm, folder.load("bare"), ASK)
    assert built.prompts[0].context == (lm.prefix_token_id,)
    assert sequences(built.prompts) == whole(stock_requests(model_dir(), "bare", folder))


def test_the_harness_bars_name_the_task_and_leave_nothing_behind(folder, lm, monkeypatch):
    seen = []

    def tqdm(docs, **settings):
        seen.append(settings)
        return docs

    monkeypatch.setattr(lm_eval.api.task, "tqdm", tqdm)
    folder.write("bare")
    build_questions(lm, folder.load("bare"), ASK)
    assert [each["desc"] for each in seen] == ["prompts of bare"]
    assert not seen[0]["leave"]
    assert lm_eval.api.task.tqdm is tqdm


# Which docs are asked -----------------------------------------------------------------------------


def test_limit_counts_questions_not_proxies(folder, lm):
    # With two options there are only two proxies: the questions differ in their number of docs.
    docs = [a_doc(number, number % 2, 2 if number % 3 == 0 else 4) for number in range(6)]
    folder.write("asked", {"train": some_docs(50), "test": docs}, aqua=True)
    task = folder.load("asked")
    everything = build_questions(lm, task, ASK)
    sizes = [len(question.prompts) for question in everything.questions]
    assert sorted(sizes) == [2, 2, 3, 3, 3, 3]
    assert [prompt.doc_id for prompt in everything.prompts] == list(range(16))
    for limit in range(1, 6):
        built = build_questions(lm, task, ASK, limit=limit)
        assert built.questions == everything.questions[:limit]
    assert build_questions(lm, task, ASK, limit=99).questions == everything.questions


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(lm, limit):
    with pytest.raises(UsageError, match=rf"limit is {limit}\.\nExpected: 1 or more questions"):
        build_questions(lm, demo_task(), ASK, limit=limit)


def test_excluded_questions_are_left_out(lm):
    task = demo_task()
    every = build_questions(lm, task, ASK, limit=4).questions
    # The limit counts what is left.
    kept = build_questions(lm, task, ASK, limit=3, exclude=[every[1].question_id]).questions
    assert kept == (every[0], every[2], every[3])
    ids = {doc["question_id"] for doc in task.eval_docs}
    with pytest.raises(UsageError, match=r"no question is left of task demo_topic"):
        build_questions(lm, task, ASK, limit=3, exclude=ids)


def test_a_demonstration_that_is_a_proxy_is_refused(folder, lm):
    # Demonstrations from the split that is asked are proxies of the questions asked.
    name = folder.write("leak", aqua=True, fewshot_split="validation")
    with pytest.raises(
        TaskError, match=r"(?s)task leak: 12 of its demonstrations.*fewshot_split be demonstration"
    ):
        build_questions(lm, folder.load(name), PromptSettings(num_fewshot=1))
    assert len(build_questions(lm, folder.load(name), PromptSettings(num_fewshot=0)).questions) == 4


def shots_of(lm, task, hidden=frozenset(), n=3) -> list[tuple[str, list[str]]]:
    """Of each prompt the question asked, and those shown before it."""
    settings = PromptSettings(num_fewshot=n)
    built = build_questions(lm, task, settings, hidden=hidden)
    texts = [lm.tokenizer.decode(prompt.context) for prompt in built.prompts]
    found = [re.findall(r"Which is number (\d+)\?", text) for text in texts]
    return [(shown[-1], shown[:-1]) for shown in found]


@pytest.mark.parametrize("config", [{}, {"fewshot_split": "train"},
                                    {"fewshot_split": "train",
                                     "fewshot_config": {"sampler": "first_n"}}])  # fmt: skip
def test_no_question_is_among_its_own_demonstrations(folder, lm, config, caplog):
    # Twice in the split, the second time with other white space: neither copy may be shown.
    docs = some_docs(0, 6)
    docs.append({**docs[2], "question": " " + docs[2]["question"]})
    folder.write("plain", {"train": docs, "test": some_docs(90)}, **config)
    task = folder.load("plain")
    shots = shots_of(lm, on_split(task, "train"))
    assert len(shots) == 7
    for asked, shown in shots:
        assert asked not in shown
        assert len(shown) == 3
    assert "had their own question" in caplog.text


def test_demonstrations_stay_those_of_the_harness_where_none_is_the_question(folder, lm):
    folder.write("plain", {"train": some_docs(0, 9), "test": some_docs(90)}, num_fewshot=3)
    built = build_questions(lm, folder.load("plain"), PromptSettings())
    assert sequences(built.prompts) == whole(stock_requests(model_dir(), "plain", folder))


def test_a_selection_shows_no_question_of_the_validation_split(folder, lm):
    folder.write(
        "plain", {"train": some_docs(0, 9), "test": some_docs(90, 9)}, fewshot_split="test"
    )
    task = folder.load("plain")
    validated = frozenset(doc_contents(task))
    for asked, shown in shots_of(lm, on_split(task, "train"), validated):
        assert len(set(shown)) == 3
        assert asked not in shown
        assert all(int(number) < 90 for number in shown)


def test_too_few_demonstrations_besides_the_question(folder, lm):
    folder.write("plain", {"train": some_docs(0, 3), "test": some_docs(90)})
    task = on_split(folder.load("plain"), "train")
    with pytest.raises(TaskError, match="only 2 demonstrations are neither the question itself"):
        shots_of(lm, task)


def test_a_metric_that_needs_more_than_the_options(folder, lm):
    # acc_mutual_info also asks for every option without its context, which nothing here scores.
    folder.write("mutual", metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}])
    with pytest.raises(TaskError, match=r"task mutual .*acc_mutual_info"):
        build_questions(lm, folder.load("mutual"), ASK)
