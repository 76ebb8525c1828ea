"""AQUA proxies: the gold option is tracked, orders are distinct, stable and independent."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronllm_eval.aqua import (
    LETTERS,
    PROXY_COLUMNS,
    AquaDocs,
    MultipleChoiceDoc,
    Proxy,
    aqua_docs,
    demonstration_docs,
    make_proxies,
    option_orders,
    read_docs,
)
from neuronllm_eval.errors import DocError, UsageError

seeds = st.integers(min_value=0, max_value=2**32)
ids = st.text(min_size=0, max_size=12)
proxy_counts = st.integers(min_value=1, max_value=30)


@st.composite
def docs(draw: st.DrawFn) -> MultipleChoiceDoc:
    choices = draw(
        st.lists(
            st.text(min_size=1, max_size=8).filter(lambda text: text.strip()),
            min_size=2,
            max_size=8,
            unique_by=str.strip,
        )
    )
    answer = draw(st.integers(min_value=0, max_value=len(choices) - 1))
    return MultipleChoiceDoc(draw(ids), draw(st.text(max_size=20)), tuple(choices), answer)


CAPITAL = MultipleChoiceDoc("q1", "Capital of Peru?", ("Lima", "Oslo", "Rome", "Bern"), 0)


# Orders -----------------------------------------------------------------------------------------


def test_first_orders_are_cyclic_shifts_from_the_drawn_start():
    # The start is SHA-256 of the JSON list ["start", "0", "q1"], modulo the 4 options.
    digest = hashlib.sha256(b'["start", "0", "q1"]').digest()
    start = int.from_bytes(digest, "big") % 4
    cycle = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    expected = tuple(tuple(cycle[start + shift : start + shift + 4]) for shift in range(3))
    assert option_orders(4, 3, seed=0, question_id="q1") == expected


def test_orders_do_not_change_between_versions():
    # Pinned: run directories of earlier versions must mean the same questions.
    four = option_orders(4, 3, seed=0, question_id="q1")
    assert four == ((2, 3, 0, 1), (3, 0, 1, 2), (0, 1, 2, 3))
    three = option_orders(3, 5, seed=7, question_id="q1")
    assert three == ((0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 0, 2))


def test_two_options_have_two_orders_however_many_are_asked_for():
    orders = option_orders(2, 9, seed=3, question_id="x")
    assert sorted(orders) == [(0, 1), (1, 0)]


def test_all_permutations_of_four_options_when_as_many_are_asked_for():
    orders = option_orders(4, 24, seed=3, question_id="x")
    assert sorted(orders) == list(itertools.permutations(range(4)))
    assert len(option_orders(4, 25, seed=3, question_id="x")) == 24


@given(n_options=st.integers(2, 8), n_proxies=proxy_counts, seed=seeds, question_id=ids)
def test_orders_are_distinct_permutations(n_options, n_proxies, seed, question_id):
    orders = option_orders(n_options, n_proxies, seed=seed, question_id=question_id)
    assert len(orders) == min(n_proxies, math.factorial(n_options))
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(n_options)) for order in orders)


@given(n_options=st.integers(2, 26), n_proxies=proxy_counts, seed=seeds, question_id=ids)
def test_every_option_visits_as_many_letters_as_there_are_shifts(
    n_options, n_proxies, seed, question_id
):
    shifts = option_orders(n_options, n_proxies, seed=seed, question_id=question_id)[:n_options]
    for option in range(n_options):
        assert len({order.index(option) for order in shifts}) == min(n_proxies, n_options)


@given(n_options=st.integers(2, 6), n_proxies=proxy_counts, seed=seeds, question_id=ids)
def test_fewer_orders_are_a_prefix_of_more(n_options, n_proxies, seed, question_id):
    more = option_orders(n_options, n_proxies + 1, seed=seed, question_id=question_id)
    fewer = option_orders(n_options, n_proxies, seed=seed, question_id=question_id)
    assert fewer == more[:n_proxies]


def test_starts_spread_over_the_letters():
    # 400 ids over 4 starts: 100 each expected, standard deviation 8.7; 60 to 140 is 4.6 of them.
    firsts = [option_orders(4, 1, seed=0, question_id=str(i))[0][0] for i in range(400)]
    assert all(60 <= firsts.count(start) <= 140 for start in range(4))


def test_orders_are_the_same_in_a_process_with_another_hash_seed():
    code = (
        "from neuronllm_eval.aqua import option_orders; "
        "print(option_orders(4, 9, seed=5, question_id='q1'))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == str(option_orders(4, 9, seed=5, question_id="q1"))


def test_importing_the_module_imports_neither_torch_nor_datasets():
    code = (
        "import sys, neuronllm_eval.aqua; "
        "print([name for name in ('torch', 'datasets', 'lm_eval') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"


# Proxies ----------------------------------------------------------------------------------------


def test_a_proxy_by_hand():
    # Order (2, 3, 0, 1) shows Rome as A, Bern as B, Lima as C, Oslo as D: the gold, Lima, is C.
    proxies = make_proxies(CAPITAL, n_proxies=4)
    assert (
        Proxy(
            question_id="q1",
            proxy=next(p.proxy for p in proxies if p.order == (2, 3, 0, 1)),
            order=(2, 3, 0, 1),
            question="Capital of Peru?",
            choices=("Rome", "Bern", "Lima", "Oslo"),
            answer=2,
            letters=("A", "B", "C", "D"),
        )
        in proxies
    )


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds)
def test_the_gold_option_is_tracked(doc, n_proxies, seed):
    for number, proxy in enumerate(make_proxies(doc, n_proxies, seed)):
        assert proxy.choices[proxy.answer] == doc.choices[doc.answer]
        assert proxy.choices == tuple(doc.choices[index] for index in proxy.order)
        assert sorted(proxy.choices) == sorted(doc.choices)
        assert proxy.letters == LETTERS[: len(doc.choices)]
        assert (proxy.question_id, proxy.question) == (doc.question_id, doc.question)
        assert proxy.proxy == number


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds)
def test_the_gold_visits_as_many_letters_as_it_can(doc, n_proxies, seed):
    golds = {proxy.answer for proxy in make_proxies(doc, n_proxies, seed)}
    assert len(golds) == min(n_proxies, len(doc.choices))


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds)
def test_proxies_are_a_function_of_their_arguments(doc, n_proxies, seed):
    assert make_proxies(doc, n_proxies, seed) == make_proxies(doc, n_proxies, seed)


@given(doc=docs(), seed=seeds)
def test_the_first_two_of_three_proxies_are_the_two(doc, seed):
    assert make_proxies(doc, 3, seed)[:2] == make_proxies(doc, 2, seed)


def test_the_seed_changes_the_orders():
    firsts = {make_proxies(CAPITAL, 1, seed)[0].order for seed in range(40)}
    assert len(firsts) == 4


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (("only",), 0, r"'q7' has 1 option\(s\)\.\nExpected: 2 to 26 options.*\nRemedy: "),
        (tuple(map(str, range(27))), 0, r"'q7' has 27 option\(s\)\.\nExpected: 2 to 26"),
        (("x", " \t"), 0, r"'q7' has an empty option B\.\nExpected: every option.*\nRemedy: "),
        (("x", "y", " x "), 0, r"'q7' has the same text 'x' as options A and C\.\nExpected: .*"),
        (("x", "y"), 2, r"'q7' has the answer 2\.\nExpected: .*0 to 1\.\nRemedy: .*from 0"),
        (("x", "y"), -1, r"'q7' has the answer -1\.\nExpected: .*0 to 1"),
    ],
)
def test_docs_that_are_no_questions_are_refused(choices, answer, message):
    with pytest.raises(DocError, match=message):
        MultipleChoiceDoc("q7", "?", choices, answer)


@pytest.mark.parametrize("n_proxies", [0, -3])
def test_fewer_than_one_proxy_is_refused(n_proxies):
    message = rf"n_proxies is {n_proxies}\.\nExpected: 1 or more.*\nRemedy: set n_proxies"
    with pytest.raises(UsageError, match=message):
        make_proxies(CAPITAL, n_proxies)
    with pytest.raises(UsageError, match=message):
        AquaDocs(n_proxies=n_proxies)


def test_one_option_cannot_be_ordered():
    with pytest.raises(UsageError, match=r"n_options is 1\.\nExpected: 2 or more"):
        option_orders(1, 3, seed=0, question_id="q")


# Data sets --------------------------------------------------------------------------------------


def split(n_questions: int = 20, **changes: list) -> datasets.Dataset:
    """A split sorted by label, as some benchmarks come."""
    columns = {
        "id": [f"q{i:02d}" for i in range(n_questions)],
        "question": [f"Question {i}?" for i in range(n_questions)],
        "choices": [[f"{i}a", f"{i}b", f"{i}c", f"{i}d"] for i in range(n_questions)],
        "answer": [4 * i // n_questions for i in range(n_questions)],
        "subfamily": [f"kind {i % 3}" for i in range(n_questions)],
    }
    columns.update(changes)
    return datasets.Dataset.from_dict(
        {name: column for name, column in columns.items() if column is not None}
    )


def test_every_question_becomes_its_proxies_side_by_side():
    source = split()
    rows = list(aqua_docs(source))
    assert len(rows) == 60
    by_id = {row["id"]: row for row in source}
    for first in range(0, 60, 3):
        group = rows[first : first + 3]
        original = by_id[group[0]["question_id"]]
        doc = MultipleChoiceDoc(
            original["id"], original["question"], tuple(original["choices"]), original["answer"]
        )
        for row, proxy in zip(group, make_proxies(doc, 3, 0), strict=True):
            assert {name: row[name] for name in PROXY_COLUMNS} == {
                "question_id": proxy.question_id,
                "proxy": proxy.proxy,
                "order": list(proxy.order),
                "question": proxy.question,
                "choices": list(proxy.choices),
                "answer": proxy.answer,
                "letters": ["A", "B", "C", "D"],
            }
            assert row["subfamily"] == original["subfamily"]
    assert {row["question_id"] for row in rows} == set(by_id)


def test_columns_of_the_proxies():
    assert aqua_docs(split()).column_names == [*PROXY_COLUMNS, "subfamily"]


def test_a_column_of_the_same_name_as_a_proxy_column_is_replaced():
    source = split().rename_column("subfamily", "order")
    assert aqua_docs(source).column_names == list(PROXY_COLUMNS)
    assert sorted(aqua_docs(source)[0]["order"]) == [0, 1, 2, 3]


def test_other_columns_keep_their_type():
    kind = datasets.ClassLabel(names=["odd", "even"])
    source = split(subfamily=[i % 2 for i in range(20)]).cast_column("subfamily", kind)
    assert aqua_docs(source).features["subfamily"] == kind


def test_the_question_order_does_not_depend_on_the_number_of_proxies():
    one, three = AquaDocs(n_proxies=1)(split()), AquaDocs(n_proxies=3)(split())
    assert list(one["question_id"]) == list(three["question_id"])[::3]
    assert one[4] == three[12]


def test_the_question_order_does_not_depend_on_the_order_of_the_rows():
    source = split()
    reversed_rows = source.select(range(19, -1, -1))
    assert list(aqua_docs(source)) == list(aqua_docs(reversed_rows))


def test_a_prefix_of_sorted_data_has_all_labels():
    # 200 questions sorted by gold; the first 40 in file order would all have gold 0. A fair sample
    # of 40 has 10 of each gold; 3 or more is within 2.9 standard deviations (2.4 each).
    source = split(200)
    first = {row["question_id"] for row in AquaDocs(n_proxies=1)(source).select(range(40))}
    golds = [row["answer"] for row in source if row["id"] in first]
    assert all(golds.count(gold) >= 3 for gold in range(4))


def test_the_seed_changes_questions_and_options():
    zero, one = AquaDocs(seed=0)(split()), AquaDocs(seed=1)(split())
    assert list(zero["question_id"]) != list(one["question_id"])
    assert sorted(zero["question_id"]) == sorted(one["question_id"])
    orders = [
        {row["question_id"]: row["order"] for row in each if row["proxy"] == 0}
        for each in (zero, one)
    ]
    assert orders[0] != orders[1]


def test_columns_of_other_names():
    renamed = split().rename_columns({"question": "stem", "choices": "options", "answer": "label"})
    settings = AquaDocs(question="stem", choices="options", answer="label", id="id")
    assert list(settings(renamed)) == list(aqua_docs(split()))


def test_without_ids_questions_are_named_by_their_content():
    source = split(id=None)
    named = [doc.question_id for doc in read_docs(source)]
    assert len(set(named)) == 20
    text = json.dumps(["Question 3?", ["3a", "3b", "3c", "3d"], 0])
    assert named[3] == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert [doc.question_id for doc in read_docs(source.select([5, 3]))] == [named[5], named[3]]


def test_the_same_question_twice_has_two_ids():
    source = split(id=None).select([3, 3, 4, 3])
    first, second, other, third = (doc.question_id for doc in read_docs(source))
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert other != first
    assert len(aqua_docs(source)) == 12


def test_numbers_as_ids():
    assert set(aqua_docs(split(id=list(range(20))))["question_id"]) == set(map(str, range(20)))


def test_questions_with_different_numbers_of_options():
    source = datasets.Dataset.from_dict(
        {
            "id": ["two", "five"],
            "question": ["?", "??"],
            "choices": [["x", "y"], ["1", "2", "3", "4", "5"]],
            "answer": [1, 4],
        }
    )
    rows = list(aqua_docs(source))
    assert sorted(row["question_id"] for row in rows) == ["five"] * 3 + ["two"] * 2
    assert {row["letters"][-1] for row in rows} == {"B", "E"}


def test_an_empty_split():
    assert len(aqua_docs(split().select([]))) == 0


@pytest.mark.parametrize("column", ["question", "choices", "answer"])
def test_a_missing_column_is_named_with_those_found(column):
    source = split().remove_columns(column)
    found = ", ".join(source.column_names)
    message = rf"no column '{column}' among the data set's columns {found}\.\nExpected: .*{column}"
    with pytest.raises(DocError, match=message + rf".*\nRemedy: .*AquaDocs\({column}=\.\.\.\)"):
        aqua_docs(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": [1] * 20}, r"row 0 .* the question 1\.\nExpected: a text"),
        ({"choices": ["abcd"] * 20}, r"row 0 .* the choices 'abcd'\.\nExpected: a list of texts"),
        ({"answer": list("ABCD" * 5)}, r"row 0 .* the answer 'A'\.\nExpected: the index"),
        ({"answer": [0, None] * 10}, r"row 1 .* the answer None\.\nExpected: the index"),
        ({"id": ["a", "b", "a", *"defghijklmnopqrst"]}, r"rows 0 and 2 .* same id 'a'"),
        ({"answer": [9] * 20}, r"question 'q00' has the answer 9"),
    ],
)
def test_values_that_are_no_question_are_refused(changes, message):
    with pytest.raises(DocError, match=message):
        aqua_docs(split(**changes))


def test_settings_are_shown_in_a_stable_way():
    assert repr(aqua_docs) == (
        "AquaDocs(n_proxies=3, seed=0, question='question', choices='choices', "
        "answer='answer', id='id')"
    )


# Demonstrations ---------------------------------------------------------------------------------


def test_demonstrations_keep_their_order_and_their_options():
    source = split()
    rows = demonstration_docs(source)
    assert rows.column_names == aqua_docs(source).column_names
    assert rows.features == aqua_docs(source).features
    for row, original in zip(rows, source, strict=True):
        assert row["question_id"] == original["id"]
        assert row["order"] == [0, 1, 2, 3]
        assert (row["proxy"], row["letters"]) == (0, ["A", "B", "C", "D"])
        assert (row["choices"], row["answer"]) == (original["choices"], original["answer"])


@settings(max_examples=25)
@given(questions=st.lists(docs(), min_size=1, max_size=4, unique_by=lambda doc: doc.question_id))
def test_a_data_set_holds_what_make_proxies_gives(questions):
    source = datasets.Dataset.from_dict(
        {
            "id": [doc.question_id for doc in questions],
            "question": [doc.question for doc in questions],
            "choices": [list(doc.choices) for doc in questions],
            "answer": [doc.answer for doc in questions],
        }
    )
    expected = {
        (proxy.question_id, proxy.proxy): (list(proxy.choices), proxy.answer)
        for doc in questions
        for proxy in make_proxies(doc)
    }
    found = {
        (row["question_id"], row["proxy"]): (row["choices"], row["answer"])
        for row in aqua_docs(source)
    }
    assert found == expected
