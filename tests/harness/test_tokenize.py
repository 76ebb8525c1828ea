"""Requests -> token ids: options, golds, and prompts that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from neuronllm_eval.errors import DocError, TaskError
from neuronllm_eval.harness.gold import accepted_options
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.prompts import Question
from tests.fixtures.harness import (
    TaskFolder,
    a_doc,
    harness_model,
    model_dir,
    sequences,
    some_docs,
    stock_requests,
    whole,
)

ASK = PromptSettings()
STRICT = PromptSettings(on_bad_doc="fail")


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def lm():
    return harness_model(model_dir())


# Options ------------------------------------------------------------------------------------------


def test_leading_tokens_that_all_options_share_move_to_the_context(folder):
    path = model_dir("split_space")
    folder.write("plain")
    seen = stock_requests(path, "plain", folder)
    assert {len(rest) for _, rest in seen} == {2}  # the space and the letter
    prompts = build_questions(harness_model(path), folder.load("plain"), ASK).prompts
    space, letters = seen[0][1][0], [rest[1] for _, rest in seen[:4]]
    assert prompts[0].options == tuple((letter,) for letter in letters)
    assert prompts[0].context == (*seen[0][0], space)
    assert sequences(prompts) == whole(seen)


def test_options_of_several_tokens_stay_whole(folder):
    # Shared: the space and "ca"; then "t", "r", "rt", of one, one and two tokens.
    folder.write(
        "words",
        {"train": some_docs(0), "test": [a_doc(7, 2)]},
        doc_to_choice=["cat", "car", "cart"],
    )
    path = model_dir("split_space")
    lm = harness_model(path)
    (prompt,) = build_questions(lm, folder.load("words"), ASK).prompts
    assert [lm.tokenizer.convert_ids_to_tokens(option) for option in prompt.options] == [
        ["t"],
        ["r"],
        ["r", "t"],
    ]
    assert lm.tokenizer.convert_ids_to_tokens(prompt.context[-4:]) == [":", "▁", "c", "a"]
    assert not prompt.one_token_options
    assert sequences([prompt]) == whole(stock_requests(path, "words", folder))


def test_an_option_that_begins_another_keeps_a_token(folder):
    folder.write(
        "words", {"train": some_docs(0), "test": [a_doc(7, 1)]}, doc_to_choice=["an", "and"]
    )
    lm = harness_model(model_dir("split_space"))
    (prompt,) = build_questions(lm, folder.load("words"), ASK).prompts
    tokens = [lm.tokenizer.convert_ids_to_tokens(option) for option in prompt.options]
    assert tokens == [["n"], ["n", "d"]]  # moving the n too would leave "an" nothing


def test_white_space_at_the_end_of_the_context_goes_to_the_options_first(folder, lm):
    # As stock: the line break moves to the continuations, where all share it, and back again.
    folder.write("plain", doc_to_text="{{question}}\nAnswer:\n\n", target_delimiter="")
    (prompt, *_) = prompts = build_questions(lm, folder.load("plain"), ASK).prompts
    assert lm.tokenizer.decode(prompt.context).endswith("Answer:\n\n")
    assert prompt.one_token_options
    assert sequences(prompts) == whole(stock_requests(model_dir(), "plain", folder))


def test_letters_that_the_tokenizer_cannot_tell_apart(folder):
    folder.write("plain")
    with pytest.raises(DocError, match=r"(?s)doc 0 has options that become the same tokens.*tell"):
        build_questions(harness_model(model_dir("letterblind")), folder.load("plain"), STRICT)


@pytest.mark.parametrize(
    ("first", "bad", "shown"),
    [
        (0, 4, "4"),
        (0, -1, "-1"),
        ("A", "Z", "'Z'"),
        ("A", None, "(None|'')"),
        ([2], [0, 1], r"\[0, 1\]"),  # lists from the first doc on
    ],
)
def test_a_gold_that_is_not_one_option(folder, lm, first, bad, shown):
    # lm_eval itself reads the first doc when the task is loaded.
    docs = [{**a_doc(1), "answer": first}, {**a_doc(2), "answer": bad}]
    folder.write("odd", {"train": some_docs(0), "test": docs})
    with pytest.raises(DocError, match=rf"(?s)task odd has gold {shown}\..*from 0 to 3.*target"):
        build_questions(lm, folder.load("odd"), STRICT)


def test_a_gold_may_be_the_text_of_an_option(folder, lm):
    docs = [{**a_doc(1), "answer": "B"}, {**a_doc(2), "answer": "D"}]
    folder.write("texts", {"train": some_docs(0), "test": docs})
    built = build_questions(lm, folder.load("texts"), ASK)
    assert [prompt.gold for prompt in built.prompts] == [1, 3]


@pytest.mark.parametrize("answers", [([1], [3]), (True, False)], ids=repr)
def test_a_gold_may_be_a_list_of_one_or_a_boolean(folder, lm, answers):
    docs = [{**a_doc(i), "answer": answer} for i, answer in enumerate(answers)]
    folder.write("one", {"train": some_docs(0), "test": docs}, doc_to_target="answer")
    built = build_questions(lm, folder.load("one"), STRICT)
    expected = [int(answer[0] if isinstance(answer, list) else answer) for answer in answers]
    assert [prompt.gold for prompt in built.prompts] == expected


def test_a_target_that_the_harness_cannot_score_is_refused(folder, lm):
    folder.write("float", {"train": some_docs(0), "test": [a_doc(1, 1.0)]}, doc_to_target="answer")
    with pytest.raises(TaskError, match="the harness cannot score doc 0 of task float: TypeError"):
        build_questions(lm, folder.load("float"), ASK)


def test_golds_that_count_from_1_are_refused(folder, lm):
    docs = [{**a_doc(i), "answer": 1 + i % 4} for i in range(8)]
    folder.write("ones", {"train": some_docs(0), "test": docs}, doc_to_target="answer")
    with pytest.raises(TaskError, match=r"task ones counts from 1"):
        build_questions(lm, folder.load("ones"), ASK)


def both_options(doc, results):
    """Accepts the gold and the option after it."""
    best = max(range(4), key=lambda option: results[option][0])
    return {"acc": float((best - doc["answer"]) % 4 < 2)}


def next_option(doc, results):
    """Accepts the option after the gold alone."""
    best = max(range(4), key=lambda option: results[option][0])
    return {"acc": float((best - doc["answer"]) % 4 == 1)}


@pytest.mark.parametrize(
    ("scoring", "found"),
    [(both_options, "several right answers: the target of doc 0 is option 0, and its scoring "
      "accepts options 0, 1"),
     (next_option, "task own: the target of doc 0 is option 0, and its scoring accepts 1")],
)  # fmt: skip
def test_the_gold_must_be_that_of_the_scoring(folder, lm, scoring, found):
    folder.write("own", doc_to_target="answer")
    task = folder.load("own")
    build_questions(lm, task, ASK)  # the harness's scoring agrees
    task.config.process_results = scoring
    with pytest.raises(TaskError, match=found):
        build_questions(lm, task, ASK)


def from_the_second_doc(doc, results):
    """Tells no options of the first doc apart, and accepts a wrong one of the next."""
    return next_option(doc, results) if doc["answer"] else {"acc": 0.0}


def error_of_the_gold(doc, results):
    """A measure that is lower for the better option, as perplexities are."""
    return {"acc": 1.0 - float(results[doc["answer"]][1])}


def test_a_doc_that_shows_no_gold_does_not_end_the_check(folder, lm):
    folder.write("later", doc_to_target="answer")
    task = folder.load("later")
    task.config.process_results = from_the_second_doc
    with pytest.raises(TaskError, match="the target of doc 1 is option 1"):
        build_questions(lm, task, ASK)


def test_a_measure_that_is_lower_for_better_options(folder, lm):
    folder.write("lower", doc_to_target="answer")
    task = folder.load("lower")
    task.config.process_results = error_of_the_gold
    task._higher_is_better = {"acc": False}
    build_questions(lm, task, ASK)


@pytest.mark.parametrize(
    "metric", ["acc", "acc_norm", "acc_bytes", "exact_match", "f1", "mcc", "brier_score"]
)
def test_every_metric_of_the_harness_shows_its_gold(folder, metric):
    folder.write("plain", doc_to_target="answer", metric_list=[{"metric": metric}])
    task = folder.load("plain")
    for doc in task.eval_docs:
        assert accepted_options(task, doc, 4, -1) == [doc["answer"]]


def test_more_options_than_letters_are_refused_before_any_pass(folder, lm):
    folder.write("many", doc_to_choice=[f"thing {number}" for number in range(27)])
    with pytest.raises(
        DocError, match=r"none of 4 docs .*27 options\.\nExpected: at most 26.*\n.*aqua"
    ):
        build_questions(lm, folder.load("many"), ASK)


# Docs that cannot be asked ------------------------------------------------------------------------


def odd_docs():
    """Of nine docs, the first, fourth, seventh and eighth can be asked."""
    docs = some_docs(200, 9)
    docs[1]["answer"] = 9
    docs[2]["choices"][3] = docs[2]["choices"][1]  # the same tokens
    docs[4]["question"] = " \n"  # nothing is left before the options
    docs[5]["choices"] = []
    docs[8]["choices"] = ["alone"]
    return docs


BAD = {
    1: "gold missing or out of range",
    2: "options that become the same tokens",
    4: "empty context",
    5: "fewer than 2 options",
    8: "fewer than 2 options",
}
BARE = {"doc_to_text": "{{question}}", "doc_to_choice": "choices", "target_delimiter": ""}


def test_docs_that_cannot_be_asked_are_skipped_and_counted(folder, lm, caplog):
    folder.write("odd", {"train": some_docs(0), "test": odd_docs()}, **BARE)
    built = build_questions(lm, folder.load("odd"), ASK)
    assert built.doc_ids == (0, 3, 6, 7)
    assert [question.question_id for question in built.questions] == [
        "odd-0", "odd-3", "odd-6", "odd-7",
    ]  # fmt: skip
    assert built.skipped == {
        "empty context": 1,
        "fewer than 2 options": 2,
        "gold missing or out of range": 1,
        "options that become the same tokens": 1,
    }
    assert built.counts == {"skipped": built.skipped}
    assert "odd: 5 of 9 docs cannot be used and are skipped: fewer than 2 options (2)" in (
        caplog.text
    )
    assert "the first: doc 1 of task odd has gold 9" in caplog.text
    # Those that are kept are as they were without the others.
    good = [doc for number, doc in enumerate(odd_docs()) if number not in BAD]
    folder.write("good", {"train": some_docs(0), "test": good}, **BARE)
    alone = build_questions(lm, folder.load("good"), ASK)
    assert alone.counts == {}
    assert [p.context for p in built.prompts] == [p.context for p in alone.prompts]
    assert [p.options for p in built.prompts] == [p.options for p in alone.prompts]
    assert [p.gold for p in built.prompts] == [p.gold for p in alone.prompts]


def test_texts_that_cannot_be_options_are_skipped_and_counted(folder, lm):
    texts = (
        ("red", "so " * 50),
        ("red", "red"),
        ("red", ""),
        ("red", "so " * 2 * lm.max_length),
        tuple(f"number {n}" for n in range(2000)),
    )
    docs = [a_doc(number, choices=list(each)) for number, each in enumerate(texts)]
    folder.write("odd", {"train": some_docs(0), "test": docs}, **BARE)
    built = build_questions(lm, folder.load("odd"), ASK)
    assert built.doc_ids == (0,)
    assert [len(option) for option in built.prompts[0].options] == [2, 101]
    assert built.skipped == {
        "an option without tokens": 1,
        "longer than the model's context": 1,
        "more than 26 options": 1,
        "options that become the same tokens": 1,
    }


@pytest.mark.parametrize("bad", BAD)
def test_a_doc_that_cannot_be_asked_ends_the_run_on_request(folder, lm, bad):
    docs = [odd_docs()[0], odd_docs()[bad]]
    folder.write("odd", {"train": some_docs(0), "test": docs}, **BARE)
    with pytest.raises(DocError, match=r"^doc 1 ") as caught:
        build_questions(lm, folder.load("odd"), STRICT)
    assert caught.value.reason == BAD[bad]
    assert caught.value.remedy


def test_where_no_doc_can_be_asked_the_first_error_is_raised(folder, lm):
    docs = [odd_docs()[1], odd_docs()[2]]
    # lm_eval itself reads the first doc when the task is loaded.
    docs[0]["answer"] = -1
    folder.write("odd", {"train": some_docs(0), "test": docs}, **BARE)
    with pytest.raises(DocError, match=r"doc 0 of task odd has gold -1"):
        build_questions(lm, folder.load("odd"), ASK)


# Length -------------------------------------------------------------------------------------------


def test_the_longest_prompt_that_fits_and_the_first_that_does_not(folder):
    folder.write("plain", {"train": some_docs(0), "test": [a_doc(1)]})
    needed = build_questions(harness_model(model_dir()), folder.load("plain"), ASK).prompts[0]
    fits = harness_model(model_dir(context=needed.n_tokens))
    build_questions(fits, folder.load("plain"), ASK)
    short = harness_model(model_dir(context=needed.n_tokens - 1))
    with pytest.raises(
        DocError,
        match=rf"doc 0 of task plain has {needed.n_tokens} tokens without any demonstration\.\n"
        rf"Expected: at most the model's context of {needed.n_tokens - 1}\.\nRemedy: .*longer",
    ):
        build_questions(short, folder.load("plain"), STRICT)


# Prompts that are too long: demonstrations go first ---------------------------------------------

TIME = "Do take all the time that you need. "
# The second proxy of each question is longer than the others.
LONG = {"doc_to_text": "{% if proxy == 1 %}" + TIME + "{% endif %}{{prompt}}"}


def long_docs(first: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Docs whose questions have so many words more."""
    docs = some_docs(first, len(lengths))
    return [
        {**doc, "question": doc["question"] + " please" * n}
        for doc, n in zip(docs, lengths, strict=True)
    ]


