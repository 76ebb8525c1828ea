"""Several tasks: `report.html` of their folder, and the table that ends their command.

The page has a table for each condition with one row per run, and leads to the page of each. There
is a mean over runs only if they share model, method, number of neurons, factors and positions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from neuronllm_eval.comparison.pooling import differing, over_tasks, shared_conditions
from neuronllm_eval.comparison.rows import ComparedRun, Row, read_run
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.markdown import escaped, markdown_table, one_line
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.reporting import charts
from neuronllm_eval.reporting.condition_tables import (
    CONTROLS_NOTE,
    Table,
    change_cells,
    control_cells,
)
from neuronllm_eval.reporting.sections import Figure, Section
from neuronllm_eval.reporting.write_reports import page_of
from neuronllm_eval.runs.directory import PAGE_FILE, RunDirectory, find_runs

logger = logging.getLogger(__name__)
_GENERATOR = "neuronllm-eval overview"
_HEADS = ("accuracy %", "delta (points)", "95% interval", "random controls", "beyond")
_LONGEST = 48  # characters of a fact; a path tells most by its end
_HEAD_BYTES = 65536  # the style sheet is in the head, and small


def write_overviews(runs: Sequence[RunDirectory], top: Path) -> list[ComparedRun]:
    """`write_overview` for every folder that one of the runs lies in, `top` or below it.

    Above `top`, as of a single run, an existing page is rewritten.

    Returns:
        The runs with their rows, in order; those that cannot be read are left out.
    """
    results: dict[Path, ComparedRun] = {}
    for folder in dict.fromkeys(run.path.parent for run in runs):
        if folder.resolve().is_relative_to(top.resolve()) or _is_overview(folder / PAGE_FILE):
            results |= write_overview(folder, runs)
    return [results[run.path] for run in runs if run.path in results]


def write_overview(folder: Path, known: Sequence[RunDirectory] = ()) -> dict[Path, ComparedRun]:
    """Write the page of a folder; where there are not several runs in it, remove an earlier one.

    Runs that cannot be read are left out with a warning: they may be of other commands.

    Args:
        folder: of the runs.
        known: runs whose files have been read already.

    Returns:
        The runs in it, by their directories.

    Raises:
        ArtifactError: a folder is in the page's place.
    """
    by_path = {run.path: run for run in known}
    runs = [] if RunDirectory(folder).settings.exists() else find_runs(folder)
    runs = [by_path.get(run.path, run) for run in runs]
    results: dict[Path, ComparedRun] = {}
    for run in runs:
        try:
            results[run.path] = read_run(run, with_docs=True)
        except ArtifactError as error:
            logger.warning("%s is left out of %s: %s", run.path, folder / PAGE_FILE, error.found)
    if len(results) > 1:
        title = one_line(folder.resolve().name)
        write_whole(folder / PAGE_FILE, render_overview(title, list(results.values())))
    elif _is_overview(folder / PAGE_FILE):
        (folder / PAGE_FILE).unlink()
    return results


def _is_overview(path: Path) -> bool:
    """Whether a file is a page that this module wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return f'<meta name="generator" content="{_GENERATOR}">'.encode() in head


def render_overview(title: str, results: Sequence[ComparedRun]) -> str:
    """The page's content; the same runs give the same bytes.

    Args:
        title: above it.
        results: of the tasks, in order.
    """
    evaluated = [each for each in results if each.rows]
    terms = differing(evaluated or results)
    conditions = shared_conditions(evaluated)
    together = {} if terms or not evaluated else over_tasks(evaluated)
    main = conditions[0] if conditions else None
    links = tuple(
        (one_line(each.facts.task), f"{quote(Path(each.facts.path).name)}/{PAGE_FILE}")
        for each in results
    )
    section = Section(
        "tasks",
        "By task",
        figures=() if main is None else (_figure(evaluated, main),),
        tables=(*_together(evaluated, together), *_by_condition(evaluated), *_waiting(results)),
        links=links,
    )
    facts = [
        (name.capitalize(), value if len(value) <= _LONGEST else f"…{value[1 - _LONGEST :]}")
        for name, value in (evaluated or results)[0].shared.items()
        if value and name not in differing(results)
    ]
    said = _headline(results, evaluated, main, None if main is None else together.get(main))
    return page_of(title, said, facts, [section], _GENERATOR)


def _together(
    evaluated: Sequence[ComparedRun], effects: Mapping[str, ConditionSummary]
) -> list[Table]:
    """What each condition did over all tasks."""
    if not effects or len(evaluated) < 2:
        return []
    first = next(iter(effects.values())).accuracy
    note = (
        f"Over the {first.n_docs:,} docs of {first.n_questions:,} questions together, unmasked "
        f"{first.unmasked:.1f}%; 95% intervals by question, of these tasks and no others. "
        "Random controls: the first of every task, the second, and so on."
    )
    rows = tuple((name, *_cells(each)) for name, each in effects.items())
    return [Table("All tasks together", ("condition", *_HEADS), rows, f"{note} {CONTROLS_NOTE}")]


