"""How attribution grows with questions, layers, nodes and tokens.

    python -m benchmarks.growth

One of them is varied at a time, from the point of 8 questions, 12 layers, 5 Gauss-Lobatto nodes
and 150 tokens. Both the quantity and the time are shown as multiples of the first in their series:
a last column of 1 is growth in proportion, less is growth from a fixed part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.workload import (
    N_PROXIES,
    Run,
    build_model,
    in_turn,
    make_prompts,
    parser,
    setting,
)
from neuronllm_eval.formats.markdown import markdown_table

POINT = {"questions": 8, "layers": 12, "nodes": 5, "tokens": 150}
SERIES = {
    "questions": (8, 16, 32),
    "layers": (4, 12, 24),
    "nodes": (3, 5, 9, 17),
    "tokens": (60, 150, 400, 1000),
}


def attribution(
    questions: int, layers: int, nodes: int, tokens: int, batch_size: int
) -> Callable[[], object]:
    """The action at one point."""
    run = Run(build_model(layers), make_prompts(tokens, questions), batch_size)
    return partial(run.attribution, nodes)


def measure(
    name: str, values: tuple[int, ...], point: Mapping[str, int], batch_size: int, repeats: int
) -> list[list[str]]:
    """Rows of the table for one of the quantities."""
    points = {str(value): {**point, name: value} for value in values}
    actions = {value: attribution(**each, batch_size=batch_size) for value, each in points.items()}
    times = in_turn(actions, repeats)
    first = times[str(values[0])]
    rows = []
    for value in values:
        grown, slower = value / values[0], times[str(value)] / first
        figures = (f"{times[str(value)]:.2f}", f"{grown:.1f}", f"{slower:.2f}")
        rows.append([name, str(value), *figures, f"{slower / grown:.2f}"])
    return rows


def main() -> None:
    """Print the table."""
    flags = parser(__doc__)
    for name, value in POINT.items():
        flags.add_argument(f"--{name}", type=int, default=value, help="where others are varied")
    flags.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    options = flags.parse_args()
    point = {name: getattr(options, name) for name in POINT}
    shown = ", ".join(f"{value} {name}" for name, value in point.items())
    print(f"{setting(options)}; {shown} except for what is varied; {N_PROXIES} prompts "
          "per question")  # fmt: skip
    rows = [
        row
        for name in options.series
        for row in measure(name, SERIES[name], point, options.batch_size, options.repeats)
    ]
    headers = ["varied", "value", "s", "times the first", "time, times the first", "time / value"]
    print(markdown_table(headers, rows))


if __name__ == "__main__":
    main()
