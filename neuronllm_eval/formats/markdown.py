"""Text from data, tasks and models, as it may stand in a markdown report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytablewriter import MarkdownTableWriter


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; text from elsewhere is to be `escaped` before."""
    # The writer escapes every pipe, also one that is escaped already.
    cells = [[cell.replace("\n", " ").replace("\\|", "|") for cell in row] for row in rows]
    writer = MarkdownTableWriter(headers=list(headers), value_matrix=cells, margin=1)
    writer.type_hints = ["str"] * len(headers)
    return str(writer.dumps()).strip()


# Signs that mean something in markdown or in the HTML that it may hold.
_SIGNS = re.compile(r"([\\`*\[\]<>|&~#$!{}]|(?<![^\W_])_|_(?![^\W_]))")
LONGEST = 300  # characters


def one_line(text: object, longest: int = LONGEST) -> str:
    """A text on one line, with no instruction to the terminal in it.

    Whitespace and what cannot be seen or written become spaces; a long text loses its end.
    """
    seen = "".join(sign if sign.isprintable() else " " for sign in str(text)[: longest + 1])
    line = " ".join(seen.split())
    return f"{line[: longest - 3]}..." if len(line) > longest else line


def escaped(text: object, longest: int = LONGEST) -> str:
    """A text on one line, in which nothing is markup, a link or an instruction to the terminal.

    Whitespace and what cannot be seen or written become spaces; a long text loses its end.
    """
    return _SIGNS.sub(r"\\\1", one_line(text, longest)).replace("://", r"\://")
