"""Tables of the conditions' effects, for every report page. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.edit_cost import EditCost
from neuronllm_eval.evaluation.robust_effects import COLLAPSED
from neuronllm_eval.evaluation.stats.significance import ControlRank
from neuronllm_eval.interventions.conditions import (
    CONDITION_OPERATIONS,
    CONDITIONS,
    EXPECTED_SIGN,
    FEWEST_CONTROLS,
    UNMASKED,
    factor_text,
)
from neuronllm_eval.reporting.wording import (
    corrected_p,
    cost_text,
    interval_text,
    p_text,
    tested,
)


@dataclass(frozen=True)
class Table:
    """A table of raw texts; whoever writes it escapes them.

    Attributes:
        note: how to read it; may be empty.
        first_above: whether the first cell of a row is long; a narrow page puts it above the rest.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    first_above: bool = False


HEADERS = (
    "condition",
    "accuracy %",
    "delta (points)",
    "95% interval",
    "p (Holm)",
    "confidence",
    "random controls",
    "beyond",
)
TEST_HEADERS = (
    "condition",
    "p",
    "p (Holm)",
    "lost, gained",
    "McNemar p",
    "McNemar p (Holm)",
    "rank, empirical p",
    "RAC %",
    "RCC %",
)
CONFIDENCE_NOTE = (
    "Confidence: level of the unmasked model, and change in points under each condition."
)
CHANCE_NOTE = "Chance: the accuracy of guessing."
ONE_ANSWER = "one answer"
ONE_ANSWER_NOTE = (
    f"One answer: {COLLAPSED:.0f}% or more of the docs have the same answer, whatever the question."
)
CONTROLS_NOTE = (
    "Random controls: the same operation on layer-matched random neurons, as mean (lowest to "
    "highest) delta; beyond: controls that moved less than the condition in the expected direction."
)
# A table summary, so that all operations on the good neurons, for example, form one curve.
SURFACES = {
    "Good neurons": tuple(
        name for name, (good, bad) in CONDITION_OPERATIONS.items() if good and not bad
    ),
    "Bad neurons": tuple(
        name for name, (good, bad) in CONDITION_OPERATIONS.items() if bad and not good
    ),
    "Good and bad neurons": tuple(
        name for name, (good, bad) in CONDITION_OPERATIONS.items() if good and bad
    ),
}
KL_NOTE = (
    "KL divergence: of the distribution of the token behind the prompt from the unmasked model's, "
    "over the whole vocabulary, mean over docs; 0 for an edit that changes nothing."
)
PERPLEXITY_NOTE = (
    "Perplexity: of a short plain text, by token, with the neurons edited at all of its positions."
)
COST_CONTROLS_NOTE = (
    "Random controls: mean (largest) under the same operation on layer-matched random neurons."
)
DOSE_NOTE = (
    "Delta in points (95% interval) by number of good and of bad neurons and by factor (degrade "
    "and enhance use the run's two factors), and how many of its own random controls each point "
    "exceeds in its direction. Intervals are of single points, not of the best of a table; "
    "summary.json has their p, corrected for all conditions and points."
)
# Metrics of questions with several prompts, and their table headers; all are shares.
_QUESTION_METRICS = {
    "acc_consistent": "consistent %",
    "acc_majority": "majority %",
    "fortuity": "fortuity %",
    "position_bias": "position bias %",
}
QUESTION_NOTE = (
    "Consistent: questions answered correctly on every prompt (order of the options, or "
    "demonstrations and wording); majority: questions whose most frequent answer is correct; "
    "fortuity: correct on the first prompt but not on every prompt; position bias: total variation "
    "distance between predicted and gold letters."
)


def conditions_table(summaries: Sequence[ConditionSummary]) -> Table:
    """Effect of each condition beside its random controls; of points if there is nothing else."""
    shown = [
        summary
        for summary in summaries
        if summary in tested(summaries) or not (summary.is_evaluated or summary.is_point)
    ]
    chance = summaries[0].chance
    baseline = [] if chance is None else [("chance", f"{chance:.1f}", *[""] * (len(HEADERS) - 2))]
    notes = {
        CHANCE_NOTE: bool(baseline),
        CONFIDENCE_NOTE: True,
        CONTROLS_NOTE: any(summary.n_controls for summary in summaries),
        ONE_ANSWER_NOTE: any(summary.collapsed for summary in shown),
    }
    note = " ".join(note for note, applies in notes.items() if applies)
    return Table("Conditions", HEADERS, (*baseline, *map(_condition_row, shown)), note)


