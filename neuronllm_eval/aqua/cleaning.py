"""Raw questions of a benchmark -> questions that can be used, with a count of those that cannot.

1. `RawQuestion` is what a source read from one doc: texts, and a gold as an index, letter or text.
2. Its gold becomes an index (`gold_index`).
3. Options are filled up from other questions' answers, or cut, by the settings.
4. The result is checked (`MultipleChoiceDoc`). A doc that fails anywhere is skipped and counted
   under its reason, or ends the run: `on_bad_doc`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuronllm_eval.aqua.distractors import AnswerPool, keep_options
from neuronllm_eval.aqua.proxies import (
    LETTERS,
    MultipleChoiceDoc,
    content_id,
    content_key,
    keyed_draw,
)
from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import DocError, TaskError

logger = logging.getLogger(__name__)
# Class labels stay complete up to so many; a question without options gets so many.
MOST_LABELS = 8
OPTIONS_WITHOUT_ANY = 4
# A stem of fewer words ("Which number is the smallest?") does not identify the question.
_TELLING_STEM = 8
# Of so many answers one is likely to be the first option.
_ENOUGH_GOLDS = 10


@dataclass(frozen=True)
class RawQuestion:
    """One doc as its source reads it, unchecked.

    Attributes:
        row: its index in the split, for error messages.
        question: the stem.
        choices: the options' texts.
        answer: the gold: an index from 0, a letter, the text of an option, or a list of one.
        passage: text before the question.
        id: of the data set; None for one made from the content.
        is_label: whether the options are the labels of a classification.
        group: the family or subject that the data set names.
    """

    row: int
    question: Any
    choices: Any
    answer: Any
    passage: str = ""
    id: str | None = None
    is_label: bool = False
    group: str = ""


@dataclass
class DocCounts:
    """What became of a split's docs.

    Attributes:
        split: name of the split in the data set.
        docs: docs that were read.
        questions: usable questions.
        skipped: per reason, docs that cannot be used.
        duplicates_dropped: questions that the validation split or a demonstration has too.
        demonstrations: questions reserved to be shown with their answers.
        not_drawn: docs beyond `max_selection`.
        options_cut: questions that lost options to `n_options`.
        distractors_added: questions that got wrong options.
        other_half: questions of the split in the other role, where one split serves as both.
        first_error: why the first skipped doc was skipped; not in result files.
    """

    split: str
    docs: int = 0
    questions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    duplicates_dropped: int = 0
    demonstrations: int = 0
    not_drawn: int = 0
    options_cut: int = 0
    distractors_added: int = 0
    other_half: int = 0
    first_error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The non-zero counts, for result files."""
        values = dataclasses.asdict(self)
        values["skipped"] = dict(sorted(self.skipped.items()))
        del values["first_error"]
        always = ("split", "docs", "questions")
        return {name: value for name, value in values.items() if value or name in always}


def plain_answer(answer: Any) -> Any:
    """An answer in Python's own types: of a list of one its member, of whole numbers an int.

    False and True are 0 and 1; numpy's values become Python's.
    """
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, (list, tuple)):
        return plain_answer(answer[0]) if len(answer) == 1 else list(answer)
    is_whole = isinstance(answer, int) or (isinstance(answer, float) and answer.is_integer())
    return int(answer) if is_whole else answer


def counts_from_one(golds: Iterable[tuple[int, int]]) -> bool:
    """Whether (gold, number of options) of a split's docs show that its golds count from 1.

    None is 0, some is the number of options, and of the numbers between at least half occur.
    """
    numbers = set(golds)
    most = max((n for gold, n in numbers if gold == n), default=0)
    values = {gold for gold, _ in numbers}
    return most > 1 and 0 not in values and 2 * len(values & set(range(1, most))) >= most - 1


