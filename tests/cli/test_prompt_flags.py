"""Flags and YAML settings of the questions: each changes the prompts as its help says."""

from __future__ import annotations

import json
import re

import pytest

from neuronllm_eval.aqua.proxies import content_key
from neuronllm_eval.errors import TaskError
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.stages.evaluate import requested_settings
from neuronllm_eval.stages.load import (
    load_run_tasks,
    selection_questions,
    validation_questions,
)
from tests.fixtures.cli import settings_of
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

ROLE = "You are a careful expert. Each question has one right option; answer with its letter.\n\n"
TRAIN, TEST = some_docs(0, 24), some_docs(100, 4)


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("asked", {"train": TRAIN, "test": TEST, "dev": some_docs(200, 6)}, aqua=True)
    return folder


def choosing(folder: TaskFolder, *flags: object, task: str = "asked") -> QuestionSet:
    """The questions that `identify` asks with these flags."""
    return _questions(selection_questions, folder, flags, task)


def judging(folder: TaskFolder, *flags: object, task: str = "asked") -> QuestionSet:
    """The questions that `validate` asks after such an `identify`."""
    return _questions(validation_questions, folder, flags, task)


def _questions(stage, folder, flags, task) -> QuestionSet:
    arguments = ["identify", "--tasks", task, "--include_path", folder.path, *flags]
    requested = requested_settings(settings_of(*arguments)[0])
    ((settings, loaded),) = load_run_tasks(requested).values()
    return stage(harness_model(model_dir(context=2048)), settings, loaded)


def texts(questions: QuestionSet) -> list[str]:
    """The whole text of each prompt, in doc order."""
    return [instance.args[0] for instance in questions.task.instances if instance.idx == 0]


def docs(questions: QuestionSet) -> list[dict]:
    """The docs asked, in order."""
    return [instance.doc for instance in questions.task.instances if instance.idx == 0]


def shown(text: str) -> list[str]:
    """The demonstrations of a prompt."""
    return re.findall(r"Question: .*?Answer: [A-Z]\n\n", text, re.S)


# Role line and letters --------------------------------------------------------------------------


def test_the_description_stands_before_everything_else(folder):
    plain = texts(choosing(folder))[0]
    assert plain.startswith(ROLE + "Question: ")
    rest = plain.removeprefix(ROLE)
    for given, written in (("Say it.", "Say it.\n\n"), ("Say it:\n", "Say it:\n"), ("", "")):
        assert texts(choosing(folder, "--description", given))[0] == written + rest
        assert texts(judging(folder, "--description", given))[0].startswith(f"{written}Question: ")
    both = texts(choosing(folder, "--description", "Say it.", "--system_instruction", "Birds."))
    assert both[0] == "Birds.\n\nSay it.\n\n" + rest


def test_a_description_for_a_task_that_is_no_aqua_task(folder):
    folder.write("plain")
    without = texts(choosing(folder, task="plain"))
    assert texts(choosing(folder, "--description", "Say it.", task="plain")) == [
        f"Say it.\n\n{text}" for text in without
    ]


@pytest.mark.parametrize(
    ("style", "before"), [("A.", "{}. "), ("A)", "{}) "), ("(A)", "({}) "), ("A:", "{}: ")]
)
def test_letter_styles(folder, style, before):
    questions = choosing(folder, "--letter_style", style)
    doc, text = docs(questions)[0], texts(questions)[0]
    lines = [
        f"{before.format(letter)}{choice}"
        for letter, choice in zip("ABCD", doc["choices"], strict=True)
    ]
    assert text.endswith("\n".join([f"Question: {doc['question']}", *lines, "Answer:"]))
    # The demonstration has the same style, and the answer is the bare letter in each.
    assert len(re.findall(rf"^{re.escape(before.format('A'))}", text, re.M)) == 2
    (demonstration,) = shown(text)
    assert re.search(r"\nAnswer: [A-D]\n\n\Z", demonstration)
    continuations = [instance.args[1] for instance in questions.task.instances[:4]]
    assert continuations == [" A", " B", " C", " D"]


# Demonstrations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shots", [0, 1, 2, 10])
def test_num_fewshot(folder, n_shots):
    # There is no split for demonstrations: 8 questions are set aside for them, or as many as asked.
    questions = choosing(folder, "--num_fewshot", n_shots)
    set_aside = max(8, n_shots)
    assert questions.num_fewshot == n_shots
    assert {len(shown(text)) for text in texts(questions)} == {n_shots}
    assert len(questions.questions) == len(TRAIN) - set_aside
    assert len(questions.task.fewshot_docs()) == set_aside
    counts = questions.task.config.metadata["counts"]
    assert counts["selection"]["demonstrations"] == set_aside
    judged = judging(folder, "--num_fewshot", n_shots)
    assert len(judged.questions) == len(TEST)
    # The same demonstrations, in the same order, for all questions that choose and that judge.
    assert len({"".join(shown(text)) for text in texts(questions) + texts(judged)}) == 1


