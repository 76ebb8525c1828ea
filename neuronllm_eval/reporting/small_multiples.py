"""The small multiples of `report.html`: dose-response and predicted letters. Pure.

Panels of one figure share their axes, so that they can be compared at a glance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.svg import Drawing, Scale, spanning, spread
from neuronllm_eval.interventions.conditions import factor_text
from neuronllm_eval.reporting.answer_tables import LetterShares
from neuronllm_eval.reporting.wording import interval_text

WIDTH, HEIGHT = 172, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 32, 164, 10, 116
MOST_PANELS = 8
_UNMASKED_FACTOR = 1.0


def by_factor(points: Sequence[ConditionSummary]) -> list[Drawing]:
    """Delta by factor, a panel for each number of neurons; empty without two factors.

    Args:
        points: of one surface, with the conditions that are not points.
    """
    swept = [each for each in points if each.scale is not None and each.top_k is not None]
    factors = sorted({float(each.scale or 0) for each in swept} | {_UNMASKED_FACTOR})
    if len(factors) < 3:
        return []
    counts = sorted({each.top_k or 0 for each in swept})
    # Evenly apart: factors of 0.5, 2 and 100 would not fit on a line.
    x_of = {factor: float(index) for index, factor in enumerate(factors)}
    up = _deltas_axis(swept)
    panels = []
    for count in (counts[index] for index in spread(len(counts), MOST_PANELS)):
        here = {float(each.scale or 0): each for each in swept if each.top_k == count}
        line = [(x_of[factor], here.get(factor)) for factor in factors
                if factor in here or factor == _UNMASKED_FACTOR]  # fmt: skip
        title = f"{count} neuron{'s' if count > 1 else ''}"
        ticks = [(x_of[factor], factor_text(factor)) for factor in factors]
        panels.append(_panel(title, "factor", line, ticks, len(factors) - 1.0, up))
    return panels


def by_number(points: Sequence[ConditionSummary]) -> list[Drawing]:
    """Delta by number of neurons, a panel for each factor; empty without two numbers."""
    swept = [each for each in points if each.top_k is not None]
    counts = sorted({each.top_k or 0 for each in swept})
    if len(counts) < 2:
        return []
    low, high = math.log(counts[0]), math.log(counts[-1])
    x_of = {count: (math.log(count) - low) / (high - low) for count in counts}
    curves: dict[tuple[str, float | None], list[ConditionSummary]] = {}
    for each in sorted(swept, key=lambda each: (each.scale or 0.0, each.condition)):
        curves.setdefault((each.condition, each.scale), []).append(each)
    up = _deltas_axis(swept)
    ticks = [
        (x_of[count], f"{count:,}" if count < 10_000 else f"{count / 1000:.3g}k")
        for count in counts
    ]
    panels = []
    for condition, scale in (list(curves)[index] for index in spread(len(curves), MOST_PANELS)):
        curve = sorted(curves[condition, scale], key=lambda each: each.top_k or 0)
        title = condition if scale is None else f"{condition} ×{factor_text(scale)}"
        line = [(x_of[each.top_k or 0], each) for each in curve]
        panels.append(_panel(title, "neurons", line, ticks, 1.0, up))
    return panels


def _deltas_axis(points: Sequence[ConditionSummary]) -> Scale:
    values = [value for each in points for value in (each.accuracy.low, each.accuracy.high)]
    for each in points:
        if each.controls is not None and each.controls.n_controls:
            values += [each.controls.low, each.controls.high]
    return spanning(values, _BOTTOM, _TOP)


def _panel(
    title: str,
    axis: str,
    line: Sequence[tuple[float, ConditionSummary | None]],
    ticks: Sequence[tuple[float, str]],
    width: float,
    up: Scale,
) -> Drawing:
    """A curve of deltas with intervals over the ranges of the controls.

    Args:
        axis: name of the horizontal axis.
        line: position on that axis, and the point there; None for the unmasked model.
        ticks: position on that axis, and its label.
        width: the last position.
        up: scale of the deltas.
    """
    across = Scale(0, width, _LEFT + 10, _RIGHT - 10)
    values = [0.0 if each is None else each.accuracy.delta for _, each in line]
    shown = ", ".join(f"{value:+.1f}" for value in values)
    drawing = Drawing(WIDTH, HEIGHT, f"{title}: deltas in points by {axis}, {shown}.", title)
    drawing.y_axis(up, _LEFT, _RIGHT, 5)
    _labels(drawing, [(across(x), text) for x, text in ticks])
    drawing.text((_LEFT + _RIGHT) / 2, _BOTTOM + 30, axis, "axis", "middle")
    for x_value, each in line:
        if each is not None and each.controls is not None and each.controls.n_controls:
            low, high = up(each.controls.low), up(each.controls.high)
            drawing.bar(across(x_value) - 5, low + 1, 10, high - low - 2, "band", "")
    drawing.curve([(across(x), up(y)) for (x, _), y in zip(line, values, strict=True)], "curve")
    for x_value, each in line:
        x = across(x_value)
        if each is None:
            drawing.mark("square", x, up(0), "before", "unmasked", 3)
            continue
        accuracy = each.accuracy
        drawing.line(x, up(accuracy.low), x, up(accuracy.high), "whisker")
        says = f"{each.name}: {interval_text(accuracy)}"
        drawing.mark("circle", x, up(accuracy.delta), "mark", says, 3.2)
    return drawing


def _labels(drawing: Drawing, ticks: Sequence[tuple[float, str]]) -> None:
    """Labels below the axis, without those that would run into the one before."""
    free = -math.inf
    for x, text in ticks:
        half = 3.1 * len(text)
        if x - half > free:
            drawing.text(x, _BOTTOM + 15, text, "tick", "middle")
            free = x + half + 3


def letter_panels(shares: LetterShares) -> list[Drawing]:
    """The predicted letters, a panel for the unmasked run and for each condition.

    Of more than `MOST_PANELS`, which can only be points, evenly spaced ones are shown.
    """
    most = max([1.0, *shares.gold, *(value for row in shares.predicted.values() for value in row)])
    up = Scale(0, 1.05 * most, _BOTTOM, _TOP)
    step = (_RIGHT - _LEFT) / len(shares.letters)
    panels = []
    names = list(shares.predicted)
    for name in (names[index] for index in spread(len(names), MOST_PANELS)):
        predicted = shares.predicted[name]
        listed = ", ".join(
            f"{letter} {value:.0f}" for letter, value in zip(shares.letters, predicted, strict=True)
        )
        drawing = Drawing(WIDTH, HEIGHT, f"Predicted letters, {name}, in percent: {listed}.", name)
        drawing.y_axis(up, _LEFT, _RIGHT, 5)
        for index, (value, gold) in enumerate(zip(predicted, shares.gold, strict=True)):
            x = _LEFT + step * (index + 0.5)
            half = min(0.36 * step, 14)
            letter = shares.letters[index]
            says = f"{letter} predicted in {value:.1f}% of the docs, gold in {gold:.1f}%"
            drawing.bar(x - half, _BOTTOM, 2 * half, up(value) - _BOTTOM, "predicted", says)
            drawing.line(x - 1.3 * half, up(gold), x + 1.3 * half, up(gold), "gold")
        _labels(
            drawing, [(_LEFT + step * (i + 0.5), name) for i, name in enumerate(shares.letters)]
        )
        drawing.text((_LEFT + _RIGHT) / 2, _BOTTOM + 30, "% of docs by letter", "axis", "middle")
        panels.append(drawing)
    return panels