def gold_index(answer: Any, choices: Sequence[str]) -> int:
    """The index of the gold option.

    Args:
        answer: an index (False and True are 0 and 1), the text of an option, a letter with or
            without brackets, or a list of one of these.
        choices: the options, `[n_options]`.

    Raises:
        DocError: none of these, or more than one gold answer.
    """
    answer = plain_answer(answer)
    if isinstance(answer, list):
        raise DocError(
            f"there are {len(answer)} gold answers {answer!r}",
            expected="one",
            remedy="leave the question out; AQUA needs one gold option",
            reason="several right answers" if answer else "gold missing or out of range",
        )
    if isinstance(answer, int):
        return answer
    if isinstance(answer, str):
        texts = [choice.strip() for choice in choices]
        letter = answer.strip().strip("().:").upper()
        indices = {texts.index(answer.strip())} if answer.strip() in texts else set()
        if letter in LETTERS[: len(choices)]:
            indices.add(LETTERS.index(letter))
        if len(indices) > 1:
            raise DocError(
                f"the gold {answer!r} is the text of one option and the letter of another",
                expected="one or the other",
                remedy="let the task read the answer as an index",
                reason="gold ambiguous",
            )
        if indices:
            return indices.pop()
    raise DocError(
        f"the gold {answer!r} ({_type_words(answer)}) is none of the options",
        expected=f"a number from 0 to {len(choices) - 1}, a letter or the text of an option",
        remedy="convert it in the task's `answer`: `answer | int` if it counts from 0, "
        "`answer | int - 1` if from 1",
        reason="gold missing or out of range",
    )


def _type_words(value: Any) -> str:
    return {str: "a text", type(None): "missing"}.get(type(value), type(value).__name__)


def clean_questions(
    raws: Iterable[RawQuestion | DocError], settings: AquaSettings, counts: DocCounts
) -> list[MultipleChoiceDoc]:
    """The usable questions of a split, in the split's order.

    Args:
        raws: the docs; an error stands for one that its source could not read.
        settings: how options are filled up or cut, and what happens to bad docs.
        counts: increased.

    Returns:
        Questions with ids that differ. A question without an id is named by a hash of its content,
        followed by `-2`, `-3` where it repeats.

    Raises:
        DocError: the first bad doc, if `settings.on_bad_doc` is `fail`.
        TaskError: the golds count from 1.
    """
    readable: list[tuple[RawQuestion, tuple[str, ...], int]] = []
    golds: list[tuple[int, int]] = []
    for raw in raws:
        counts.docs += 1
        try:
            if isinstance(raw, DocError):
                raise raw
            choices = _texts(raw)
            answer = gold_index(raw.answer, choices)
            golds.append((answer, len(choices)))
            if not 0 <= answer < len(choices):
                raise DocError(
                    f"the answer is {answer}",
                    expected=f"the index of the gold option, 0 to {len(choices) - 1}",
                    remedy="fix the answer; it counts from 0",
                    reason="gold missing or out of range",
                )
            readable.append((raw, choices, answer))
        except DocError as error:
            _skip(error, settings, counts, None if isinstance(raw, DocError) else raw.row)
    if counts_from_one(golds):
        raise TaskError(
            f"split {counts.split!r}: the answers count from 1: some is the number of options, and "
            "none is 0",
            expected="an index that counts from 0",
            remedy="subtract 1 in the task's `answer`, such as `(answer | int) - 1`",
        )
    if len(golds) >= _ENOUGH_GOLDS and all(gold for gold, _ in golds):
        logger.warning(
            "split %r: of %d answers none is the first option. If they count from 1, subtract 1 in "
            "the task's `answer`, such as `(answer | int) - 1`",
            counts.split,
            len(golds),
        )
    pool: AnswerPool | None = None
    if settings.distractors != "none":
        pool = AnswerPool.of(choices[answer] for _, choices, answer in readable)
    docs: list[MultipleChoiceDoc] = []
    taken: set[str] = set()
    for raw, choices, answer in readable:
        try:
            identity = raw.id or content_id(raw.question, choices, answer, raw.passage)
            if raw.id is not None and raw.id in taken:
                raise DocError(
                    f"the id {raw.id!r} repeats",
                    expected="a different id for each question",
                    remedy="name another id column, or none",
                    reason="repeated id",
                )
            doc = _with_options(raw, identity, choices, answer, settings, pool)
        except DocError as error:
            _skip(error, settings, counts, raw.row)
            continue
        counts.options_cut += len(doc.choices) < len(choices)
        counts.distractors_added += len(doc.choices) > len(choices)
        doc = dataclasses.replace(doc, question_id=_unused(identity, taken))
        taken.add(doc.question_id)
        docs.append(doc)
    return docs


