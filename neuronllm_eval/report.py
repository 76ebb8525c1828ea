"""Tables and sentences for people: the console's summary and `report.md`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytablewriter import MarkdownTableWriter

from neuronllm_eval import evidence
from neuronllm_eval.conditions import CONDITIONS, factor_text
from neuronllm_eval.markdown_text import escaped
from neuronllm_eval.methods import METHODS
from neuronllm_eval.neurons import NeuronScores, NeuronSet, Provenance
from neuronllm_eval.positions import SCORED
from neuronllm_eval.scoring import gold_probability
from neuronllm_eval.selection import layer_counts
from neuronllm_eval.stability import SplitHalf, stability_of
from neuronllm_eval.summary import EXPECTED_SIGN, ConditionSummary

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

_CONTROLS = (
    "Random controls: the same operation on layer-matched random neurons, as mean (lowest to "
    "highest) delta; beyond: controls the condition outdid in its direction."
)


# A table each; the two operations on the good neurons, say, are one curve.
_SURFACES = (
    ("suppress_good", "enhance_good"),
    ("suppress_bad", "enhance_bad"),
    ("degrade", "enhance"),
)
_DOSE_NOTE = (
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
_QUESTION_NOTE = (
    "Consistent: questions right under every order of the options; majority: whose most frequent "
    "answer is right; fortuity: right in the first order, but not in every one; position bias: how "
    "far the letters said are from the right ones' in total variation."
)


@dataclass(frozen=True)
class TaskReport:
    """What is known of one task's run.

    Attributes:
        task: name of the harness task.
        split: the split that judged.
        neurons: the good and bad neurons.
        scores: all scores.
        summaries: one per condition and point of a sweep; empty before validation.
        docs: for `selection` and `validation`, what became of the docs; empty where all are asked.
        metrics: by name of condition or point, the harness's metrics.
        applied_at: positions at which conditions act (`positions.POSITIONS`).
    """

    task: str
    split: str
    neurons: NeuronSet
    scores: NeuronScores
    summaries: tuple[ConditionSummary, ...]
    docs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    applied_at: str = SCORED


def docs_sentence(role: str, counts: Mapping[str, Any]) -> str:
    """What became of a split's docs; empty if all of them can be asked as they are.

    Args:
        role: `selection` or `validation`.
        counts: `data`, the counts of reading (`aqua_cleaning.DocCounts`), and `prompts`, those of
            encoding (`encoding.QuestionSet.counts`), where there are any.
    """
    data, prompts = counts.get("data", {}), counts.get("prompts", {})
    known = (
        ("not drawn, to keep to max_selection", data.get("not_drawn")),
        ("dropped, since the other split has them too", data.get("duplicates_dropped")),
        ("set aside for demonstrations", data.get("demonstrations")),
        ("with options cut", data.get("options_cut")),
        ("with distractors added", data.get("distractors_added")),
        ("that play the other part, since one split serves as both", data.get("other_half")),
    )
    parts = [f"{number} {what}" for what, number in known if number]
    parts += [f"{n} skipped ({escaped(reason)})" for reason, n in data.get("skipped", {}).items()]
    if n_short := prompts.get("demonstrations_dropped"):
        parts.append(f"{n_short} prompts with fewer demonstrations, for room")
    if n_aside := counts.get("set_aside"):
        parts.append(f"{n_aside} questions set aside (NaN or infinite numbers)")
    asked = prompts.get("skipped", {})
    parts += [f"{n} prompts skipped ({escaped(reason)})" for reason, n in asked.items()]
    return f"Docs of the {role} split: {', '.join(parts)}." if parts else ""


def headline(report: TaskReport) -> str:
    """One plain sentence on what suppressing the good neurons did, or on what was found.

    Positions are named where they are not the paper's, the scored ones.
    """
    chosen_at = report.scores.provenance.positions
    for summary in report.summaries:
        if summary.name == "suppress_good":
            said = evidence.sentence(len(report.neurons.good), summary)
            where = places(chosen_at, report.applied_at)
            return said if {chosen_at, report.applied_at} == {SCORED} else f"{said} ({where}.)"
    where = "" if chosen_at == SCORED else f", {chosen_text(chosen_at)}"
    return (
        f"Found {len(report.neurons.good)} good and {len(report.neurons.bad)} bad neurons of "
        f"{report.scores.score.size}{where}."
    )


def chosen_text(positions: str) -> str:
    """Where neurons were chosen."""
    return f"chosen at {escaped(positions)} positions"


def places(chosen_at: str, applied_at: str) -> str:
    """Where neurons were chosen, and where conditions were applied."""
    return f"Neurons {chosen_text(chosen_at)}, applied at {escaped(applied_at)} positions"


def table_rows(summaries: Sequence[ConditionSummary]) -> list[list[str]]:
    """The conditions that are no points as text, a row each, in the order of `HEADERS`."""
    return [_row(summary) for summary in summaries if not summary.is_point]


def _row(summary: ConditionSummary) -> list[str]:
    accuracy, controls = summary.accuracy, summary.controls
    if summary.condition not in EXPECTED_SIGN:
        level = f"{summary.confidence.condition:.1f}"
        return [summary.condition, f"{accuracy.condition:.1f}", "", "", "", level, "", ""]
    row = [
        summary.condition,
        f"{accuracy.condition:.1f}",
        f"{accuracy.delta:+.1f}",
        f"{accuracy.low:+.1f} to {accuracy.high:+.1f}",
        evidence.p_text(evidence.corrected_p(summary)),
        f"{summary.confidence.delta:+.1f}",
    ]
    if controls is None or not controls.n_controls:
        return [*row, "", ""]
    spread = f"{controls.mean:+.1f} ({controls.low:+.1f} to {controls.high:+.1f})"
    return [*row, spread, f"{summary.n_beyond} of {controls.n_controls}"]


def dose_tables(summaries: Sequence[ConditionSummary]) -> list[str]:
    """Markdown tables of the conditions that were swept: a row per number, a column per factor.

    The conditions as they are have their place among the points; what was not scored is empty.
    """
    tables = []
    for conditions in _SURFACES:
        found = [each for each in summaries if each.condition in conditions]
        if not any(each.is_point for each in found):
            continue
        cells = {(each.top_k, _dose(each)): _dose_cell(each) for each in found}
        in_order = sorted(
            found, key=lambda each: (conditions.index(each.condition), each.scale or 0.0)
        )
        columns = list(dict.fromkeys(map(_dose, in_order)))
        counts = sorted({each.top_k for each in found if each.top_k is not None})
        rows = [[str(k), *(cells.get((k, column), "") for column in columns)] for k in counts]
        tables.append(markdown_table(("neurons", *columns), rows))
    return tables


def _dose(summary: ConditionSummary) -> str:
    factor = "" if summary.scale is None else f" x{factor_text(summary.scale)}"
    return summary.condition + factor


def _dose_cell(summary: ConditionSummary) -> str:
    accuracy, controls = summary.accuracy, summary.controls
    cell = f"{accuracy.delta:+.1f} ({accuracy.low:+.1f} to {accuracy.high:+.1f})"
    if controls is None or not controls.n_controls:
        return cell
    return f"{cell} {summary.n_beyond}/{controls.n_controls}"


def question_rows(report: TaskReport) -> list[list[str]]:
    """The AQUA metrics of each condition as text, a row each; empty for other tasks."""
    return [
        [condition, *(f"{100 * metrics[name]:.1f}" for name in _QUESTION_METRICS)]
        for condition, metrics in report.metrics.items()
        if condition in CONDITIONS and all(name in metrics for name in _QUESTION_METRICS)
    ]


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; text from elsewhere is to be `escaped` before."""
    # The writer escapes every pipe, also one that is escaped already.
    cells = [[cell.replace("\n", " ").replace("\\|", "|") for cell in row] for row in rows]
    writer = MarkdownTableWriter(headers=list(headers), value_matrix=cells, margin=1)
    writer.type_hints = ["str"] * len(headers)
    return str(writer.dumps()).strip()


