"""Tables on terminals: in parts that fit, with every cell, and whole where nobody looks."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.cli import compare as compare_command
from neuronllm_eval.comparison.ranking import ranked
from neuronllm_eval.comparison.tables import ranked_sections
from neuronllm_eval.formats import terminal
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.formats.tables import as_table
from neuronllm_eval.formats.terminal import column_parts, fitted, terminal_width, text_table
from tests.fixtures.cli import call, finished
from tests.fixtures.compared_runs import row

HEADS = ["condition", "delta", "interval", "controls"]
ROWS = [
    ["suppress_good", "-20.0", "-30.0 to -10.0", "20 of 20"],
    ["a | b", "+1.0", "", "3 of 20"],
]


def plain(text: str) -> str:
    """Without the codes of bold text."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_wide_table_stands_in_parts_that_begin_with_what_tells_rows_apart():
    rows = [[cell.replace("|", "\\|") for cell in row] for row in ROWS]
    text = f"### before\n\n{markdown_table(HEADS, rows)}\n\nafter \\*"
    assert plain(fitted(text, 44)).splitlines() == [
        "before",
        "",
        "condition      delta        interval",
        "-------------  -----  --------------",
        "suppress_good  -20.0  -30.0 to -10.0",
        "a | b           +1.0",
        "",
        "condition      controls",
        "-------------  --------",
        "suppress_good  20 of 20",
        "a | b           3 of 20",
        "",
        "after *",
    ]


def test_what_goes_to_a_file_stays_as_it_is():
    text = f"{markdown_table(HEADS, ROWS)}\n\n{'long ' * 100}"
    assert fitted(text, None) == text


def test_lines_that_only_look_like_a_table_and_long_lines_stay():
    text = f"| {'x' * 200}\n| a | b |\n{'long ' * 100}end"
    assert plain(fitted(text, 40)) == text


def test_headings_are_bold_and_only_there(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert fitted("## a\n[red]b", 80) == "\x1b[1ma\x1b[0m\n[red]b"
    monkeypatch.setenv("TERM", "dumb")
    assert fitted("## a", 80) == "a"


def test_words_are_aligned_at_the_left_and_figures_at_the_right():
    table = text_table(["a long name", "n"], [["漢字", "1.0"], ["x", "<10"]])
    assert table.splitlines() == ["a", "long", "name    n", "----  ---", "漢字  1.0", "x     <10"]


CELLS = st.lists(
    st.lists(st.sampled_from(("a", "bb", "c" * 30)), min_size=4, max_size=4), max_size=5
)


@given(CELLS, st.integers(1, 80))
def test_every_column_is_there_and_parts_fit_if_they_can(rows, width):
    widths = [max((len(row[column]) for row in rows), default=1) for column in range(4)]
    parts = column_parts(widths, rows, width)
    assert {column for part in parts for column in part} == {0, 1, 2, 3}
    shown = [column for part in parts for column in part]
    key = [column for column in range(4) if len(parts) > 1 and shown.count(column) == len(parts)]
    for part in parts:
        assert part[0] == 0
        taken = sum(widths[column] for column in part) + 2 * (len(part) - 1)
        assert taken <= width or len(part) == len(key) + 1


@pytest.mark.parametrize(
    ("rows", "key"), [([["a", "x"], ["b", "x"]], 1), ([["a", "x"], ["a", "y"]], 2)]
)
def test_the_key_tells_the_rows_apart(rows, key):
    rows = [[*row, "1" * 20, "2" * 20] for row in rows]
    parts = column_parts([1, 1, 20, 20], rows, 28)
    assert [part[:key] for part in parts] == [list(range(key))] * len(parts)
    assert len(parts) > 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_width_of_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_width() is None
    monkeypatch.setattr(sys, "stdout", Terminal())
    for columns, width in (("72", 72), ("3", 20)):
        monkeypatch.setenv("COLUMNS", columns)
        assert terminal_width() == width
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((91, 30)))
    assert terminal_width() == 91


def test_reports_fit_the_terminal_and_stay_whole_in_files(monkeypatch):
    output, _ = finished()
    whole = call("report", output, "--yes")[1]
    wide = [line for line in whole.splitlines() if line.startswith("|") and len(line) > 80]
    assert wide
    monkeypatch.setattr(terminal, "terminal_width", lambda: 80)
    narrow = call("report", output, "--yes")[1]
    assert narrow != whole
    rows = [line for line in narrow.splitlines() if line.startswith(("condition", "suppress_good"))]
    assert rows
    assert max(map(len, rows)) <= 80
    assert (output / "demo_topic" / "report.md").read_text().startswith(whole[: len(whole) // 2])


def test_a_comparison_fits_the_terminal(monkeypatch, tmp_path):
    page = ranked_sections(ranked([row(method=name) for name in ("ace", "kn")]), "task")
    whole, narrow = as_table(page), as_table(page, 60)
    assert max(map(len, whole.splitlines())) > 60 >= max(map(len, narrow.splitlines()))
    # Both are first; rank and method, which tell them apart, begin every part.
    assert [text.count("\n1 of 2  ace") for text in (whole, narrow)] == [1, 3]
    output, _ = finished()
    monkeypatch.setattr(compare_command, "terminal_width", lambda: 60)
    assert max(map(len, call("compare", output, "--rank")[1].splitlines())) <= 60
    call("compare", output, "--rank", "--output_path", tmp_path / "board.txt")
    assert max(map(len, (tmp_path / "board.txt").read_text().splitlines())) > 60
