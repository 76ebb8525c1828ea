"""Distractors: never the right answer nor an option twice, repeatable, and no endless draw."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.aqua.distractors import DISTRACTORS, AnswerPool, keep_options, normalise
from neuronllm_eval.errors import DocError

WAYS = DISTRACTORS[1:]
# Few letters, marks and articles, so that many of the texts normalise alike.
texts = st.text(alphabet="aAb .", max_size=3)
answers = st.lists(texts, max_size=12)
ways = st.sampled_from(WAYS)

# 300 answers of 1 to 100 characters, three of each length.
MANY = AnswerPool.of(f"{name}{'x' * (n - 1)}" for n in range(1, 101) for name in "pqr")


def drawn(pool: AnswerPool, key: object = 0, count: int = 3, how: str = "random") -> tuple:
    return pool.draw("gold", (), count, key=(0, key), how=how)


# Normalisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Lima", "LIMA"),
        ("  Lima ", "Lima"),
        ("Lima.", "Lima"),
        ('"Lima"', "(Lima)"),
        ("The Hague", "hague"),
        ("a dog", "An  dog!"),
        ("New\n York", "new york"),
        ("STRASSE", "straße"),
    ],
)
def test_case_spacing_outer_marks_and_articles_tell_no_answers_apart(text, same):
    assert normalise(text) == normalise(same)


@pytest.mark.parametrize(
    ("text", "other"), [("Lima", "Limas"), ("theory", "ory"), ("3.5", "35"), ("a b", "ab")]
)
def test_what_stands_inside_tells_answers_apart(text, other):
    assert normalise(text) != normalise(other)


# Pools ------------------------------------------------------------------------------------------


def test_of_answers_that_normalise_alike_one_stays_and_empty_ones_go():
    pool = AnswerPool.of(["the Lima", "Lima", "lima.", "Rome", "", "...", "Rome"])
    assert pool.answers == ((4, "lima", "Lima"), (4, "rome", "Rome"))


@given(texts=answers, data=st.data())
def test_pools_do_not_depend_on_the_order_of_the_answers(texts, data):
    assert AnswerPool.of(data.draw(st.permutations(texts))) == AnswerPool.of(texts)


# Draws ------------------------------------------------------------------------------------------


@given(
    pooled=answers,
    gold=texts,
    taken=st.lists(texts, max_size=3),
    count=st.integers(0, 6),
    how=ways,
    key=st.integers(),
)
def test_draws_are_new_answers_of_the_pool_or_there_are_too_few(
    pooled, gold, taken, count, how, key
):
    pool = AnswerPool.of(pooled)
    used = {normalise(text) for text in (gold, *taken)}
    unused = {normalise(text) for text in pooled} - used - {""}
    if len(unused) < count:
        with pytest.raises(
            DocError, match=f"{len(unused)} other answers to draw {count} "
        ) as error:
            pool.draw(gold, taken, count, key=(key,), how=how)
        assert error.value.reason == "too few other answers for distractors"
        return
    found = pool.draw(gold, taken, count, key=(key,), how=how)
    assert len(found) == count
    assert set(found) <= set(pooled)
    # As many different ones as drawn, all of them unused.
    assert len({normalise(text) for text in found} & unused) == count
    assert pool.draw(gold, taken, count, key=(key,), how=how) == found


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_draws_from_a_pool_of_just_enough_take_all(how, count):
    pool = AnswerPool.of(["gold", "taken", *map(str, range(count))])
    found = pool.draw("Gold.", ("the taken",), count, key=(0,), how=how)
    assert sorted(found) == sorted(map(str, range(count)))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_pool_of_one_too_few_is_refused_though_it_is_as_large_with_the_used(how, count):
    pool = AnswerPool.of(["gold", "taken", *map(str, range(count - 1))])
    with pytest.raises(DocError, match=f"there are {count - 1} other answers to draw {count} "):
        pool.draw("Gold.", ("the taken",), count, key=(0,), how=how)


@pytest.mark.parametrize("size", range(30, 40))
def test_draws_end_about_the_size_where_a_pool_is_sampled(size):
    # With 2 wanted and 3 used answers a pool is sampled if it has more than 16 * 2 + 3.
    pool = AnswerPool.of(f"answer {number}" for number in range(size))
    taken = ("answer 1", "answer 2")
    for key in range(50):
        found = pool.draw("answer 0", taken, 2, key=(key,), how="random")
        assert len(set(found) - {"answer 0", *taken}) == 2


@pytest.mark.parametrize("how", WAYS)
def test_nothing_is_drawn_from_an_empty_pool(how):
    pool = AnswerPool.of([])
    assert pool.draw("gold", (), 0, key=(0,), how=how) == ()
    with pytest.raises(DocError, match=r"0 other answers to draw 1 .*\nExpected: .*\nRemedy: "):
        pool.draw("gold", (), 1, key=(0,), how=how)


@pytest.mark.parametrize("how", WAYS)
def test_other_keys_draw_others(how):
    # There are at least C(48, 3) = 17296 sets to draw; two of 50 agree in 1 of 14 such tests.
    assert len({frozenset(drawn(MANY, key, how=how)) for key in range(50)}) >= 48


def test_random_draws_spread_over_the_pool():
    # 9000 draws from 300 answers: 30 of each, standard deviation 5.5; 5 to 60 is 4.5 of them.
    counts = Counter(text for key in range(3000) for text in drawn(MANY, key))
    assert len(counts) == 300
    assert all(5 <= count <= 60 for count in counts.values())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_places_of_the_distractors_are_drawn(place):
    pool = AnswerPool.of("pqr")
    assert {drawn(pool, key)[place] for key in range(40)} == set("pqr")


@pytest.mark.parametrize(
    ("length", "shortest", "longest"), [(50, 42, 58), (1, 1, 17), (99, 84, 100)]
)
def test_length_draws_from_the_nearest_in_length(length, shortest, longest):
    # 16 * 3 = 48 candidates, three of each length: 16 lengths, about the gold's or at the edge.
    found = {
        len(text)
        for key in range(300)
        for text in MANY.draw("g" * length, (), 3, key=(0, key), how="length")
    }
    assert min(found) >= shortest
    assert max(found) <= longest
    assert len(found) >= 16


@pytest.mark.parametrize("length", [1, 30, 100])
def test_length_is_nearer_on_average_than_random(length):
    def mean_distance(how: str) -> float:
        gold = "g" * length
        found = [MANY.draw(gold, (), 3, key=(0, key), how=how) for key in range(50)]
        return sum(abs(len(text) - length) for texts in found for text in texts) / 150

    # Nearest lengths: within 8, or within 17 at an edge; random ones: 25 to 50 away on average.
    assert mean_distance("length") < 9 < 20 < mean_distance("random")


def test_length_passes_over_used_answers_that_are_nearest():
    pool = AnswerPool.of(["aaaa", "bbbb", "cc", "d" * 40])
    found = pool.draw("aaaa", ("bbbb",), 2, key=(0,), how="length")
    assert sorted(found) == ["cc", "d" * 40]


# Fewer options ----------------------------------------------------------------------------------

options = st.lists(st.text(max_size=3), min_size=2, max_size=13, unique=True).map(tuple)


@given(choices=options, count=st.integers(2, 14), key=st.integers(), data=st.data())
def test_the_gold_and_the_order_of_the_options_are_kept(choices, count, key, data):
    answer = data.draw(st.integers(0, len(choices) - 1))
    kept, new_answer = keep_options(choices, answer, count, key=(key,))
    assert len(kept) == min(count, len(choices))
    assert kept[new_answer] == choices[answer]
    places = [choices.index(text) for text in kept]
    assert places == sorted(set(places))
    assert keep_options(choices, answer, count, key=(key,)) == (kept, new_answer)


def test_which_options_are_kept_is_drawn():
    # 400 times 2 of the 5 others: 160 of each expected, standard deviation 9.8.
    counts = Counter(
        text for key in range(400) for text in keep_options(tuple("abcdef"), 2, 3, key=(key,))[0]
    )
    assert counts.pop("c") == 400
    assert set(counts) == set("abdef")
    assert all(115 <= count <= 205 for count in counts.values())
