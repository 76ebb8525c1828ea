"""`--n_proxies` on tasks as they are: other demonstrations or wordings, and metrics by question."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.errors import TaskError
from neuronllm_eval.harness.leakage import doc_contents
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.results import harness_metrics
from neuronllm_eval.harness.tasks import on_split
from neuronllm_eval.harness.tokenize import PromptSettings, QuestionSet
from neuronllm_eval.harness.varied_prompts import (
    VariedPrompts,
    clustered_stderr,
    with_varied_prompts,
)
from tests.fixtures.harness import TaskFolder, a_doc, harness_model, model_dir, some_docs

N_DOCS = 6
WORDING = "Of {{question}} what holds?"


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def lm():
    return harness_model(model_dir())


def built(folder, lm, n_proxies: int, limit: int | None = None, shots: int = 2, **config):
    """The questions of a task of six docs, with `n_proxies` prompts each."""
    docs = {"train": some_docs(0, 9), "test": some_docs(100, N_DOCS)}
    config = {"fewshot_split": "train", **config}
    task = folder.load(folder.write("words", docs, **config))
    if n_proxies > 1:
        task = with_varied_prompts(task, n_proxies)
    return build_questions(lm, on_split(task, "test"), PromptSettings(num_fewshot=shots), limit)


def texts(lm, questions: QuestionSet) -> list[list[str]]:
    """The prompts of each question."""
    return [
        [lm.tokenizer.decode(prompt.context) for prompt in question.prompts]
        for question in questions.questions
    ]


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_the_first_prompt_is_that_of_the_task_and_all_others_differ(folder, lm, sampler):
    config = {"fewshot_split": None, "fewshot_config": {"split": "train", "sampler": sampler}}
    plain = built(folder, lm, 1, **config)
    varied = built(folder, lm, 3, **config)
    assert [question.prompts[0].context for question in varied.questions] == [
        prompt.context for prompt in plain.prompts
    ]
    assert [each.question_id for each in varied.questions] == [
        each.question_id for each in plain.questions
    ]
    for own, prompts in zip(plain.questions, varied.questions, strict=True):
        assert len({prompt.context for prompt in prompts.prompts}) == 3
        assert {prompt.gold for prompt in prompts.prompts} == {own.prompts[0].gold}
        assert {prompt.options for prompt in prompts.prompts} == {own.prompts[0].options}
    assert [prompt.doc_id for prompt in varied.prompts] == list(range(3 * N_DOCS))
    for prompts in texts(lm, varied):
        assert all(prompt.count("Answer:") == 3 for prompt in prompts)  # two demonstrations


def test_a_task_with_a_function_of_its_own_for_its_words(folder):
    class Own(ConfigurableTask):
        def doc_to_text(self, doc):
            return f"Say: {doc['question']}"

    docs = {"train": some_docs(0, 9), "test": some_docs(100, N_DOCS)}
    plain = folder.load(folder.write("words", docs, fewshot_split="train"))
    own = Own.__new__(Own)
    own.__dict__ |= vars(plain)
    own.config.metadata = {"wordings": [WORDING]}
    with pytest.raises(TaskError, match="a function of the task's own words its prompts"):
        with_varied_prompts(own, 2)
    assert plain_text_of(own) == "Say: Which is number 100?"


def plain_text_of(task) -> str:
    """What the guard against leaks reads of a doc, of a class that takes no wording."""
    task.config.metadata = None
    kind = type("Varied", (VariedPrompts, type(task)), {})
    varied = kind.__new__(kind)
    varied.__dict__ |= vars(task)
    varied.config.metadata = {"n_proxies": 2}
    return varied.plain_text(task.task_docs[0])


def test_further_prompts_do_not_depend_on_which_docs_are_asked(folder, lm):
    every, some = (texts(lm, built(folder, lm, 3, limit)) for limit in (None, 2))
    assert every[:2] == some


@pytest.mark.parametrize("wordings", [[], [WORDING]])
def test_a_demonstration_is_never_the_question_or_one_to_validate(folder, lm, wordings):
    # Two rows are equal, so that more than one may be the question itself.
    test = [*some_docs(100, N_DOCS), a_doc(100)]
    docs = {"train": some_docs(0, N_DOCS), "test": test}
    metadata = {"version": 1.0, "wordings": wordings}
    folder.write("own", docs, fewshot_split="test", metadata=metadata)
    task = with_varied_prompts(folder.load("own"), 4)
    ask = PromptSettings(num_fewshot=2)
    questions = build_questions(lm, on_split(task, "test"), ask)
    for number, prompts in enumerate(texts(lm, questions)):
        own = 100 + number % N_DOCS
        assert [prompt.count(f"number {own}?") for prompt in prompts] == [1] * 4
        assert [prompt.count("Which is number") for prompt in prompts] == [3] * 4
    # In a selection, whose demonstrations would all be of the validation split, none is.
    selection, validation = on_split(task, "train"), frozenset(doc_contents(task))
    for prompts in texts(lm, build_questions(lm, selection, ask, hidden=validation)):
        assert not [prompt for prompt in prompts if "number 10" in prompt]
        assert [prompt.count("Which is number") for prompt in prompts] == [3] * 4
        assert len(set(prompts)) == 4


def test_a_question_too_long_for_its_demonstrations_is_skipped(folder):
    # The first has room for one demonstration, the second for none, the third fits.
    docs = [a_doc(n, question=f"Which? {'so ' * length}") for n, length in enumerate((90, 200, 2))]
    folder.write("long", {"train": some_docs(0, 9), "test": docs}, fewshot_split="train")
    task = with_varied_prompts(folder.load("long"), 3)
    lm = harness_model(model_dir(context=256))
    built = build_questions(lm, on_split(task, "test"), PromptSettings(num_fewshot=2))
    assert [question.question_id for question in built.questions] == ["long-0", "long-2"]
    assert built.skipped == {"too few different prompts that fit the model's context": 3}
    assert built.demonstrations_dropped == 3
    assert all(len({each.context for each in q.prompts}) == 3 for q in built.questions)


def test_wordings_go_round_in_demonstrations_too(folder, lm):
    metadata = {"version": 1.0, "wordings": [WORDING]}
    prompts = texts(lm, built(folder, lm, 3, metadata=metadata, shots=1))
    for own, worded, again in prompts:
        assert own.count("Answer:") == again.count("Answer:") == 2
        assert worded.count("what holds?") == 2
        assert "Answer:" not in worded
        assert own != again  # other demonstrations


def test_wordings_alone_vary_prompts_without_demonstrations(folder, lm):
    metadata = {"version": 1.0, "wordings": [WORDING]}
    prompts = texts(lm, built(folder, lm, 2, metadata=metadata, shots=0))
    assert [worded for _, worded in prompts] == [
        f"Of Which is number {100 + number}? what holds?" for number in range(N_DOCS)
    ]


def test_as_many_prompts_as_there_are_not_are_refused(folder, lm):
    with pytest.raises(
        TaskError,
        match=r"question 0 of task words has no prompt beside the 1 that were made, with 0 "
        r"demonstrations\.\nExpected: 3 different ones.*\nRemedy: raise --num_fewshot \(",
    ):
        built(folder, lm, 3, shots=0)
    metadata = {"version": 1.0, "wordings": [WORDING]}
    with pytest.raises(TaskError, match="no prompt beside the 2 that were made"):
        built(folder, lm, 3, metadata=metadata, shots=0)


@pytest.mark.parametrize(
    ("metadata", "n_proxies", "message"),
    [
        ({"wordings": "one"}, 2, "has wordings 'one'"),
        ({"wordings": ["one", 2]}, 2, r"has wordings \['one', 2\]"),
        ({}, "two", "has n_proxies 'two'"),
        (
            {},
            "all",
            r"the options of task words have no letters .*\n.*\n.* --tasks aqua:words, or a",
        ),
        ({}, 0, "has n_proxies 0"),
        ({"wordings": ["{{question"]}, 2, "wording '{{question' of task words cannot be read: Tem"),
        ({"wordings": ["{{nothing}}"]}, 2, "of task words cannot be read: UndefinedError"),
        ({"wordings": [" "]}, 2, "wording ' ' of task words says nothing of the first doc"),
    ],
)
def test_metadata_that_say_nothing_are_refused(folder, metadata, n_proxies, message):
    task = folder.load(folder.write("words"))
    task.config.metadata = metadata
    with pytest.raises(TaskError, match=message):
        with_varied_prompts(task, n_proxies)


# Metrics ----------------------------------------------------------------------------------------

# Of each question and prompt, the option that is answered; the gold is option 1 throughout.
ANSWERED = ((1, 1, 1), (1, 1, 0), (0, 1, 1), (2, 0, 2))


def metrics(folder, lm, *names: str) -> dict[str, float]:
    """Of `ANSWERED`, in a task with these metrics; the shortest option is option 0."""
    docs = [{**a_doc(n, 1), "choices": [f"{n}", f"just as long {n}", f"a bit longer than {n}"]}
            for n in range(4)]  # fmt: skip
    folder.write(
        "words",
        {"train": some_docs(10, 9), "test": docs},
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        fewshot_split="train",
        metric_list=[{"metric": name} for name in names],
    )
    task = with_varied_prompts(folder.load("words"), 3)
    questions = build_questions(lm, on_split(task, "test"), PromptSettings(num_fewshot=1))
    answers = {
        3 * question + proxy: [
            # The shortest option has the highest sum; by character the one that is answered.
            (-len(text) * (1.0 if option == answered else 9.0), False)
            for option, text in enumerate(docs[question]["choices"])
        ]
        for question, row in enumerate(ANSWERED)
        for proxy, answered in enumerate(row)
    }
    return {
        key.removesuffix(",none"): value
        for key, value in harness_metrics(questions, answers)["results"]["words"].items()
    }


def test_metrics_by_question_by_hand(folder, lm):
    found = metrics(folder, lm, "acc_norm", "acc")
    assert found["acc_norm"] == pytest.approx(7 / 12)
    assert found["acc_consistent"] == pytest.approx(1 / 4)
    assert found["acc_majority"] == pytest.approx(3 / 4)
    assert found["fortuity"] == pytest.approx(1 / 4)  # the second question
    # Clustered by question: 3, 2, 2 and 0 of three correct, 7 / 4 on average.
    squares = sum((n - 7 / 4) ** 2 for n in (3, 2, 2, 0))
    assert found["acc_norm_stderr"] == pytest.approx(math.sqrt(4 / 3 * squares) / 12)
    assert found["acc_consistent_stderr"] == pytest.approx(math.sqrt(3 / 16 / 3))


def test_an_option_without_text_is_compared_as_the_harness_does(folder):
    docs = [a_doc(0), a_doc(1, 1, choices=["", "one", "two"])]
    folder.write(
        "words",
        {"train": some_docs(10, 9), "test": docs},
        doc_to_choice="choices",
        fewshot_split="train",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    plain = folder.load("words")
    task = with_varied_prompts(plain, 2)
    results = [(-1.0, False), (-2.0, False), (-3.0, False)]
    with np.errstate(divide="ignore"):
        own = plain.process_results(docs[1], results)
        values = task.process_results(task.eval_docs[2], results)
    assert {name: values[name] for name in own} == own


def test_own_means_have_clustered_errors_and_others_the_harnesss(folder):
    listed = [{"metric": "acc"}, {"metric": "mcc"}]
    folder.write("words", fewshot_split="train", metric_list=listed)
    combined = with_varied_prompts(folder.load("words"), 2).aggregation()
    assert combined["acc_stderr"] is clustered_stderr
    assert "mcc" in combined
    assert "mcc_stderr" not in combined
    pairs = [(0, 1.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    # Residuals by question: 2 x 0.25, and -0.75 + 0.25.
    assert clustered_stderr(pairs) == pytest.approx(math.sqrt(2 * (0.25 + 0.25)) / 4)
    assert math.isnan(clustered_stderr(pairs[:2]))


def test_metrics_by_question_compare_as_the_main_metric_does(folder, lm):
    by_sum, by_length = metrics(folder, lm, "acc"), metrics(folder, lm, "acc_norm")
    assert by_sum["acc"] < 7 / 12
    assert by_sum["acc_consistent"] != by_length["acc_consistent"]
