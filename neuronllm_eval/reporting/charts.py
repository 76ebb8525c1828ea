"""The figures of `report.html`, as drawings. Pure.

1. Single figures: deltas, flips, layers, halves, groups.
2. Small multiples: dose-response and predicted options. Panels of one figure share their axes, so
   that they can be compared at a glance.

Colour never carries meaning alone: marks differ in form or position too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.stats.significance import ALPHA
from neuronllm_eval.formats.svg import Drawing, Scale, clipped, count_text, spanning, spread
from neuronllm_eval.interventions.conditions import factor_text
from neuronllm_eval.neurons.neuron_set import Neuron
from neuronllm_eval.reporting.answer_tables import OptionShares
from neuronllm_eval.reporting.wording import chance_distance, corrected_p, interval_text

WIDTH = 356
_LABELS = 122  # pixels for the names of rows
_CHARACTERS = 16  # that fit there
_RIGHT = WIDTH - 12
MOST_MARKS = 1000  # good neurons, and bad ones, in a scatter
MOST_GROUPS = 40

PANEL_WIDTH, PANEL_HEIGHT = 172, 150
_PANEL_LEFT, _PANEL_RIGHT, _PANEL_TOP, _PANEL_BOTTOM = 32, 164, 10, 116
MOST_PANELS = 8
_TICK = 6.2  # pixels of a character below an axis
_UNMASKED_FACTOR = 1.0


# Single figures -----------------------------------------------------------------------------------


def deltas(summaries: Sequence[ConditionSummary]) -> Drawing:
    """Accuracy deltas with intervals, over the range of the random controls."""
    texts = [f"{summary.name} {interval_text(summary.accuracy)}" for summary in summaries]
    legend = [("circle", "mark", "delta, 95% interval")]
    if any(summary.n_controls for summary in summaries):
        legend.append(("bar", "band", "random controls"))
    alt = f"Accuracy deltas in points: {'; '.join(texts)}."
    drawing, rows = _rows(alt, [summary.name for summary in summaries], 30, 30, legend)
    scale = spanning(_extent(summaries), _LABELS, _RIGHT)
    drawing.x_axis(scale, 30, drawing.height - 38, "change of accuracy, points")
    chance = chance_distance(summaries)
    if chance is not None and scale.low <= chance <= scale.high:
        drawing.line(scale(chance), 30, scale(chance), drawing.height - 38, "guide")
        drawing.text(scale(chance), 40, "chance", "tick", "middle")
    for y, summary in zip(rows, summaries, strict=True):
        accuracy, controls = summary.accuracy, summary.controls
        if controls is not None and controls.n_controls:
            says = f"random controls {controls.low:+.1f} to {controls.high:+.1f}"
            _band(drawing, scale(controls.low), scale(controls.high), y, 18, says)
        drawing.line(scale(accuracy.low), y, scale(accuracy.high), y, "whisker")
        for end in (accuracy.low, accuracy.high):
            drawing.line(scale(end), y - 4, scale(end), y + 4, "whisker")
        css = "mark" if corrected_p(summary) < ALPHA else "mark hollow"
        drawing.mark("circle", scale(accuracy.delta), y, css, interval_text(accuracy), 4.5)
    return drawing


def _extent(summaries: Sequence[ConditionSummary]) -> list[float]:
    """All deltas, with the ends of their intervals and of the controls' ranges."""
    values: list[float] = []
    for summary in summaries:
        values += [summary.accuracy.low, summary.accuracy.high, summary.accuracy.delta]
        if summary.controls is not None and summary.controls.n_controls:
            values += [summary.controls.low, summary.controls.high]
    return values


def _rows(
    alt: str,
    names: Sequence[str],
    height: float,
    top: float,
    legend: Sequence[tuple[str, str, str]],
) -> tuple[Drawing, list[float]]:
    """A drawing with a legend and a named row for each name, and where the rows are.

    Args:
        height: of a row.
        top: of the first row.
        legend: form, style and text of each mark; `bar` is a form too.
    """
    drawing = Drawing(WIDTH, top + height * len(names) + 38, alt)
    _legend(drawing, legend)
    middles = [top + height * (number + 0.5) for number in range(len(names))]
    for y, name in zip(middles, names, strict=True):
        drawing.text(_LABELS - 8, y + 4, clipped(name, _CHARACTERS), "label", "end")
    return drawing, middles


def _legend(drawing: Drawing, entries: Sequence[tuple[str, str, str]]) -> None:
    """Marks and what they stand for, in a line at the top."""
    x = 2
    for form, css, text in entries:
        if form == "bar":
            drawing.bar(x, 4, 14, 10, css, "")
        else:
            drawing.mark(form, x + 7, 9, css, r=4)
        drawing.text(x + 20, 13, text, "tick")
        x += 36 + 6 * len(text)