def _skip(error: DocError, settings: AquaSettings, counts: DocCounts, row: int | None) -> None:
    if settings.on_bad_doc == "fail":
        where = f"split {counts.split!r}" + ("" if row is None else f", row {row}")
        raise DocError(
            f"{where}: {error.found}",
            expected=error.expected,
            remedy=f"{error.remedy}; or pass --on_bad_doc skip to exclude such docs",
            reason=error.reason,
        ) from error
    counts.skipped[error.reason] += 1
    where = "" if row is None or "row " in error.found else f"row {row} (from 0): "
    counts.first_error = counts.first_error or f"{where}{error.found}"


def _unused(identity: str, taken: set[str]) -> str:
    name, occurrence = identity, 1
    while name in taken:
        occurrence += 1
        name = f"{identity}-{occurrence}"
    return name


def _texts(raw: RawQuestion) -> tuple[str, ...]:
    """The options of a doc, which has texts for these and for its question."""
    if not isinstance(raw.question, str) or not (raw.question.strip() or raw.passage.strip()):
        raise DocError(
            f"the question is {raw.question!r}",
            expected="a text",
            remedy="fix the doc, or how the task reads its question",
            reason="no question",
        )
    is_list = isinstance(raw.choices, (list, tuple)) and len(raw.choices) > 0
    if not is_list or not all(isinstance(choice, str) for choice in raw.choices):
        raise DocError(
            f"the options are {raw.choices!r}",
            expected="a list of texts",
            remedy="fix the doc, or how the task reads its choices",
            reason="options are not texts",
        )
    return tuple(raw.choices)


def _with_options(
    raw: RawQuestion,
    identity: str,
    choices: tuple[str, ...],
    answer: int,
    settings: AquaSettings,
    pool: AnswerPool | None,
) -> MultipleChoiceDoc:
    """The question with the number of options that the settings ask for."""
    most = settings.n_options or (MOST_LABELS if raw.is_label else len(LETTERS))
    key = (settings.seed, identity)
    # Of the original options: the drawn ones differ between splits and seeds.
    content = content_key(raw.passage, raw.question, *choices)
    stem = content_key(raw.passage, raw.question)
    is_telling = len(stem.split()) >= _TELLING_STEM
    stem = f"{stem}|{content_key(choices[answer])}" if is_telling else content
    if len(choices) > most:
        _require_distinct(choices)
        choices, answer = keep_options(choices, answer, most, key=key)
    least = settings.n_options or (OPTIONS_WITHOUT_ANY if len(choices) < 2 else 2)
    if pool is not None and len(choices) < least:
        others = tuple(choice for index, choice in enumerate(choices) if index != answer)
        drawn = pool.draw(
            choices[answer], others, least - len(choices), key=key, how=settings.distractors
        )
        # The gold option must not stand first only because it was there first.
        gold, filled = choices[answer], [*choices, *drawn]
        filled.sort(key=lambda text: keyed_draw("filled", *key, text))
        choices, answer = tuple(filled), filled.index(gold)
    return MultipleChoiceDoc(
        identity, raw.question, choices, answer, raw.passage, content, stem, raw.group
    )


def _require_distinct(choices: tuple[str, ...]) -> None:
    """Raise DocError for options that repeat, before a cut could hide it."""
    if len({choice.strip() for choice in choices}) < len(choices):
        raise DocError(
            "options repeat",
            expected="different options, so that only one is correct",
            remedy="fix the options",
            reason="repeated options",
        )