LENGTHS = (0, 4, 9, 13, 17, 22, 27, 31, 38, 60)
SPLITS = {
    "train": some_docs(0),
    "test": long_docs(100, LENGTHS),
    "demonstration": some_docs(200, 3),
}


# Room for some of the AQUA prompts with three demonstrations, and for all but one without any.
ROOM = 310


def most_shots(folder: TaskFolder, name: str, context: int) -> dict[str, tuple[int, Question]]:
    """Per question that fits, most demonstrations (up to 3) with which all its prompts do.

    Found by building everything with each number, for a model with room for all.
    """
    found: dict[str, tuple[int, Question]] = {}
    for n_shots in range(4):
        settings = PromptSettings(num_fewshot=n_shots)
        built = build_questions(harness_model(model_dir(context=1024)), folder.load(name), settings)
        assert built.counts == {}
        for question in built.questions:
            if max(prompt.n_tokens for prompt in question.prompts) <= context:
                found[question.question_id] = (n_shots, question)
    return found


@pytest.mark.parametrize("aqua", [True, False])
def test_long_prompts_lose_demonstrations_and_then_their_question(folder, aqua):
    if aqua:
        name = folder.write("long", SPLITS, aqua=True, **LONG)
    else:
        fixed = {"fewshot_split": "demonstration", "fewshot_config": {"sampler": "first_n"}}
        name = folder.write("long", SPLITS, **fixed)
    context = ROOM if aqua else 190
    expected = most_shots(folder, name, context)
    assert {n_shots for n_shots, _ in expected.values()} == {0, 1, 2, 3}  # every case occurs
    assert len(expected) == len(LENGTHS) - 1

    lm = harness_model(model_dir(context=context))
    assert lm.max_length == context
    built = build_questions(lm, folder.load(name), PromptSettings(num_fewshot=3))
    assert {question.question_id: question for question in built.questions} == {
        identity: question for identity, (_, question) in expected.items()
    }
    n_proxies = 3 if aqua else 1
    assert built.skipped == {"longer than the model's context": n_proxies}
    assert built.demonstrations_dropped == n_proxies * sum(
        n_shots < 3 for n_shots, _ in expected.values()
    )
    assert built.counts == {
        "skipped": built.skipped,
        "demonstrations_dropped": built.demonstrations_dropped,
    }
    assert built.num_fewshot == 3


