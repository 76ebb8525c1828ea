"""AQUA: a multiple-choice question becomes P copies that differ only in the order of the options.

A model that prefers a letter, or a position, answers some questions by luck. Prompting each
question P times, with the gold option under another letter each time, tells luck from knowledge
(augmented question answering, AQUA, of arXiv 2601.04548; which orders are used is our reading).

1. A question is checked (`MultipleChoiceDoc`): 2 to 26 options, all different, gold in range.
2. Its orders are drawn (`option_orders`): cyclic shifts of the options, each bringing every option
   under another letter; once all shifts are used, further distinct permutations. Or as many orders
   as the question has options (`ALL_LETTERS`), each option under each letter once.
3. Each order gives one copy (`make_proxies`), which carries its question's id, its order and the
   gold's new index.
4. A copy is written out (`format_question`): passage, stem, lettered options, cue. The paper's text
   was not available where this was written: the role and rule line, one demonstration and `A.`
   before each option are our reading of its setting.

All draws come from SHA-256 of seed and question id: a question's proxies depend neither on the
other questions of the data set, nor on the process, nor on the version of Python.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from neuronllm_eval.errors import DocError, UsageError

LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ORDERS = ("original", "drawn", "swap")
ALL_LETTERS = "all"  # in place of a number of proxies: as many as the question has options
# By the name of the style, what stands before an option.
LETTER_STYLES: dict[str, str] = {"A.": "{}. ", "A)": "{}) ", "(A)": "({}) ", "A:": "{}: "}
QUESTION_CUE = "Question: "
ANSWER_CUE = "Answer:"
# What may stand around a word without changing its meaning.
_MARKS = "\"'`.,;:!?()[]{}"


@dataclass(frozen=True)
class MultipleChoiceDoc:
    """One question with its options, as the benchmark has it.

    Args:
        question_id: names the question in errors and artifacts; seeds its proxies.
        question: the stem.
        choices: the options' texts, `[n_options]`.
        answer: index of the gold option in `choices`.
        passage: text before the question, if any.
        content: key of the content (`content_key`), before options were filled up or cut.
        stem: likewise, of a long enough question and its gold option alone.
        group: the family or subject that the benchmark names.

    Raises:
        DocError: fewer than 2 or more than 26 options, an option that is empty or that repeats
            another one (surrounding white space does not count).
    """

    question_id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    passage: str = ""
    content: str = ""
    stem: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        n_options = len(self.choices)
        if not 2 <= n_options <= len(LETTERS):
            raise DocError(
                f"question {self.question_id!r} has {n_options} option(s)",
                expected=f"2 to {len(LETTERS)} options, one letter each",
                remedy="set distractors to fill up, or n_options to cut; or fix the options",
                reason="fewer than 2 options" if n_options < 2 else "more than 26 options",
            )
        letter_of: dict[str, str] = {}
        for letter, choice in zip(LETTERS, self.choices, strict=False):
            text = choice.strip()
            if not text:
                raise DocError(
                    f"question {self.question_id!r} has an empty option {letter}",
                    expected="every option to have a text",
                    remedy="remove the question from the data set, or fix its options",
                    reason="empty option",
                )
            if text in letter_of:
                raise DocError(
                    f"question {self.question_id!r} has the same text {text!r} as options "
                    f"{letter_of[text]} and {letter}",
                    expected="different options, so that only one is correct",
                    remedy="remove the question from the data set, or fix its options",
                    reason="repeated options",
                )
            letter_of[text] = letter


@dataclass(frozen=True)
class Proxy:
    """One option-shuffled copy of a question.

    Args:
        question_id: id of the question that this is a copy of.
        proxy: number of the copy, from 0.
        order: `order[k]` is the index in the original doc of the option shown under letter k.
        question: the stem, unchanged.
        choices: the options in shown order, `[n_options]`.
        answer: index of the gold option in `choices`.
        letters: the options' letters, `[n_options]`.
        passage: text before the question, unchanged.
        group: the question's.
    """

    question_id: str
    proxy: int
    order: tuple[int, ...]
    question: str
    choices: tuple[str, ...]
    answer: int
    letters: tuple[str, ...]
    passage: str = ""
    group: str = ""


def keyed_draw(*key: object) -> int:
    """A number from 0 to 2**256 - 1 that depends on the key alone (Python's `hash` is salted)."""
    text = json.dumps([str(part) for part in key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def option_orders(
    n_options: int,
    n_proxies: int | str,
    *,
    seed: int,
    question_id: str,
    orders: str = "original",
    answer: int = 0,
) -> tuple[tuple[int, ...], ...]:
    """The option orders of a question's proxies.

    - `original`: the order of the data, then the other cyclic shifts in a drawn sequence.
    - `drawn`: the cyclic shifts from a drawn start, for data whose order reveals the gold option.
    - `swap`: the order of the data, then, in a drawn sequence, the gold swapped with each other
      option, so that it is under each letter once (the orders of the SCORE option-order tasks of
      lm-eval). No further orders.

    After the shifts come drawn permutations that did not occur yet. Fewer orders are a prefix of
    more.

    `ALL_LETTERS` takes `n_options` orders that bring every option under each letter once: of `swap`
    all, which do so for the gold option alone; else a drawn Latin square, so that also which
    options stand side by side differs, whose first row is that of `original`, or a drawn one.

    Args:
        n_options: number of options, 2 or more.
        n_proxies: number of orders wanted, 1 or more, of which there are no more than `n_options!`;
            or `ALL_LETTERS`.
        seed: seed of the run.
        question_id: id of the question.
        orders: one of `ORDERS`.
        answer: index of the gold option; only `swap` uses it.

    Returns:
        `[min(n_proxies, n_options!)][n_options]`, for `swap` `[min(n_proxies, n_options)]`, for
        `ALL_LETTERS` `[n_options]`; `order[k]` is the index in the original doc of the option shown
        under letter k. No order occurs twice.

    Raises:
        UsageError: `n_options` is below 2, `n_proxies` below 1, or there are no such orders.
    """
    wants_all = n_proxies == ALL_LETTERS
    number = n_options if isinstance(n_proxies, str) else n_proxies
    if n_options < 2 or number < 1 or (isinstance(n_proxies, str) and not wants_all):
        raise UsageError(
            f"n_options is {n_options}, n_proxies {n_proxies}",
            expected="2 or more options to put in order, and 1 or more copies of each question, or "
            f"{ALL_LETTERS}",
            remedy="set n_proxies to 3, the default, or more",
        )
    if orders == "swap":
        others = sorted(
            set(range(n_options)) - {answer},
            key=lambda index: keyed_draw("swap", seed, question_id, index),
        )
        return tuple(_swapped(n_options, answer, index) for index in [answer, *others][:number])
    shifts = _shifts(n_options, orders, seed, question_id)[:number]
    if wants_all:
        return _latin_square(n_options, shifts[0], seed, question_id)
    # As keys of a dict: distinct, in sequence.
    found = dict.fromkeys(
        tuple((shift + k) % n_options for k in range(n_options)) for shift in shifts
    )
    attempt = 0
    while len(found) < min(number, math.factorial(n_options)):
        keys = [
            keyed_draw("order", seed, question_id, attempt, option) for option in range(n_options)
        ]
        found.setdefault(tuple(sorted(range(n_options), key=keys.__getitem__)))
        attempt += 1
    return tuple(found)


def _latin_square(
    n_options: int, first: int, seed: int, question_id: str
) -> tuple[tuple[int, ...], ...]:
    """[n_options][n_options] orders: every option under each letter once; row 0 as in the data.

    The square of the cyclic shifts, with its options renamed by a drawn permutation and its columns
    by the same one, and its rows from row `first` on.
    """
    keys = [keyed_draw("square", seed, question_id, option) for option in range(n_options)]
    drawn = sorted(range(n_options), key=keys.__getitem__)
    position = {option: index for index, option in enumerate(drawn)}
    return tuple(
        tuple(drawn[(position[k] + first + row) % n_options] for k in range(n_options))
        for row in range(n_options)
    )


def _swapped(n_options: int, answer: int, index: int) -> tuple[int, ...]:
    order = list(range(n_options))
    order[index], order[answer] = order[answer], order[index]
    return tuple(order)


def _shifts(n_options: int, orders: str, seed: int, question_id: str) -> list[int]:
    """All cyclic shifts, in the sequence in which they are used."""
    if orders == "drawn":
        start = keyed_draw("start", seed, question_id) % n_options
        return [(start + shift) % n_options for shift in range(n_options)]
    if orders == "original":
        others = sorted(
            range(1, n_options), key=lambda shift: keyed_draw("shift", seed, question_id, shift)
        )
        return [0, *others]
    raise UsageError(
        f"orders is {orders!r}", expected=" or ".join(ORDERS), remedy="use original, the default"
    )


def make_proxies(
    doc: MultipleChoiceDoc, n_proxies: int | str = 3, seed: int = 0, orders: str = "original"
) -> tuple[Proxy, ...]:
    """The option-shuffled copies of one question; arguments and errors as of `option_orders`.

    Returns:
        `[min(n_proxies, n_options!)]` proxies, for `swap` `[min(n_proxies, n_options)]`, for
        `ALL_LETTERS` `[n_options]`. The gold option is under `min(n_proxies, n_options)` different
        letters in them.
    """
    all_orders = option_orders(
        len(doc.choices),
        n_proxies,
        seed=seed,
        question_id=doc.question_id,
        orders=orders,
        answer=doc.answer,
    )
    return tuple(
        Proxy(
            question_id=doc.question_id,
            proxy=number,
            order=order,
            question=doc.question,
            choices=tuple(doc.choices[index] for index in order),
            answer=order.index(doc.answer),
            letters=LETTERS[: len(order)],
            passage=doc.passage,
            group=doc.group,
        )
        for number, order in enumerate(all_orders)
    )


def content_id(question: str, choices: Sequence[str], answer: int | None, passage: str = "") -> str:
    """An id made from the content of a question: 16 hexadecimal digits."""
    parts: list[object] = [question, list(choices), answer]
    text = json.dumps([*parts, passage] if passage else parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_key(*texts: str) -> str:
    """The words of a question, sorted, without case, spacing and outer marks."""
    words = (word.strip(_MARKS) or word for word in " ".join(texts).lower().split())
    return " ".join(sorted(words))


def format_question(proxy: Proxy, letter_style: str = "A.") -> str:
    """The prompt of one question: passage, stem, one line for each option, and `Answer:`.

    Args:
        proxy: the question, with its options in the order in which they are shown.
        letter_style: a key of `LETTER_STYLES`.
    """
    before = LETTER_STYLES[letter_style]
    lines = [proxy.passage] if proxy.passage else []
    lines.append(f"{QUESTION_CUE}{proxy.question}")
    lines += [
        before.format(letter) + choice
        for letter, choice in zip(proxy.letters, proxy.choices, strict=True)
    ]
    lines.append(ANSWER_CUE)
    return "\n".join(lines)
