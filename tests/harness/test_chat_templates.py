"""Prompts under real chat templates: whose turn it is, which token a letter is, as in stock."""

from __future__ import annotations

import re

import pytest

from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings, QuestionSet
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from tests.fixtures.harness import (
    CHATML,
    LLAMA_3,
    TaskFolder,
    harness_model,
    model_dir,
    sequences,
    some_docs,
    stock_requests,
    whole,
)

TEMPLATES = {"chatml": CHATML, "llama_3": LLAMA_3}
# What a turn looks like: its role and its content.
TURNS = {
    "chatml": r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|\Z)",
    "llama_3": r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)",
}
ENDS = {"chatml": "assistant\n", "llama_3": "assistant<|end_header_id|>\n\n"}
ROLE = "You are a careful expert. Each question has one right option; answer with its letter."
SPLITS = {
    "train": some_docs(0),
    "test": some_docs(100),
    "demonstration": some_docs(200, 2),
}


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("asked", SPLITS, aqua=True)
    return folder


def model(template: str, context: int = 512):
    return harness_model(model_dir("chat", chat_template=TEMPLATES[template], context=context))


def asked(folder: TaskFolder, template: str, context: int = 512, **settings) -> QuestionSet:
    settings = {"apply_chat_template": True, **settings}
    task = folder.load("asked")
    return build_questions(model(template, context), task, PromptSettings(**settings))


def turns(template: str, questions: QuestionSet, prompt: int = 0) -> list[tuple[str, str]]:
    """(role, content) of every turn of a prompt, read back from its tokens."""
    text = model(template).tokenizer.decode(questions.prompts[prompt].context)
    return [(role, content.strip()) for role, content in re.findall(TURNS[template], text, re.S)]


def written(questions: QuestionSet, prompt: int = 0) -> str:
    """The question of a prompt, as the task writes it out."""
    return questions.task.eval_docs[questions.prompts[prompt].doc_id]["prompt"]


def demonstrations(questions: QuestionSet) -> list[tuple[str, str]]:
    """Text and letter of the demonstrations, in order."""
    docs = questions.task.fewshot_docs()
    return [(doc["prompt"], "ABCD"[doc["answer"]]) for doc in docs]


# Letters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_with_a_template_the_letters_have_no_leading_space(folder, template):
    tokenizer = model(template).tokenizer
    bare = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    spaced = [tokenizer.convert_tokens_to_ids(f"Ġ{letter}") for letter in "ABCD"]
    assert None not in (*bare, *spaced)
    assert set(bare).isdisjoint(spaced)
    for prompt in asked(folder, template).prompts:
        assert prompt.options == tuple((token,) for token in bare)
        # The white space that ends the template is shared by all options.
        assert tokenizer.decode(prompt.context).endswith(ENDS[template])
        assert prompt.n_shared > 0
    for prompt in asked(folder, template, apply_chat_template=False).prompts:
        assert prompt.options == tuple((token,) for token in spaced)
        assert tokenizer.decode(prompt.context).endswith("\nAnswer:")


@pytest.mark.parametrize("template", TEMPLATES)
def test_there_is_one_bos_token(folder, template):
    # The tokenizer puts one before every text, and Llama 3's template has one of its own.
    for is_chat in (True, False):
        for prompt in asked(folder, template, apply_chat_template=is_chat).prompts:
            assert prompt.context[0] == model(template).tokenizer.bos_token_id
            assert prompt.context.count(prompt.context[0]) == 1


