"""Scales, ticks and labels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.formats.svg import MARKS, Drawing, Scale, clipped, nice_ticks, spanning, spread


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (-41.2, 12.9, 6, [-40, -30, -20, -10, 0, 10]),
        (0, 1.05, 5, [0, 0.5, 1]),
        (0, 0.3, 4, [0, 0.1, 0.2, 0.3]),
        (-1, 1, 3, [-1, 0, 1]),
        (0, 100, 6, [0, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round(low, high, most, ticks):
    assert nice_ticks(low, high, most) == ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_lie_within_and_are_few(low, extent, most):
    ticks = nice_ticks(low, low + extent, most)
    room = 1e-9 * max(abs(low), extent)
    assert len(ticks) <= most
    assert all(low - room <= tick <= low + extent + room for tick in ticks)


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_a_scale_spans_zero_and_all_values(values):
    scale = spanning(values, 200.0, 20.0)
    assert scale.low <= min(0, *values) <= max(0, *values) <= scale.high
    assert scale.high - scale.low >= 1
    assert all(math.isfinite(scale(value)) for value in values)


def test_from_values_to_pixels():
    scale = Scale(-10, 10, 100, 0)
    assert [scale(value) for value in (-10, 0, 10)] == [100, 50, 0]


@pytest.mark.parametrize(
    ("count", "most", "indices"), [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (0, 4, [])]
)
def test_some_of_many(count, most, indices):
    assert spread(count, most) == indices


def test_labels_that_are_too_long_end_in_dots():
    assert clipped("suppress_good", 13) == "suppress_good"
    assert clipped("suppress_good", 12) == "suppress_go…"
    assert clipped("漢字漢字", 8) == "漢字漢字"
    assert clipped("漢字漢字", 7) == "漢字漢…"


def test_bars_have_no_negative_sizes():
    drawing = Drawing(10, 10, "a bar")
    drawing.bar(5, 8, -3, -4.006, "good", "")
    (shape,) = drawing.shapes
    assert dict(shape.attributes) == {
        "class": "good", "x": "2", "y": "3.99", "width": "3", "height": "4.01",
    }  # fmt: skip


@pytest.mark.parametrize("kind", MARKS)
def test_marks_differ_in_form(kind):
    drawing = Drawing(10, 10, "a mark")
    drawing.mark(kind, 5, 5, "mark")
    assert drawing.shapes[0].tag == ("circle" if kind == "circle" else "polygon")
    assert len({*MARKS.values()}) == len(MARKS)
