"""Sentences and tables for people: what the console shows, and `report.md` begins with. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.engine.interface import gold_probability
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.stats.split_half import SplitHalf, stability_of
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import layer_counts
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.reporting import wording as evidence
from neuronllm_eval.reporting.condition_tables import (
    DOSE_NOTE,
    Table,
    conditions_table,
    dose_tables,
    evidence_table,
    metrics_table,
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


def docs_sentence(
    role: str, counts: Mapping[str, Any], written: Callable[[str], str] = escaped
) -> str:
    """What became of a split's docs; empty if all of them can be asked as they are.

    Args:
        role: `selection` or `validation`.
        counts: `data`, the counts of reading (`aqua_cleaning.DocCounts`), and `prompts`, those of
            encoding (`encoding.QuestionSet.counts`), where there are any.
        written: what becomes of texts from elsewhere.
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
    parts += [f"{n} skipped ({written(reason)})" for reason, n in data.get("skipped", {}).items()]
    if n_short := prompts.get("demonstrations_dropped"):
        parts.append(f"{n_short} prompts with fewer demonstrations, for room")
    if n_aside := counts.get("set_aside"):
        parts.append(f"{n_aside} questions set aside (NaN or infinite numbers)")
    asked = prompts.get("skipped", {})
    parts += [f"{n} prompts skipped ({written(reason)})" for reason, n in asked.items()]
    return f"Docs of the {role} split: {', '.join(parts)}." if parts else ""


def headline(report: TaskReport) -> str:
    """One plain sentence on what the main condition did, or on what was found.

    Positions are named where they are not the paper's, the scored ones.
    """
    chosen_at = report.scores.provenance.positions
    main = evidence.main_condition(report.summaries)
    for summary in report.summaries:
        if summary.name == main:
            said = evidence.sentence(len(report.neurons.good), len(report.neurons.bad), summary)
            where = places(chosen_at, report.applied_at)
            return said if {chosen_at, report.applied_at} == {SCORED} else f"{said} ({where}.)"
    where = "" if chosen_at == SCORED else f", {chosen_text(chosen_at)}"
    return (
        f"Found {len(report.neurons.good)} good and {len(report.neurons.bad)} bad neurons of "
        f"{report.scores.score.size}{where}."
    )


def effect_line(report: TaskReport) -> str:
    """The task and its headline on one line, for commands that go through several tasks."""
    return f"{escaped(report.task)}: {headline(report)}"


def chosen_text(positions: str) -> str:
    """Where neurons were chosen."""
    return f"chosen at {escaped(positions)} positions"


def places(chosen_at: str, applied_at: str) -> str:
    """Where neurons were chosen, and where conditions were applied."""
    return f"Neurons {chosen_text(chosen_at)}, applied at {escaped(applied_at)} positions"


def markdown(table: Table) -> str:
    """A table of the package's own texts as markdown, without its title and its note."""
    return markdown_table(table.headers, table.rows)


def unit(method: str) -> str:
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
        f"completeness gap at most {most:.2g}{unit(provenance.method)}, {mean:.2g} on average, "
        f"{share:.2%} of the change in all"
    )


def render(report: TaskReport) -> str:
    """The content of `report.md`, and what the console shows."""
    provenance = report.scores.provenance
    lines = [f"## {escaped(report.task)}", "", headline(report), ""]
    if report.summaries:
        first = report.summaries[0].accuracy
        conditions = conditions_table(report.summaries)
        lines += [
            markdown(conditions),
            "",
            f"Judged on {first.n_questions} questions ({first.n_docs} docs) of the "
            f"{escaped(report.split)} split; intervals and p are paired, by question. "
            f"Confidence: of the unmasked model its level, of the others the change, in points. "
            f"{places(provenance.positions, report.applied_at)}.",
        ]
        if conditions.note:
            lines.append(conditions.note)
        parts = []
        for table in (evidence_table(report.summaries), metrics_table(report.metrics)):
            if table is not None:
                parts += [markdown(table), table.note]
        if tables := dose_tables(report.summaries):
            parts += [*map(markdown, tables), DOSE_NOTE]
        if parts:
            lines += ["", "\n\n".join(parts), ""]
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