def named(summary: ConditionSummary) -> str:
    """The condition, with what was missing and whether all answers are one in brackets."""
    edited = "" if summary.edited is None or not summary.is_evaluated else summary.edited.note
    notes = ", ".join(filter(None, (edited, ONE_ANSWER if summary.collapsed else "")))
    return f"{summary.name} ({notes})" if notes else summary.name


def _condition_row(summary: ConditionSummary) -> tuple[str, ...]:
    accuracy = summary.accuracy
    if summary.condition not in EXPECTED_SIGN:
        level = f"{summary.confidence.condition:.1f}"
        return (named(summary), f"{accuracy.condition:.1f}", "", "", "", level, "", "")
    if not summary.is_evaluated:
        note = "" if summary.edited is None else summary.edited.note
        return (summary.name, "", note, "", "", "", "", "")
    return (
        named(summary),
        *change_cells(summary),
        p_text(corrected_p(summary)),
        f"{summary.confidence.delta:+.1f}",
        *control_cells(summary),
    )


def change_cells(summary: ConditionSummary) -> tuple[str, str, str]:
    """Accuracy, its change in points, and the interval of that."""
    accuracy = summary.accuracy
    interval = f"{accuracy.low:+.1f} to {accuracy.high:+.1f}"
    return f"{accuracy.condition:.1f}", f"{accuracy.delta:+.1f}", interval


def control_cells(summary: ConditionSummary) -> tuple[str, str]:
    """Deltas of the random controls, and how many of them the condition is beyond."""
    spread = controls_text(summary.controls)
    return spread, f"{summary.n_beyond} of {summary.n_controls}" if spread else ""


def controls_text(controls: ControlRank | None) -> str:
    """Mean, lowest and highest delta of random controls; empty without any."""
    if controls is None or not controls.n_controls:
        return ""
    return f"{controls.mean:+.1f} ({controls.low:+.1f} to {controls.high:+.1f})"


def cost_table(summaries: Sequence[ConditionSummary]) -> Table | None:
    """What each edit costs beyond the benchmark; None where nothing was measured.

    Points have theirs in summary.json, unless there is nothing else.
    """
    plain = [summary for summary in summaries if not summary.is_point]
    shown = plain if any(summary.is_evaluated for summary in plain) else summaries
    columns = {
        "KL divergence (nats)": ([summary.kl for summary in shown], KL_NOTE),
        "perplexity": ([summary.perplexity for summary in shown], PERPLEXITY_NOTE),
    }
    measured = {name: column for name, column in columns.items() if any(column[0])}
    if not measured:
        return None
    rows = tuple(
        (
            summary.name,
            *(cell for costs, _ in measured.values() for cell in _cost_cells(costs[number])),
        )
        for number, summary in enumerate(shown)
        if any(costs[number] for costs, _ in measured.values())
    )
    headers = (header for name in measured for header in (name, "random controls"))
    note = " ".join([*(note for _, note in measured.values()), COST_CONTROLS_NOTE])
    return Table("Cost of the edit", ("condition", *headers), rows, note)


def _cost_cells(cost: EditCost | None) -> tuple[str, str]:
    """A figure, and mean and largest of the random controls."""
    if cost is None:
        return "", ""
    controls = f"{cost_text(cost.controls_mean)} ({cost_text(cost.controls_high)})"
    return cost_text(cost.value), controls if cost.n_controls else ""


def significance_table(summaries: Sequence[ConditionSummary]) -> Table | None:
    """The tests of the conditions that are not points; None where nothing was tested."""
    rows = [_test_row(summary) for summary in summaries if not summary.is_point]
    filled = tuple(row for row in rows if row)
    return Table("Tests", TEST_HEADERS, filled, _significance_note(summaries)) if filled else None


def _test_row(summary: ConditionSummary) -> tuple[str, ...]:
    if summary.mcnemar is None or summary.corrected is None:
        return ()
    return (
        summary.condition,
        p_text(summary.accuracy.p_value),
        p_text(summary.corrected.p_value),
        f"{summary.mcnemar.n_lost}, {summary.mcnemar.n_gained}",
        p_text(summary.mcnemar.p_value),
        p_text(summary.corrected.mcnemar_p_value),
        _rank(summary),
        _percent(summary.rac),
        _percent(summary.rcc),
    )


