"""Prompts taken apart: labels, option lists, cues, and what is too ambiguous to take apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import DocError
from neuronllm_eval.harness.aqua_conversion.parse_prompt import (
    ParsedPrompt,
    begins_alphabet,
    label_of,
    labelled_texts,
    labels_of,
    lettered_options,
    text_stem,
    texts_in,
    without_option_list,
)
from neuronllm_eval.harness.aqua_conversion.prompt_cues import (
    passage_and_question,
    without_cue,
    without_cue_behind_list,
    without_heading,
)

ABCD = ["A", "B", "C", "D"]
COLOURS = ("red", "green", "blue", "grey")
STYLES = ("({}) {}", "[{}] {}", "{}. {}", "{}) {}", "{}: {}", "{}、{}", "{}- {}", "{} - {}")


def listed(options: tuple[str, ...], style: str = "{}. {}", between: str = "\n") -> str:
    return between.join(style.format(*pair) for pair in zip("ABCDE", options, strict=False))


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        ("A", "A"),
        (" (B)", "B"),
        ("c.", "c"),
        ("[4]", "4"),
        ("12", "12"),
        ("ب", "ب"),
        ("هـ", "\u0647"),
        ("Α", "Α"),  # noqa: RUF001
        ("123", None),
        ("yes", None),
        ("", None),
        ("?", None),
    ],
)
def test_label_of(choice, label):
    assert label_of(choice) == label


def test_labels_must_all_be_labels_and_differ():
    assert labels_of(["(A)", "(B)"]) == ("A", "B")
    assert labels_of(["A", "A"]) is None
    assert labels_of(["A", "no"]) is None
    assert labels_of(["A"]) is None
    assert labels_of([]) is None


def test_an_alphabet_begins_with_its_first_letters_in_any_order():
    assert begins_alphabet(("B", "A"))
    assert begins_alphabet(("أ", "ب", "ج", "د", "\u0647"))
    assert not begins_alphabet(("T", "F"))
    assert not begins_alphabet(("是", "否"))
    assert not begins_alphabet(("1", "2"))


def test_labelled_texts():
    assert labelled_texts(["(A)red", "(B)green"]) == (("A", "B"), ("red", "green"))
    assert labelled_texts(["1. red", "2. green"]) == (("1", "2"), ("red", "green"))
    assert labelled_texts(["(A)red", "B. green"]) is None  # two styles
    assert labelled_texts(["A. Smith", "C. Jones"]) is None  # names
    assert labelled_texts(["(A)", "(B)"]) is None  # labels alone
    assert labelled_texts(["(A)red"]) is None


def test_texts_in_a_doc_however_deep():
    doc = {"a": "x", "b": [{"c": "y"}, 3, None], "d": 1.5}
    assert list(texts_in(doc)) == ["x", "y", "3", "1.5"]


# --- lettered options, in the doc as texts ----------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("between", ["\n", "\n\n", " ", "\n   ", ", "])
def test_options_that_the_doc_has_are_found_in_any_style(style, between):
    prompt = f"Which colour?\n{listed(COLOURS, style, between)}\nAnswer:"
    found = lettered_options(prompt, ABCD, {"choices": list(COLOURS)})
    assert found == ParsedPrompt("Which colour?", COLOURS, tuple("ABCD"))


def test_stems_that_look_like_options():
    stem = "A. Smith (B) met C) at D. Then\nA question\nB or not B"
    prompt = f"{stem}\n{listed(COLOURS)}\nAnswer:"
    assert lettered_options(prompt, ABCD, list(COLOURS)) == ParsedPrompt(
        stem, COLOURS, tuple("ABCD")
    )


def test_options_of_several_lines_with_labels_in_them():
    options = ("if x:\nA. y", "both (A) and (B)", "B. z\n\nC. z", "last\nline\nD. end")
    prompt = f"What is printed?\n{listed(options)}\nAnswer:"
    found = lettered_options(prompt, ABCD, {"choices": list(options)})
    assert found == ParsedPrompt("What is printed?", options, tuple("ABCD"))


def test_an_option_that_begins_like_another_text_of_the_doc():
    options = ("red", "red apple", "apple", "red apple pie")
    doc = {"choices": list(options), "note": "red apple pie\nAnswer"}
    found = lettered_options(f"Q?\n{listed(options)}\nAnswer:", ABCD, doc)
    assert found is not None
    assert found.options == options


def test_a_cue_on_the_line_of_the_last_option():
    prompt = f"Which colour? {listed(COLOURS, between=' ')} Answer:"
    for doc in ({"choices": list(COLOURS)}, {"prompt": prompt}):
        found = lettered_options(prompt, ABCD, doc)
        assert found == ParsedPrompt("Which colour?", COLOURS, tuple("ABCD"))


def test_text_behind_the_options_is_kept():
    prompt = f"Text.\n{listed(COLOURS)}\nQuestion: which is it?\nAnswer:"
    for doc in (list(COLOURS), {}):
        found = lettered_options(prompt, ABCD, doc)
        assert found == ParsedPrompt("Text.\nQuestion: which is it?", COLOURS, tuple("ABCD"))


def test_the_same_list_twice_is_ambiguous():
    prompt = f"Q?\n{listed(COLOURS)}\nAgain?\n{listed(COLOURS)}\nAnswer:"
    with pytest.raises(DocError, match="listed more than once") as caught:
        lettered_options(prompt, ABCD, list(COLOURS))
    assert caught.value.reason == "options ambiguous"


def test_more_options_than_choices():
    prompt = f"Q?\n{listed((*COLOURS, 'pink'))}\nAnswer:"
    for doc in ([*COLOURS, "pink"], {}):
        with pytest.raises(DocError, match="more options are listed"):
            lettered_options(prompt, ABCD, doc)


def test_choices_in_another_order_than_the_prompt_shows():
    found = lettered_options("Q?\n (A) yes\n (B) no\n\nAssistant:", [" (B)", " (A)"], {})
    assert found == ParsedPrompt("Q?", ("yes", "no"), ("A", "B"))


# --- lettered options, known from the prompt alone --------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_the_only_reading_is_taken(style):
    prompt = f"Which colour?\nOptions:\n{listed(COLOURS, style)}\nAnswer:"
    found = lettered_options(prompt, ABCD, {"prompt": prompt})
    assert found == ParsedPrompt("Which colour?", COLOURS, tuple("ABCD"))


@pytest.mark.parametrize(
    "stem",
    [
        "A. Smith came.\nWhich colour?",  # a line that begins like the first option
        "Is it (A) or (B), (C) or (D)?",  # another run of the labels
        f"First.\n{listed(('a', 'b', 'c', 'd'))}\nSecond?",
    ],
)
def test_labels_in_the_stem_are_ambiguous(stem):
    prompt = f"{stem}\n{listed(COLOURS)}\nAnswer:"
    with pytest.raises(DocError, match="can be read in two ways"):
        lettered_options(prompt, ABCD, {"prompt": prompt})


def test_a_name_within_a_line_is_no_option():
    found = lettered_options(f"Vitamin A. Which colour?\n{listed(COLOURS)}\nA:", ABCD, {})
    assert found == ParsedPrompt("Vitamin A. Which colour?", COLOURS, tuple("ABCD"))


def test_where_the_last_option_ends_cannot_be_told():
    options = ("one\nline", "two\nlines", "three\nlines")
    prompt = f"Q?\n{listed((*options, 'four'))}\nand more\nAnswer:"
    with pytest.raises(DocError, match="the end of the last option"):
        lettered_options(prompt, ABCD, {})
    # Nothing but a cue behind it: then it can.
    found = lettered_options(f"Q?\n{listed((*options, 'four'))}\nAnswer:", ABCD, {})
    assert found is not None
    assert found.options == (*options, "four")


def test_fewer_options_only_in_the_choices_own_brackets():
    choices = ["(A)", "(B)", "(C)", "(D)"]
    prompt = f"Q?\nOptions:\n{listed(COLOURS[:3], '({}) {}')}\nA:"
    found = lettered_options(prompt, choices, {})
    assert found == ParsedPrompt("Q?", COLOURS[:3], tuple("ABC"))
    assert lettered_options(prompt, ABCD, {}) is None
    assert lettered_options(prompt.replace("A:", "D) grey\nA:"), choices, {}) is None


def test_numbers_that_may_be_answers_themselves():
    prompt = "How many are right?\n1. Cats bark.\n2. Dogs bark.\nAnswer:"
    with pytest.raises(DocError, match="may be labels or counts"):
        lettered_options(prompt, ["1", "2"], {"prompt": prompt})
    options = ("Cats bark.", "Dogs bark.")
    for choices, doc in ((["1", "2"], list(options)), (["1.", "2."], {})):
        found = lettered_options(prompt, choices, doc)
        assert found == ParsedPrompt("How many are right?", options, ("1", "2"))
    assert lettered_options("How many are right?", ["1", "2"], {}) is None


def test_no_list():
    assert lettered_options("Which colour is A. Smith?", ABCD, {}) is None
    assert lettered_options("Which colour?", ["yes", "no"], {}) is None


words = st.text(st.sampled_from("abc ABCD().:-?\n 12"), max_size=20).map(str.strip)
options_of_any_kind = st.lists(
    words.filter(bool), min_size=2, max_size=5, unique_by=lambda text: text.rstrip(",;")
)


@given(words, options_of_any_kind, st.sampled_from(STYLES))
def test_with_the_texts_in_the_doc_no_prompt_is_read_wrongly(stem, options, style):
    prompt = f"Stem {stem}!\n{listed(tuple(options), style)}\nAnswer:"
    labels = list("ABCDE"[: len(options)])
    try:
        found = lettered_options(prompt, labels, {"choices": options})
    except DocError:
        return
    assert found == ParsedPrompt(f"Stem {stem}!", tuple(options), tuple(labels))


lines = st.text(st.sampled_from("abc ABCD().:-? 12"), max_size=20).map(str.strip)


@given(
    words,
    st.lists(lines.filter(bool), min_size=2, max_size=5, unique=True),
    st.sampled_from(STYLES[:5]),
)
def test_without_them_no_prompt_is_read_wrongly(stem, options, style):
    prompt = f"Stem {stem}!\n{listed(tuple(options), style)}\nAnswer:"
    labels = list("ABCDE"[: len(options)])
    try:
        found = lettered_options(prompt, labels, {"prompt": prompt})
    except DocError:
        return
    assert found == ParsedPrompt(f"Stem {stem}!", tuple(options), tuple(labels))


# --- choices that are texts -------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        "- {}\n- {}\n- {}\n- {}",
        "{}\n{}\n{}\n{}",
        "1. {}\n2. {}\n3. {}\n4. {}",
        "1 - {}\n2 - {}\n3 - {}\n4 - {}",
        "A. {}\nB. {}\nC. {}\nD. {}",
        "(a) {} (b) {} (c) {} (d) {}",
        "  choice: {}\n  choice: {}\n  choice: {}\n  choice: {}",
        "– {}\n\n– {}\n\n– {}\n\n– {}",
    ],
)
def test_a_list_of_the_choices_is_taken_out(shown):
    shown = shown.format(*COLOURS)
    assert text_stem(f"Which colour?\nOptions:\n{shown}\n\nAnswer:", COLOURS) == "Which colour?"
    assert text_stem(f"Options:\n{shown}\nWhich colour?\nAnswer:", COLOURS).strip() == (
        "Which colour?"
    )


def test_choices_of_several_lines_are_taken_out():
    choices = ["x\ny", "x\nz"]
    assert text_stem("Q?\n- x\ny\n- x\nz\nAnswer:", choices) == "Q?"


def test_choices_named_in_the_stem_stay():
    stem = "Is it red, green, blue or grey?"
    assert text_stem(f"{stem}\nAnswer:", COLOURS) == stem
    assert without_option_list(stem, COLOURS) == stem
    assert text_stem("True or False?", ["True", "False"]) == "True or False?"


def test_another_lettered_list_than_that_of_the_choices():
    with pytest.raises(DocError, match="not that of the choices") as caught:
        text_stem(f"Q?\n{listed(('one', 'two', 'three', 'four'))}\nAnswer:", COLOURS)
    assert caught.value.reason == "another lettered list"


def test_a_numbered_list_of_statements_stays():
    stem = "1. Cats bark.\n2. Dogs bark.\nWhich is right?"
    assert text_stem(f"{stem}\nAnswer:", ["1 only", "2 only"]) == stem


def test_choices_that_name_labels_of_the_prompt():
    prompt = "Pick one.\nOption A: red\nOption B: green"
    with pytest.raises(DocError, match="name options of the prompt"):
        text_stem(prompt, ["It is Option A", "It is Option B"])
    assert text_stem("Which is in milk?", ["Vitamin A", "Vitamin B"]) == "Which is in milk?"


def test_no_choices():
    assert text_stem("Which?", []) == "Which?"
    assert text_stem("Which?", ["", "x"]) == "Which?"


# --- words around the question ----------------------------------------------------------------


@pytest.mark.parametrize(
    "cue",
    [
        *("\nAnswer:", "\nA:", "\n\nAssistant:", "\nErantzuna:", "\nSvar: "),
        *("\n答案：", "\n### 応答：", " 답변: ", "\nالجواب:"),  # noqa: RUF001
        *("\nThe answer is", " Answer:"),
    ],
)
def test_known_cues_are_taken_off(cue):
    assert without_cue(f"Which colour?{cue}") == "Which colour?"


@pytest.mark.parametrize(
    "text",
    [
        "He sang.\nPlausible:",
        "hot\nAntonym:",
        "Which has vitamin A:",
        "This is the answer:",
        "x = 1\na",
        "The secret code is:",
        "Answer:",
    ],
)
def test_what_may_be_the_question_stays(text):
    assert without_cue(text) == text


@pytest.mark.parametrize(
    ("stem", "bare"),
    [
        ("Which?\nOptions:", "Which?"),
        ("Which?\n\n  Answer Choices: ", "Which?"),
        ("Which? Choices:", "Which?"),
        ("색은?\n보기:", "색은?"),
        ("Name your options:", "Name your options:"),
        ("Which?\nColours:", "Which?\nColours:"),
    ],
)
def test_headings(stem, bare):
    assert without_heading(stem) == bare


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Answer:", ""),
        ("A: Among A through E, the answer is", ""),
        ("Assistant: I believe the better option is", ""),
        ("Please choose the correct answer from the options above:", ""),
        ("Er det A eller B?\n\nSvar:", "Er det A eller B?"),
        ("The capital of the country Chad is:", "The capital of the country Chad is:"),
    ],
)
def test_behind_the_list(text, kept):
    assert without_cue_behind_list(f"\n{text}\n") == kept


def test_passage_and_question():
    assert passage_and_question("Text.\n\nQuestion: Why?\nSo?") == ("Text.", "Why?\nSo?")
    assert passage_and_question("Galdera: Zer?") == ("", "Zer?")
    assert passage_and_question("Q: One?\nA: yes\nQ: Two?") == ("Q: One?\nA: yes", "Two?")
    assert passage_and_question("A question: why?") == ("", "A question: why?")
    assert passage_and_question("Why?\nQuestion:") == ("", "Why?\nQuestion:")
    assert passage_and_question("Passage:\nOne.\nQuestion:\nWhy?") == ("Passage:\nOne.", "Why?")
