"""What was answered before and under a condition, as tables: flips, letters, groups. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.evaluation.answer_changes import (
    Flip,
    GroupAccuracy,
    flips,
    group_accuracies,
    letter_counts,
)
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.condition_tables import RunDetails, Table
from neuronllm_eval.reporting.wording import tested

_SHOWN_FLIPS = 5
_MOST_GROUPS = 100
_MORE = "more"


def flips_table(details: RunDetails, condition: str, gained: bool) -> Table | None:
    """Some of the questions that a condition won, or lost; None where there is none."""
    assert details.table is not None
    found = flips(details.table, condition, gained, _SHOWN_FLIPS)
    headers = ("question", "right option", "unmasked said", f"{condition} said")
    rows = tuple(_flip_row(details, flip) for flip in found)
    title = f"Questions {'won' if gained else 'lost'} by {condition}"
    note = (
        "Those whose confidence moved furthest, one doc of each question; the words are the first "
        "of question and option."
    )
    return Table(title, headers, rows, note, first_above=True) if rows else None


def _flip_row(details: RunDetails, flip: Flip) -> tuple[str, ...]:
    assert details.table is not None
    if not details.docs:
        question = details.table.question_ids[flip.row]
        return (question, *(letter(option) for option in (flip.gold, flip.before, flip.after)))
    doc = details.docs[flip.row]

    def said(option: int) -> str:
        text = doc.options[option] if option < len(doc.options) else ""
        return f"{letter(option)}. {text}" if text not in ("", letter(option)) else letter(option)

    return (doc.question, *(said(option) for option in (flip.gold, flip.before, flip.after)))


def letter(option: int) -> str:
    """What an option is called by its place."""
    return LETTERS[option] if option < len(LETTERS) else str(option + 1)


@dataclass(frozen=True)
class LetterShares:
    """How often each letter is right, and is said.

    Attributes:
        letters: of the options; those without a letter of their own are `more`.
        right: [letters] percent of the docs.
        said: condition -> [letters] percent of the docs.
    """

    letters: tuple[str, ...]
    right: tuple[float, ...]
    said: Mapping[str, tuple[float, ...]]


def letter_shares(table: DocTable, summaries: Sequence[ConditionSummary]) -> LetterShares:
    """By letter, of the unmasked run and of the conditions that are no points."""
    n_letters = int(table.n_options.max())
    shown = tuple(map(letter, range(min(n_letters, len(LETTERS)))))

    def shares(answers: Any) -> tuple[float, ...]:
        counts = letter_counts(answers, n_letters)
        counts = [*counts[: len(shown)], *([sum(counts[len(shown) :])] if more else [])]
        return tuple(100 * count / len(answers) for count in counts)

    more = n_letters > len(shown)
    names = [UNMASKED, *(each.name for each in tested(summaries))]
    said = {name: shares(table.predicted[name]) for name in names}
    return LetterShares((*shown, _MORE) if more else shown, shares(table.gold), said)


def letters_table(shares: LetterShares) -> Table:
    """Of how many docs each letter is the answer, before and under each condition."""
    rows = [("right options", shares.right), *shares.said.items()]
    return Table(
        "Letters said",
        ("answers", *(f"{name} %" for name in shares.letters)),
        tuple((name, *(f"{share:.1f}" for share in found)) for name, found in rows),
        "Share of the docs by the letter of the option that is right, and that was said.",
    )


def group_rows(details: RunDetails, conditions: Sequence[str]) -> list[GroupAccuracy]:
    """Accuracy by family or subject; none where the docs name fewer than two, or too many."""
    names = [each.group for each in details.docs]
    if details.table is None or not 2 <= len(set(filter(None, names))) <= _MOST_GROUPS:
        return []
    return group_accuracies(details.table, names, conditions)


def groups_table(details: RunDetails, summaries: Sequence[ConditionSummary]) -> Table | None:
    """Accuracy by family or subject, before and under each condition; None if there is none."""
    conditions = [UNMASKED, *(each.name for each in tested(summaries))]
    rows = tuple(
        (each.name, str(each.n_questions), *(f"{value:.1f}" for value in each.accuracy))
        for each in group_rows(details, conditions)
    )
    if not rows:
        return None
    headers = ("group", "questions", *(f"{name} %" for name in conditions))
    return Table("Accuracy by group", headers, rows, "Groups are as the data name them.")
