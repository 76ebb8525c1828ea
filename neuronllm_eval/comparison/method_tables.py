"""The tables of `comparison.md`. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from neuronllm_eval.comparison.labels import Names
from neuronllm_eval.comparison.method_comparison import Comparison, against_text, unpaired
from neuronllm_eval.comparison.method_differences import Difference
from neuronllm_eval.comparison.method_effects import PAPERS, SWAPPED, Effect
from neuronllm_eval.comparison.method_runs import Key
from neuronllm_eval.evaluation.stats.paired_delta import MeanChange, PairedDelta, RelativeChange
from neuronllm_eval.evaluation.stats.significance import ControlRank
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.reporting.wording import p_text

_TABLE_NOTE = (
    "Brackets: 95% interval of that cell alone, paired, by question. K: neurons of each kind that "
    "were asked for; good, bad: that there were. Runs: repeats with other seeds, which are pooled; "
    "a question that several of them ask is one. A condition without neurons to edit is not "
    "judged; good only: of the two kinds that it edits there was one. comparison.json has each "
    "run by itself."
)
_TESTS_NOTE = (
    "p by question, McNemar's exact p by doc (docs lost, gained): both after Holm's correction for "
    "so many tests, the conditions of the row; those that edit the same neurons by the same "
    "factors are one. McNemar's test takes the docs of a question, and of repeats that ask it "
    "again, as independent: quote p by question."
)
_CONTROLS_NOTE = (
    "Among the condition and its random controls, 1 being beyond all of them on the expected side, "
    "with its one-sided empirical p, not corrected. Repeats are pooled: their first controls are "
    "one, over the docs of all, and so on."
)
_SECONDS_NOTE = (
    "What each stage took when it was done, in this call or an earlier one. Methods that are "
    "identified together share one pass over the questions, which has one time."
)
_RELATIVE_NOTE = "RAC, RCC: change of accuracy, of confidence, in percent of the unmasked."


def comparison_text(found: Comparison, seconds: Mapping[str, float]) -> str:
    """All tables, with how to read them.

    Args:
        found: what `comparison.compare` gives.
        seconds: by stage, what it took.
    """
    parts = [
        "## Accuracy under each condition, points against unmasked",
        delta_table(found),
        _TABLE_NOTE,
        "## Neurons that each condition edits",
        edited_table(found),
        "## Tests of these changes: p, McNemar's p",
        p_table(found),
        _TESTS_NOTE,
    ]
    if places := controls_table(found):
        parts += ["## Place among random controls", places, _CONTROLS_NOTE]
    parts += [
        "## Enhance minus degrade, points",
        overview(found),
    ]
    against = escaped(against_text(found))
    if against:
        parts += [
            f"## Enhance minus degrade less that of {against}, points",
            difference_table(found),
            "On the same questions and seeds, by question; p: of the signs of the questions' "
            f"differences, corrected (Holm) for all methods held against {against} at the same K, "
            "model and task. The interval is of that cell alone, so where the two disagree, go by "
            "p.",
        ]
    if left := unpaired(found):
        parts.append(
            f"Not held against {against or 'another method'}, since no run of it has the same "
            f"terms, seeds and docs: {escaped(', '.join(left))}. `neuronllm-eval leaderboard` says "
            "in what runs differ."
        )
    parts += ["## Relative changes", relative_table(found), _RELATIVE_NOTE]
    if seconds:
        times = [[escaped(stage), f"{taken:.1f}"] for stage, taken in seconds.items()]
        parts += ["## Seconds", markdown_table(["stage", "s"], times), _SECONDS_NOTE]
    return "\n\n".join(parts) + "\n"


SHOWN = tuple(name for name in CONDITIONS if name != UNMASKED)
_LEAD = ("model", "task", "K", "method", "good, bad", "runs")


def delta_table(found: Comparison) -> str:
    """Accuracy deltas in points with their intervals; of several runs, pooled."""
    return _by_condition(
        found,
        (*SHOWN, SWAPPED),
        lambda each, name: _interval(each.accuracy.get(name)),
        ("unmasked", lambda each: f"{each.unmasked:.1f}"),
    )


def edited_table(found: Comparison) -> str:
    """How many neurons each condition edits; of several runs, each number that occurs."""

    def cell(each: Effect, name: str) -> str:
        counts = (str(own.n_neurons) for own in each.edited.get(name, ()))
        return " / ".join(dict.fromkeys(counts))

    return _by_condition(found, SHOWN, cell)


def p_table(found: Comparison) -> str:
    """p and McNemar's p after Holm's correction, and the docs lost and gained."""

    def cell(each: Effect, name: str) -> str:
        if (own := each.tests.get(name)) is None:
            return ""
        p_values = (own.corrected.p_value, own.corrected.mcnemar_p_value)
        flips = f"{own.mcnemar.n_lost}, {own.mcnemar.n_gained}"
        return f"{', '.join(map(p_text, p_values))} ({flips})"

    def family(each: Effect) -> str:
        return str(next((own.corrected.n_tests for own in each.tests.values()), ""))

    return _by_condition(found, SHOWN, cell, ("tests", family))


def controls_table(found: Comparison) -> str:
    """The place among the random controls, with its p; empty where there are none."""
    places = [own.controls for each in found.effects for own in each.tests.values()]
    if not any(places):
        return ""

    def cell(each: Effect, name: str) -> str:
        return _place(each.tests[name].controls) if name in each.tests else ""

    return _by_condition(found, SHOWN, cell)


def _place(rank: ControlRank | None) -> str:
    if rank is None:
        return ""
    return f"{rank.n_as_extreme + 1} of {rank.n_controls + 1}, {p_text(rank.p_value)}"


def _by_condition(
    found: Comparison,
    conditions: tuple[str, ...],
    cell: Callable[[Effect, str], str],
    extra: tuple[str, Callable[[Effect], str]] | None = None,
) -> str:
    """A row for each effect, a column for each condition that some of them have."""
    effects, names = found.effects, found.names
    shown = [
        n for n in conditions if any(n in each.edited or n in each.accuracy for each in effects)
    ]
    more = () if extra is None else (extra,)
    rows = [
        [
            *_lead_cells(names, each),
            *(text(each) for _, text in more),
            *(_with_note(cell(each, name), each.note(name)) for name in shown),
        ]
        for each in effects
    ]
    heads = [*_LEAD, *(head for head, _ in more), *(name.replace("_", " ") for name in shown)]
    return markdown_table(heads, rows)


def _with_note(text: str, note: str) -> str:
    """A cell, and what its condition had not to edit; that alone where nothing is measured."""
    if text in ("", "0"):
        return note
    return f"{text} ({note})" if note else text


def overview(found: Comparison) -> str:
    """Enhance minus degrade in points, with intervals: one column per model, task and split."""
    names = found.names
    cells = {each.key: _interval(each.accuracy.get(SWAPPED)) for each in found.effects}
    return _wide(names, cells)


def difference_table(found: Comparison) -> str:
    """Enhance minus degrade less that of the method they are held against, in points."""
    names, n_repeats = found.names, {each.key: len(each.seeds) for each in found.effects}

    def cell(each: Difference) -> str:
        seeds = f" ({len(each.seeds)} of {n_repeats[each.key]} seeds)"
        fewer = len(each.seeds) < n_repeats.get(each.key, 0)
        return f"{_interval(each.change)} p {p_text(each.corrected_p)}{seeds if fewer else ''}"

    return _wide(names, {each.key: cell(each) for each in found.differences})


def relative_table(found: Comparison) -> str:
    """RAC and RCC of degrade and enhance in percent, as the paper lays its table out."""
    names = found.names
    rows = [
        [
            *_lead_cells(names, each),
            *(_percent(measure.get(name)) for name in PAPERS for measure in (each.rac, each.rcc)),
        ]
        for each in found.effects
        if each.rac
    ]
    heads = [f"{name} {measure}" for name in PAPERS for measure in ("RAC %", "RCC %")]
    return markdown_table([*_LEAD, *heads], rows)


def _lead_cells(names: Names, each: Effect) -> list[str]:
    """The first cells of a row, under `_LEAD`."""
    key = each.key
    sizes = sorted({f"{g}, {b}" for g, b in zip(each.n_good, each.n_bad, strict=True)})
    cells = (names.model(key), names.task(key), str(key.top_k), names.method(key))
    return [escaped(cell) for cell in (*cells, " / ".join(sizes), str(len(each.seeds)))]


def _wide(names: Names, cells: Mapping[Key, str]) -> str:
    """A table with a row for each K and method, a column for each model, task and split."""
    columns: dict[tuple[str, str], None] = {}
    rows: dict[tuple[int, str], dict[tuple[str, str], str]] = {}
    for key, cell in cells.items():
        column = (names.model(key), names.task(key))
        columns[column] = None
        rows.setdefault((key.top_k, names.method(key)), {})[column] = cell
    heads = [f"{model}: {task}" if names.several_models else task for model, task in columns]
    lines = [
        [str(top_k), escaped(method), *(own.get(column, "") for column in columns)]
        for (top_k, method), own in sorted(rows.items(), key=lambda each: each[0][0])
    ]
    return markdown_table(["K", "method", *map(escaped, heads)], lines)


def _interval(change: PairedDelta | MeanChange | None) -> str:
    """A change in points and its interval; empty for None."""
    if change is None:
        return ""
    return f"{change.delta:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


def _percent(change: RelativeChange | None) -> str:
    if change is None or math.isnan(change.change):
        return ""
    bounds = "" if math.isnan(change.low) else f" [{change.low:+.1f}, {change.high:+.1f}]"
    return f"{change.change:+.1f}{bounds}"