def _band(drawing: Drawing, left: float, right: float, y: float, height: float, says: str) -> None:
    drawing.bar(left - 1, y - height / 2, right - left + 2, height, "band", says)


def flip_bars(summaries: Sequence[ConditionSummary]) -> Drawing:
    """Docs lost to the left and gained to the right, a row for each condition."""
    flips = {summary.name: summary.mcnemar for summary in summaries if summary.mcnemar}
    texts = [f"{name} {docs.n_lost} lost, {docs.n_gained} gained" for name, docs in flips.items()]
    legend = [("bar", "bad hatched", "lost"), ("bar", "good", "gained")]
    alt = f"Docs that changed: {'; '.join(texts)}."
    drawing, rows = _rows(alt, list(flips), 26, 28, legend)
    low = -max([1, *(docs.n_lost for docs in flips.values())])
    high = max([1, *(docs.n_gained for docs in flips.values())])
    # Room for the numbers at the ends of the bars.
    scale = Scale(low, high, _LABELS + 30, _RIGHT - 26)
    drawing.x_axis(scale, 28, drawing.height - 38, "docs", 5, count_text)
    for y, docs in zip(rows, flips.values(), strict=True):
        left, right = scale(-docs.n_lost), scale(docs.n_gained)
        drawing.bar(scale(0), y - 7, left - scale(0), 14, "bad hatched", f"{docs.n_lost} lost")
        drawing.bar(scale(0), y - 7, right - scale(0), 14, "good", f"{docs.n_gained} gained")
        drawing.text(left - 4, y + 4, str(docs.n_lost), "tick", "end")
        drawing.text(right + 4, y + 4, str(docs.n_gained), "tick")
    return drawing


def layers(good: Sequence[int], bad: Sequence[int]) -> Drawing:
    """How many good neurons (up) and bad ones (down) each layer has."""
    counts = list(enumerate(zip(good, bad, strict=True)))
    texts = [f"layer {n}: {up} good, {down} bad" for n, (up, down) in counts if up or down]
    left, top, bottom = 34, 26, 182
    drawing = Drawing(WIDTH, 220, f"Neurons by layer. {', '.join(texts) or 'None'}.")
    _legend(drawing, (("bar", "good", "good"), ("bar", "bad hatched", "bad")))
    scale = spanning([-max([0, *bad]), max([0, *good])], bottom, top, least=2)
    drawing.y_axis(scale, left, _RIGHT, text=count_text)
    step = (_RIGHT - left) / len(good)
    width = min(0.8 * step, 26)
    for layer, (up, down) in counts:
        x = left + step * (layer + 0.5) - width / 2
        for count, css, valence in ((up, "good", "good"), (-down, "bad hatched", "bad")):
            if count:
                says = f"layer {layer}: {abs(count)} {valence}"
                drawing.bar(x, scale(0), width, scale(count) - scale(0), css, says)
    steps = (1, 2, 5, 10, 20, 50, 100, 1000, len(good))
    for layer in range(0, len(good), next(n for n in steps if len(good) / n <= 16)):
        drawing.text(left + step * (layer + 0.5), bottom + 16, str(layer), "tick", "middle")
    drawing.text((left + _RIGHT) / 2, bottom + 32, "layer", "axis", "middle")
    return drawing


def halves(
    half_sums: NDArray[np.float64], good: Sequence[Neuron], bad: Sequence[Neuron], correlation: str
) -> Drawing:
    """Scores of the selected neurons from one half of the questions, against the other half.

    Of more than `MOST_MARKS` good or bad ones, the strongest are drawn.

    Args:
        half_sums: [halves, layers, neurons].
        good: the strongest first.
        bad: likewise.
        correlation: of the halves, in words.
    """
    left, top, bottom = 52, 26, 236
    alt = f"Scores of the selected neurons from either half of the questions; {correlation}."
    drawing = Drawing(WIDTH, bottom + 38, alt)
    _legend(drawing, (("circle", "good mark-only", "good"), ("square", "bad mark-only", "bad")))
    shown = [
        (form, css, neuron)
        for form, css, neurons in (("circle", "good", good), ("square", "bad", bad))
        for neuron in neurons[:MOST_MARKS]
    ]
    points = [half_sums[:, neuron.layer, neuron.index].tolist() for _, _, neuron in shown]
    values = [value for point in points for value in point]
    least = max(map(abs, values), default=1.0) or 1.0
    across = spanning(values, left, _RIGHT, least)
    up = spanning(values, bottom, top, least)
    drawing.x_axis(across, top, bottom, "score, even questions")
    drawing.y_axis(up, left, _RIGHT)
    drawing.line(across(across.low), up(up.low), across(across.high), up(up.high), "guide")
    for (form, css, neuron), (x, y) in zip(shown, points, strict=True):
        says = f"{neuron.layer}:{neuron.index}"
        drawing.mark(form, across(x), up(y), f"{css} mark-only", says, 3.2)
    drawing.text(_RIGHT, 13, "up: odd questions", "axis", "end")
    return drawing