@pytest.mark.parametrize("n_shots", [1, 8, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("own_split", [False, True])
def test_no_demonstration_is_asked(folder, n_shots, seed, own_split):
    # Questions that several splits have, in another order of options and with other capitals.
    def disguised(doc):
        choices = [choice.upper() for choice in reversed(doc["choices"])]
        return {**doc, "choices": choices, "answer": 3 - doc["answer"]}

    shared = [disguised(doc) for doc in TEST[:2] + TRAIN[:6]]
    splits = {"train": [*TRAIN, disguised(TEST[3])], "test": TEST}
    if own_split:
        splits["demonstration"] = shared + some_docs(300, 12)
    else:
        splits["train"] = splits["train"] + [disguised(doc) for doc in TRAIN[3:9]]
    folder.write("leaky", splits, aqua=True)

    flags = ("--num_fewshot", n_shots, "--seed", seed)
    choose = choosing(folder, *flags, task="leaky")
    judge = judging(folder, *flags, task="leaky")

    def contents(found):
        return {content_key(doc["question"], *doc["choices"]) for doc in found}

    demonstrated = contents(choose.task.fewshot_docs())
    assert len(choose.task.fewshot_docs()) >= n_shots
    assert demonstrated == contents(judge.task.fewshot_docs())
    assert demonstrated.isdisjoint(contents(docs(choose)))
    assert demonstrated.isdisjoint(contents(docs(judge)))
    assert contents(docs(choose)).isdisjoint(contents(docs(judge)))
    assert len(contents(docs(judge))) == len(TEST)
    assert len({"".join(shown(text)) for text in texts(choose) + texts(judge)}) == 1


# Options and their orders -----------------------------------------------------------------------


def test_n_options_cuts_and_keeps_the_right_one(folder):
    gold = {doc["question"]: doc["choices"][doc["answer"]] for doc in TRAIN}
    for n_options in (2, 3):
        questions = choosing(folder, "--n_options", n_options)
        for doc in docs(questions):
            assert len(doc["choices"]) == len(doc["letters"]) == n_options
            assert doc["choices"][doc["answer"]] == gold[doc["question"]]
        assert all(len(prompt.options) == n_options for prompt in questions.prompts)
    assert questions.task.config.metadata["counts"]["selection"]["options_cut"] == len(TRAIN)


@pytest.mark.parametrize("how", ["random", "length"])
def test_distractors_fill_up_with_other_answers(folder, how):
    gold = {doc["question"]: doc["choices"][doc["answer"]] for doc in TRAIN}
    own = {doc["question"]: doc["choices"] for doc in TRAIN}
    questions = choosing(folder, "--n_options", 6, "--distractors", how)
    for doc in docs(questions):
        assert len(doc["choices"]) == len(set(doc["choices"])) == 6
        assert doc["choices"][doc["answer"]] == gold[doc["question"]]
        added = set(doc["choices"]) - set(own[doc["question"]])
        assert len(added) == 2
        assert added <= set(gold.values())


def test_questions_without_wrong_options_need_distractors(folder):
    single = [a_doc(number, 0, 1) for number in range(24)]
    folder.write("single", {"train": single, "test": some_docs(100)}, aqua=True)
    with pytest.raises(
        TaskError, match=r"no usable question among the 24 docs of split 'train'.*fewer than 2"
    ):
        choosing(folder, task="single")
    found = docs(choosing(folder, "--distractors", "random", task="single"))
    assert {len(doc["choices"]) for doc in found} == {4}


def test_orders(folder):
    own = {doc["question"]: doc["choices"] for doc in TRAIN}
    moved: dict[str, list[tuple[int, ...]]] = {}
    for orders in ("original", "drawn", "swap"):
        found = docs(choosing(folder, "--orders", orders, "--n_proxies", 4))
        groups = [found[first : first + 4] for first in range(0, len(found), 4)]
        for group in groups:
            assert {doc["answer"] for doc in group} == {0, 1, 2, 3}
        # How many options of each proxy are not where the data has them.
        moved[orders] = [
            tuple(
                sum(a != b for a, b in zip(doc["choices"], own[doc["question"]], strict=True))
                for doc in group
            )
            for group in groups
        ]
    assert set(moved["original"]) == {(0, 4, 4, 4)}
    assert set(moved["swap"]) == {(0, 2, 2, 2)}
    assert len(set(moved["drawn"])) > 1
    assert {tuple(sorted(each)) for each in moved["drawn"]} == {(0, 4, 4, 4)}


@pytest.mark.parametrize("n_proxies", [1, 2, 5])
def test_n_proxies(folder, n_proxies):
    for questions in (
        choosing(folder, "--n_proxies", n_proxies),
        judging(folder, "--n_proxies", n_proxies),
    ):
        assert {len(question.prompts) for question in questions.questions} == {n_proxies}
        for question in questions.questions:
            assert len({prompt.context for prompt in question.prompts}) == n_proxies


def test_the_seed_draws_other_orders_and_another_sequence(folder):
    first, again, other = (texts(choosing(folder, "--seed", seed)) for seed in (0, 0, 1))
    assert first == again == texts(choosing(folder))
    assert first != other
    ids = [
        [
            question.question_id
            for question in choosing(folder, "--seed", seed, "--limit", 5).questions
        ]
        for seed in (0, 1)
    ]
    assert len(ids[0]) == len(ids[1]) == 5
    assert ids[0] != ids[1]


def test_the_selection_split(folder):
    questions = choosing(folder, "--selection_split", "dev")
    numbers = {int(re.search(r"\d+", doc["question"])[0]) for doc in docs(questions)}
    # Of the six, three are set aside for demonstrations, which are never more than half.
    assert numbers < set(range(200, 206))
    assert len(numbers) == 3
    assert questions.task.dataset.counts["selection"]["split"] == "dev"
    with pytest.raises(TaskError, match=r"(?s)no split 'nowhere'.*train, test, dev"):
        choosing(folder, "--selection_split", "nowhere")


# One setting, three places ----------------------------------------------------------------------

SETTINGS = {
    "n_proxies": 2,
    "letter_style": "(A)",
    "orders": "drawn",
    "n_options": 3,
    "seed": 7,
}


@pytest.mark.parametrize("name", [*SETTINGS, "all"])
def test_flag_metadata_and_yaml_do_the_same(folder, name):
    settings = SETTINGS if name == "all" else {name: SETTINGS[name]}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    by_flag = texts(judging(folder, *flags))
    assert by_flag != texts(judging(folder))
    assert texts(judging(folder, "--metadata", json.dumps(settings))) == by_flag
    splits = {"train": TRAIN, "test": TEST}
    folder.write("by_yaml", splits, aqua=True, metadata=settings)
    assert texts(judging(folder, task="by_yaml")) == by_flag
    # Stock lm_eval takes them as --metadata.
    seen = stock_requests(model_dir(), "asked", folder, metadata=settings)
    assert sequences(judging(folder, *flags).prompts) == whole(seen)


def test_a_flag_goes_before_metadata_and_that_before_the_yaml(folder):
    folder.write("both", {"train": TRAIN, "test": TEST}, aqua=True, metadata={"n_proxies": 4})

    def n_proxies(*flags):
        return len(judging(folder, *flags, task="both").questions[0].prompts)

    assert n_proxies() == 4
    assert n_proxies("--metadata", '{"n_proxies": 3}') == 3
    assert n_proxies("--metadata", '{"n_proxies": 3}', "--n_proxies", 2) == 2


def test_settings_are_kept_for_the_stages_that_follow(folder):
    flags = ("--metadata", '{"n_proxies": 3}', "--letter_style", "A)", "--on_bad_doc", "fail")
    settings = requested_settings(settings_of("identify", "--tasks", "asked", *flags)[0])
    assert settings.metadata == {"n_proxies": 3}
    assert (settings.letter_style, settings.on_bad_doc) == ("A)", "fail")
    assert settings.orders is settings.n_options is settings.distractors is None


# Tasks that are no AQUA tasks -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--orders", "swap"),
        ("--letter_style", "A)"),
        ("--n_options", 3),
        ("--distractors", "random"),
    ],
)
def test_flags_of_aqua_tasks_alone(folder, flag, value):
    lines = "".join(f"{letter}. {{{{choices[{at}]}}}}\n" for at, letter in enumerate("ABCD"))
    folder.write("plain", doc_to_text=f"{{{{question}}}}\n{lines}Answer:")
    with pytest.raises(TaskError) as caught:
        choosing(folder, flag, value, task="plain")
    assert caught.value.found == (f"task plain is not an AQUA task, so {flag} {value} cannot apply")
    assert caught.value.remedy.startswith("pass --tasks aqua:plain,")
    # The remedy works.
    assert choosing(folder, flag, value, task="aqua:plain").questions


def test_flags_that_every_task_takes(folder):
    folder.write("plain", {"train": TRAIN, "test": TEST, "dev": some_docs(200, 6)})
    flags = ("--n_proxies", 1, "--seed", 3, "--on_bad_doc", "fail", "--selection_split", "dev")
    questions = choosing(folder, *flags, "--num_fewshot", 10, task="plain")
    assert questions.split == "dev"
    assert questions.num_fewshot == 10


def test_n_proxies_of_a_task_as_it_is(folder):
    splits = {"train": TRAIN, "test": TEST}
    for name, metadata in (("plain", None), ("by_yaml", {"n_proxies": 4})):
        folder.write(name, splits, fewshot_split="train", metadata=metadata)

    def n_prompts(task, *flags):
        asked = judging(folder, *flags, "-f", 2, task=task).questions
        return {len({prompt.context for prompt in question.prompts}) for question in asked}

    assert n_prompts("plain") == {1}
    assert n_prompts("plain", "--metadata", '{"n_proxies": 3}') == {3}
    assert n_prompts("by_yaml") == {4}
    assert n_prompts("by_yaml", "--n_proxies", 2) == {2}
    assert n_prompts("by_yaml", "--n_proxies", 1) == {1}