def _percent(change: float) -> str:
    return "" if math.isnan(change) else f"{change:+.1f}"


def _rank(summary: ConditionSummary) -> str:
    controls = summary.controls
    if controls is None or not controls.n_controls:
        return ""
    rank = f"{controls.n_as_extreme + 1} of {controls.n_controls + 1}"
    return f"{rank}, {p_text(controls.p_value)}"


def _significance_note(summaries: Sequence[ConditionSummary]) -> str:
    plain = [
        summary for summary in summaries if summary.corrected is not None and not summary.is_point
    ]
    corrected, accuracy = plain[0].corrected, plain[0].accuracy
    n_tests = corrected.n_tests if corrected is not None else 0
    clustered = accuracy.n_docs > accuracy.n_questions
    sentences = [
        "p: exact sign-flip test by question"
        + ("" if clustered else ", which with one doc each is McNemar's test")
        + f"; Holm: corrected for {n_tests} condition{'s' if n_tests > 1 else ''}.",
        "Lost, gained: docs whose answer became incorrect or correct, with McNemar's exact test"
        + (", which treats the docs of a question as independent." if clustered else "."),
    ]
    sentences += [
        f"{summary.name} edits the same neurons as {summary.edited.same_as}, with the same "
        "factors, so it does not count as another test."
        for summary in summaries
        if summary.edited is not None
        and summary.edited.same_as is not None
        and not summary.is_point
    ]
    fewest = min(filter(None, (summary.n_controls for summary in summaries)), default=0)
    if fewest:
        sentences.append(
            "Rank: of the condition among itself and its random controls (1: beyond all of them), "
            "with its one-sided empirical p, not corrected."
        )
    if 0 < fewest < FEWEST_CONTROLS:
        sentences.append(
            f"With {fewest} controls this p cannot be below {1 / (fewest + 1):.2g}; a rank needs "
            f"{FEWEST_CONTROLS} or more (--n_random)."
        )
    sentences.append(
        "RAC, RCC: change of accuracy and of confidence, in percent of the unmasked value."
    )
    return " ".join(sentences)


def dose_tables(summaries: Sequence[ConditionSummary]) -> list[Table]:
    """The swept conditions: a row per number of neurons, a column per factor.

    Conditions that are not points appear among them; what was not scored is empty.
    """
    tables = []
    for title, conditions in SURFACES.items():
        surface = [summary for summary in summaries if summary.condition in conditions]
        if not any(summary.is_point and summary.is_evaluated for summary in surface):
            continue
        cells = {(summary.top_k, _dose(summary)): _dose_cell(summary) for summary in surface}
        in_order = sorted(
            surface, key=lambda summary: (conditions.index(summary.condition), summary.scale or 0.0)
        )
        columns = tuple(dict.fromkeys(map(_dose, in_order)))
        counts = sorted({summary.top_k for summary in surface if summary.top_k is not None})
        rows = tuple((str(k), *(cells.get((k, column), "") for column in columns)) for k in counts)
        tables.append(Table(title, ("neurons", *columns), rows))
    return tables


def _dose(summary: ConditionSummary) -> str:
    factor = "" if summary.scale is None else f" x{factor_text(summary.scale)}"
    return summary.condition + factor


def _dose_cell(summary: ConditionSummary) -> str:
    if not summary.is_evaluated:
        return "" if summary.edited is None else summary.edited.note
    cell, count = interval_text(summary.accuracy), summary.n_controls
    beyond = f" {summary.n_beyond}/{count}" if count else ""
    return f"{cell}{beyond}{f', {ONE_ANSWER}' if summary.collapsed else ''}"


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table | None:
    """The metrics by question of each condition; None of tasks without.

    Args:
        metrics: name of condition or point -> the harness's metrics.
    """
    names = [name for name in _QUESTION_METRICS if name in metrics.get(UNMASKED, {})]
    rows = tuple(
        (condition, *(f"{100 * values[name]:.1f}" for name in names))
        for condition, values in metrics.items()
        if condition in CONDITIONS and all(name in values for name in names)
    )
    headers = ("condition", *(_QUESTION_METRICS[name] for name in names))
    return Table("Consistency", headers, rows, QUESTION_NOTE) if names else None