class GroupChange(NamedTuple):
    """Accuracy on a group of questions, percent.

    Attributes:
        before: without intervention.
        after: under the condition.
        controls: lowest and highest under the random controls; None where there are none.
        chance: the accuracy of guessing; None where it is not known.
    """

    name: str
    before: float
    after: float
    controls: tuple[float, float] | None = None
    chance: float | None = None


def groups(changes: Sequence[GroupChange], condition: str) -> Drawing:
    """Accuracy by group, unmasked and under a condition, the largest losses first.

    Of more than `MOST_GROUPS`, those that changed most are drawn.
    """
    by_size = sorted(changes, key=lambda group: -abs(group.after - group.before))
    shown = sorted(by_size[:MOST_GROUPS], key=lambda group: group.after - group.before)
    texts = [f"{group.name} {group.before:.0f} to {group.after:.0f}" for group in shown]
    legend = [("circle", "before", "unmasked"), ("diamond", "mark", condition)]
    if any(group.controls for group in changes):
        legend.append(("bar", "band", "random controls"))
    alt = f"Accuracy by group, unmasked and {condition}: {'; '.join(texts)}."
    drawing, rows = _rows(alt, [group.name for group in shown], 20, 28, legend)
    scale = Scale(0, 100, _LABELS, _RIGHT)
    drawing.x_axis(scale, 28, drawing.height - 38, "accuracy %")
    for y, group in zip(rows, shown, strict=True):
        before, after = scale(group.before), scale(group.after)
        if group.controls is not None:
            low, high = map(scale, group.controls)
            _band(drawing, low, high, y, 14, "random controls")
        if group.chance is not None:
            chance = scale(group.chance)
            drawing.line(chance, y - 10, chance, y + 10, "guide")
        drawing.line(before, y, after, y, "whisker")
        says = f"{group.name}: {group.before:.1f} to {group.after:.1f}"
        # A ring that is wider than the diamond, which would hide it where nothing changed.
        drawing.mark("circle", before, y, "before", says, r=6)
        drawing.mark("diamond", after, y, "mark", says, r=2.4)
    return drawing


# Small multiples ----------------------------------------------------------------------------------


def by_factor(points: Sequence[ConditionSummary]) -> list[Drawing]:
    """Delta by factor, a panel for each number of neurons; empty without two factors.

    Args:
        points: of one surface, with the conditions that are not points.
    """
    swept = [point for point in points if point.scale is not None and point.top_k is not None]
    factors = sorted({float(point.scale or 0) for point in swept} | {_UNMASKED_FACTOR})
    if len(factors) < 3:
        return []
    counts = sorted({point.top_k or 0 for point in swept})
    # Evenly apart: factors of 0.5, 2 and 100 would not fit on a line.
    x_of = {factor: float(index) for index, factor in enumerate(factors)}
    ticks = [(x, factor_text(factor)) for factor, x in x_of.items()]
    up = spanning(_extent(swept), _PANEL_BOTTOM, _PANEL_TOP)
    panels = []
    for count in (counts[index] for index in spread(len(counts), MOST_PANELS)):
        by_scale = {float(point.scale or 0): point for point in swept if point.top_k == count}
        curve = [(x, by_scale.get(factor)) for factor, x in x_of.items()
                 if factor in by_scale or factor == _UNMASKED_FACTOR]  # fmt: skip
        title = f"{count} neuron{'s' if count > 1 else ''}"
        panels.append(_panel(title, "factor", curve, ticks, len(factors) - 1.0, up))
    return panels


def by_number(points: Sequence[ConditionSummary]) -> list[Drawing]:
    """Delta by number of neurons, a panel for each factor; empty without two numbers."""
    swept = [point for point in points if point.top_k is not None]
    counts = sorted({point.top_k or 0 for point in swept})
    if len(counts) < 2:
        return []
    low, high = math.log(counts[0]), math.log(counts[-1])
    x_of = {count: (math.log(count) - low) / (high - low) for count in counts}
    ticks = [
        (x, f"{count:,}" if count < 10_000 else f"{count / 1000:.3g}k") for count, x in x_of.items()
    ]
    curves: dict[str, list[tuple[float, ConditionSummary | None]]] = {}
    for point in sorted(swept, key=lambda p: (p.scale or 0.0, p.condition, p.top_k or 0)):
        factor = "" if point.scale is None else f" ×{factor_text(point.scale)}"
        curves.setdefault(point.condition + factor, []).append((x_of[point.top_k or 0], point))
    up = spanning(_extent(swept), _PANEL_BOTTOM, _PANEL_TOP)
    titles = list(curves)
    return [
        _panel(titles[index], "neurons", curves[titles[index]], ticks, 1.0, up)
        for index in spread(len(titles), MOST_PANELS)
    ]


