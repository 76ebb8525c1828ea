"""AQUA: a multiple-choice doc becomes P docs that differ only in the order of their options.

A model that prefers a letter, or a position, answers some questions by luck. Asking each question P
times, with the right option under another letter each time, tells luck from knowledge (augmented
question answering, AQUA, of arXiv 2601.04548; the order of the shifts is our reading).

1. Each doc is read and checked (`read_docs`): two options or more, all different, gold in range.
2. Its options are shifted cyclically from a start drawn from the seed and the question's id
   (`option_orders`); once all shifts are used up, further distinct permutations follow.
3. Each order gives one proxy (`make_proxies`), which carries its question's id, its order and the
   gold's new place.
4. As a task's `process_docs` (`AquaDocs`), the questions of a split come in a seeded order with the
   proxies of a question side by side, so that any prefix of whole questions is a fair sample.

All draws come from SHA-256 of seed and question id: a question's proxies depend neither on the
other questions of the data set, nor on the process, nor on the version of Python.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from neuronllm_eval.errors import DocError, UsageError

if TYPE_CHECKING:
    import datasets

LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

PROXY_COLUMNS: tuple[str, ...] = (
    "question_id",
    "proxy",
    "order",
    "question",
    "choices",
    "answer",
    "letters",
)


@dataclass(frozen=True)
class MultipleChoiceDoc:
    """One question with its options, as the benchmark has it.

    Args:
        question_id: names the question in errors and artifacts; seeds its proxies.
        question: the stem.
        choices: the options' texts, `[n_options]`.
        answer: index of the gold option in `choices`.

    Raises:
        DocError: fewer than 2 or more than 26 options, an option that is empty or that repeats
            another one (surrounding white space does not count), or an answer out of range.
    """

    question_id: str
    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        n_options = len(self.choices)
        if not 2 <= n_options <= len(LETTERS):
            raise DocError(
                f"question {self.question_id!r} has {n_options} option(s)",
                expected=f"2 to {len(LETTERS)} options, one letter each",
                remedy="leave the question out of the data set, or mend its options",
            )
        letter_of: dict[str, str] = {}
        for letter, choice in zip(LETTERS, self.choices, strict=False):
            text = choice.strip()
            if not text:
                raise DocError(
                    f"question {self.question_id!r} has an empty option {letter}",
                    expected="every option to have a text",
                    remedy="leave the question out of the data set, or mend its options",
                )
            if text in letter_of:
                raise DocError(
                    f"question {self.question_id!r} has the same text {text!r} as options "
                    f"{letter_of[text]} and {letter}",
                    expected="options that differ, so that one of them alone is right",
                    remedy="leave the question out of the data set, or mend its options",
                )
            letter_of[text] = letter
        if not 0 <= self.answer < n_options:
            raise DocError(
                f"question {self.question_id!r} has the answer {self.answer}",
                expected=f"the index of the right option, 0 to {n_options - 1}",
                remedy="mend the answer; it counts from 0",
            )


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
    """

    question_id: str
    proxy: int
    order: tuple[int, ...]
    question: str
    choices: tuple[str, ...]
    answer: int
    letters: tuple[str, ...]


