"""The single figures of `report.html`: deltas, flips, layers, halves, groups. Pure.

Colour never carries meaning alone: marks differ in form or position too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.svg import Drawing, Scale, clipped, count_text, spanning, spread
from neuronllm_eval.neurons.neuron_set import Neuron
from neuronllm_eval.reporting.wording import ALPHA, corrected_p, interval_text

WIDTH = 356
_LABELS = 122  # pixels for the names of rows
_CHARACTERS = 16  # that fit there
_RIGHT = WIDTH - 12
_MOST_MARKS = 150  # good neurons, and bad ones, in a scatter
_MOST_GROUPS = 40


def deltas(summaries: Sequence[ConditionSummary]) -> Drawing:
    """Accuracy deltas with intervals, over the range of the random controls."""
    rows = "; ".join(f"{each.name} {interval_text(each.accuracy)}" for each in summaries)
    row, top = 30, 30
    bottom = top + row * len(summaries)
    drawing = Drawing(WIDTH, bottom + 38, f"Accuracy deltas in points: {rows}.")
    legend = [("circle", "mark", "delta, 95% interval")]
    if any(each.controls and each.controls.n_controls for each in summaries):
        legend.append(("bar", "band", "random controls"))
    _legend(drawing, legend)
    values = [value for each in summaries for value in _extent(each)]
    scale = spanning(values, _LABELS, _RIGHT)
    drawing.x_axis(scale, top, bottom, "change of accuracy, points")
    for number, each in enumerate(summaries):
        y = top + row * (number + 0.5)
        drawing.text(_LABELS - 8, y + 4, clipped(each.name, _CHARACTERS), "label", "end")
        controls = each.controls
        if controls is not None and controls.n_controls:
            low, high = scale(controls.low), scale(controls.high)
            says = f"random controls {controls.low:+.1f} to {controls.high:+.1f}"
            drawing.bar(low - 1, y - 9, high - low + 2, 18, "band", says)
        drawing.line(scale(each.accuracy.low), y, scale(each.accuracy.high), y, "whisker")
        for end in (each.accuracy.low, each.accuracy.high):
            drawing.line(scale(end), y - 4, scale(end), y + 4, "whisker")
        clear = "mark" if corrected_p(each) < ALPHA else "mark hollow"
        drawing.mark(
            "circle", scale(each.accuracy.delta), y, clear, interval_text(each.accuracy), 4.5
        )
    return drawing


def _extent(each: ConditionSummary) -> list[float]:
    values = [each.accuracy.low, each.accuracy.high, each.accuracy.delta]
    if each.controls is not None and each.controls.n_controls:
        values += [each.controls.low, each.controls.high]
    return values


def _legend(drawing: Drawing, entries: Sequence[tuple[str, str, str]], x: float = 2) -> None:
    """Marks and what they stand for, in a line at the top."""
    for kind, css, text in entries:
        if kind == "bar":
            drawing.bar(x, 4, 14, 10, css, "")
        else:
            drawing.mark(kind, x + 7, 9, css, r=4)
        drawing.text(x + 20, 13, text, "tick")
        x += 36 + 6 * len(text)


def flip_bars(summaries: Sequence[ConditionSummary]) -> Drawing:
    """Docs lost to the left and gained to the right, a row for each condition."""
    pairs = [(e.name, e.mcnemar.n_lost, e.mcnemar.n_gained) for e in summaries if e.mcnemar]
    rows = "; ".join(f"{name} {lost} lost, {gained} gained" for name, lost, gained in pairs)
    row, top = 26, 28
    bottom = top + row * len(pairs)
    drawing = Drawing(WIDTH, bottom + 38, f"Docs that changed: {rows}.")
    _legend(drawing, (("bar", "bad hatched", "lost"), ("bar", "good", "gained")))
    low = -max([1, *(lost for _, lost, _ in pairs)])
    high = max([1, *(gained for _, _, gained in pairs)])
    # Room for the numbers at the ends of the bars.
    scale = Scale(low, high, _LABELS + 30, _RIGHT - 26)
    drawing.x_axis(scale, top, bottom, "docs", 5, count_text)
    for number, (name, lost, gained) in enumerate(pairs):
        y = top + row * (number + 0.5)
        drawing.text(_LABELS - 8, y + 4, clipped(name, _CHARACTERS), "label", "end")
        left, right = scale(-lost), scale(gained)
        drawing.bar(scale(0), y - 7, left - scale(0), 14, "bad hatched", f"{lost} lost")
        drawing.bar(scale(0), y - 7, right - scale(0), 14, "good", f"{gained} gained")
        drawing.text(left - 4, y + 4, str(lost), "tick", "end")
        drawing.text(right + 4, y + 4, str(gained), "tick")
    return drawing


def layers(good: Sequence[int], bad: Sequence[int]) -> Drawing:
    """How many good neurons (up) and bad ones (down) each layer has."""
    counts = ", ".join(
        f"layer {layer}: {one} good, {other} bad"
        for layer, (one, other) in enumerate(zip(good, bad, strict=True))
        if one or other
    )
    height, left, top, bottom = 220, 34, 26, 182
    drawing = Drawing(WIDTH, height, f"Neurons by layer. {counts or 'None'}.")
    _legend(drawing, (("bar", "good", "good"), ("bar", "bad hatched", "bad")))
    low, high = -max([0, *bad]), max([0, *good])
    scale = spanning([low, high], bottom, top, least=2)
    drawing.y_axis(scale, left, _RIGHT, text=count_text)
    step = (_RIGHT - left) / len(good)
    width = min(0.8 * step, 26)
    for layer, (one, other) in enumerate(zip(good, bad, strict=True)):
        x = left + step * (layer + 0.5) - width / 2
        for count, css, kind in ((one, "good", "good"), (-other, "bad hatched", "bad")):
            if count:
                says = f"layer {layer}: {abs(count)} {kind}"
                drawing.bar(x, scale(0), width, scale(count) - scale(0), css, says)
    for layer in _readable(len(good)):
        drawing.text(left + step * (layer + 0.5), bottom + 16, str(layer), "tick", "middle")
    drawing.text((left + _RIGHT) / 2, bottom + 32, "layer", "axis", "middle")
    return drawing


def _readable(count: int) -> list[int]:
    """The indices, out of `count`, whose numbers are written below."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, count) if count / step <= 16)
    return list(range(0, count, step))


