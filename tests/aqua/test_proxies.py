"""AQUA proxies: the gold option is tracked, orders are distinct, stable and independent."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.aqua.proxies import (
    ALL_LETTERS,
    LETTERS,
    ORDERS,
    MultipleChoiceDoc,
    Proxy,
    content_id,
    content_key,
    keyed_draw,
    make_proxies,
    option_orders,
)
from neuronllm_eval.errors import DocError, UsageError

seeds = st.integers(min_value=0, max_value=2**32)
ids = st.text(min_size=0, max_size=12)
proxy_counts = st.integers(min_value=1, max_value=30)
order_names = st.sampled_from(ORDERS)


@st.composite
def docs(draw: st.DrawFn) -> MultipleChoiceDoc:
    choices = draw(
        st.lists(
            st.text(min_size=1, max_size=8).filter(lambda text: text.strip()),
            min_size=2,
            max_size=13,
            unique_by=str.strip,
        )
    )
    answer = draw(st.integers(min_value=0, max_value=len(choices) - 1))
    question, passage = draw(st.text(max_size=20)), draw(st.text(max_size=20))
    return MultipleChoiceDoc(draw(ids), question, tuple(choices), answer, passage)


CAPITAL = MultipleChoiceDoc("q1", "Capital of Peru?", ("Lima", "Oslo", "Rome", "Bern"), 0)


def in_another_process(expression: str) -> str:
    """What Python prints for an expression, with strings hashed by another seed."""
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import sys; from neuronllm_eval.aqua.proxies import *; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


# Draws ------------------------------------------------------------------------------------------


def test_a_draw_is_the_sha_256_of_the_json_list_of_its_key():
    digest = hashlib.sha256(b'["start", "0", "q1"]').digest()
    assert keyed_draw("start", 0, "q1") == int.from_bytes(digest, "big")


def test_a_draw_tells_apart_keys_that_join_to_the_same_text():
    assert len({keyed_draw("a", "b c"), keyed_draw("a b", "c"), keyed_draw("a", "b", "c")}) == 3


# Orders -----------------------------------------------------------------------------------------


def test_original_starts_with_the_identity_and_draws_the_sequence_of_the_other_shifts():
    draws = {shift: keyed_draw("shift", 0, "q1", shift) for shift in (1, 2, 3)}
    shifts = [0, *sorted(draws, key=draws.__getitem__)]
    cycle = [0, 1, 2, 3, 0, 1, 2]
    expected = tuple(tuple(cycle[shift : shift + 4]) for shift in shifts)
    assert option_orders(4, 4, seed=0, question_id="q1") == expected


def test_drawn_orders_are_cyclic_shifts_from_the_drawn_start():
    start = keyed_draw("start", 0, "q1") % 4
    cycle = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    expected = tuple(tuple(cycle[start + shift : start + shift + 4]) for shift in range(3))
    assert option_orders(4, 3, seed=0, question_id="q1", orders="drawn") == expected


def test_swapped_orders_by_hand():
    # The data's order, then the gold, option 2, changes places with options 0, 1 and 3.
    first, *others = option_orders(4, 9, seed=0, question_id="q1", orders="swap", answer=2)
    assert first == (0, 1, 2, 3)
    assert sorted(others) == [(0, 1, 3, 2), (0, 2, 1, 3), (2, 1, 0, 3)]


@pytest.mark.parametrize(
    ("n_options", "seed", "orders", "expected"),
    [
        (3, 7, "original", ((0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 0, 2))),
        (3, 7, "drawn", ((0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 0, 2))),
        (4, 0, "original", ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1))),
        (4, 0, "drawn", ((2, 3, 0, 1), (3, 0, 1, 2), (0, 1, 2, 3))),
    ],
)
def test_orders_do_not_change_between_versions(n_options, seed, orders, expected):
    # Pinned: run directories of earlier versions must mean the same questions.
    found = option_orders(n_options, len(expected), seed=seed, question_id="q1", orders=orders)
    assert found == expected


@given(doc=docs(), seed=seeds, orders=order_names)
def test_all_brings_the_gold_under_each_letter_exactly_once(doc, seed, orders):
    proxies = make_proxies(doc, ALL_LETTERS, seed, orders)
    assert sorted(proxy.answer for proxy in proxies) == list(range(len(doc.choices)))
    assert proxies == make_proxies(doc, ALL_LETTERS, seed, orders)
    if orders != "drawn":
        assert proxies[0].choices == doc.choices
    if orders != "swap":  # and every other option too
        columns = zip(*(proxy.order for proxy in proxies), strict=True)
        assert all(sorted(column) == sorted(proxies[0].order) for column in columns)


def test_seeds_give_all_other_orders_with_other_neighbours():
    squares = {option_orders(5, ALL_LETTERS, seed=seed, question_id="q1") for seed in range(20)}
    assert len(squares) > 10
    after_gold = {order[order.index(2) + 1] for square in squares for order in square
                  if order[-1] != 2}  # fmt: skip
    assert after_gold == {0, 1, 3, 4}  # cyclic shifts would have 3 alone


def test_a_latin_square_by_hand(monkeypatch):
    draws = {0: 5, 1: 9, 2: 1}  # in drawn order the options are 2, 0, 1
    monkeypatch.setattr(
        "neuronllm_eval.aqua.proxies.keyed_draw", lambda *key: draws.get(key[-1], 0)
    )
    # Option k becomes the one after it in 2, 0, 1: 0 -> 1 -> 2 -> 0.
    found = option_orders(3, ALL_LETTERS, seed=0, question_id="q1")
    assert found == ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def test_another_word_for_a_number_of_proxies_is_refused():
    with pytest.raises(UsageError, match=r"n_proxies foo\.\nExpected: .*, or all\."):
        option_orders(3, "foo", seed=0, question_id="q1")


@pytest.mark.parametrize("orders", ORDERS)
def test_two_options_have_two_orders_however_many_are_asked_for(orders):
    found = option_orders(2, 9, seed=3, question_id="x", orders=orders)
    assert sorted(found) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("orders", ["original", "drawn"])
def test_all_permutations_of_four_options_when_as_many_are_asked_for(orders):
    found = option_orders(4, 24, seed=3, question_id="x", orders=orders)
    assert sorted(found) == list(itertools.permutations(range(4)))
    assert option_orders(4, 25, seed=3, question_id="x", orders=orders) == found


@given(n_options=st.integers(2, 13), n_proxies=proxy_counts, seed=seeds, name=ids, data=st.data())
def test_orders_are_distinct_permutations(n_options, n_proxies, seed, name, data):
    orders, answer = data.draw(order_names), data.draw(st.integers(0, n_options - 1))
    found = option_orders(
        n_options, n_proxies, seed=seed, question_id=name, orders=orders, answer=answer
    )
    most = n_options if orders == "swap" else math.factorial(n_options)
    assert len(found) == min(n_proxies, most)
    assert len(set(found)) == len(found)
    assert all(sorted(order) == list(range(n_options)) for order in found)


@given(
    n_options=st.integers(2, 26),
    n_proxies=proxy_counts,
    seed=seeds,
    name=ids,
    orders=st.sampled_from(["original", "drawn"]),
)
def test_shifts_bring_every_option_under_each_letter_once(n_options, n_proxies, seed, name, orders):
    shifts = option_orders(n_options, n_proxies, seed=seed, question_id=name, orders=orders)
    shifts = shifts[:n_options]
    for option in range(n_options):
        assert len({order.index(option) for order in shifts}) == min(n_proxies, n_options)


@given(n_options=st.integers(2, 26), seed=seeds, name=ids, data=st.data())
def test_swap_starts_as_the_data_puts_the_gold_under_each_letter_and_moves_two_options(
    n_options, seed, name, data
):
    answer = data.draw(st.integers(0, n_options - 1))
    found = option_orders(n_options, 99, seed=seed, question_id=name, orders="swap", answer=answer)
    assert found[0] == tuple(range(n_options))
    assert sorted(order.index(answer) for order in found) == list(range(n_options))
    moved = [sum(place != option for place, option in enumerate(order)) for order in found]
    assert moved == [0, *[2] * (n_options - 1)]


@given(n_options=st.integers(2, 6), n_proxies=proxy_counts, seed=seeds, name=ids, data=st.data())
def test_fewer_orders_are_a_prefix_of_more(n_options, n_proxies, seed, name, data):
    how = {
        "seed": seed,
        "question_id": name,
        "orders": data.draw(order_names),
        "answer": data.draw(st.integers(0, n_options - 1)),
    }
    more = option_orders(n_options, n_proxies + 1, **how)
    assert option_orders(n_options, n_proxies, **how) == more[:n_proxies]


@given(n_options=st.integers(2, 26), seed=seeds, name=ids)
def test_original_starts_with_the_identity(n_options, seed, name):
    assert option_orders(n_options, 1, seed=seed, question_id=name) == (tuple(range(n_options)),)


@pytest.mark.parametrize(
    ("orders", "number", "kinds"), [("drawn", 0, 4), ("original", 1, 3), ("original", 4, 20)]
)
def test_drawn_orders_spread_evenly_over_questions(orders, number, kinds):
    # 100 of each kind are expected; the standard deviation is below 10, so that 60 to 140 is
    # more than 4 of them.
    found = Counter(
        option_orders(4, 5, seed=0, question_id=str(i), orders=orders)[number]
        for i in range(100 * kinds)
    )
    assert len(found) == kinds
    assert all(60 <= count <= 140 for count in found.values())


@pytest.mark.parametrize("orders", ["original", "drawn"])
def test_the_seed_changes_the_orders(orders):
    found = {option_orders(4, 3, seed=seed, question_id="q1", orders=orders) for seed in range(40)}
    # The sequences of the first three shifts: 3 * 2 with the start fixed, 4 with a drawn one.
    assert len(found) == {"original": 6, "drawn": 4}[orders]


@pytest.mark.parametrize("orders", ORDERS)
def test_orders_are_the_same_in_a_process_with_another_hash_seed(orders):
    expression = f"option_orders(4, 9, seed=5, question_id='q1', orders={orders!r})"
    here = option_orders(4, 9, seed=5, question_id="q1", orders=orders)
    assert in_another_process(expression) == str(here)


def test_importing_the_module_imports_neither_torch_nor_datasets():
    heavy = "[name for name in ('torch', 'datasets', 'lm_eval', 'numpy') if name in sys.modules]"
    assert in_another_process(heavy) == "[]"


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


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds, orders=order_names)
def test_every_proxy_is_the_doc_in_its_order_with_the_gold_tracked(doc, n_proxies, seed, orders):
    for number, proxy in enumerate(make_proxies(doc, n_proxies, seed, orders)):
        assert sorted(proxy.choices) == sorted(doc.choices)
        assert proxy.choices == tuple(doc.choices[index] for index in proxy.order)
        assert proxy.choices[proxy.answer] == doc.choices[doc.answer]
        assert proxy.letters == LETTERS[: len(doc.choices)]
        unchanged = (proxy.question_id, proxy.question, proxy.passage)
        assert unchanged == (doc.question_id, doc.question, doc.passage)
        assert proxy.proxy == number


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds, orders=order_names)
def test_no_two_proxies_of_a_question_show_the_same(doc, n_proxies, seed, orders):
    proxies = make_proxies(doc, n_proxies, seed, orders)
    assert len({proxy.choices for proxy in proxies}) == len(proxies)


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds, orders=order_names)
def test_the_gold_visits_as_many_letters_as_it_can(doc, n_proxies, seed, orders):
    golds = {proxy.answer for proxy in make_proxies(doc, n_proxies, seed, orders)}
    assert len(golds) == min(n_proxies, len(doc.choices))


@given(doc=docs(), n_proxies=proxy_counts, seed=seeds, orders=order_names, other=docs())
def test_orders_depend_on_seed_and_id_not_on_the_texts(doc, n_proxies, seed, orders, other):
    renamed = MultipleChoiceDoc(
        doc.question_id,
        other.question,
        tuple(f"option {number}" for number in range(len(doc.choices))),
        doc.answer,
        other.passage,
    )
    expected = [proxy.order for proxy in make_proxies(doc, n_proxies, seed, orders)]
    assert [proxy.order for proxy in make_proxies(renamed, n_proxies, seed, orders)] == expected


def test_three_proxies_in_the_original_orders_are_the_default():
    assert make_proxies(CAPITAL) == make_proxies(CAPITAL, 3, 0, "original")
    assert make_proxies(CAPITAL)[0].choices == CAPITAL.choices


# Content ----------------------------------------------------------------------------------------


def test_a_content_id_is_the_sha_256_of_what_the_question_says():
    text = json.dumps(["?", ["x", "y"], 1])
    assert content_id("?", ("x", "y"), 1) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_content_ids_tell_apart_every_part():
    asked = [
        content_id("?", ["x", "y"], 1),
        content_id("!", ["x", "y"], 1),
        content_id("?", ["y", "x"], 1),
        content_id("?", ["x", "y"], 0),
        content_id("?", ["x", "y"], None),
        content_id("?", ["x", "y"], 1, "Read."),
        content_id("?", ["x", "y"], 1, "Look."),
    ]
    assert len(set(asked)) == len(asked)


@given(texts=st.lists(st.text(alphabet="aB c\n", max_size=6), max_size=5), data=st.data())
def test_content_keys_agree_whatever_order_case_and_spacing(texts, data):
    shuffled = data.draw(st.permutations(texts))
    assert content_key(*(f"  {text.upper()}\t" for text in shuffled)) == content_key(*texts)


def test_content_keys_tell_apart_questions_with_another_option():
    assert content_key("?", "x", "y") != content_key("?", "x", "z")
    assert content_key("?", "x", "y") != content_key("?", "x", "y", "y")


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "answer", "reason", "message"),
    [
        (("only",), 0, "fewer than 2 options", r"1 option\(s\)\.\nExpected: 2 to 26 .*\nRem"),
        ((), 0, "fewer than 2 options", r"0 option\(s\)"),
        (tuple(map(str, range(27))), 0, "more than 26 options", r"27 option\(s\)"),
        (("x", " \t"), 0, "empty option", r"an empty option B\.\nExpected: every .*\nRemedy: "),
        (("x", "y", " x "), 0, "repeated options", r"the same text 'x' as options A and C\.\nExp"),
    ],
)
def test_docs_that_are_no_questions_are_refused(choices, answer, reason, message):
    with pytest.raises(DocError, match=f"question 'q7' has {message}") as error:
        MultipleChoiceDoc("q7", "?", choices, answer)
    assert error.value.reason == reason


@pytest.mark.parametrize("n_options", [2, 26])
def test_two_to_twenty_six_options_are_asked(n_options):
    doc = MultipleChoiceDoc("q", "?", tuple(map(str, range(n_options))), n_options - 1)
    assert make_proxies(doc)[0].letters == LETTERS[:n_options]


@pytest.mark.parametrize("n_proxies", [0, -3])
@pytest.mark.parametrize("orders", ORDERS)
def test_fewer_than_one_proxy_is_refused(n_proxies, orders):
    message = rf"n_proxies {n_proxies}\.\nExpected: .*1 or more copies.*\nRemedy: set n_proxies"
    with pytest.raises(UsageError, match=message):
        make_proxies(CAPITAL, n_proxies, orders=orders)


@pytest.mark.parametrize("orders", ORDERS)
def test_one_option_cannot_be_ordered(orders):
    with pytest.raises(UsageError, match=r"n_options is 1, n_proxies 3\.\nExpected: 2 or more"):
        option_orders(1, 3, seed=0, question_id="q", orders=orders)


def test_unknown_orders_are_refused_with_those_there_are():
    message = r"orders is 'shuffled'\.\nExpected: original or drawn or swap\.\nRemedy: use original"
    with pytest.raises(UsageError, match=message):
        make_proxies(CAPITAL, orders="shuffled")
