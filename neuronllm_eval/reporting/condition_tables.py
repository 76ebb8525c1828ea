"""The tables of conditions that `report.md` and `report.html` share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuronllm_eval.evaluation.condition_effects import EXPECTED_SIGN, ConditionSummary
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.doc_texts import JudgedDoc
from neuronllm_eval.explain.token_effects import NeuronKey, NeuronTokens
from neuronllm_eval.interventions.conditions import CONDITIONS, factor_text
from neuronllm_eval.reporting import wording as evidence


@dataclass(frozen=True)
class RunDetails:
    """What is known of a run besides a `TaskReport`.

    Attributes:
        table: answers of every doc under every condition; None before validation.
        docs: [docs] what they say; empty where that was not kept.
        tokens: by kind, layer and index of a neuron; empty where neither identification nor
            `explain` could tell.
        commands: that make the run again.
    """

    table: DocTable | None = None
    docs: tuple[JudgedDoc, ...] = ()
    tokens: Mapping[NeuronKey, NeuronTokens] = field(default_factory=dict)
    commands: tuple[str, ...] = ()


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
CONTROLS_NOTE = (
    "Random controls: the same operation on layer-matched random neurons, as mean (lowest to "
    "highest) delta; beyond: controls the condition outdid in its direction."
)
# A table each; the two operations on the good neurons, say, are one curve.
SURFACES = {
    "Good neurons": ("suppress_good", "enhance_good"),
    "Bad neurons": ("suppress_bad", "enhance_bad"),
    "Good and bad neurons": ("degrade", "enhance"),
}
DOSE_NOTE = (
    "Dose-response: delta in points (95% interval) by number of good and of bad neurons and by "
    "factor (degrade and enhance at the run's two), and how many random controls of its own each "
    "point outdid in its direction. Intervals are of single points, not of the best of a table; "
    "summary.json has their p, corrected for all conditions and points."
)
# Metrics of AQUA tasks besides accuracy, and their heads in the table; all are shares.
_QUESTION_METRICS = {
    "acc_consistent": "consistent %",
    "acc_majority": "majority %",
    "fortuity": "fortuity %",
    "position_bias": "position bias %",
}
QUESTION_NOTE = (
    "Consistent: questions right under every order of the options; majority: whose most frequent "
    "answer is right; fortuity: right in the first order, but not in every one; position bias: how "
    "far the letters said are from the right ones' in total variation."
)


@dataclass(frozen=True)
class Table:
    """A table of texts, which are as they are in the data: escaping is for who writes them.

    Attributes:
        title: what it shows.
        headers: of the columns.
        rows: as many cells each.
        note: how to read it; may be empty.
        first_above: whether the first cell of a row is long: a narrow page has it above the others.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    first_above: bool = False


def conditions_table(summaries: Sequence[ConditionSummary]) -> Table:
    """What each condition did, beside its random controls; points, if there is nothing else."""
    shown = evidence.tested(summaries)
    plain = (
        each for each in summaries if each in shown or not (each.is_evaluated or each.is_point)
    )
    rows = tuple(map(_row, plain))
    has_controls = any(each.controls and each.controls.n_controls for each in summaries)
    return Table("Conditions", HEADERS, rows, CONTROLS_NOTE if has_controls else "")


def _row(summary: ConditionSummary) -> tuple[str, ...]:
    accuracy, controls = summary.accuracy, summary.controls
    if summary.condition not in EXPECTED_SIGN:
        level = f"{summary.confidence.condition:.1f}"
        return (summary.name, f"{accuracy.condition:.1f}", "", "", "", level, "", "")
    note = "" if summary.edited is None else summary.edited.note
    if not summary.is_evaluated:
        return (summary.name, "", note, "", "", "", "", "")
    row = (
        f"{summary.name} ({note})" if note else summary.name,
        f"{accuracy.condition:.1f}",
        f"{accuracy.delta:+.1f}",
        f"{accuracy.low:+.1f} to {accuracy.high:+.1f}",
        evidence.p_text(evidence.corrected_p(summary)),
        f"{summary.confidence.delta:+.1f}",
    )
    if controls is None or not controls.n_controls:
        return (*row, "", "")
    spread = f"{controls.mean:+.1f} ({controls.low:+.1f} to {controls.high:+.1f})"
    return (*row, spread, f"{summary.n_beyond} of {controls.n_controls}")


def evidence_table(summaries: Sequence[ConditionSummary]) -> Table | None:
    """The tests of the conditions that are no points; None where nothing was tested."""
    rows = tuple(map(tuple, evidence.rows(summaries)))
    return Table("Tests", evidence.HEADERS, rows, evidence.note(summaries)) if rows else None


def dose_tables(summaries: Sequence[ConditionSummary]) -> list[Table]:
    """The conditions that were swept: a row per number of neurons, a column per factor.

    The conditions as they are have their place among the points; what was not scored is empty.
    """
    tables = []
    for title, conditions in SURFACES.items():
        found = [each for each in summaries if each.condition in conditions]
        if not any(each.is_point and each.is_evaluated for each in found):
            continue
        cells = {(each.top_k, _dose(each)): _dose_cell(each) for each in found}
        in_order = sorted(
            found, key=lambda each: (conditions.index(each.condition), each.scale or 0.0)
        )
        columns = tuple(dict.fromkeys(map(_dose, in_order)))
        counts = sorted({each.top_k for each in found if each.top_k is not None})
        rows = tuple((str(k), *(cells.get((k, column), "") for column in columns)) for k in counts)
        tables.append(Table(title, ("neurons", *columns), rows))
    return tables


def _dose(summary: ConditionSummary) -> str:
    factor = "" if summary.scale is None else f" x{factor_text(summary.scale)}"
    return summary.condition + factor


def _dose_cell(summary: ConditionSummary) -> str:
    accuracy, controls = summary.accuracy, summary.controls
    if not summary.is_evaluated:
        return "" if summary.edited is None else summary.edited.note
    cell = f"{accuracy.delta:+.1f} ({accuracy.low:+.1f} to {accuracy.high:+.1f})"
    if controls is None or not controls.n_controls:
        return cell
    return f"{cell} {summary.n_beyond}/{controls.n_controls}"


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table | None:
    """The AQUA metrics of each condition; None for other tasks.

    Args:
        metrics: by name of condition or point, the harness's metrics.
    """
    rows = tuple(
        (condition, *(f"{100 * found[name]:.1f}" for name in _QUESTION_METRICS))
        for condition, found in metrics.items()
        if condition in CONDITIONS and all(name in found for name in _QUESTION_METRICS)
    )
    headers = ("condition", *_QUESTION_METRICS.values())
    return Table("Consistency", headers, rows, QUESTION_NOTE) if rows else None
