"""The last stage of a run: summary.json, report.md and report.html, from the artifacts alone.

The model cards of the run's adapters are written again, with the figures that there are now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise, summary_json
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.doc_texts import read_judged_docs
from neuronllm_eval.evaluation.stats.split_half import stability_of
from neuronllm_eval.explain.token_effects import read_tokens
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import adapter_card, run_card
from neuronllm_eval.export.validated_figures import judged_figures
from neuronllm_eval.harness.results import read_metrics
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, Scales
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.reporting.condition_tables import RunDetails
from neuronllm_eval.reporting.report_appendix import appendix
from neuronllm_eval.reporting.report_html import render_page
from neuronllm_eval.reporting.report_markdown import TaskReport, effect_line, render
from neuronllm_eval.reporting.reproduce_commands import Judged, identify_command, validate_command
from neuronllm_eval.runs.directory import (
    CARD_FILE,
    RunDirectory,
    read_lines,
    set_aside_ids,
    write_whole,
)
from neuronllm_eval.runs.reader import ValidationRecord, judged_limit, load_neurons, load_scores
from neuronllm_eval.runs.settings import RunSettings, read_doc_counts


def report_task(
    run: RunDirectory, show: Callable[[str], object] | None = None, *, brief: bool = False
) -> str:
    """Write summary.json, report.html and report.md from a run's artifacts; return the main tables.

    Args:
        run: the run directory.
        show: receives the main tables before anything is written, so that a full disk does not
            keep them back.
        brief: show only one line, `effect_line`.
    """
    settings = RunSettings.load(run.settings)
    neurons = load_neurons(run, settings)
    scores = load_scores(run, neurons)
    task, split = settings.task, ""
    docs = {"selection": read_doc_counts(run.settings)}
    scales, applied_at, batch_size = Scales(), SCORED, None
    if run.validation.exists() or run.conditions.exists():
        validation = ValidationRecord.load(run.validation)
        neurons = validation.judged(neurons, run.validation)
        docs["validation"], scales = validation.docs, validation.scales
        applied_at, batch_size = validation.positions, validation.batch_size
    for role in ("selection", "validation"):
        if aside := set_aside_ids(run, role):
            docs[role] = {**docs.get(role, {}), "set_aside": len(aside)}
    summaries: list[ConditionSummary] = []
    metrics: dict[str, dict[str, float]] = {}
    details = RunDetails(tokens=read_tokens(run.tokens), commands=(identify_command(settings),))
    if run.conditions.exists():
        table = DocTable.from_lines(read_lines(run.conditions), run.conditions, task)
        summaries, split = summarise(table, neurons, scales), table.split
        metrics = {
            each.name: read_metrics(run.result(each.name), task)
            for each in summaries
            if (each.is_evaluated or each.name == UNMASKED) and run.result(each.name).exists()
        }
        limit = judged_limit(run, settings)
        judged = Judged(table.conditions, neurons.top_k, scales, applied_at, limit, batch_size)
        details = replace(
            details,
            table=table,
            docs=read_judged_docs(run.judged_docs, table),
            commands=(*details.commands, validate_command(settings, judged)),
        )
    halves = stability_of(scores.half_sums, neurons.top_k)
    report = TaskReport(task, split, neurons, scores, tuple(summaries), docs, metrics, applied_at)
    text, page = render(report), render_page(report, details)
    if show is not None:
        show(effect_line(report) if brief else text)
    if run.conditions.exists():
        where = {"chosen_at": neurons.provenance.positions, "applied_at": applied_at}
        text_of = summary_json(task, split, summaries, docs, metrics, halves, where)
        write_whole(run.summary, text_of)
    write_whole(run.page, page)
    whole = f"{text}\n{appendix(report, details)}"
    write_whole(run.report, whole)
    write_whole(run.card, run_card(neurons.provenance, whole))
    _renew_cards(run)
    return text


def _renew_cards(run: RunDirectory) -> None:
    """The cards of adapters/<condition>/, as far as these are there."""
    for condition in CONDITIONS:
        folder = run.adapter(condition)
        if (folder / EXPORT_FILE).exists():
            made = Export.load(folder)
            write_whole(folder / CARD_FILE, adapter_card(made, judged_figures(run, made)))