def _draw(*key: object) -> int:
    """A number from 0 to 2**256 - 1 that depends on the key alone (Python's `hash` is salted)."""
    text = json.dumps([str(part) for part in key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _check_n_proxies(n_proxies: int) -> None:
    if n_proxies < 1:
        raise UsageError(
            f"n_proxies is {n_proxies}",
            expected="1 or more option-shuffled copies of each question",
            remedy="set n_proxies to 3, the default, or more",
        )


def option_orders(
    n_options: int, n_proxies: int, *, seed: int, question_id: str
) -> tuple[tuple[int, ...], ...]:
    """The option orders of a question's proxies.

    The first `n_options` orders are the cyclic shifts, from a drawn start, so every option visits
    another letter in each of them. Further orders are drawn permutations that did not occur yet.
    The orders do not depend on how many are asked for: fewer are a prefix of more.

    Args:
        n_options: number of options, 2 or more.
        n_proxies: number of orders wanted, 1 or more; there are no more than `n_options!`.
        seed: seed of the run.
        question_id: id of the question.

    Returns:
        `[min(n_proxies, n_options!)][n_options]`; `order[k]` is the index in the original doc of
        the option shown under letter k. No order occurs twice.

    Raises:
        UsageError: if `n_options` is below 2 or `n_proxies` below 1.
    """
    if n_options < 2:
        raise UsageError(f"n_options is {n_options}", expected="2 or more options to put in order")
    _check_n_proxies(n_proxies)
    start = _draw("start", seed, question_id) % n_options
    orders = [
        tuple((start + shift + k) % n_options for k in range(n_options))
        for shift in range(min(n_proxies, n_options))
    ]
    taken = set(orders)
    wanted = min(n_proxies, math.factorial(n_options))
    attempt = 0
    while len(orders) < wanted:
        keys = [_draw("order", seed, question_id, attempt, option) for option in range(n_options)]
        order = tuple(sorted(range(n_options), key=keys.__getitem__))
        if order not in taken:
            taken.add(order)
            orders.append(order)
        attempt += 1
    return tuple(orders)


def _show(doc: MultipleChoiceDoc, proxy: int, order: tuple[int, ...]) -> Proxy:
    """The doc with its options in the given order."""
    return Proxy(
        question_id=doc.question_id,
        proxy=proxy,
        order=order,
        question=doc.question,
        choices=tuple(doc.choices[index] for index in order),
        answer=order.index(doc.answer),
        letters=LETTERS[: len(order)],
    )


def make_proxies(doc: MultipleChoiceDoc, n_proxies: int = 3, seed: int = 0) -> tuple[Proxy, ...]:
    """The option-shuffled copies of one question.

    Args:
        doc: the question.
        n_proxies: number of copies wanted, 1 or more.
        seed: seed of the run.

    Returns:
        `[min(n_proxies, n_options!)]` proxies. The gold option is under `min(n_proxies, n_options)`
        different letters in them.

    Raises:
        UsageError: if `n_proxies` is below 1.
    """
    orders = option_orders(len(doc.choices), n_proxies, seed=seed, question_id=doc.question_id)
    return tuple(_show(doc, proxy, order) for proxy, order in enumerate(orders))


def _content_id(question: str, choices: Sequence[str], answer: int) -> str:
    """An id that follows from what the question says."""
    text = json.dumps([question, list(choices), answer])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _column(dataset: datasets.Dataset, setting: str, name: str) -> list[Any]:
    if name not in dataset.column_names:
        raise DocError(
            f"no column {name!r} among the data set's columns {', '.join(dataset.column_names)}",
            expected=f"a column with the {setting} of each doc",
            remedy=f"name the column: AquaDocs({setting}=...)",
        )
    return list(dataset[name])


def _check_types(row: int, question: Any, choices: Any, answer: Any) -> None:
    """Refuse values that the constructor's checks could not make sense of."""
    is_texts = isinstance(choices, (list, tuple)) and all(isinstance(c, str) for c in choices)
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    for setting, value, is_right, expected in (
        ("question", question, isinstance(question, str), "a text"),
        ("choices", choices, is_texts, "a list of texts"),
        ("answer", answer, is_index, "the index of the right option, a whole number from 0"),
    ):
        if not is_right:
            raise DocError(
                f"row {row} of the data set has the {setting} {value!r}",
                expected=expected,
                remedy=f"convert the column, or name another one: AquaDocs({setting}=...)",
            )


def read_docs(
    dataset: datasets.Dataset,
    *,
    question: str = "question",
    choices: str = "choices",
    answer: str = "answer",
    id: str = "id",
) -> tuple[MultipleChoiceDoc, ...]:
    """The questions of a split, checked, in the split's order.

    Where there is no column `id`, a question is named by a hash of its content, with `-2`, `-3`
    behind it where the same question occurs again.

    Args:
        dataset: a split of a benchmark.
        question: name of the column with the stem.
        choices: name of the column with the list of options.
        answer: name of the column with the index of the gold option.
        id: name of the column with the question's id.

    Returns:
        `[n_rows]` docs with ids that differ.

    Raises:
        DocError: if a column is missing, a value is of another type, a doc is not a valid question
            or two rows have the same id.
    """
    columns = (
        _column(dataset, "question", question),
        _column(dataset, "choices", choices),
        _column(dataset, "answer", answer),
    )
    ids = [str(value) for value in dataset[id]] if id in dataset.column_names else None
    docs: list[MultipleChoiceDoc] = []
    row_of: dict[str, int] = {}
    for row, (stem, texts, gold) in enumerate(zip(*columns, strict=True)):
        _check_types(row, stem, texts, gold)
        question_id = ids[row] if ids is not None else _content_id(stem, texts, gold)
        if question_id in row_of and ids is not None:
            raise DocError(
                f"rows {row_of[question_id]} and {row} of the data set have the same id "
                f"{question_id!r}",
                expected="an id for each question",
                remedy="name a column with different ids, or none to number questions by their "
                "content: AquaDocs(id='')",
            )
        content_id, occurrence = question_id, 1
        while question_id in row_of:
            occurrence += 1
            question_id = f"{content_id}-{occurrence}"
        row_of[question_id] = row
        docs.append(MultipleChoiceDoc(question_id, stem, tuple(texts), gold))
    return tuple(docs)


def _proxy_dataset(
    dataset: datasets.Dataset, proxies: Sequence[tuple[int, Proxy]], consumed: set[str]
) -> datasets.Dataset:
    """A data set of proxies.

    Args:
        dataset: the data set they were made from.
        proxies: each proxy with the row of its question in `dataset`.
        consumed: the columns that the proxies' own stand for.

    Returns:
        One row per proxy, in order, with `PROXY_COLUMNS` and every column of `dataset` that was not
        consumed and has another name.
    """
    import datasets

    texts = datasets.List(datasets.Value("string"))
    numbers = datasets.Value("int64")
    features: dict[str, Any] = {
        "question_id": datasets.Value("string"),
        "proxy": numbers,
        "order": datasets.List(numbers),
        "question": datasets.Value("string"),
        "choices": texts,
        "answer": numbers,
        "letters": texts,
    }
    columns: dict[str, list[Any]] = {
        name: [getattr(proxy, name) for _, proxy in proxies] for name in PROXY_COLUMNS
    }
    for name in dataset.column_names:
        if name not in consumed and name not in columns:
            values = list(dataset[name])
            columns[name] = [values[row] for row, _ in proxies]
            features[name] = dataset.features[name]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@dataclass(frozen=True)
class AquaDocs:
    """A harness task's `process_docs`: a split of questions becomes a split of their proxies.

    The rows have the columns `PROXY_COLUMNS` and the split's other columns. The proxies of a
    question stand side by side. Questions come in an order drawn from the seed and their ids, the
    same for any `n_proxies`, so that data sorted by label do not bias a prefix. A value of its own
    rather than a function, so that the harness writes its settings into its result files.

    Args:
        n_proxies: option-shuffled copies of each question, 1 or more.
        seed: seed of the options' and the questions' order.
        question: name of the column with the stem.
        choices: name of the column with the list of options.
        answer: name of the column with the index of the gold option.
        id: name of the column with the question's id; where there is none, a hash of the content.

    Raises:
        UsageError: if `n_proxies` is below 1.
        DocError: when called, as `read_docs`.
    """

    n_proxies: int = 3
    seed: int = 0
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    id: str = "id"

    def __post_init__(self) -> None:
        _check_n_proxies(self.n_proxies)

    def __call__(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The proxies of every question of a split, `[n_rows * n_proxies]` rows."""
        return _aqua_dataset(self, dataset)


# The harness asks for a task's docs again at every turn; a data set does not change meanwhile.
@lru_cache(maxsize=8)
def _aqua_dataset(settings: AquaDocs, dataset: datasets.Dataset) -> datasets.Dataset:
    names = _names(settings)
    docs = read_docs(dataset, **names)
    rows = sorted(
        range(len(docs)), key=lambda row: _draw("question", settings.seed, docs[row].question_id)
    )
    proxies = [
        (row, proxy)
        for row in rows
        for proxy in make_proxies(docs[row], settings.n_proxies, settings.seed)
    ]
    return _proxy_dataset(dataset, proxies, set(names.values()))


@dataclass(frozen=True)
class DemonstrationDocs:
    """A few-shot split's `process_docs`: the same columns as `AquaDocs` gives, nothing shuffled.

    Every question keeps its place and its options theirs (order 0, 1, 2, ...), so that one
    template formats both and all questions see the same demonstration.

    Args:
        question: name of the column with the stem.
        choices: name of the column with the list of options.
        answer: name of the column with the index of the gold option.
        id: name of the column with the question's id; where there is none, a hash of the content.

    Raises:
        DocError: when called, as `read_docs`.
    """

    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    id: str = "id"

    def __call__(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The split's questions as they are, `[n_rows]` rows."""
        names = _names(self)
        docs = read_docs(dataset, **names)
        proxies = [
            (row, _show(doc, 0, tuple(range(len(doc.choices))))) for row, doc in enumerate(docs)
        ]
        return _proxy_dataset(dataset, proxies, set(names.values()))


def _names(settings: AquaDocs | DemonstrationDocs) -> Mapping[str, str]:
    """The data set's names of the columns that are read."""
    return {
        "question": settings.question,
        "choices": settings.choices,
        "answer": settings.answer,
        "id": settings.id,
    }


aqua_docs = AquaDocs()
demonstration_docs = DemonstrationDocs()
