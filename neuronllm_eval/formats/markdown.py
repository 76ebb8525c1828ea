"""Markdown: tables, and text from data, tasks and models in which nothing is markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

# Characters that mean something in markdown or in the HTML that it may hold. A `<` before a digit
# cannot start a tag.
_MARKUP = re.compile(r"([\\`*\[\]>|&~#$!{}]|<(?!\d)|(?<![^\W_])_|_(?![^\W_]))")
# What GitHub makes a link though no markup says so.
_ADDRESS = re.compile(r"(?<=(?<![^\W_])www)\.|://", re.IGNORECASE)
_CODE = re.compile("`([^`]+)`")
LONGEST = 300  # characters of a text from data
LONGEST_PROSE = 20_000  # of a paragraph


def one_line(text: object, longest: int = LONGEST) -> str:
    """A text on one line, without instructions to the terminal.

    White space and unprintable characters become spaces; a long text is cut at the end.
    """
    printable = "".join(
        character if character.isprintable() else " " for character in str(text)[: longest + 1]
    )
    line = " ".join(printable.split())
    return f"{line[: longest - 3]}..." if len(line) > longest else line


def escaped(text: object, longest: int = LONGEST) -> str:
    """`one_line`, in which nothing is markup or a link."""
    return _without_markup(one_line(text, longest))


def escaped_prose(text: str) -> str:
    """A paragraph in which only words in backticks are markup, as code."""
    parts = _CODE.split(one_line(text, LONGEST_PROSE))  # every second part is code
    return "".join(
        f"`{part}`" if index % 2 else _without_markup(part) for index, part in enumerate(parts)
    )


def data_text(text: object) -> str:
    """Text from data as part of a paragraph: on one line, without backticks."""
    return one_line(text).replace("`", "'")


def _without_markup(line: str) -> str:
    return _ADDRESS.sub(r"\\\g<0>", _MARKUP.sub(r"\\\1", line))


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with aligned columns; text from data is to be `escaped` before."""
    lines = [[_cell(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(3, *map(cell_len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(_padded, line, widths))} |" for line in lines)


def _cell(text: str) -> str:
    """One line, with every pipe escaped once."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", text.replace("\n", " "))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
