"""Harness tasks -> questions: the same tokens as stock lm_eval, and every refusal."""

from __future__ import annotations

import random
import re

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from neuronllm_eval.errors import DocError, TaskError, UsageError
from neuronllm_eval.pipeline import selection_questions
from neuronllm_eval.requests import (
    AquaSettings,
    PromptSettings,
    build_questions,
    load_tasks,
    on_split,
    overlapping_questions,
    selection_split,
    validation_split,
)
from neuronllm_eval.settings import RunSettings
from tests.harness_fixtures import (
    CHAT_TEMPLATE,
    SpyLM,
    TaskFolder,
    a_doc,
    demo_task,
    harness_model,
    include_paths,
    model_dir,
    some_docs,
)

ASK = PromptSettings()


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def lm():
    return harness_model(model_dir())


def stock_requests(path, name, folder=None, limit=None, **settings):
    """What reaches the model when stock lm_eval runs a task, in order."""
    spy = SpyLM(pretrained=str(path), device="cpu", batch_size=8)
    manager = TaskManager(include_path=include_paths(folder), include_defaults=False)
    lm_eval.simple_evaluate(
        spy, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0, **settings
    )
    return spy.seen


def whole(seen):
    return [context + rest for context, rest in seen]


def sequences(prompts):
    """Per option, everything the model is asked about: the same whatever the context holds."""
    return [prompt.context + option for prompt in prompts for option in prompt.options]


# The same tokens as stock lm_eval ---------------------------------------------------------------

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
        on_split(task, validation_split(task), AquaSettings()),
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
    built = build_questions(lm, on_split(task, selection_split(task), AquaSettings()), ASK)
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


# Options ----------------------------------------------------------------------------------------


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
        build_questions(harness_model(model_dir("letterblind")), folder.load("plain"), ASK)


@pytest.mark.parametrize(
    ("first", "bad", "shown"),
    [
        (0, 4, "4"),
        (0, -1, "-1"),
        ("A", "Z", "'Z'"),
        ("A", None, "(None|'')"),
        ([2], [0, 1], r"\[2\]"),  # lists from the first doc on: several golds
    ],
)
def test_a_gold_that_is_not_one_option(folder, lm, first, bad, shown):
    # lm_eval itself reads the first doc when the task is loaded.
    docs = [{**a_doc(1), "answer": first}, {**a_doc(2), "answer": bad}]
    folder.write("odd", {"train": some_docs(0), "test": docs})
    with pytest.raises(DocError, match=rf"(?s)task odd has gold {shown}\..*from 0 to 3.*target"):
        build_questions(lm, folder.load("odd"), ASK)


def test_a_gold_may_be_the_text_of_an_option(folder, lm):
    docs = [{**a_doc(1), "answer": "B"}, {**a_doc(2), "answer": "D"}]
    folder.write("texts", {"train": some_docs(0), "test": docs})
    built = build_questions(lm, folder.load("texts"), ASK)
    assert [prompt.gold for prompt in built.prompts] == [1, 3]


# Length -----------------------------------------------------------------------------------------


def test_the_longest_prompt_that_fits_and_the_first_that_does_not(folder):
    folder.write("plain", {"train": some_docs(0), "test": [a_doc(1)]})
    needed = build_questions(harness_model(model_dir()), folder.load("plain"), ASK).prompts[0]
    fits = harness_model(model_dir(context=needed.n_tokens))
    build_questions(fits, folder.load("plain"), ASK)
    short = harness_model(model_dir(context=needed.n_tokens - 1))
    with pytest.raises(
        DocError,
        match=rf"doc 0 of task plain has {needed.n_tokens} tokens\.\n"
        rf"Expected: at most the model's context of {needed.n_tokens - 1}\.\nRemedy: .*fewshot",
    ):
        build_questions(short, folder.load("plain"), ASK)


# Limits and proxies -----------------------------------------------------------------------------


def test_limit_counts_questions_not_proxies(folder, lm):
    # With two options there are only two proxies: the questions differ in their number of docs.
    docs = [a_doc(number, number % 2, 2 if number % 3 == 0 else 4) for number in range(6)]
    folder.write(
        "asked", {"train": some_docs(50), "test": docs}, aqua=True, doc_to_choice="letters"
    )
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