def test_proxies_of_a_question_have_equally_many_demonstrations(folder):
    # Room for three demonstrations, but for the second proxy of the question, which is longer.
    splits = {**SPLITS, "test": long_docs(100, [3])}
    name = folder.write("long", splits, aqua=True, **LONG)
    roomy = harness_model(model_dir())
    settings = PromptSettings(num_fewshot=3)
    first, second, third = build_questions(roomy, folder.load(name), settings).prompts
    assert first.n_tokens == third.n_tokens < second.n_tokens
    lm = harness_model(model_dir(context=second.n_tokens - 1))
    built = build_questions(lm, folder.load(name), settings)
    fewer = build_questions(roomy, folder.load(name), PromptSettings(num_fewshot=2))
    assert built.questions == fewer.questions
    assert built.counts == {"demonstrations_dropped": 3}


def test_prompts_that_lost_demonstrations_are_whole_otherwise(folder):
    name = folder.write("long", SPLITS, aqua=True, **LONG)
    lm = harness_model(model_dir(context=ROOM))
    task = folder.load(name)
    built = build_questions(lm, task, PromptSettings(num_fewshot=3))
    docs = list(task.eval_docs)
    role = "You are a careful expert. Each question has one right option; answer with its letter."
    for prompt in built.prompts:
        assert prompt.n_tokens <= lm.max_length
        text, doc = lm.tokenizer.decode(prompt.context), docs[prompt.doc_id]
        assert text.startswith(role)
        assert text.endswith(doc["prompt"])
        for letter, choice in zip("ABCD", doc["choices"], strict=True):
            assert f"\n{letter}. {choice}\n" in doc["prompt"]


