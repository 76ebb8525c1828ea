"""What `report.md` ends with: the tables of answers, of neurons and of provenance. Pure."""

from __future__ import annotations

from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.reporting.answer_tables import (
    flips_table,
    groups_table,
    letter_shares,
    letters_table,
)
from neuronllm_eval.reporting.condition_tables import RunDetails, Table
from neuronllm_eval.reporting.neuron_tables import (
    gap_table,
    neurons_table,
    provenance_table,
    stability_table,
)
from neuronllm_eval.reporting.report_markdown import TaskReport
from neuronllm_eval.reporting.wording import main_condition


def detail_tables(report: TaskReport, details: RunDetails) -> list[Table]:
    """All of them, in the order of `report.md`."""
    found: list[Table | None] = []
    condition = main_condition(report.summaries)
    if details.table is not None and condition is not None:
        found += [flips_table(details, condition, gained) for gained in (True, False)]
        found.append(letters_table(letter_shares(details.table, report.summaries)))
        found.append(groups_table(details, report.summaries))
    gap = gap_table(report.scores.provenance)
    found += [neurons_table(report, details), stability_table(report), gap]
    found.append(provenance_table(report))
    return [table for table in found if table is not None]


def appendix(report: TaskReport, details: RunDetails) -> str:
    """What `report.md` has besides what the console shows."""
    parts = []
    for table in detail_tables(report, details):
        rows = [[escaped(cell) for cell in row] for row in table.rows]
        headers = [escaped(name) for name in table.headers]
        parts += [f"### {escaped(table.title)}", markdown_table(headers, rows)]
        parts += [table.note] if table.note else []
    if details.commands:
        fence = "```"
        while any(fence in command for command in details.commands):
            fence += "`"
        lines = "\n".join(details.commands)
        parts += ["### The same again", f"{fence}sh\n{lines}\n{fence}"]
    return "\n\n".join(parts) + "\n"
