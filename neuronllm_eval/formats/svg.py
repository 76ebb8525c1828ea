"""Small drawings as values: shapes with classes that a style sheet colours. Pure.

Sizes are in pixels, where small print is 10 pixels high, so a drawing should be shown at its own
width or wider. `templates/drawing.html.j2` writes it as SVG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from unicodedata import east_asian_width


def tick_text(value: float) -> str:
    """A tick's label, with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def count_text(value: float) -> str:
    """A tick's label on an axis of counts, which extends to both sides of 0."""
    return tick_text(abs(value))


@dataclass(frozen=True)
class Shape:
    """An element of SVG.

    Attributes:
        text: content of a `text`; of other elements, what a pointer over them shows.
    """

    tag: str
    attributes: tuple[tuple[str, str], ...]
    text: str = ""


@dataclass
class Drawing:
    """A drawing under construction.

    Attributes:
        alt: what it shows, for screen readers.
        title: a line above it; may be empty.
        shapes: back to front.
    """

    width: float
    height: float
    alt: str
    title: str = ""
    shapes: list[Shape] = field(default_factory=list)

    def _add(self, tag: str, css: str, text: str = "", **attributes: float | str) -> None:
        values = {"class": css, **attributes}
        pairs = tuple((name.replace("_", "-"), _number(value)) for name, value in values.items())
        self.shapes.append(Shape(tag, pairs, text))

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._add("line", css, x1=x1, y1=y1, x2=x2, y2=y2)

    def curve(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Straight lines from point to point."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", css, points=path)

    def bar(self, x: float, y: float, width: float, height: float, css: str, says: str) -> None:
        """A rectangle; a negative height grows upwards, a negative width to the left."""
        left, top = min(x, x + width), min(y, y + height)
        self._add("rect", css, says, x=left, y=top, width=abs(width), height=abs(height))

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        """One line of text."""
        self._add("text", css, text, x=x, y=y, text_anchor=anchor)

    def mark(self, kind: str, x: float, y: float, css: str, says: str = "", r: float = 4) -> None:
        """A mark of one of the forms in `MARKS`."""
        corners = [(x + r * dx, y + r * dy) for dx, dy in MARKS[kind]]
        if corners:
            path = " ".join(f"{_number(a)},{_number(b)}" for a, b in corners)
            self._add("polygon", css, says, points=path)
        else:
            self._add("circle", css, says, cx=x, cy=y, r=r)

    def x_axis(
        self,
        scale: Scale,
        top: float,
        bottom: float,
        label: str,
        most: int = 6,
        text: Callable[[float], str] = tick_text,
    ) -> None:
        """Grid lines of a horizontal axis, with numbers and a label below."""
        for value in nice_ticks(scale.low, scale.high, most):
            x = scale(value)
            self.line(x, top, x, bottom, "zero" if value == 0 else "grid")
            self.text(x, bottom + 14, text(value), "tick", "middle")
        self.text((scale.start + scale.end) / 2, bottom + 30, label, "axis", "middle")

    def y_axis(
        self,
        scale: Scale,
        left: float,
        right: float,
        most: int = 6,
        text: Callable[[float], str] = tick_text,
    ) -> None:
        """Grid lines of a vertical axis, with numbers at the left."""
        for value in nice_ticks(scale.low, scale.high, most):
            y = scale(value)
            self.line(left, y, right, y, "zero" if value == 0 else "grid")
            self.text(left - 6, y + 3.5, text(value), "tick", "end")


# Corners in units of the radius; a circle has none.
MARKS: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
}


def _number(value: float | str) -> str:
    """A coordinate to a hundredth of a pixel, in the shortest form."""
    return value if isinstance(value, str) else f"{round(value, 2) + 0.0:g}"


@dataclass(frozen=True)
class Scale:
    """A linear map of the values `low` to `high` onto the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def spanning(values: Sequence[float], start: float, end: float, least: float = 1.0) -> Scale:
    """A scale over 0 and all values, with a margin, and over at least `least`."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high - low < least:
        high += (least - (high - low)) / 2 if low < 0 else least - (high - low)
        low = high - least
    room = 0.05 * (high - low)
    return Scale(low - room * (low < 0), high + room * (high > 0), start, end)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, at most `most` of them."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        first, last = (
            math.ceil(low / (factor * step) - 1e-9),
            math.floor(high / (factor * step) + 1e-9),
        )
        if last - first < most:
            break
    # A quotient is rounded once, where a product of 0.1 is not.
    return [float(f"{number * factor * step:.12g}") for number in range(first, last + 1)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to count - 1, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def clipped(text: str, most: int) -> str:
    """A label of at most `most` columns; East Asian characters take two."""
    widths = [2 if east_asian_width(character) in "WF" else 1 for character in text]
    if sum(widths) <= most:
        return text
    n_shown = sum(1 for end in accumulate(widths) if end < most)
    return f"{text[:n_shown]}…"
