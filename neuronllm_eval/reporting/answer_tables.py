"""Tables of the answers: how often each option is predicted, and accuracy where it is gold. Pure.

Options have the names that they mean something by (`option_names`): their texts where these are the
same in all docs, as of a sentiment task, else letters, which may stand for positions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.doc_table import DocTable, DocText
from neuronllm_eval.evaluation.robust_effects import accuracy_by_label
from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.svg import clipped
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.wording import tested

_OTHER_OPTIONS = "more"
_LONGEST_NAME = 24


def letter(option: int) -> str:
    """The letter of an option by its index."""
    return LETTERS[option] if option < len(LETTERS) else str(option + 1)


def fixed_names(answers: DocTable, texts: Sequence[DocText]) -> tuple[str, ...]:
    """The options' texts, cut, where all docs have the same; empty where an index is a position."""
    first = texts[0].options if texts else ()
    names = tuple(clipped(one_line(text), _LONGEST_NAME) for text in first[: len(LETTERS)])
    is_fixed = all(doc.options == first for doc in texts)
    has_all = len(first) == int(answers.n_options.max()) and all(names)
    return names if is_fixed and has_all and len(set(names)) == len(names) else ()


def option_names(answers: DocTable, texts: Sequence[DocText]) -> tuple[str, ...]:
    """Names of the options by index: their texts where all docs have the same, else letters.

    Args:
        answers: of the docs.
        texts: [docs] their questions and options; may be empty.

    Returns:
        [options] distinct names; options beyond the alphabet have one together, the last.
    """
    n_options = int(answers.n_options.max())
    letters = tuple(map(letter, range(min(n_options, len(LETTERS)))))
    names = fixed_names(answers, texts) or letters
    return (*names, _OTHER_OPTIONS) if n_options > len(LETTERS) else names


@dataclass(frozen=True)
class OptionShares:
    """How often each option is gold, and is predicted.

    Attributes:
        names: of the options (`option_names`).
        gold: [options] percent of the docs.
        predicted: condition -> [options] percent of the docs.
    """

    names: tuple[str, ...]
    gold: tuple[float, ...]
    predicted: Mapping[str, tuple[float, ...]]


def option_shares(
    answers: DocTable, summaries: Sequence[ConditionSummary], names: tuple[str, ...]
) -> OptionShares:
    """By option, of the unmasked run and of the tested conditions."""

    def shares(options: NDArray[np.int64]) -> tuple[float, ...]:
        counts = np.bincount(_named(options, names), minlength=len(names)).tolist()
        return tuple(100 * count / len(options) for count in counts)

    conditions = [UNMASKED, *(summary.name for summary in tested(summaries))]
    predicted = {name: shares(answers.predicted[name]) for name in conditions}
    return OptionShares(names, shares(answers.gold), predicted)


def _named(options: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
    """Indices of options as indices of their names."""
    return np.minimum(options, len(names) - 1)


def shares_table(shares: OptionShares) -> Table:
    """Share of the docs by option: gold, and predicted under each condition."""
    rows = [("gold options", shares.gold), *shares.predicted.items()]
    return Table(
        "Predicted options",
        ("options", *(f"{name} %" for name in shares.names)),
        tuple((name, *(f"{share:.1f}" for share in values)) for name, values in rows),
        "Share of the docs by their gold option, and by the predicted option.",
    )


def gold_table(
    answers: DocTable, summaries: Sequence[ConditionSummary], names: tuple[str, ...]
) -> Table:
    """Accuracy on the docs of each gold option, unmasked and under each tested condition."""
    gold = _named(answers.gold, names)
    present = np.unique(gold).tolist()

    def row(name: str, values: NDArray[np.float64]) -> tuple[str, ...]:
        accuracies = accuracy_by_label(values, gold, len(names))
        return (name, *(f"{accuracies[option]:.1f}" for option in present))

    counts = np.bincount(gold, minlength=len(names))
    rows = [
        ("docs", *(str(counts[option]) for option in present)),
        row("chance", 1 / answers.n_options),
        row(UNMASKED, answers.correct[UNMASKED]),
        *(row(summary.name, answers.correct[summary.name]) for summary in tested(summaries)),
    ]
    note = (
        "Percent correct of the docs with this gold option. An edit that moves all answers to one "
        "option gives its docs what it takes from the others."
    )
    headers = ("gold option", *(f"{names[option]} %" for option in present))
    return Table("Accuracy by gold option", headers, tuple(rows), note)