def _by_condition(evaluated: Sequence[ComparedRun]) -> list[Table]:
    """A table for each condition, a row for each task that was evaluated under it."""
    tables = []
    terms = differing(evaluated) if evaluated else []
    for name in CONDITIONS[1:]:
        rows = tuple(
            (
                each.facts.task,
                *(each.shared[term] for term in terms),
                str(each.conditions[UNMASKED].summary.accuracy.n_questions),
                f"{each.conditions[UNMASKED].summary.accuracy.condition:.1f}",
                *_cells_or_note(each.conditions[name]),
            )
            for each in evaluated
            if name in each.conditions
        )
        heads = ("task", *terms, "questions", "unmasked %", *_HEADS)
        tables += [Table(f"Under {name}", heads, rows)] if rows else []
    return tables


def _waiting(results: Sequence[ComparedRun]) -> list[Table]:
    terms = differing(results)
    rows = tuple(
        (each.facts.task, *(each.shared[name] for name in terms))
        for each in results
        if not each.rows
    )
    return [Table("Not validated yet", ("task", *terms), rows)] if rows else []


def _cells_or_note(row: Row) -> tuple[str, ...]:
    if row.is_evaluated:
        return _cells(row.summary)
    return (row.note, *[""] * (len(_HEADS) - 1))


def _cells(effect: ConditionSummary) -> tuple[str, ...]:
    """As in `_HEADS`."""
    controls = control_cells(effect) if effect.n_controls else ("none", "")
    return (*change_cells(effect), *controls)


def _figure(evaluated: Sequence[ComparedRun], condition: str) -> Figure:
    changes = []
    for run in evaluated:
        effect = run.conditions[condition].summary
        before, controls = effect.accuracy.unmasked, effect.controls
        span = None
        if controls is not None and controls.n_controls:
            span = (before + controls.low, before + controls.high)
        task = one_line(run.facts.task)
        changes.append(charts.GroupChange(task, before, effect.accuracy.condition, span))
    caption = "Accuracy on each task; those that lost most stand first."
    if any(change.controls for change in changes):
        caption += " Grey: from the lowest to the highest random control."
    return Figure((charts.groups(changes, condition),), caption)


def _headline(
    results: Sequence[ComparedRun],
    evaluated: Sequence[ComparedRun],
    condition: str | None,
    effect: ConditionSummary | None,
) -> str:
    if condition is None:
        return f"{len(results)} tasks."
    changes = [each.conditions[condition].summary.accuracy.delta for each in evaluated]
    if effect is None:
        known = " and ".join(differing(evaluated))
        return (
            f"Over {len(evaluated)} runs, {condition} changes accuracy by {min(changes):+.1f} to "
            f"{max(changes):+.1f} points{_outdone(evaluated, condition)}; no mean, since they "
            f"differ in {known}."
        )
    accuracy = effect.accuracy
    beside = f", beyond {effect.n_beyond} of {effect.n_controls} random controls"
    if not effect.n_controls:
        some = any(each.conditions[condition].summary.n_controls for each in evaluated)
        beside = f", without random controls{' that all of them have' if some else ''}"
    tasks = f"{len(evaluated)} task{'s' if len(evaluated) > 1 else ''}"
    return (
        f"Over {tasks}, {condition} changes accuracy by {accuracy.delta:+.1f} points "
        f"(95% {accuracy.low:+.1f} to {accuracy.high:+.1f}){beside}; by task from "
        f"{min(changes):+.1f} to {max(changes):+.1f}."
    )


def _outdone(evaluated: Sequence[ComparedRun], condition: str) -> str:
    effects = [each.conditions[condition].summary for each in evaluated]
    all_of_them = sum(0 < each.n_controls == each.n_beyond for each in effects)
    if not any(each.n_controls for each in effects):
        return ", without random controls"
    return f", in {all_of_them} of them beyond all random controls"


# The table that a command over several runs ends with -------------------------------------------

# Of the conditions, those that a line has room for.
_CLOSING = ("suppress_good", "degrade", "enhance")
_CLOSING_NOTE = (
    "Accuracy without intervention; its change in points (95% interval by question), and how many "
    "of the layer-matched random controls the condition outdid."
)
_TOGETHER_NOTE = (
    "All: the mean over the docs of all tasks, and the tasks' controls pooled in their order."
)


def closing_table(results: Sequence[ComparedRun]) -> str | None:
    """The table; None where fewer than two runs were evaluated, or under no condition in common.

    Args:
        results: of the runs, in order.
    """
    evaluated = [each for each in results if each.rows]
    shared = shared_conditions(evaluated)
    names = [name for name in _CLOSING if name in shared] or shared[:1]
    if len(evaluated) < 2 or not names:
        return None
    terms = differing(evaluated)
    rows = [
        [
            escaped(each.facts.task),
            *(escaped(each.shared[name]) for name in terms),
            f"{each.conditions[UNMASKED].summary.accuracy.unmasked:.1f}",
            *(_closing_cell(each.conditions[name].summary) for name in names),
        ]
        for each in evaluated
    ]
    note = _CLOSING_NOTE
    if not terms:
        together = over_tasks(evaluated)
        unmasked = f"{together[names[0]].accuracy.unmasked:.1f}"
        rows.append(["all", unmasked, *(_closing_cell(together[name]) for name in names)])
        note = f"{note} {_TOGETHER_NOTE}"
    return f"{markdown_table(['task', *terms, 'unmasked %', *names], rows)}\n\n{note}\n"


def _closing_cell(effect: ConditionSummary) -> str:
    change = effect.accuracy
    outdone = f", {effect.n_beyond} of {effect.n_controls}" if effect.n_controls else ""
    return f"{change.delta:+.1f} ({change.low:+.1f} to {change.high:+.1f}){outdone}"