def _panel(
    title: str,
    axis: str,
    curve: Sequence[tuple[float, ConditionSummary | None]],
    ticks: Sequence[tuple[float, str]],
    width: float,
    up: Scale,
) -> Drawing:
    """A curve of deltas with intervals over the ranges of the controls.

    Args:
        axis: name of the horizontal axis.
        curve: position on that axis, and the point there; None for the unmasked model.
        ticks: position on that axis, and its label.
        width: the last position.
        up: scale of the deltas.
    """
    across = Scale(0, width, _PANEL_LEFT + 10, _PANEL_RIGHT - 10)
    values = [0.0 if point is None else point.accuracy.delta for _, point in curve]
    shown = ", ".join(f"{value:+.1f}" for value in values)
    alt = f"{title}: deltas in points by {axis}, {shown}."
    drawing = _empty_panel(alt, title, axis, [(across(x), text) for x, text in ticks], up)
    for position, point in curve:
        if point is not None and point.controls is not None and point.n_controls:
            low, high = up(point.controls.low), up(point.controls.high)
            drawing.bar(across(position) - 5, low + 1, 10, high - low - 2, "band", "")
    chance = chance_distance([point for _, point in curve if point is not None])
    if chance is not None and up.low <= chance <= up.high:
        drawing.line(_PANEL_LEFT, up(chance), _PANEL_RIGHT, up(chance), "guide")
    drawing.curve([(across(x), up(y)) for (x, _), y in zip(curve, values, strict=True)], "curve")
    for position, point in curve:
        x = across(position)
        if point is None:
            drawing.mark("square", x, up(0), "before", "unmasked", 3)
            continue
        accuracy = point.accuracy
        drawing.line(x, up(accuracy.low), x, up(accuracy.high), "whisker")
        says = f"{point.name}: {interval_text(accuracy)}"
        drawing.mark("circle", x, up(accuracy.delta), "mark", says, 3.2)
    return drawing


def _empty_panel(
    alt: str, title: str, axis: str, ticks: Sequence[tuple[float, str]], up: Scale
) -> Drawing:
    """A panel with its axes; without ticks that would run into the one before."""
    drawing = Drawing(PANEL_WIDTH, PANEL_HEIGHT, alt, title)
    drawing.y_axis(up, _PANEL_LEFT, _PANEL_RIGHT, 5)
    free = -math.inf
    for x, text in ticks:
        half = _TICK / 2 * len(text)
        if x - half > free:
            drawing.text(x, _PANEL_BOTTOM + 15, text, "tick", "middle")
            free = x + half + 3
    drawing.text((_PANEL_LEFT + _PANEL_RIGHT) / 2, _PANEL_BOTTOM + 30, axis, "axis", "middle")
    return drawing


def option_panels(shares: OptionShares) -> list[Drawing]:
    """The predicted options, a panel for the unmasked run and for each condition.

    Of more than `MOST_PANELS`, which can only be points, evenly spaced ones are shown.
    """
    most = max([1.0, *shares.gold, *(value for row in shares.predicted.values() for value in row)])
    up = Scale(0, 1.05 * most, _PANEL_BOTTOM, _PANEL_TOP)
    step = (_PANEL_RIGHT - _PANEL_LEFT) / len(shares.names)
    half = min(0.36 * step, 14)
    room = max(4, int(step / _TICK))
    ticks = [
        (_PANEL_LEFT + step * (i + 0.5), clipped(name, room)) for i, name in enumerate(shares.names)
    ]
    panels = []
    names = list(shares.predicted)
    for name in (names[index] for index in spread(len(names), MOST_PANELS)):
        bars = list(zip(ticks, shares.names, shares.predicted[name], shares.gold, strict=True))
        listed = ", ".join(f"{option} {value:.0f}" for _, option, value, _ in bars)
        alt = f"Predicted options, {name}, in percent: {listed}."
        drawing = _empty_panel(alt, name, "% of docs by option", ticks, up)
        for (x, _), option, value, gold in bars:
            says = f"{option} predicted in {value:.1f}% of the docs, gold in {gold:.1f}%"
            height = up(value) - _PANEL_BOTTOM
            drawing.bar(x - half, _PANEL_BOTTOM, 2 * half, height, "predicted", says)
            drawing.line(x - 1.3 * half, up(gold), x + 1.3 * half, up(gold), "gold")
        panels.append(drawing)
    return panels