# Turns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_demonstration_is_a_turn_of_the_user_and_one_of_the_assistant(folder, template):
    for shots in (1, 2):
        questions = asked(folder, template, num_fewshot=shots)
        shown = demonstrations(questions)
        for number in range(len(questions.prompts)):
            found = turns(template, questions, number)
            assert found[0] == ("system", ROLE)
            assert found[1 : 1 + 2 * shots] == [
                turn
                for text, letter in shown[:shots]
                for turn in (("user", text), ("assistant", letter))
            ]
            assert found[1 + 2 * shots :] == [
                ("user", written(questions, number)),
                ("assistant", ""),
            ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_demonstrations_in_one_turn(folder, template):
    questions = asked(folder, template, num_fewshot=2, fewshot_as_multiturn=False)
    (text, letter), (other, its) = demonstrations(questions)
    assert turns(template, questions) == [
        ("system", ROLE),
        ("user", f"{text} {letter}\n\n{other} {its}\n\n{written(questions)}"),
        ("assistant", ""),
    ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_without_demonstrations(folder, template):
    questions = asked(folder, template, num_fewshot=0)
    assert turns(template, questions) == [
        ("system", ROLE),
        ("user", written(questions)),
        ("assistant", ""),
    ]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("settings", "system"),
    [
        ({"system_instruction": "Think of birds."}, f"Think of birds.\n\n{ROLE}"),
        ({"description": "Answer now.\n\n"}, "Answer now."),
        (
            {"system_instruction": "Think of birds.", "description": "Answer now.\n\n"},
            "Think of birds.\n\nAnswer now.",
        ),
    ],
)
def test_system_instruction_and_description_are_the_system_turn(folder, template, settings, system):
    questions = asked(folder, template, **settings)
    found = turns(template, questions)
    assert found[0] == ("system", system)
    assert [role for role, _ in found].count("system") == 1
    assert found[-2] == ("user", written(questions))


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_system_turn_where_nothing_is_to_be_said(folder, template):
    found = turns(template, asked(folder, template, description=""))
    assert [role for role, _ in found] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_long_prompt_loses_whole_turns(folder, template):
    roomy = asked(folder, template, num_fewshot=2)
    one = asked(folder, template, num_fewshot=1)
    short = asked(folder, template, roomy.prompts[0].n_tokens - 1, num_fewshot=2)
    assert short.questions == one.questions
    assert short.counts == {"demonstrations_dropped": 12}


# As in stock ------------------------------------------------------------------------------------

CASES = {
    "one-shot": {},
    "two-shot": {"num_fewshot": 2},
    "zero-shot": {"num_fewshot": 0},
    "one turn": {"fewshot_as_multiturn": False},
    "system instruction": {"system_instruction": "Think of birds."},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_stock_lm_eval_sends_the_same_tokens(folder, template, case):
    path = model_dir("chat", chat_template=TEMPLATES[template])
    seen = stock_requests(path, "asked", folder, apply_chat_template=True, **CASES[case])
    ours = asked(folder, template, **CASES[case])
    assert len(ours.prompts) == 12
    assert sequences(ours.prompts) == whole(seen)


REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
IGNORES = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"


@pytest.mark.parametrize("start", [REFUSES, IGNORES])
def test_a_template_without_a_system_turn_is_told(folder, start, caplog):
    path = model_dir("chat", chat_template=start + CHATML)
    settings = {"apply_chat_template": True, "system_instruction": "Birds."}
    task = folder.load("asked")
    ours = build_questions(harness_model(path), task, PromptSettings(**settings))
    assert (
        "asked: the chat template takes no system turn, so the prompts are without the system "
        "instruction and the description" in caplog.text
    )
    assert "careful" not in harness_model(path).tokenizer.decode(ours.prompts[0].context)
    assert sequences(ours.prompts) == whole(stock_requests(path, "asked", folder, **settings))


def test_nothing_is_told_where_nothing_is_lost(folder, caplog):
    asked(folder, "llama_3", system_instruction="Birds.")
    path = model_dir("chat", chat_template=REFUSES + CHATML)
    settings = PromptSettings(apply_chat_template=True, description="")
    build_questions(harness_model(path), folder.load("asked"), settings)
    assert "system turn" not in caplog.text


# Templates by name --------------------------------------------------------------------------------


def named(folder: TaskFolder, name: object) -> QuestionSet:
    lm = model("chatml")
    with pytest.MonkeyPatch.context() as patch:  # other tests share the model
        patch.setattr(lm.tokenizer, "chat_template", {"default": CHATML, "short": LLAMA_3})
        return build_questions(lm, folder.load("asked"), PromptSettings(apply_chat_template=name))


def test_prompts_are_written_by_the_template_of_the_name(folder):
    assert named(folder, "short").questions == asked(folder, "llama_3").questions
    assert named(folder, "default").questions == asked(folder, "chatml").questions
    assert named(folder, True).questions == asked(folder, "chatml").questions


def test_the_masked_model_writes_by_the_template_of_the_name():
    lm = NeuronMaskedLM(str(model_dir("chat", chat_template=CHATML)), device="cpu")
    lm.tokenizer.chat_template = {"default": CHATML, "short": LLAMA_3}
    turn = [{"role": "user", "content": "?"}]
    assert lm.chat_template("short") == LLAMA_3
    assert lm.apply_chat_template(turn) == lm.tokenizer.apply_chat_template(
        turn, chat_template=LLAMA_3, tokenize=False, add_generation_prompt=True
    )


def test_an_unknown_template_is_refused(folder):
    with pytest.raises(UsageError, match=r"no chat template of the name 'no'\.\n.*default, short"):
        named(folder, "no")
    with pytest.raises(UsageError, match=r"name 'short'\.\nExpected: its only template"):
        asked(folder, "chatml", apply_chat_template="short")


def test_a_template_that_writes_the_date_is_warned_of(folder, caplog):
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    template = f"{dated}{{% endif %}}Today is {{{{ date_string }}}}.{CHATML}"
    path = model_dir("chat", chat_template=template, context=512)
    task, settings = folder.load("asked"), PromptSettings(apply_chat_template=True)
    build_questions(harness_model(path), task, settings)
    assert caplog.text.count("writes today's date into prompts") == 1
    caplog.clear()
    lm = harness_model(path)
    lm.chat_template_args = {"date_string": "1 Jan 2026"}
    context = build_questions(lm, task, settings).prompts[0].context
    assert "1 Jan 2026" in lm.tokenizer.decode(context).replace("Ġ", " ")
    assert "today's date" not in caplog.text
