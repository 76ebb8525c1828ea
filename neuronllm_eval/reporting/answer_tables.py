"""Tables of the answers before and under a condition: flips, letters, groups. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.wording import tested

_SHOWN_FLIPS = 5
_MOST_GROUPS = 100
_OTHER_LETTERS = "more"


# Flips --------------------------------------------------------------------------------------------


def flips_table(report: TaskReport, condition: str, gained: bool) -> Table | None:
    """Some of the questions that a condition gained or lost; None where there is none."""
    assert report.answers is not None
    rows = tuple(
        _flip_row(report, row, condition)
        for row in flipped_docs(report.answers, condition, gained, _SHOWN_FLIPS)
    )
    title = f"Questions {'gained' if gained else 'lost'} under {condition}"
    headers = ("question", "gold option", "unmasked prediction", f"{condition} prediction")
    note = (
        "The largest changes of confidence, one doc per question; questions and options are cut "
        "to their first words."
    )
    return Table(title, headers, rows, note, first_above=True) if rows else None


def flipped_docs(answers: DocTable, condition: str, gained: bool, limit: int) -> list[int]:
    """Rows of the docs that a condition gained, or lost, by the change of their confidence.

    Args:
        limit: at most so many rows, one per question.
    """
    change = answers.correct[condition] - answers.correct[UNMASKED]
    moved = answers.confidence[condition] - answers.confidence[UNMASKED]
    rows = np.flatnonzero(change == (1 if gained else -1))
    rows = rows[np.argsort(moved[rows] * (-1 if gained else 1), kind="stable")]
    _, first = np.unique(answers.question_index[rows], return_index=True)
    return rows[np.sort(first)[:limit]].tolist()


def _flip_row(report: TaskReport, row: int, condition: str) -> tuple[str, ...]:
    answers = report.answers
    assert answers is not None
    options = [
        answers.gold[row],
        answers.predicted[UNMASKED][row],
        answers.predicted[condition][row],
    ]
    if not report.doc_texts:
        return (answers.question_ids[row], *(letter(option) for option in options))
    doc = report.doc_texts[row]

    def option_text(option: int) -> str:
        text = doc.options[option] if option < len(doc.options) else ""
        return f"{letter(option)}. {text}" if text not in ("", letter(option)) else letter(option)

    return (doc.question, *(option_text(option) for option in options))


def letter(option: int) -> str:
    """The letter of an option by its index."""
    return LETTERS[option] if option < len(LETTERS) else str(option + 1)


# Letters ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LetterShares:
    """How often each letter is gold, and is predicted.

    Attributes:
        letters: of the options; those without a letter of their own are `more`.
        gold: [letters] percent of the docs.
        predicted: condition -> [letters] percent of the docs.
    """

    letters: tuple[str, ...]
    gold: tuple[float, ...]
    predicted: Mapping[str, tuple[float, ...]]


def letter_shares(answers: DocTable, summaries: Sequence[ConditionSummary]) -> LetterShares:
    """By letter, of the unmasked run and of the tested conditions."""
    n_letters = int(answers.n_options.max())
    letters = tuple(map(letter, range(min(n_letters, len(LETTERS)))))
    n_own = len(letters)

    def shares(options: NDArray[np.int64]) -> tuple[float, ...]:
        counts = np.bincount(options, minlength=n_letters).tolist()
        grouped = [*counts[:n_own], *([sum(counts[n_own:])] if n_letters > n_own else [])]
        return tuple(100 * count / len(options) for count in grouped)

    names = [UNMASKED, *(summary.name for summary in tested(summaries))]
    return LetterShares(
        (*letters, _OTHER_LETTERS) if n_letters > n_own else letters,
        shares(answers.gold),
        {name: shares(answers.predicted[name]) for name in names},
    )


def letters_table(shares: LetterShares) -> Table:
    """Share of the docs by letter: gold, and predicted under each condition."""
    rows = [("gold options", shares.gold), *shares.predicted.items()]
    return Table(
        "Predicted letters",
        ("options", *(f"{name} %" for name in shares.letters)),
        tuple((name, *(f"{share:.1f}" for share in values)) for name, values in rows),
        "Share of the docs by the letter of the gold option, and of the predicted option.",
    )


# Groups -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on a group of questions, such as a subject.

    Attributes:
        accuracy: [conditions], percent.
    """

    name: str
    n_questions: int
    accuracy: tuple[float, ...]


def group_accuracies(report: TaskReport, conditions: Sequence[str]) -> list[GroupAccuracy]:
    """Accuracy by group, by name; none where the docs name fewer than two groups, or too many."""
    answers, groups = report.answers, [doc.group for doc in report.doc_texts]
    names = sorted(set(filter(None, groups)))
    if answers is None or not 2 <= len(names) <= _MOST_GROUPS:
        return []
    rows_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    return [
        GroupAccuracy(
            name,
            np.unique(answers.question_index[rows]).size,
            tuple(100 * float(answers.correct[each][rows].mean()) for each in conditions),
        )
        for name, rows in rows_of.items()
    ]


def groups_table(report: TaskReport) -> Table | None:
    """Accuracy by group, unmasked and under each condition; None where there are no groups."""
    conditions = [UNMASKED, *(summary.name for summary in tested(report.summaries))]
    rows = tuple(
        (group.name, str(group.n_questions), *(f"{value:.1f}" for value in group.accuracy))
        for group in group_accuracies(report, conditions)
    )
    headers = ("group", "questions", *(f"{name} %" for name in conditions))
    return (
        Table("Accuracy by group", headers, rows, "Groups are named as in the data.")
        if rows
        else None
    )
