"""The last stage of a run: summary.json, report.md and report.html, from the artifacts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from neuronllm_eval.conditions import UNMASKED, Scales
from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.explained_tokens import read_tokens
from neuronllm_eval.harness_results import read_metrics
from neuronllm_eval.judged_docs import read_judged_docs
from neuronllm_eval.positions import SCORED
from neuronllm_eval.report import TaskReport, render
from neuronllm_eval.report_details import appendix
from neuronllm_eval.report_page import render_page
from neuronllm_eval.reproduce import Judged, identify_command, validate_command
from neuronllm_eval.run_details import RunDetails
from neuronllm_eval.run_directory import RunDirectory, read_lines, set_aside_ids, write_whole
from neuronllm_eval.settings import RunSettings, read_doc_counts
from neuronllm_eval.stability import stability_of
from neuronllm_eval.stored_run import ValidationRecord, load_neurons, load_scores
from neuronllm_eval.strict_json import read_json
from neuronllm_eval.summary import ConditionSummary, summarise, summary_json


def report_task(run: RunDirectory, show: Callable[[str], object] | None = None) -> str:
    """summary.json, report.html and report.md from the artifacts; returns the main tables.

    Args:
        run: whose artifacts.
        show: is told the text before anything is written, so that no full disk keeps it back.
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
    details = RunDetails(tokens=read_tokens(run), commands=(identify_command(settings),))
    if run.conditions.exists():
        table = DocTable.from_lines(read_lines(run.conditions), run.conditions, task)
        summaries, split = summarise(table, neurons.top_k, scales), table.split
        metrics = {
            each.name: read_metrics(run.result(each.name), task)
            for each in summaries
            if run.result(each.name).exists()
        }
        limit = _limit(run, settings)
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
        show(text)
    if run.conditions.exists():
        where = {"chosen_at": neurons.provenance.positions, "applied_at": applied_at}
        text_of = summary_json(task, split, summaries, docs, metrics, halves, where)
        write_whole(run.summary, text_of)
    write_whole(run.page, page)
    write_whole(run.report, f"{text}\n{appendix(report, details)}")
    return text


def _limit(run: RunDirectory, settings: RunSettings) -> int | None:
    """How many questions a validation was to ask, as its result files say."""
    path = run.result(UNMASKED)
    config = read_json(path, "run validate again").get("config") if path.exists() else None
    limit = config.get("limit") if isinstance(config, dict) else None
    return limit if type(limit) is int else settings.limit