def test_a_limit_draws_from_sorted_data_by_seed(folder, lm):
    # 40 docs sorted by label: the first ten would all have gold A.
    docs = [a_doc(number, number // 10) for number in range(40)]
    name = folder.write("sorted", {"train": docs, "test": some_docs(50)})
    golds = {}
    for seed in (0, 1):
        settings = RunSettings({}, name, include_path=(str(folder.path),), limit=10, seed=seed)
        found = selection_questions(lm, settings)
        golds[seed] = [prompt.gold for prompt in found.prompts]
        assert len(golds[seed]) == 10
        assert len(set(golds[seed])) > 1
        # Ids and docs stay together though only some docs are asked.
        for question in found.questions:
            doc_id = question.prompts[0].doc_id
            assert question.question_id == f"sorted-{doc_id}"
            assert question.prompts[0].gold == docs[doc_id]["answer"]
        again = selection_questions(lm, settings)
        assert again.questions == found.questions
    assert golds[0] != golds[1]


def test_passages_tell_questions_apart(folder):
    # The same question about two texts is two questions; about the same text it is one.
    asked = [{**a_doc(1), "passage": text} for text in ("of cats", "of dogs")]
    folder.write("read", {"train": asked[:1], "test": asked[1:]})
    task = folder.load("read")
    assert overlapping_questions(on_split(task, "train", AquaSettings()), task) == set()
    folder.write("same", {"train": asked[:1], "test": asked[:1]})
    task = folder.load("same")
    assert overlapping_questions(on_split(task, "train", AquaSettings()), task) == {"same-0"}


def test_a_column_named_question_id_is_aquas_only_in_aqua_tasks(folder, lm):
    docs = [{**a_doc(number), "question_id": "all the same"} for number in range(3)]
    name = folder.write("own_ids", {"train": docs, "test": some_docs(50)})
    settings = RunSettings({}, name, include_path=(str(folder.path),))
    found = selection_questions(lm, settings)
    assert [question.question_id for question in found.questions] == [
        "own_ids-0", "own_ids-1", "own_ids-2",
    ]  # fmt: skip


def test_a_demonstration_that_is_a_proxy_is_refused(folder, lm):
    # Without a split of their own, the demonstrations are proxies of the questions asked.
    name = folder.write("leak", {"train": some_docs(0), "test": some_docs(50)}, aqua=True)
    settings = RunSettings({}, name, include_path=(str(folder.path),), num_fewshot=1)
    with pytest.raises(TaskError, match=r"(?s)task leak: \d+ of its demonstrations.*fewshot_split"):
        selection_questions(lm, settings)
    settings = RunSettings({}, name, include_path=(str(folder.path),), num_fewshot=0)
    assert len(selection_questions(lm, settings).questions) == 4


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


def test_n_proxies_and_seed_override_the_tasks_own():
    task = demo_task()

    def shown(aqua):
        docs = list(on_split(task, "selection", aqua).eval_docs)[:20]
        return [(doc["question_id"], doc["proxy"], tuple(doc["order"])) for doc in docs]

    assert [proxy for _, proxy, _ in shown(AquaSettings())[:6]] == [0, 1, 2] * 2
    assert [proxy for _, proxy, _ in shown(AquaSettings(n_proxies=2))[:4]] == [0, 1] * 2
    assert len({question for question, _, _ in shown(AquaSettings(n_proxies=1))}) == 20
    assert shown(AquaSettings(seed=1)) != shown(AquaSettings())
    assert shown(AquaSettings(seed=0)) == shown(AquaSettings())  # the YAML's seed


def test_n_proxies_of_a_task_without_proxies(folder):
    folder.write("plain")
    task = folder.load("plain")
    assert list(on_split(task, "test", AquaSettings(n_proxies=1, seed=3)).eval_docs)
    with pytest.raises(TaskError, match=r"(?s)plain is not an AQUA task.*--n_proxies.*aqua_docs"):
        on_split(task, "test", AquaSettings(n_proxies=2))


def test_a_copy_on_another_split_leaves_the_task_alone(folder):
    folder.write("plain")
    task = folder.load("plain")
    before = list(task.eval_docs)
    copy = on_split(task, "train", AquaSettings())
    assert list(copy.eval_docs) != before
    assert list(task.eval_docs) == before
    assert (validation_split(task), validation_split(copy)) == ("test", "train")


# Splits -----------------------------------------------------------------------------------------

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
        TaskError, match=r"(?s)the selection split 'test' is also the validation split.*never"
    ):
        selection_split(folder.load("plain"), override)


# Overlap ----------------------------------------------------------------------------------------


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


def test_shared_content_is_found_whatever_the_order_of_the_options(folder):
    overlapping(folder)
    task = folder.load("both")
    assert overlapping_questions(on_split(task, "train", AquaSettings()), task) == {"both-2"}
    folder.write("apart")
    task = folder.load("apart")
    assert overlapping_questions(on_split(task, "train", AquaSettings()), task) == set()


def test_shared_content_is_refused(folder, lm):
    settings = RunSettings({}, overlapping(folder), include_path=(str(folder.path),))
    with pytest.raises(
        TaskError,
        match=r"task both: 1 questions of the selection split are in the validation split too, "
        r"such as both-2\.\nExpected: .*\nRemedy: pass --overlap drop",
    ):
        selection_questions(lm, settings)


def test_shared_content_is_dropped_on_request(folder, lm, caplog):
    name = overlapping(folder)
    settings = RunSettings({}, name, include_path=(str(folder.path),), overlap="drop")
    found = selection_questions(lm, settings)
    assert [question.question_id for question in found.questions] == ["both-0", "both-1"]
    assert "both: 1 questions dropped from the selection split" in caplog.text


def test_an_unknown_way_with_overlaps(folder, lm):
    settings = RunSettings({}, "both", include_path=(str(folder.path),), overlap="keep")
    with pytest.raises(UsageError, match=r"overlap is 'keep'\.\nExpected: refuse or drop"):
        selection_questions(lm, settings)


def test_the_demo_splits_share_nothing():
    for name in load_tasks(["demo"]):
        task = demo_task(name)
        choosing = on_split(task, selection_split(task), AquaSettings(n_proxies=1))
        assert selection_split(task) == "selection"
        assert overlapping_questions(choosing, task) == set()


# Tasks that cannot be used ----------------------------------------------------------------------


@pytest.mark.slow  # the harness reads all its YAML files before a task is called unknown
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
    text = "task: bad_family\ninclude: {}/demo/_demo.yaml\ndataset_kwargs:\n  family: history\n"
    (tmp_path / "bad.yaml").write_text(text.format(include_paths()[0]))
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


def test_a_metric_that_needs_more_than_the_options(folder, lm):
    # acc_mutual_info also asks for every option without its context, which nothing here scores.
    folder.write("mutual", metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}])
    with pytest.raises(TaskError, match=r"task mutual .*acc_mutual_info"):
        build_questions(lm, folder.load("mutual"), ASK)


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
