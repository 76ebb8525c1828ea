"""Cleaning: golds of all kinds, bad docs counted under their reason, options filled up and cut."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.aqua.cleaning import (
    DocCounts,
    RawQuestion,
    clean_questions,
    gold_index,
)
from neuronllm_eval.aqua.distractors import normalise
from neuronllm_eval.aqua.proxies import MultipleChoiceDoc, content_id, content_key
from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import DocError, TaskError

UNREADABLE = DocError("row 9 cannot be read", reason="unreadable")
GOLD_MISSING = "gold missing or out of range"


def raw(row: int = 0, **changes: Any) -> RawQuestion:
    """A question of four options that can be asked, unless changes spoil it."""
    values = {
        "question": f"Question {row}?",
        "choices": [f"{row}{letter}" for letter in "wxyz"],
        "answer": row % 4,
    }
    return RawQuestion(row=row, **{**values, **changes})


def clean(
    *raws: RawQuestion | DocError, **settings: Any
) -> tuple[list[MultipleChoiceDoc], DocCounts]:
    counts = DocCounts("train")
    return clean_questions(raws, AquaSettings(**settings), counts), counts


def gold(doc: MultipleChoiceDoc) -> str:
    return doc.choices[doc.answer]


# Golds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        (1, 1),
        (True, 1),
        (False, 0),
        ("Oslo", 1),
        (" Oslo\n", 1),
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B)", 1),
        (["C"], 2),
        ((2,), 2),
        (["Rome "], 2),
        # The source checks the range: here an index is what it is.
        (-1, -1),
        (9, 9),
    ],
)
def test_the_gold_is_an_index_a_letter_or_a_text(answer, index):
    assert gold_index(answer, ["Lima", "Oslo", " Rome"]) == index


def test_a_letter_that_is_also_an_option_s_text_is_ambiguous():
    with pytest.raises(DocError, match="the text of one option and the letter of another") as error:
        gold_index("A", ["O", "A", "B", "AB"])  # blood groups
    assert error.value.reason == "gold ambiguous"
    assert gold_index("A", ["A", "B"]) == 0  # both say the same
    assert gold_index("AB", ["O", "A", "B", "AB"]) == 3


def test_a_whole_number_may_have_come_as_a_float():
    assert gold_index(1.0, ["Lima", "Oslo"]) == 1


@pytest.mark.parametrize("answer", [None, "", "D", "Bern", "oslo", "1", 1.5, [None], {}, [[]]])
def test_a_gold_that_is_none_of_the_options_is_refused(answer):
    with pytest.raises(DocError) as error:
        gold_index(answer, ["Lima", "Oslo", "Rome"])
    assert error.value.reason == GOLD_MISSING


# Bad docs ---------------------------------------------------------------------------------------

BAD = {
    "gold None": (raw(answer=None), GOLD_MISSING),
    "gold -1": (raw(answer=-1), GOLD_MISSING),
    "gold out of range": (raw(answer=4), GOLD_MISSING),
    "gold of no option": (raw(answer="Bern"), GOLD_MISSING),
    "no gold": (raw(answer=[]), GOLD_MISSING),
    "two golds": (raw(answer=[0, 1]), "several right answers"),
    "repeated options": (raw(choices=["x", "y", " x"]), "repeated options"),
    "empty option": (raw(choices=["x", " \n"]), "empty option"),
    "no text as question": (raw(question=7), "no question"),
    "no question": (raw(question=None), "no question"),
    "empty question": (raw(question=" \n"), "no question"),
    "options not texts": (raw(choices=[1, 2]), "options are not texts"),
    "an option missing": (raw(choices=["x", None, "y"]), "options are not texts"),
    "options a text": (raw(choices="xyz"), "options are not texts"),
    "options missing": (raw(choices=None), "options are not texts"),
    "options empty": (raw(choices=[]), "options are not texts"),
    "one option": (raw(choices=["x"]), "fewer than 2 options"),
    "unreadable": (UNREADABLE, "unreadable"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_doc_is_skipped_and_counted_under_its_reason(bad, reason):
    docs, counts = clean(raw(0), bad, raw(1))
    assert [doc.question for doc in docs] == ["Question 0?", "Question 1?"]
    assert counts.docs == 3
    assert counts.skipped == {reason: 1}


def test_golds_that_count_from_1_are_refused():
    with pytest.raises(
        TaskError, match=r"split 'train': the answers count from 1.*\n.*\n.*\(answer \| int\) - 1"
    ):
        clean(*(raw(number, answer=1 + number % 4) for number in range(9)))


def test_answers_that_are_never_the_first_option_are_warned_of(caplog):
    clean(*(raw(number, answer=1 + number % 3) for number in range(12)))
    assert "of 12 answers none is the first option" in caplog.text
    caplog.clear()
    clean(*(raw(number, answer=number % 4) for number in range(12)))
    assert not caplog.text


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_with_fail_a_bad_doc_ends_the_run_naming_split_and_row(bad, reason):
    if isinstance(bad, RawQuestion):
        bad = RawQuestion(**{**vars(bad), "row": 9})
    message = r"split 'train'.* row 9.*(\n.*)*Remedy: .*; or pass --on_bad_doc skip"
    with pytest.raises(DocError, match=message) as error:
        clean(raw(1), bad, on_bad_doc="fail")
    assert error.value.reason == reason


@pytest.mark.parametrize("answer", [-1, 4, None])
@pytest.mark.parametrize("settings", [{"n_options": 2}, {"n_options": 6, "distractors": "random"}])
def test_no_cut_and_no_filling_up_hides_that_the_gold_is_missing(answer, settings):
    docs, counts = clean(*map(raw, range(9)), raw(9, answer=answer), **settings)
    assert len(docs) == 9
    assert counts.skipped == {GOLD_MISSING: 1}


def test_good_docs_do_not_fail():
    docs, counts = clean(raw(1), raw(2), on_bad_doc="fail")
    assert len(docs) == 2
    assert not counts.skipped


def test_a_passage_can_stand_for_the_question():
    docs, _ = clean(raw(question="", passage="Read this."))
    assert docs[0].passage == "Read this."


def test_each_reason_is_counted():
    _, counts = clean(*(bad for bad, _ in BAD.values()))
    assert counts.docs == counts.skipped.total() == len(BAD)
    assert counts.skipped == Counter(reason for _, reason in BAD.values())


def test_counts_leave_out_what_is_zero():
    _, counts = clean(raw(answer=None), raw(choices=["x"]), raw())
    assert counts.to_dict() == {
        "split": "train",
        "docs": 3,
        "questions": 0,
        "skipped": {"fewer than 2 options": 1, GOLD_MISSING: 1},
    }
    assert list(counts.to_dict()["skipped"]) == ["fewer than 2 options", GOLD_MISSING]


# Ids --------------------------------------------------------------------------------------------


def test_the_ids_of_the_data_are_kept():
    docs, _ = clean(raw(0, id="x"), raw(1, id="y"))
    assert [doc.question_id for doc in docs] == ["x", "y"]


def test_without_an_id_questions_are_named_by_their_content():
    docs, _ = clean(raw(3, passage="Read."), raw(4, id=""))
    assert [doc.question_id for doc in docs] == [
        content_id("Question 3?", ["3w", "3x", "3y", "3z"], 3, "Read."),
        content_id("Question 4?", ["4w", "4x", "4y", "4z"], 0),
    ]


def test_the_same_question_again_gets_an_id_of_its_own():
    docs, _ = clean(raw(3), raw(4), raw(3), raw(3))
    first, other, second, third = (doc.question_id for doc in docs)
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert other != first


def test_a_repeated_id_is_a_bad_doc():
    docs, counts = clean(raw(0, id="x"), raw(1, id="x"), raw(2, id="y"))
    assert [doc.question for doc in docs] == ["Question 0?", "Question 2?"]
    assert counts.skipped == {"repeated id": 1}
    with pytest.raises(DocError, match=r"split 'train', row 1: the id 'x' repeats"):
        clean(raw(0, id="x"), raw(1, id="x"), on_bad_doc="fail")


def test_the_id_of_a_bad_doc_is_free():
    docs, counts = clean(raw(0, id="x", choices=["one"]), raw(1, id="x"))
    assert [doc.question_id for doc in docs] == ["x"]
    assert counts.skipped == {"fewer than 2 options": 1}


# Options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_options", [2, 3, 4, 8, 9, 13, 26])
def test_options_are_left_as_they_are_up_to_26(n_options):
    choices = [f"option {number}" for number in range(n_options)]
    docs, counts = clean(raw(choices=choices, answer=n_options - 1))
    assert docs[0].choices == tuple(choices)
    assert docs[0].answer == n_options - 1
    assert counts.options_cut == counts.distractors_added == 0


@pytest.mark.parametrize(
    ("n_given", "n_left", "changes", "settings"),
    [
        (27, 26, {}, {}),
        (40, 26, {}, {}),
        (9, 8, {"is_label": True}, {}),
        (77, 8, {"is_label": True}, {}),
        (6, 4, {}, {"n_options": 4}),
        (6, 2, {"is_label": True}, {"n_options": 2}),
        (20, 12, {"is_label": True}, {"n_options": 12}),
    ],
)
def test_more_options_than_wanted_are_cut_and_counted(n_given, n_left, changes, settings):
    choices = [f"option {number}" for number in range(n_given)]
    raws = [raw(row, choices=choices, answer=row % n_given, **changes) for row in range(100)]
    docs, counts = clean(*raws, **settings)
    assert counts.options_cut == 100
    assert {len(doc.choices) for doc in docs} == {n_left}
    assert [gold(doc) for doc in docs] == [choices[row % n_given] for row in range(100)]
    # In the order the data has, and not the same for all.
    assert all(
        [choices.index(text) for text in doc.choices]
        == sorted(choices.index(text) for text in doc.choices)
        for doc in docs
    )
    assert len({doc.choices for doc in docs}) > 1


@pytest.mark.parametrize("n_labels", range(2, 9))
def test_class_labels_stay_complete_up_to_eight(n_labels):
    labels = [f"label {number}" for number in range(n_labels)]
    docs, counts = clean(*(raw(row, choices=labels, is_label=True, answer=1) for row in range(9)))
    assert {doc.choices for doc in docs} == {tuple(labels)}
    assert counts.options_cut == 0


def test_a_cut_does_not_hide_options_that_repeat():
    repeated = [raw(row, choices=["x", "y", " y", "z"], answer=0) for row in range(9)]
    docs, counts = clean(*repeated, n_options=2)
    assert docs == []
    assert counts.skipped == {"repeated options": 9}


def filled(n_given: int, n_questions: int = 60, **settings: Any):
    """Questions of a few options, the right one first, after filling up."""
    raws = [
        raw(row, choices=[f"gold {row}", f"near {row}", f"far {row}"][:n_given], answer=0)
        for row in range(n_questions)
    ]
    return clean(*raws, **{"distractors": "random", **settings})


@pytest.mark.parametrize(
    ("n_given", "settings", "n_asked"),
    [
        (1, {}, 4),
        (1, {"distractors": "length"}, 4),
        (1, {"n_options": 2}, 2),
        (1, {"n_options": 10}, 10),
        (2, {}, 2),
        (3, {}, 3),
        (2, {"n_options": 5}, 5),
        (3, {"n_options": 5, "distractors": "length"}, 5),
    ],
)
def test_fewer_options_than_wanted_are_filled_up_and_counted(n_given, settings, n_asked):
    docs, counts = filled(n_given, **settings)
    assert len(docs) == 60
    assert counts.distractors_added == (60 if n_asked > n_given else 0)
    for row, doc in enumerate(docs):
        own = {f"gold {row}", f"near {row}", f"far {row}"}
        assert gold(doc) == f"gold {row}"
        assert len({normalise(text) for text in doc.choices}) == n_asked
        assert len(own & set(doc.choices)) == n_given
        assert all(text.startswith("gold ") for text in set(doc.choices) - own)


def test_without_distractors_nothing_is_filled_up():
    docs, counts = filled(2, distractors="none", n_options=4)
    assert {len(doc.choices) for doc in docs} == {2}
    assert counts.distractors_added == 0


@pytest.mark.parametrize("n_given", [1, 3])
def test_the_gold_of_filled_questions_stands_at_every_place(n_given):
    # 400 questions over 4 places: 100 each, standard deviation 8.7.
    docs, _ = filled(n_given, n_questions=400, n_options=4)
    places = Counter(doc.answer for doc in docs)
    assert all(60 <= places[place] <= 140 for place in range(4))


def test_filled_options_follow_from_the_seed():
    assert filled(1)[0] == filled(1)[0]
    assert filled(1)[0] != filled(1, seed=1)[0]


def test_too_few_other_answers_are_a_bad_doc():
    _, counts = filled(1, n_questions=3)
    assert counts.skipped == {"too few other answers for distractors": 3}
    with pytest.raises(DocError, match=r"row 0: there are 2 other answers to draw 3 distractors"):
        filled(1, n_questions=3, on_bad_doc="fail")


def test_answers_of_bad_docs_are_no_distractors():
    unread = [raw(row, choices=[f"bad {row}"], answer=7) for row in range(50)]
    docs, _ = clean(
        *unread,
        *(raw(row, choices=[f"good {row}"], answer=0) for row in range(9)),
        distractors="random",
    )
    assert len(docs) == 9
    assert all(text.startswith("good") for doc in docs for text in doc.choices)


@pytest.mark.parametrize("settings", [{"n_options": 2}, {"n_options": 6, "distractors": "random"}])
def test_the_content_is_that_of_the_options_the_data_has(settings):
    raws = [raw(row, passage="Read.") for row in range(30)]
    for doc, asked in zip(clean(*raws, **settings)[0], raws, strict=True):
        assert len(doc.choices) == settings["n_options"]
        assert doc.content == content_key("Read.", asked.question, *asked.choices)


# Any docs ---------------------------------------------------------------------------------------

anything = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 30), st.text("aAB (.", max_size=3), st.floats()
)
raws = st.builds(
    RawQuestion,
    row=st.integers(0, 9),
    question=st.one_of(st.just("?"), anything),
    choices=st.one_of(
        st.lists(st.text("abAB ", max_size=2), max_size=30),
        anything,
        st.lists(anything, max_size=3),
    ),
    answer=st.one_of(st.integers(-1, 4), anything, st.lists(anything, max_size=2)),
    passage=st.sampled_from(["", "Read."]),
    id=st.one_of(st.none(), st.sampled_from(["x", "y", "x-2", ""])),
    is_label=st.booleans(),
)


@given(
    asked=st.lists(st.one_of(raws, st.just(UNREADABLE)), max_size=8),
    n_options=st.one_of(st.none(), st.integers(2, 26)),
    distractors=st.sampled_from(["none", "random", "length"]),
)
def test_every_doc_is_asked_or_counted_as_skipped(asked, n_options, distractors):
    docs, counts = clean(*asked, n_options=n_options, distractors=distractors)
    assert counts.docs == len(asked) == len(docs) + counts.skipped.total()
    assert len({doc.question_id for doc in docs}) == len(docs)
    assert all(len(doc.choices) <= (n_options or 26) for doc in docs)
