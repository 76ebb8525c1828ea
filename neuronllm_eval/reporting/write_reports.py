"""The last stage of a run: summary.json, reports and model cards, from the artifacts alone.

1. The run directory is read (`task_report`).
2. Its content becomes sections of text, figures and tables (`sections`).
3. Templates write them. Everything from data is escaped there, so that no text of a task, model or
   tokenizer is markup, a link or an instruction to a terminal. The HTML page has no script and
   loads nothing, and its content security policy forbids both.
4. The model cards of the run's adapters are rewritten with the current figures.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from neuronllm_eval.evaluation.condition_effects import Positions, StoredSummary, summary_of
from neuronllm_eval.evaluation.other_tasks import OtherTask
from neuronllm_eval.evaluation.stats.significance import stability_of
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import adapter_card, run_card, validated_figures
from neuronllm_eval.formats.inert_text import inert
from neuronllm_eval.formats.markdown import (
    LONGEST_PROSE,
    escaped,
    escaped_prose,
    markdown_table,
    one_line,
)
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.sections import (
    Section,
    console_sections,
    headline,
    markdown_sections,
    page_facts,
    report_sections,
)
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory

_TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile("`([^`]+)`")
_FOLDED_FROM = 20  # rows of a table that is folded on the page


def report_task(
    run: RunDirectory, show: Callable[[str], object] | None = None, *, brief: bool = False
) -> str:
    """Write summary.json, report.html and report.md from a run's artifacts; return the main tables.

    Validations on other tasks have a summary.json of their own, and a table in the reports.

    Args:
        show: receives the main tables before anything is written, so that a full disk does not
            keep them back.
        brief: show only one line, `effect_line`.

    Raises:
        ArtifactError: an artifact is missing or damaged, or a folder has a file's name; then
            nothing is written.
    """
    report = TaskReport.load(run)
    run.require_places()
    text, page = console_text(report), render_page(report)
    if show is not None:
        show(effect_line(report) if brief else text)
    if report.summaries:
        for directory, summary in (
            (run, _summary(report)),
            *((other.directory, _summary_of_other(report, other)) for other in report.others),
        ):
            directory.write(directory.summary, summary.to_json(), summary)
    run.write(run.page, page)
    markdown = render_markdown(report)
    run.write(run.card, run_card(report.neurons.provenance, markdown))
    _rewrite_cards(run)
    run.write(run.report, markdown)  # the last: a run that has it is complete
    return text


def _summary(report: TaskReport) -> StoredSummary:
    return summary_of(
        report.task,
        report.split,
        report.summaries,
        dict(report.doc_counts),
        report.metrics,
        stability_of(report.scores.half_sums, report.neurons.top_k),
        Positions(report.scores.provenance.positions, report.applied_at),
    )


def _summary_of_other(report: TaskReport, other: OtherTask) -> StoredSummary:
    of_task = replace(
        report,
        task=other.task,
        split=other.split,
        summaries=other.summaries,
        doc_counts={"validation": other.docs},
        metrics=other.metrics,
    )
    return _summary(of_task)


def _rewrite_cards(run: RunDirectory) -> None:
    """The cards of those adapters that exist in adapters/<condition>/."""
    for condition in CONDITIONS:
        folder = run.adapter(condition)
        if (folder / EXPORT_FILE).exists():
            made = Export.load(folder)
            run.write(folder / CARD_FILE, adapter_card(made, validated_figures(run, made)))


# Markdown -----------------------------------------------------------------------------------------


def effect_line(report: TaskReport) -> str:
    """The task and its headline on one line, for commands that go through several tasks."""
    return f"{escaped(report.task)}: {escaped_prose(headline(report))}"


def console_text(report: TaskReport) -> str:
    """The first part of `report.md`: the effects of the conditions."""
    return _markdown(report, console_sections(report))


def render_markdown(report: TaskReport) -> str:
    """The content of `report.md`."""
    return _markdown(report, markdown_sections(report))


def _markdown(report: TaskReport, sections: Sequence[Section]) -> str:
    text = _template("report.md.j2").render(
        title=report.task,
        headline=headline(report),
        sections=sections,
    )
    return inert(re.sub("\n{3,}", "\n\n", text)).rstrip() + "\n"


def _escaped_table(table: Table) -> str:
    rows = [[escaped(cell) for cell in row] for row in table.rows]
    return markdown_table([escaped(name) for name in table.headers], rows)


def _fence(commands: Sequence[str]) -> str:
    """A code fence that no command can end."""
    fence = "```"
    while any(fence in command for command in commands):
        fence += "`"
    return fence


# HTML ---------------------------------------------------------------------------------------------


def render_page(report: TaskReport) -> str:
    """The content of `report.html`; the same run gives the same bytes."""
    sections = report_sections(report)
    return page_of(one_line(report.task), headline(report), page_facts(report), sections)


def page_of(
    title: str,
    headline: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    generator: str = "neuronllm-eval report",
) -> str:
    """A whole page.

    Args:
        headline: one sentence.
        facts: names and values below it.
        generator: distinguishes the pages of runs from other pages.
    """
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _template("report.html.j2").render(
        title=title,
        headline=one_line(headline, LONGEST_PROSE),
        facts=[(name, one_line(value)) for name, value in facts],
        sections=[_printable(section) for section in sections],
        style=Markup(style),  # noqa: S704
        style_hash=digest,
        generator=generator,
        long=_FOLDED_FROM,
    )
    return inert(page)


def _printable(section: Section) -> Section:
    """The same without invisible characters; commands have none."""
    tables = tuple(
        replace(
            table,
            title=one_line(table.title),
            headers=tuple(map(one_line, table.headers)),
            rows=tuple(tuple(map(one_line, row)) for row in table.rows),
        )
        for table in section.tables
    )
    text = tuple(one_line(paragraph, LONGEST_PROSE) for paragraph in section.text)
    return replace(section, text=text, tables=tables)


def spans(text: str) -> Markup:
    """A text whose words in backticks are code; nothing else in it is markup."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704


@functools.cache
def _template(name: str) -> jinja2.Template:
    filters: dict[str, Callable[..., Any]] = {
        "spans": spans,
        "escaped": escaped,
        "prose": escaped_prose,
        "markdown": _escaped_table,
        "fence": _fence,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
