"""Text from data, tasks and models, as it may stand in a markdown report."""

from __future__ import annotations

import re

# Signs that mean something in markdown or in the HTML that it may hold.
_SIGNS = re.compile(r"([\\`*\[\]<>|&~#$!{}]|(?<![^\W_])_|_(?![^\W_]))")
_LONGEST = 300  # characters


def escaped(text: object) -> str:
    """A text on one line, in which nothing is markup, a link or an instruction to the terminal.

    As `visible`, and signs that mean something in markdown are escaped.
    """
    return _SIGNS.sub(r"\\\1", visible(text)).replace("://", r"\://")


def visible(text: object) -> str:
    """A text on one line.

    Whitespace and what cannot be seen or written become spaces; a long text loses its end.
    """
    seen = "".join(sign if sign.isprintable() else " " for sign in str(text)[: _LONGEST + 1])
    line = " ".join(seen.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 3]}..."
    return line
