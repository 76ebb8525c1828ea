"""Text for terminals: aligned columns that fit the width, with nothing left out.

A table that is too wide is split into parts below each other:

1. The key is the fewest first columns that tell the rows apart, or the first alone if these are too
   wide.
2. The other columns are put, in order, into parts that fit; every part begins with the key.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE = re.compile(r"(?<!\\)\|")
_ESCAPE = re.compile(r"\\([^\w\s])")
_HEADING = re.compile(r"#{1,6} ")
# A key that takes more than this share of the terminal leaves too little for the rest.
_MOST_OF_WIDTH = 0.5
_LEAST_WIDTH = 20
_GAP = 2
_UNLIMITED = 100_000  # columns


def terminal_width() -> int | None:
    """Columns of the terminal that is standard output; None if that is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, _LEAST_WIDTH)


def column_parts(
    widths: Sequence[int], rows: Sequence[Sequence[str]], width: int
) -> list[list[int]]:
    """The columns of each part.

    Args:
        width: of a part; a single column besides the key may be wider.
    """

    def taken(columns: Sequence[int]) -> int:
        return sum(widths[column] for column in columns) + _GAP * (len(columns) - 1)

    everything = list(range(len(widths)))
    if taken(everything) <= width or len(widths) < 3:
        return [everything]
    key = _key(rows, len(widths))
    if taken(key) > _MOST_OF_WIDTH * width:
        key = [0]
    parts: list[list[int]] = []
    for column in everything[len(key) :]:
        if parts and taken([*parts[-1], column]) <= width:
            parts[-1].append(column)
        else:
            parts.append([*key, column])
    return parts


def _key(rows: Sequence[Sequence[str]], n_columns: int) -> list[int]:
    """The fewest first columns that tell all rows apart; the first alone if there are none."""
    for count in range(1, n_columns):
        if len({tuple(row[:count]) for row in rows}) == len(rows):
            return list(range(count))
    return [0]


def text_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Aligned columns, figures at the right; in parts where they are wider than `width`."""
    columns = [[row[index] for row in rows] for index in range(len(headers))]
    widths = [_width(*column) for column in zip(headers, columns, strict=True)]
    parts = [list(range(len(headers)))]
    if width is not None:
        parts = column_parts(widths, rows, width)
    return "\n\n".join(
        _aligned([headers[index] for index in part], [columns[index] for index in part])
        for part in parts
    )


def are_figures(cells: Sequence[str]) -> bool:
    """Whether a column contains figures, which are aligned at the right."""
    return all(cell[:1] in "+-<0123456789" for cell in cells)


def _width(header: str, cells: Sequence[str]) -> int:
    """Width of a column, whose header may take several lines."""
    return max(map(cell_len, (*cells, *header.split())), default=0)


def _aligned(headers: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for header, cells in zip(headers, columns, strict=True):
        table.add_column(
            Text(header),
            justify="right" if are_figures(cells) else "left",
            vertical="bottom",
            width=_width(header, cells),
        )
    table.add_row(*("-" * _width(*column) for column in zip(headers, columns, strict=True)))
    for row in zip(*columns, strict=True):
        table.add_row(*map(Text, row))
    file = io.StringIO()
    Console(file=file, width=_UNLIMITED, color_system=None, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def fitted(text: str, width: int | None) -> str:
    """Markdown as a terminal shows it: headings bold, tables as aligned columns that fit.

    Args:
        width: of the terminal; None leaves the text as it is.
    """
    if width is None:
        return text
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, highlight=False)
    for is_table, block in groupby(text.split("\n"), lambda line: line.startswith("|")):
        lines = list(block)
        rows = [[_unescaped(cell) for cell in _PIPE.split(line)[1:-1]] for line in lines]
        if is_table and len(rows) > 1 and rows[0] and len({len(row) for row in rows}) == 1:
            console.print(Text(text_table(rows[0], rows[2:], width)), soft_wrap=True)
            continue
        for line in lines:
            heading = _HEADING.match(line)
            shown = Text(_unescaped(line[heading.end() :] if heading else line))
            console.print(shown, style="bold" if heading else "", soft_wrap=True)
    return file.getvalue().removesuffix("\n")


def _unescaped(cell: str) -> str:
    return _ESCAPE.sub(r"\1", cell.strip())
