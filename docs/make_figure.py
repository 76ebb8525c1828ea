"""Draw the figure of the README from a run's `summary.json`.

    python docs/make_figure.py runs/demo/demo_topic    # writes docs/figures/demo_topic.svg

A row for each condition: its change of accuracy with the 95% interval, over the range of its random
controls. The drawing has a background of its own, light or dark as the reader's scheme is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

FIGURE = Path(__file__).resolve().parent / "figures" / "demo_topic.svg"
WIDTH, ROW, TOP = 760, 34, 62
AXIS_START, AXIS_END = 158, 566  # pixels between which deltas are drawn
VALUES = 744  # right end of the column of numbers
EXPECTED_TO_RISE = ("suppress_bad", "enhance_good", "enhance")
TICK = 10  # points between grid lines
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.name, .value { font: 13px ui-monospace, Menlo, Consolas, monospace; }
.small { font-size: 12px; fill: #57606a; }
.title { font-weight: 600; font-size: 14px; }
.card { fill: #ffffff; stroke: #d0d7de; }
.grid { stroke: #e4e8ec; } .zero { stroke: #57606a; }
.band { fill: #8c959f; fill-opacity: 0.5; }
.falls { stroke: #d55e00; fill: #d55e00; } .rises { stroke: #0072b2; fill: #0072b2; }
.interval { stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9da7b3; }
  .card { fill: #0d1117; stroke: #30363d; }
  .grid { stroke: #21262d; } .zero { stroke: #9da7b3; }
  .falls { stroke: #f08a4b; fill: #f08a4b; } .rises { stroke: #56b4e9; fill: #56b4e9; }
}
"""


def figure(summary: dict[str, Any]) -> str:
    """The SVG of a run's `summary.json`; conditions that edit nothing are left out."""
    rows = [row for row in summary["conditions"] if row["mcnemar"] and row["controls"]]
    ends = [row[key][end] for row in rows for key in ("accuracy", "controls")
            for end in ("low", "high")]  # fmt: skip
    low, high = (min(ends) // TICK) * TICK, -(-max(ends) // TICK) * TICK
    bottom = TOP + ROW * len(rows)

    def x(points: float) -> float:
        return round(AXIS_START + (points - low) / (high - low) * (AXIS_END - AXIS_START), 1)

    n_neurons, n_controls = rows[0]["top_k"], rows[0]["controls"]["n_controls"]
    shapes = [
        _rectangle("card", 0.5, 0.5, WIDTH - 1, bottom + 47, rx=8),
        _text("title", 16, 25, f"Suppressing (x0) or enhancing (x2) {n_neurons} good and "
              f"{n_neurons} bad neurons"),
        '<circle class="rises" cx="22" cy="43" r="4"/>',
        '<circle class="falls" cx="34" cy="43" r="4"/>',
        _text("small", 46, 47, "expected to rise, to fall; bar: 95% interval"),
        _rectangle("band", 314, 37, 12, 12),
        _text("small", 332, 47, f"lowest to highest of {n_controls} layer-matched random controls"),
    ]  # fmt: skip
    for points in range(int(low), int(high) + 1, TICK):
        shapes += [
            _line("grid" if points else "zero", x(points), TOP, x(points), bottom),
            _text("small", x(points), bottom + 17, f"{points:+d}" if points else "0", "middle"),
        ]
    middle = (AXIS_START + AXIS_END) / 2
    shapes.append(_text("small", middle, bottom + 36, "change of accuracy, points", "middle"))
    for number, row in enumerate(rows):
        shapes += _condition(row, x, TOP + ROW * (number + 0.5))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 48}" role="img" '
        f'aria-labelledby="what">',
        f'<title id="what">{escape(_spoken(rows))}</title>', f"<style>{STYLE}</style>", *shapes,
        "</svg>\n",
    ])  # fmt: skip


def _condition(row: dict[str, Any], x: Any, y: float) -> list[str]:
    delta, controls = row["accuracy"], row["controls"]
    css = "rises" if row["condition"] in EXPECTED_TO_RISE else "falls"
    start = x(controls["low"]) - 1
    return [
        _text("name", 16, y + 4, row["name"]),
        _rectangle("band", start, y - 11, round(x(controls["high"]) + 1 - start, 1), 22),
        _line(f"interval {css}", x(delta["low"]), y, x(delta["high"]), y),
        f'<circle class="{css}" cx="{x(delta["delta"])}" cy="{y:g}" r="5"/>',
        _text("value", VALUES, y + 4, _numbers(delta), "end"),
    ]


def _numbers(delta: dict[str, float]) -> str:
    return f"{delta['delta']:+.1f} ({delta['low']:+.1f} to {delta['high']:+.1f})"


def _spoken(rows: list[dict[str, Any]]) -> str:
    values = "; ".join(f"{row['name']} {_numbers(row['accuracy'])}" for row in rows)
    return f"Change of accuracy in points with 95% interval: {values}."


def _text(css: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _rectangle(css: str, x: float, y: float, width: float, height: float, rx: int = 0) -> str:
    return (f'<rect class="{css}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{rx}"/>')  # fmt: skip


def main() -> int:
    """Write the figure; the exit code."""
    parser = argparse.ArgumentParser(description="Draw the figure of the README.")
    parser.add_argument("run", type=Path, help="run directory of demo_topic")
    summary = json.loads((parser.parse_args().run / "summary.json").read_text(encoding="utf-8"))
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(figure(summary), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
