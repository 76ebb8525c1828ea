"""`report.html`: a run on one page that needs nothing but itself. Pure.

A template writes the sections; all text is escaped by it. The page has no script and loads nothing,
and its content security policy forbids both.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.reporting.condition_tables import RunDetails
from neuronllm_eval.reporting.html_sections import Section, page_facts, page_sections
from neuronllm_eval.reporting.report_markdown import TaskReport, headline

_TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile("`([^`]+)`")
_LONG = 20  # rows of a table that stands folded


def render_page(report: TaskReport, details: RunDetails) -> str:
    """The content of `report.html`; the same run gives the same bytes."""
    sections = page_sections(report, details)
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
        title: of what it is.
        headline: one sentence.
        facts: names and values that stand below it.
        sections: in order.
        generator: what tells pages of one kind from others.
    """
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        title=title,
        headline=headline,
        facts=[(name, one_line(value)) for name, value in facts],
        sections=[_seen(section) for section in sections],
        style=Markup(style),  # noqa: S704
        style_hash=digest,
        generator=generator,
        long=_LONG,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["spans"] = spans
    return environment.get_template("report.html.j2")


def spans(text: str) -> Markup:
    """A text whose words in backticks are code; nothing else in it is markup."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704


def _seen(section: Section) -> Section:
    """The same without signs that cannot be seen; commands have none."""
    tables = tuple(
        replace(
            table,
            title=one_line(table.title),
            headers=tuple(map(one_line, table.headers)),
            rows=tuple(tuple(map(one_line, row)) for row in table.rows),
        )
        for table in section.tables
    )
    return replace(section, tables=tables)
