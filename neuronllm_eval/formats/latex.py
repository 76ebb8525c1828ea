"""The leaderboard in LaTeX: a `table` for each table, with booktabs rules. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.sections import LONGEST_NOTE, Section, are_figures

_SIGNS_OF_LABELS = re.compile("[^a-z0-9]+")
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def tex(text: object) -> str:
    """A text in which no sign is a command of LaTeX; quotes need the font encoding T1."""
    return "".join(_TEX.get(sign, sign) for sign in one_line(text, LONGEST_NOTE))


# A hyphen before a figure, where no word or other hyphen stands before it.
_MINUS = re.compile(r"(?<![\w-])-(?=\d)")


def as_latex(sections: Sequence[Section]) -> str:
    """A `table` for each table, with booktabs rules, and the notes as paragraphs."""
    parts = ["% \\usepackage{booktabs}, \\usepackage[T1]{fontenc}"]
    labels: Counter[str] = Counter()
    for each in sections:
        if each.table is not None:
            name = _SIGNS_OF_LABELS.sub("-", each.title.lower())[:40].strip("-") or "leaderboard"
            labels[name] += 1
            label = name if labels[name] == 1 else f"{name}-{labels[name]}"
            parts.append(_tex_table(each.table, each.title, label))
        parts += [f"{{\\footnotesize {tex(note)}\\par}}" for note in each.notes]
    return "\n\n".join(parts) + "\n"


def _tex_table(table: pd.DataFrame, title: str, label: str) -> str:
    columns = {str(head): [str(cell) for cell in table[head]] for head in table.columns}
    sides = "".join("r" if are_figures(cells) else "l" for cells in columns.values())
    cells = [
        [_MINUS.sub("$-$", tex(cell)) if are_figures(column) else tex(cell) for cell in column]
        for column in columns.values()
    ]
    rows = [" & ".join(row) + r" \\" for row in zip(*cells, strict=True)]
    lines = [
        r"\begin{table}",
        r"\centering",
        *([f"\\caption{{{tex(title)}}}"] if title else []),
        f"\\label{{tab:{label}}}",
        r"\footnotesize",
        f"\\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        " & ".join(map(tex, columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)