def test_a_question_too_long_without_any_demonstration_ends_the_run_on_request(folder):
    name = folder.write("long", SPLITS, aqua=True, **LONG)
    lm = harness_model(model_dir(context=ROOM))
    with pytest.raises(
        DocError,
        match=r"doc \d+ of task long has \d+ tokens without any demonstration\.\n"
        rf"Expected: at most the model's context of {ROOM}\.\nRemedy: .*--on_bad_doc skip",
    ):
        build_questions(lm, folder.load(name), PromptSettings(num_fewshot=3, on_bad_doc="fail"))
    splits = {**SPLITS, "test": SPLITS["test"][:-1]}
    name = folder.write("long", splits, aqua=True, **LONG)
    strict = PromptSettings(num_fewshot=3, on_bad_doc="fail")
    assert len(build_questions(lm, folder.load(name), strict).questions) == len(LENGTHS) - 1


def test_demonstrations_drawn_anew_for_room_depend_on_nothing_else(folder):
    # Drawn by chance, as the harness does where no sampler is named: the same for every question
    # that lost some, however many questions there are.
    splits = {"train": some_docs(0, 20), "test": long_docs(100, [20, 21, 22, 0])}
    folder.write("drawn", splits)
    lm = harness_model(model_dir(context=190))
    settings = PromptSettings(num_fewshot=3)
    built = build_questions(lm, folder.load("drawn"), settings)
    assert built.demonstrations_dropped == 3
    (alone,) = build_questions(lm, folder.load("drawn"), settings, limit=1).questions
    assert built.questions[0] == alone
    texts = [lm.tokenizer.decode(prompt.context) for prompt in built.prompts]
    shown = [text.rpartition("Which is")[0] for text in texts[:3]]
    assert len(shown[0]) > 50
    assert len(set(shown)) == 1
