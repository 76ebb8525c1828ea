"""Titled tables as text of a page, or as rows for programs. Pure; nothing from data is markup.

| format | what |
|---|---|
| table | aligned columns for a terminal |
| markdown | headings, tables and paragraphs |
| latex | `table` environments with booktabs rules |
| html | one page that needs nothing else, without scripts |
| csv | rows with names for programs, numbers in full |
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from neuronllm_eval.formats.markdown import escaped, markdown_table, one_line
from neuronllm_eval.formats.terminal import are_figures, text_table

LONGEST_NOTE = 20_000  # characters
_PROSE_WIDTH = 100


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: may be empty.
        table: cells as text under their heads; None for none.
        notes: sentences below it.
    """

    title: str
    table: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


def _columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The texts of a table by their heads, each on one line."""
    return {
        one_line(head, LONGEST_NOTE): [one_line(cell, LONGEST_NOTE) for cell in table[head]]
        for head in table.columns
    }


def as_table(sections: Sequence[Section], width: int | None = None) -> str:
    """Aligned columns, for a terminal.

    Args:
        sections: of the page.
        width: of the terminal; wider tables are split into parts below each other. None leaves
            them whole.
    """
    prose = min(_PROSE_WIDTH, width or _PROSE_WIDTH)
    lines: list[str] = []
    for section in sections:
        lines += [one_line(section.title), ""] if section.title else []
        if section.table is not None:
            rows = list(map(list, zip(*_columns(section.table).values(), strict=True)))
            lines += [text_table(list(_columns(section.table)), rows, width), ""]
        for note in section.notes:
            lines += [*textwrap.wrap(one_line(note, LONGEST_NOTE), prose), ""]
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(sections: Sequence[Section]) -> str:
    """Headings, tables and paragraphs."""
    lines: list[str] = []
    for section in sections:
        lines += [f"## {escaped(section.title)}", ""] if section.title else []
        if section.table is not None:
            rows = [[escaped(cell) for cell in row] for row in section.table.to_numpy().tolist()]
            heads = [escaped(head) for head in section.table.columns]
            lines += [markdown_table(heads, rows), ""]
        for note in section.notes:
            lines += [escaped(note, LONGEST_NOTE), ""]
    return "\n".join(lines).rstrip() + "\n"


def as_html(sections: Sequence[Section]) -> str:
    """One page, without scripts, that is light or dark as the reader's system is."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"zip": zip, "columns": _columns, "one_line": one_line}
    environment.tests["figures"] = are_figures
    page = environment.get_template("tables.html.j2")
    title = "Comparison of NeuronLLM runs"
    return page.render(title=title, sections=sections, longest=LONGEST_NOTE) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_NOT_OF_LABELS = re.compile("[^a-z0-9]+")
# A hyphen before a figure, where no word or other hyphen stands before it.
_MINUS = re.compile(r"(?<![\w-])-(?=\d)")


def tex(text: object) -> str:
    """A text in which no character is a command of LaTeX; quotes need the font encoding T1."""
    return "".join(_TEX.get(character, character) for character in one_line(text, LONGEST_NOTE))


def _tex_cell(text: str) -> str:
    """A cell that is not taken for an argument of the row's end before it."""
    return re.sub(r"^[\[*]", r"{\g<0>}", tex(text))


def as_latex(sections: Sequence[Section]) -> str:
    """A `table` for each table, with booktabs rules, and the notes as paragraphs."""
    parts = ["% \\usepackage{booktabs}, \\usepackage[T1]{fontenc}"]
    labels: Counter[str] = Counter()
    for section in sections:
        if section.table is not None:
            name = _NOT_OF_LABELS.sub("-", section.title.lower())[:40].strip("-") or "comparison"
            labels[name] += 1
            label = name if labels[name] == 1 else f"{name}-{labels[name]}"
            parts.append(_tex_table(section.table, section.title, label))
        parts += [f"{{\\footnotesize {tex(note)}\\par}}" for note in section.notes]
    return "\n\n".join(parts) + "\n"


def _tex_table(table: pd.DataFrame, title: str, label: str) -> str:
    columns = _columns(table)
    cells = {
        _tex_cell(head): [_MINUS.sub("$-$", tex(cell)) if are_figures(column) else _tex_cell(cell)
                    for cell in column]
        for head, column in columns.items()
    }  # fmt: skip
    text = pd.DataFrame(cells).to_latex(
        index=False,
        column_format="".join("r" if are_figures(cells) else "l" for cells in columns.values()),
        caption=tex(title) or None,
        label=f"tab:{label}",
    )
    return text.replace("\\begin{tabular}", "\\centering\n\\footnotesize\n\\begin{tabular}").strip()


# Of sections as people read them.
PAGES: dict[str, Callable[[Sequence[Section]], str]] = {
    "table": as_table,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_html,
}


def as_csv(frame: pd.DataFrame) -> str:
    """Rows under names for programs; empty where there is nothing.

    What a spreadsheet would take for a formula has an apostrophe before it; numbers have none.
    """
    texts = frame.select_dtypes(["object", "string"])
    inert = {str(name): texts[name].map(_no_formula, na_action="ignore") for name in texts}
    inert_frame = frame.assign(**inert).rename(columns=_no_formula)
    return inert_frame.to_csv(index=False, lineterminator="\n")


# Where a cell begins; also after what separates cells in other countries' spreadsheets.
_FORMULA = re.compile(r"(^|[;\t\n])(?=[^\S\t\n]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\n])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _no_formula(cell: object) -> object:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    # A carriage return alone would end the row: pandas does not quote it.
    return _FORMULA.sub(r"\1'", cell.replace("\r\n", "\n").replace("\r", "\n"))
