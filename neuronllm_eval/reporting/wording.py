"""What speaks for a condition's effect: the plain sentence, and the table of tests. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neuronllm_eval.evaluation.condition_effects import EXPECTED_SIGN, ConditionSummary
from neuronllm_eval.evaluation.stats.significance import ControlRank
from neuronllm_eval.interventions.conditions import FEWEST_CONTROLS, OPERATIONS, factor_text

ALPHA = 0.05

HEADERS = (
    "condition",
    "p",
    "p (Holm)",
    "lost, gained",
    "McNemar p",
    "McNemar p (Holm)",
    "place, empirical p",
    "RAC %",
    "RCC %",
)


def tested(summaries: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """The conditions that have deltas of their own: no points, unless there is nothing else."""
    known = [each for each in summaries if each.is_evaluated]
    return [each for each in known if not each.is_point] or known


def main_condition(summaries: Sequence[ConditionSummary]) -> str | None:
    """The condition that stands for the run; None where none was judged."""
    names = [each.name for each in tested(summaries)]
    return "suppress_good" if "suppress_good" in names else next(iter(names), None)


def sentence(n_good: int, n_bad: int, summary: ConditionSummary) -> str:
    """What a condition did to accuracy, beside its random controls.

    An effect is clear if its interval excludes 0 and its p is below 0.05 after Holm's correction.

    Args:
        n_good: good neurons that were chosen.
        n_bad: bad ones.
        summary: of any condition or point but `unmasked`.
    """
    accuracy = summary.accuracy
    p_value = corrected_p(summary)
    done = _operation(n_good, n_bad, summary)
    if not (accuracy.low * accuracy.high > 0 and p_value < ALPHA):
        return (
            f"{done} has no clear effect on accuracy: "
            f"{accuracy.delta:+.1f} points (95% {accuracy.low:+.1f} to {accuracy.high:+.1f}, "
            f"Holm p {p_value:.2g}){_moved_less(summary)}."
        )
    low, high = sorted((abs(accuracy.low), abs(accuracy.high)))
    size = f"by {abs(accuracy.delta):.1f} points (95% {low:.1f} to {high:.1f})"
    verb = "raises" if accuracy.delta > 0 else "lowers"
    if accuracy.delta * EXPECTED_SIGN[summary.condition] > 0:
        return f"{done} {verb} accuracy {size}{_more_than(summary)}."
    return f"{done} {verb} accuracy, unexpectedly, {size}{_moved_less(summary)}."


def _operation(n_good: int, n_bad: int, summary: ConditionSummary) -> str:
    """The start of a sentence: what was done to which neurons."""
    parts = []
    kinds = {"good": n_good, "bad": n_bad}
    for operation, (kind, chosen) in zip(OPERATIONS[summary.condition], kinds.items(), strict=True):
        if operation is not None and chosen:
            count = min(chosen, summary.top_k or chosen) if summary.is_point else chosen
            verb = {"suppress": "suppressing", "enhance": "enhancing"}[operation]
            parts.append(f"{verb} {count} {kind}")
    text = f"{' and '.join(parts)} neurons"
    if summary.is_point and summary.scale is not None:
        text += f" (factor {factor_text(summary.scale)})"
    return text[0].upper() + text[1:]


def _moved_less(summary: ConditionSummary) -> str:
    n_controls = _n_controls(summary)
    moved = "rose" if EXPECTED_SIGN[summary.condition] > 0 else "fell"
    return (
        f"; {summary.n_beyond} of {n_controls} random controls {moved} less" if n_controls else ""
    )


def _more_than(summary: ConditionSummary) -> str:
    n_controls = _n_controls(summary)
    if not n_controls:
        return ""
    all_of_them = summary.n_beyond == n_controls
    which = f"all {n_controls}" if all_of_them else f"{summary.n_beyond} of {n_controls}"
    few = n_controls < FEWEST_CONTROLS
    aside = f" (a place among them takes {FEWEST_CONTROLS})" if few else ""
    return f", more than {which} random controls{aside}"


def _n_controls(summary: ConditionSummary) -> int:
    return summary.controls.n_controls if summary.controls is not None else 0


def corrected_p(summary: ConditionSummary) -> float:
    """p of the accuracy delta after Holm's correction; 1 for the unmasked run."""
    return 1.0 if summary.corrected is None else summary.corrected.p_value


def p_text(p_value: float) -> str:
    """A p-value for a table."""
    return f"{p_value:.4f}" if p_value >= 1e-3 else "<0.001"


def rows(summaries: Sequence[ConditionSummary]) -> list[list[str]]:
    """The tests of the conditions that are no points as text, a row each, as in `HEADERS`."""
    return [
        [
            each.condition,
            p_text(each.accuracy.p_value),
            p_text(each.corrected.p_value),
            f"{each.mcnemar.n_lost}, {each.mcnemar.n_gained}",
            p_text(each.mcnemar.p_value),
            p_text(each.corrected.mcnemar_p_value),
            _place(each.controls),
            _percent(each.rac),
            _percent(each.rcc),
        ]
        for each in summaries
        if each.mcnemar is not None and each.corrected is not None and not each.is_point
    ]


def _percent(change: float) -> str:
    return "" if math.isnan(change) else f"{change:+.1f}"


def _place(controls: ControlRank | None) -> str:
    if controls is None or not controls.n_controls:
        return ""
    place = f"{controls.n_as_extreme + 1} of {controls.n_controls + 1}"
    return f"{place}, {p_text(controls.p_value)}"


def note(summaries: Sequence[ConditionSummary]) -> str:
    """How to read the table of tests."""
    first = next(each for each in summaries if each.corrected is not None and not each.is_point)
    n_tests = first.corrected.n_tests if first.corrected is not None else 0
    clustered = first.accuracy.n_docs > first.accuracy.n_questions
    parts = [
        "p: exact, of the signs of the questions' changes"
        + ("" if clustered else ", which with one doc each is McNemar's test")
        + f"; Holm: corrected for {n_tests} condition{'s' if n_tests > 1 else ''}.",
        "Lost, gained: docs that became wrong, or right, and McNemar's exact test of them"
        + (", which takes the docs of a question as independent." if clustered else "."),
    ]
    twins = [
        f"{each.name} edits the same neurons as {each.edited.same_as}, by the same factors, and is "
        "no further test."
        for each in summaries
        if each.edited is not None and each.edited.same_as is not None and not each.is_point
    ]
    parts += twins
    n_controls = min(filter(None, map(_n_controls, summaries)), default=0)
    if n_controls:
        parts.append(
            "Place: among the condition and its random controls, 1 being beyond all of them, with "
            "its one-sided empirical p, not corrected."
        )
    if 0 < n_controls < FEWEST_CONTROLS:
        parts.append(
            f"With {n_controls} controls that p cannot be below {1 / (n_controls + 1):.2g}: a "
            f"place takes {FEWEST_CONTROLS} or more (--n_random)."
        )
    parts.append("RAC, RCC: change of accuracy, of confidence, in percent of the unmasked.")
    return " ".join(parts)
