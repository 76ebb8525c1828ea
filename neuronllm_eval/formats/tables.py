"""The leaderboard in the formats of `--format`: text of a page, or of rows for programs. Pure.

| format | what |
|---|---|
| table | aligned columns for a terminal |
| markdown | tables as in `report.md` |
| latex | `table` environments with booktabs rules |
| html | one page that needs nothing else |
| csv | rows with names for programs, numbers in full |
| json | the same, with overlaps, sets and runs that have no rows |
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from neuronllm_eval.formats.latex import as_latex
from neuronllm_eval.formats.markdown import escaped, markdown_table, one_line
from neuronllm_eval.formats.sections import LONGEST_NOTE, Section, are_figures
from neuronllm_eval.formats.terminal import column_parts

_PROSE_WIDTH = 100
_GAP = "  "
_TITLE = "Leaderboard of NeuronLLM runs"


def as_table(sections: Sequence[Section], width: int | None = None) -> str:
    """Aligned columns, for a terminal.

    Args:
        sections: of the page.
        width: of the terminal; wider tables stand in parts below each other. None leaves them
            whole.
    """
    prose = min(_PROSE_WIDTH, width or _PROSE_WIDTH)
    lines: list[str] = []
    for each in sections:
        lines += [each.title, ""] if each.title else []
        for part in [] if each.table is None else _parts(each.table, width):
            lines += [*_aligned(part), ""]
        for note in each.notes:
            lines += [*textwrap.wrap(one_line(note, LONGEST_NOTE), prose), ""]
    return "\n".join(lines).rstrip() + "\n"


def _parts(table: pd.DataFrame, width: int | None) -> list[pd.DataFrame]:
    if width is None:
        return [table]
    widths = list(_widths(table).values())
    rows = [[str(cell) for cell in row] for row in table.to_numpy().tolist()]
    parts = column_parts(widths, rows, width, gap=len(_GAP), frame=0)
    return [table.iloc[:, part] for part in parts]


def _widths(table: pd.DataFrame) -> dict[str, int]:
    """Of the columns, whose heads may take several lines."""
    return {
        str(head): max(map(len, (*map(str, table[head]), *str(head).split())), default=0)
        for head in table.columns
    }


def _aligned(table: pd.DataFrame) -> list[str]:
    cells = {str(head): [str(cell) for cell in table[head]] for head in table.columns}
    widths = _widths(table)
    heads = {head: textwrap.wrap(head, widths[head]) for head in cells}
    n_lines = max(map(len, heads.values()))
    columns = [
        _padded(
            [*[""] * (n_lines - len(heads[head])), *heads[head], "-" * widths[head], *column],
            widths[head],
            str.rjust if are_figures(column) else str.ljust,
        )
        for head, column in cells.items()
    ]
    return [_GAP.join(parts).rstrip() for parts in zip(*columns, strict=True)]


def _padded(cells: Sequence[str], width: int, pad: Callable[[str, int], str]) -> list[str]:
    return [pad(cell, width) for cell in cells]


def as_markdown(sections: Sequence[Section]) -> str:
    """Headings, tables and paragraphs."""
    lines: list[str] = []
    for each in sections:
        lines += [f"## {escaped(each.title)}", ""] if each.title else []
        if each.table is not None:
            rows = [[escaped(cell) for cell in row] for row in each.table.to_numpy().tolist()]
            lines += [markdown_table([str(head) for head in each.table.columns], rows), ""]
        for note in each.notes:
            lines += [escaped(note, LONGEST_NOTE), ""]
    return "\n".join(lines).rstrip() + "\n"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; white-space: nowrap;
         border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th { border-bottom-width: 2px; vertical-align: bottom; }
.figure { text-align: right; }
p { max-width: 60rem; }
"""


def as_html(sections: Sequence[Section]) -> str:
    """One page, without scripts, that is light or dark as the reader's system is."""
    parts = []
    for each in sections:
        parts += [f"<h2>{html.escape(each.title)}</h2>"] if each.title else []
        if each.table is not None:
            parts.append(f'<div class="wide">\n{_html_table(each.table)}\n</div>')
        parts += [f"<p>{html.escape(one_line(note, LONGEST_NOTE))}</p>" for note in each.notes]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{_TITLE}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_table(table: pd.DataFrame) -> str:
    """Words to the left, figures to the right."""
    columns = {str(head): [str(cell) for cell in table[head]] for head in table.columns}
    marks = [' class="figure"' if are_figures(cells) else "" for cells in columns.values()]

    def row(tag: str, cells: Iterable[str]) -> str:
        pairs = zip(marks, cells, strict=True)
        return "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in pairs)

    rows = [f"<tr>{row('td', cells)}</tr>" for cells in zip(*columns.values(), strict=True)]
    lines = [
        "<table>",
        f"<thead>\n<tr>{row('th', columns)}</tr>\n</thead>",
        "<tbody>",
        *rows,
        "</tbody>\n</table>",
    ]
    return "\n".join(lines)


# Of sections as they are to be read.
PAGES: dict[str, Callable[[Sequence[Section]], str]] = {
    "table": as_table,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_html,
}


def as_csv(frame: pd.DataFrame) -> str:
    """Rows under names for programs; empty where there is nothing."""
    return frame.to_csv(index=False, lineterminator="\n")
