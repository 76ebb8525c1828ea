"""Tables on terminals that are narrower than they are: in parts below each other, nothing left out.

1. The key is as many of the first columns as tell the rows apart, or the first alone if these are
   too wide.
2. The other columns are put, in order, into parts that fit; every part begins with the key.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from itertools import groupby

_PIPE = re.compile(r"(?<!\\)\|")
# A key that takes more than this share of the terminal leaves too little for the rest.
_MOST_OF_WIDTH = 0.5
_LEAST_WIDTH = 20


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, _LEAST_WIDTH)


def column_parts(
    widths: Sequence[int], rows: Sequence[Sequence[str]], width: int, gap: int, frame: int
) -> list[list[int]]:
    """Which columns stand in which part.

    Args:
        widths: of the columns.
        rows: cells as text; they say what tells the rows apart.
        width: that a part may have; a single column besides the key may be wider.
        gap: between two columns.
        frame: around the whole.
    """

    def taken(columns: Sequence[int]) -> int:
        return frame + sum(widths[column] for column in columns) + gap * (len(columns) - 1)

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
    """The fewest first columns that tell all rows apart; the first alone if none do."""
    for count in range(1, n_columns):
        if len({tuple(row[:count]) for row in rows}) == len(rows):
            return list(range(count))
    return [0]


def fitted(text: str, width: int | None) -> str:
    """A text whose markdown tables fit a terminal.

    Args:
        text: with tables as `report.markdown_table` writes them: columns in line.
        width: of the terminal; None leaves the text as it is.
    """
    if width is None:
        return text
    found: list[str] = []
    for is_table, block in groupby(text.split("\n"), lambda line: line.startswith("|")):
        lines = list(block)
        found += _table_in_parts(lines, width) if is_table else lines
    return "\n".join(found)


def _table_in_parts(lines: list[str], width: int) -> list[str]:
    rows = [_PIPE.split(line)[1:-1] for line in lines]
    if max(map(len, lines)) <= width or len({len(row) for row in rows}) != 1 or not rows[0]:
        return lines
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts = column_parts(widths, rows[2:], width, gap=1, frame=2)
    found: list[str] = []
    for part in parts:
        found += [""] if found else []
        found += [f"|{'|'.join(row[column] for column in part)}|" for row in rows]
    return found
