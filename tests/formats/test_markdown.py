"""Text from elsewhere in a report: never markup, never more than a line."""

from __future__ import annotations

import pytest

from neuronllm_eval.formats.markdown import data_text, escaped, escaped_prose, markdown_table


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("demo_topic", "demo_topic"),
        ("mmlu_high_school-physics 5.1 (Latin)", "mmlu_high_school-physics 5.1 (Latin)"),
        ("größe", "größe"),
        (5, "5"),
        ("", ""),
        ("a|b", "a\\|b"),
        ("<script>alert(1)</script>", "\\<script\\>alert(1)\\</script\\>"),
        ("<0.001", "<0.001"),
        ("&lt;b&gt;", "\\&lt;b\\&gt;"),
        ("[a](b)", "\\[a\\](b)"),
        ("![a](b)", "\\!\\[a\\](b)"),
        ("https://x.y", "https\\://x.y"),
        ("www.x.y (WWW.x.y) awww.x.y", "www\\.x.y (WWW\\.x.y) awww.x.y"),
        ("_www.x.y", "\\_www\\.x.y"),
        ("**b** and `c`", "\\*\\*b\\*\\* and \\`c\\`"),
        ("_emphasis_ in_word", "\\_emphasis\\_ in_word"),
        ("# head", "\\# head"),
        ("back\\slash", "back\\\\slash"),
        ("two\nlines\r\n\n# of it", "two lines \\# of it"),
        ("tab\tand\x00null\x1b[31m", "tab and null \\[31m"),
        ("right\u202eto left\u2028line", "right to left line"),
        ("half \ud800 letter", "half letter"),
        ("x" * 301, "x" * 297 + "..."),
        ("x" * 300, "x" * 300),
    ],
)
def test_what_is_written(text, written):
    assert escaped(text) == written


def test_only_words_in_backticks_are_markup_in_a_paragraph():
    assert escaped_prose("run `a --b_c` on [x](y)\n& ``") == (
        "run `a --b_c` on \\[x\\](y) \\& \\`\\`"
    )
    assert data_text("a `b`\nc") == "a 'b' c"


def test_columns_of_a_table_are_aligned():
    assert markdown_table(["n", "a name"], [["1", "漢字"], ["a|b", ""]]).splitlines() == [
        "| n    | a name |",
        "| ---- | ------ |",
        "| 1    | 漢字   |",
        "| a\\|b |        |",
    ]
