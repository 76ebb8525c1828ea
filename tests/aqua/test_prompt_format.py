"""Prompts of lettered questions: only the option lines tell the orders of a question apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.aqua.proxies import (
    LETTER_STYLES,
    MultipleChoiceDoc,
    Proxy,
    format_question,
    make_proxies,
)

lines = st.text(alphabet="ab {}%.:", max_size=10)


def proxies(passage: str = "", n_proxies: int = 1) -> tuple[Proxy, ...]:
    choices = ("Lima", "Oslo", "Rome", "Bern")
    doc = MultipleChoiceDoc("q1", "Capital of Peru?", choices, 0, passage)
    return make_proxies(doc, n_proxies)


def test_a_prompt_by_hand():
    assert format_question(proxies()[0]) == (
        "Question: Capital of Peru?\nA. Lima\nB. Oslo\nC. Rome\nD. Bern\nAnswer:"
    )


def test_a_passage_stands_before_the_question():
    prompt = format_question(proxies(passage="Peru is a country.\n")[0])
    assert prompt.startswith("Peru is a country.\n\nQuestion: Capital of Peru?\nA. Lima\n")


@pytest.mark.parametrize(
    ("style", "line"),
    [("A.", "B. Oslo"), ("A)", "B) Oslo"), ("(A)", "(B) Oslo"), ("A:", "B: Oslo")],
)
def test_letter_styles(style, line):
    prompt = format_question(proxies()[0], style)
    assert prompt.splitlines()[2] == line
    assert prompt.endswith("\nAnswer:")


def test_every_letter_style_is_tested_by_hand():
    assert set(LETTER_STYLES) == {"A.", "A)", "(A)", "A:"}


@given(question=lines, passage=lines, data=st.data(), style=st.sampled_from(list(LETTER_STYLES)))
def test_24_orders_give_the_same_prompt_but_for_the_option_lines(question, passage, data, style):
    texts = st.lists(lines.filter(str.strip), min_size=4, max_size=4, unique_by=str.strip)
    choices = tuple(data.draw(texts))
    doc = MultipleChoiceDoc("q1", question, choices, 0, passage)
    shown = make_proxies(doc, 24)
    prompts = [format_question(proxy, style).split("\n") for proxy in shown]
    assert len({tuple(prompt) for prompt in prompts}) == 24
    assert len({(*prompt[:-5], prompt[-1]) for prompt in prompts}) == 1
    for prompt, proxy in zip(prompts, shown, strict=True):
        marks = [LETTER_STYLES[style].replace("{}", letter) for letter in "ABCD"]
        assert prompt[-5:-1] == [
            mark + text for mark, text in zip(marks, proxy.choices, strict=True)
        ]