def halves(
    half_sums: NDArray[np.float64], good: Sequence[Neuron], bad: Sequence[Neuron], correlation: str
) -> Drawing:
    """Scores of the selected neurons from one half of the questions, against the other half."""
    left, top, bottom = 52, 26, 236
    alt = f"Scores of the selected neurons from either half of the questions; {correlation}."
    drawing = Drawing(WIDTH, bottom + 38, alt)
    _legend(drawing, (("circle", "good mark-only", "good"), ("square", "bad mark-only", "bad")))
    shown = [
        (kind, css, neuron)
        for kind, css, found in (("circle", "good", good), ("square", "bad", bad))
        for neuron in (found[index] for index in spread(len(found), _MOST_MARKS))
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


def groups(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    condition: str,
    controls: Sequence[tuple[float, float] | None] = (),
) -> Drawing:
    """Accuracy by group, unmasked and under a condition, the largest losses first.

    Args:
        before: [groups] accuracy without intervention, percent.
        after: [groups] accuracy under the condition, percent.
        controls: [groups] lowest and highest accuracy under the random controls; may be empty.
    """
    order = sorted(range(len(names)), key=lambda index: (after[index] - before[index], index))
    order = [order[index] for index in spread(len(order), _MOST_GROUPS)]
    row, top = 20, 28
    bottom = top + row * len(order)
    rows = "; ".join(f"{names[i]} {before[i]:.0f} to {after[i]:.0f}" for i in order)
    drawing = Drawing(WIDTH, bottom + 38, f"Accuracy by group, unmasked and {condition}: {rows}.")
    entries = [("circle", "before", "unmasked"), ("diamond", "mark", condition)]
    _legend(drawing, [*entries, *([("bar", "band", "random controls")] if any(controls) else [])])
    scale = Scale(0, 100, _LABELS, _RIGHT)
    drawing.x_axis(scale, top, bottom, "accuracy %")
    for number, index in enumerate(order):
        y = top + row * (number + 0.5)
        one, other = scale(before[index]), scale(after[index])
        drawing.text(_LABELS - 8, y + 4, clipped(names[index], _CHARACTERS), "label", "end")
        if controls and (span := controls[index]) is not None:
            low, high = map(scale, span)
            drawing.bar(low - 1, y - 7, high - low + 2, 14, "band", "random controls")
        drawing.line(one, y, other, y, "whisker")
        says = f"{names[index]}: {before[index]:.1f} to {after[index]:.1f}"
        # A ring that is wider than the diamond, which would hide it where nothing changed.
        drawing.mark("circle", one, y, "before", says, r=6)
        drawing.mark("diamond", other, y, "mark", says, r=2.4)
    return drawing
