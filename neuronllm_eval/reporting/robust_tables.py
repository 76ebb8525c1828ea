"""Tables of the effects that an edit cannot have by moving answers (`robust_effects`). Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.robust_effects import ControlledDelta
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.condition_tables import Table, controls_text, named
from neuronllm_eval.reporting.wording import interval_text, p_text, tested

_ACCURACY_HEADERS = (
    "condition",
    "calibrated %",
    "change (95%)",
    "p (Holm)",
    "random controls",
    "balanced %",
    "change (95%)",
    "p (Holm)",
    "random controls",
)
_ACCURACY_NOTE = (
    "Calibrated: correct answers after each option's mean log-probability over the docs is "
    "removed, under each condition by itself (batch calibration), so that an edit that makes one "
    "option likelier in every doc changes nothing. Balanced: mean of the accuracies on the docs of "
    "each gold option, to which all count alike. Both take an option by its place: where "
    "options are other texts in every question, that is a position. Changes in points, intervals "
    "and p by question; random controls: as mean (lowest to highest) change."
)
_ANSWER_HEADERS = (
    "condition",
    "same answer %",
    "option mass",
    "% of unmasked",
    "random controls, % of unmasked",
)
_ANSWER_NOTE = (
    "Same answer: docs with the most frequent answer. Option mass: mean total probability of the "
    "options among all that the model could say, from 0 to 1; accuracy and confidence compare "
    "options with each other and do not show whether it is gone. Random controls: as mean (lowest "
    "to highest)."
)


def robust_tables(summaries: Sequence[ConditionSummary]) -> list[Table]:
    """Calibrated and balanced accuracy, and what the answers are; none of earlier summaries."""
    evaluated = tested(summaries)
    shown = [summary for summary in summaries if summary.name == UNMASKED or summary in evaluated]
    if not evaluated or any(summary.calibrated is None for summary in shown):
        return []
    return [
        Table(
            "Calibrated and balanced accuracy",
            _ACCURACY_HEADERS,
            (*_chance_rows(shown[0]), *map(_accuracy_row, shown)),
            _ACCURACY_NOTE,
        ),
        Table("Answers", _ANSWER_HEADERS, tuple(map(_answer_row, shown)), _ANSWER_NOTE),
    ]


def _chance_rows(summary: ConditionSummary) -> list[tuple[str, ...]]:
    """The accuracies of guessing, where docs have equally many options; else that of all docs."""
    if summary.chance is None or summary.by_gold is None:
        return []
    chance = f"{summary.chance:.1f}"
    is_same = math.isclose(summary.chance, 100 / len(summary.by_gold))
    return [("chance", chance, "", "", "", chance if is_same else "", "", "", "")]


def _accuracy_row(summary: ConditionSummary) -> tuple[str, ...]:
    cells = [_cells(summary, change) for change in (summary.calibrated, summary.balanced)]
    return (named(summary), *cells[0], *cells[1])


def _cells(summary: ConditionSummary, change: ControlledDelta | None) -> tuple[str, str, str, str]:
    if change is None:
        return "", "", "", ""
    level = f"{change.condition:.1f}"
    if summary.name == UNMASKED:
        return level, "", "", ""
    return level, interval_text(change), p_text(change.p_holm), controls_text(change.controls)


def _answer_row(summary: ConditionSummary) -> tuple[str, ...]:
    mass = summary.option_mass
    same = "" if summary.top_answer is None else f"{summary.top_answer:.1f}"
    if mass is None:
        return named(summary), same, "", "", ""
    if summary.name == UNMASKED:
        return named(summary), same, f"{mass.mean:.3g}", "", ""
    controls = ""
    if summary.n_controls:
        low, high = f"{mass.controls_low:.3g}", f"{mass.controls_high:.3g}"
        controls = f"{mass.controls_mean:.3g} ({low} to {high})"
    return named(summary), same, f"{mass.mean:.3g}", f"{mass.relative:.3g}", controls
