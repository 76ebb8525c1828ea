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
from neuronllm_eval.comparison.rows import ComparedRun, read_run
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.markdown import escaped, markdown_table, one_line
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.reporting import charts
from neuronllm_eval.reporting.condition_tables import (
    CONTROLS_NOTE,
    ONE_ANSWER,
    ONE_ANSWER_NOTE,
    Table,
    change_cells,
    control_cells,
)
from neuronllm_eval.reporting.sections import Figure, Section
from neuronllm_eval.reporting.wording import chance_text
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


def write_overview(
    folder: Path, read_before: Sequence[RunDirectory] = ()
) -> dict[Path, ComparedRun]:
    """Write the page of a folder; where there are not several runs in it, remove an earlier one.

    Runs that cannot be read are left out with a warning: they may be of other commands.

    Args:
        folder: of the runs.
        read_before: runs whose files have been read already.

    Returns:
        The runs in it, by their directories.

    Raises:
        ArtifactError: a folder is in the page's place.
    """
    by_path = {run.path: run for run in read_before}
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
    evaluated = [run for run in results if run.rows]
    terms = differing(evaluated or results)
    conditions = shared_conditions(evaluated)
    together = {} if terms or not evaluated else over_tasks(evaluated)
    main = conditions[0] if conditions else None
    links = tuple(
        (one_line(run.facts.task), f"{quote(Path(run.facts.path).name)}/{PAGE_FILE}")
        for run in results
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
    sentence = _headline(results, evaluated, main, None if main is None else together.get(main))
    return page_of(title, sentence, facts, [section], _GENERATOR)


def _together(
    evaluated: Sequence[ComparedRun], effects: Mapping[str, ConditionSummary]
) -> list[Table]:
    """What each condition did over all tasks."""
    if not effects or len(evaluated) < 2:
        return []
    effect = next(iter(effects.values()))
    first, chance = effect.accuracy, chance_text(effect.chance)
    note = (
        f"Over the {first.n_docs:,} docs of {first.n_questions:,} questions together, unmasked "
        f"{first.unmasked:.1f}%{chance}; 95% intervals by question, of these tasks and no others. "
        "Random controls: the first of every task, the second, and so on."
    )
    rows = tuple((name, *_cells(effect)) for name, effect in effects.items())
    return [Table("All tasks together", ("condition", *_HEADS), rows, f"{note} {CONTROLS_NOTE}")]


def _by_condition(evaluated: Sequence[ComparedRun]) -> list[Table]:
    """A table for each condition, a row for each task that was evaluated under it."""
    terms = differing(evaluated) if evaluated else []
    heads = ("task", *terms, "questions", "chance %", "unmasked %", *_HEADS)
    tables = []
    for name in CONDITIONS[1:]:
        rows = []
        for run in evaluated:
            if name in run.conditions:
                row, unmasked = run.conditions[name], run.conditions[UNMASKED].summary.accuracy
                level = (str(unmasked.n_questions), *_levels(run))
                empty = [""] * (len(_HEADS) - 1)
                cells = _cells(row.summary) if row.is_evaluated else (row.note, *empty)
                rows.append((*_task_and_terms(run, terms), *level, *cells))
        if rows:
            is_collapsed = any(
                run.conditions[name].summary.collapsed
                for run in evaluated
                if name in run.conditions
            )
            note = ONE_ANSWER_NOTE if is_collapsed else ""
            tables.append(Table(f"Under {name}", heads, tuple(rows), note))
    return tables


def _levels(run: ComparedRun) -> tuple[str, str]:
    """Chance and accuracy without intervention, percent; no chance in earlier summaries."""
    unmasked = run.conditions[UNMASKED].summary
    chance = "" if unmasked.chance is None else f"{unmasked.chance:.1f}"
    return chance, f"{unmasked.accuracy.condition:.1f}"


def _waiting(results: Sequence[ComparedRun]) -> list[Table]:
    terms = differing(results)
    rows = tuple(_task_and_terms(run, terms) for run in results if not run.rows)
    return [Table("Not validated yet", ("task", *terms), rows)] if rows else []


def _task_and_terms(run: ComparedRun, terms: Sequence[str]) -> tuple[str, ...]:
    return (run.facts.task, *(run.shared[name] for name in terms))


def _cells(effect: ConditionSummary) -> tuple[str, ...]:
    """As in `_HEADS`."""
    controls = control_cells(effect) if effect.n_controls else ("none", "")
    accuracy, *change = change_cells(effect)
    note = f" ({ONE_ANSWER})" if effect.collapsed else ""
    return (accuracy + note, *change, *controls)


def _figure(evaluated: Sequence[ComparedRun], condition: str) -> Figure:
    changes = []
    for run in evaluated:
        effect = run.conditions[condition].summary
        before, controls = effect.accuracy.unmasked, effect.controls
        span = None
        if controls is not None and controls.n_controls:
            span = (before + controls.low, before + controls.high)
        task = one_line(run.facts.task)
        after = effect.accuracy.condition
        changes.append(charts.GroupChange(task, before, after, span, effect.chance))
    caption = "Accuracy on each task; those that lost most stand first."
    if any(change.chance is not None for change in changes):
        caption += " Dashed: chance."
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
    effects = [run.conditions[condition].summary for run in evaluated]
    changes = [summary.accuracy.delta for summary in effects]
    least, most = f"{min(changes):+.1f}", f"{max(changes):+.1f}"
    has_controls = any(summary.n_controls for summary in effects)
    if effect is None:
        n_beyond = sum(0 < summary.n_controls == summary.n_beyond for summary in effects)
        beside = f"in {n_beyond} of them beyond all" if has_controls else "without"
        return (
            f"Over {len(evaluated)} runs, {condition} changes accuracy by {least} to {most} "
            f"points, {beside} random controls; no mean, since they differ in "
            f"{' and '.join(differing(evaluated))}."
        )
    accuracy = effect.accuracy
    if effect.n_controls:
        beside = f"beyond {effect.n_beyond} of {effect.n_controls} random controls"
    else:
        beside = f"without random controls{' that all of them have' if has_controls else ''}"
    tasks = f"{len(evaluated)} task{'s' if len(evaluated) > 1 else ''}"
    return (
        f"Over {tasks}, {condition} changes accuracy by {accuracy.delta:+.1f} points "
        f"(95% {accuracy.low:+.1f} to {accuracy.high:+.1f}), {beside}; by task from {least} to "
        f"{most}."
    )


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
    evaluated = [run for run in results if run.rows]
    shared = shared_conditions(evaluated)
    names = [name for name in _CLOSING if name in shared] or shared[:1]
    if len(evaluated) < 2 or not names:
        return None
    terms = differing(evaluated)
    rows = [
        [
            *map(escaped, _task_and_terms(run, terms)),
            *_levels(run),
            *(_closing_cell(run.conditions[name].summary) for name in names),
        ]
        for run in evaluated
    ]
    note = _CLOSING_NOTE
    if any(ONE_ANSWER in cell for row in rows for cell in row):
        note = f"{note} {ONE_ANSWER_NOTE}"
    if not terms:
        together = over_tasks(evaluated)
        unmasked = f"{together[names[0]].accuracy.unmasked:.1f}"
        chance = together[names[0]].chance
        assert chance is not None  # it was computed just now
        rows.append(
            ["all", f"{chance:.1f}", unmasked, *(_closing_cell(together[name]) for name in names)]
        )
        note = f"{note} {_TOGETHER_NOTE}"
    return f"{markdown_table(['task', *terms, 'chance %', 'unmasked %', *names], rows)}\n\n{note}\n"


def _closing_cell(effect: ConditionSummary) -> str:
    change = effect.accuracy
    outdone = f", {effect.n_beyond} of {effect.n_controls}" if effect.n_controls else ""
    note = f", {ONE_ANSWER}" if effect.collapsed else ""
    return f"{change.delta:+.1f} ({change.low:+.1f} to {change.high:+.1f}){outdone}{note}"