def _unit(method: str) -> str:
    """Of what a method attributes; methods of the user's own need not be known here."""
    quantity = getattr(METHODS.get(method), "quantity", None)
    return "" if quantity is not None and quantity.target is gold_probability else " log-nats"


def _stability_text(stability: SplitHalf) -> str:
    shares = {
        "the top good neurons": stability.top_k_overlap,
        "the bad": stability.bottom_k_overlap,
    }
    named = [f"of {which} {share:.0%}" for which, share in shares.items() if not math.isnan(share)]
    overlaps = f"; {', '.join(named)} are found by both halves" if named else ""
    return f"Split-half rank correlation of the scores {stability.rank_correlation:.2f}{overlaps}."


def gap_text(provenance: Provenance) -> str:
    """What attributions miss of the change that they add up to."""
    gaps = (
        provenance.completeness_gap_max,
        provenance.completeness_gap_mean,
        provenance.completeness_gap_share,
    )
    if None in gaps:
        return "completeness gap not measured"
    most, mean, share = gaps
    return (
        f"completeness gap at most {most:.2g}{_unit(provenance.method)}, {mean:.2g} on average, "
        f"{share:.2%} of the change in all"
    )


def render(report: TaskReport) -> str:
    """The content of `report.md`, and what the console shows."""
    provenance = report.scores.provenance
    lines = [f"## {escaped(report.task)}", "", headline(report), ""]
    if report.summaries:
        first = report.summaries[0].accuracy
        lines += [
            markdown_table(HEADERS, table_rows(report.summaries)),
            "",
            f"Judged on {first.n_questions} questions ({first.n_docs} docs) of the "
            f"{escaped(report.split)} split; intervals and p are paired, by question. "
            f"{places(provenance.positions, report.applied_at)}.",
        ]
        if any(each.controls and each.controls.n_controls for each in report.summaries):
            lines.append(_CONTROLS)
        if rows := evidence.rows(report.summaries):
            table = markdown_table(evidence.HEADERS, rows)
            lines += ["", table, "", evidence.note(report.summaries), ""]
        if rows := question_rows(report):
            heads = ("condition", *_QUESTION_METRICS.values())
            if lines[-1]:
                lines.append("")
            lines += [markdown_table(heads, rows), "", _QUESTION_NOTE, ""]
        if tables := dose_tables(report.summaries):
            if lines[-1]:
                lines.append("")
            lines += [*(line for table in tables for line in (table, "")), _DOSE_NOTE, ""]
    stability = stability_of(report.scores.half_sums, report.neurons.top_k)
    lines += [
        f"Chosen on {provenance.n_questions} questions ({provenance.n_prompts} prompts) of the "
        f"{escaped(provenance.split)} split of {escaped(provenance.task)}; "
        f"{escaped(provenance.method)}, "
        f"{provenance.n_steps} nodes of {escaped(provenance.quadrature)}, "
        f"{escaped(provenance.engine)} engine; "
        f"{gap_text(provenance)}.",
        _stability_text(stability),
        *filter(None, (docs_sentence(role, counts) for role, counts in report.docs.items())),
        f"Good neurons by layer {layer_counts(report.neurons.good, report.neurons.n_layers)}, "
        f"bad {layer_counts(report.neurons.bad, report.neurons.n_layers)}.",
        "",
    ]
    return "\n".join(lines)
