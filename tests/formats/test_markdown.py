"""Text from elsewhere in a report: never markup, never more than a line."""

from __future__ import annotations

import pytest

from neuronllm_eval.formats.markdown import escaped


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
        ("&lt;b&gt;", "\\&lt;b\\&gt;"),
        ("[a](b)", "\\[a\\](b)"),
        ("![a](b)", "\\!\\[a\\](b)"),
        ("https://x.y", "https\\://x.y"),
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
