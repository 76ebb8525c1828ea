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
from neuronllm_eval.reporting.wording import interval_text
from neuronllm_eval.reporting.write_reports import page_of
from neuronllm_eval.runs.directory import PAGE_FILE, RunDirectory
from neuronllm_eval.runs.search import find_runs

logger = logging.getLogger(__name__)
_GENERATOR = "neuronllm-eval overview"
_HEADS = ("accuracy %", "delta (points)", "95% interval", "random controls", "beyond")
_LONGEST = 48  # characters of a fact; a path is cut at its start
_HEAD_BYTES = 65536  # the style sheet is in the head, and small


def write_overviews(runs: Sequence[RunDirectory], top: Path) -> list[ComparedRun]:
    """`write_overview` for every folder with one of the runs in it, at `top` or below.

    Above `top`, a page is only rewritten where there is one already.

    Returns:
        The runs in their order, without those that were not or cannot be read.
    """
    found: dict[Path, ComparedRun] = {}
    for folder in dict.fromkeys(run.path.parent for run in runs):
        if folder.resolve().is_relative_to(top.resolve()) or _is_overview(folder / PAGE_FILE):
            found |= write_overview(folder)
    return [found[run.path] for run in runs if run.path in found]


def write_overview(folder: Path) -> dict[Path, ComparedRun]:
    """Write the page of a folder with several runs; remove an earlier page if there are fewer.

    Runs that cannot be read are skipped with a warning: they may be of other commands.

    Returns:
        The runs by their directories.

    Raises:
        ArtifactError: a folder is in the page's place.
    """
    runs = [] if RunDirectory(folder).settings.exists() else find_runs(folder)
    results: dict[Path, ComparedRun] = {}
    for run in runs:
        try:
            results[run.path] = read_run(run, with_docs=True)
        except ArtifactError as error:
            logger.warning(
                "%s is not included in %s: %s", run.path, folder / PAGE_FILE, error.found
            )
    if len(results) > 1:
        title = one_line(folder.resolve().name)
        write_whole(folder / PAGE_FILE, render_overview(title, list(results.values())))
    elif _is_overview(folder / PAGE_FILE):
        (folder / PAGE_FILE).unlink()
    return results


def _is_overview(path: Path) -> bool:
    """Whether a file is a page of several runs, written by this module."""
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
    validated = [each for each in results if each.rows]
    terms = differing(validated or results)
    conditions = shared_conditions(validated)
    together = {} if terms or not validated else over_tasks(validated)
    main = conditions[0] if conditions else None
    links = tuple(
        (one_line(each.facts.task), f"{quote(Path(each.facts.path).name)}/{PAGE_FILE}")
        for each in results
    )
    section = Section(
        "tasks",
        "By task",
        figures=() if main is None else (_figure(validated, main),),
        tables=(*_together(validated, together), *_by_condition(validated), *_waiting(results)),
        links=links,
    )
    facts = [
        (name.capitalize(), value if len(value) <= _LONGEST else f"…{value[1 - _LONGEST :]}")
        for name, value in (validated or results)[0].shared.items()
        if value and name not in differing(results)
    ]
    said = _headline(results, validated, main, None if main is None else together.get(main))
    return page_of(title, said, facts, [section], _GENERATOR)


def _together(
    validated: Sequence[ComparedRun], effects: Mapping[str, ConditionSummary]
) -> list[Table]:
    """Effect of each condition over all tasks."""
    if not effects or len(validated) < 2:
        return []
    first = next(iter(effects.values())).accuracy
    note = (
        f"Over the {first.n_docs:,} docs of {first.n_questions:,} questions together, unmasked "
        f"{first.unmasked:.1f}%; 95% intervals by question, of these tasks and no others. "
        "Random controls: the first of every task, the second, and so on."
    )
    rows = tuple((name, *_cells(each)) for name, each in effects.items())
    return [Table("All tasks together", ("condition", *_HEADS), rows, f"{note} {CONTROLS_NOTE}")]


def _by_condition(validated: Sequence[ComparedRun]) -> list[Table]:
    """A table for each condition, a row for each task that was validated with it."""
    tables = []
    terms = differing(validated) if validated else []
    for name in CONDITIONS[1:]:
        rows = tuple(
            (
                each.facts.task,
                *(each.shared[term] for term in terms),
                str(each.conditions[UNMASKED].summary.accuracy.n_questions),
                f"{each.conditions[UNMASKED].summary.accuracy.condition:.1f}",
                *_cells_or_note(each.conditions[name]),
            )
            for each in validated
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


def _figure(validated: Sequence[ComparedRun], condition: str) -> Figure:
    names = [one_line(each.facts.task) for each in validated]
    effects = [each.conditions[condition].summary for each in validated]
    before = [each.accuracy.unmasked for each in effects]
    after = [each.accuracy.condition for each in effects]
    spans = [
        (each.accuracy.unmasked + each.controls.low, each.accuracy.unmasked + each.controls.high)
        if each.controls is not None and each.n_controls
        else None
        for each in effects
    ]
    caption = "Accuracy on each task; the largest losses come first."
    if any(spans):
        caption += " Grey: from the lowest to the highest random control."
    return Figure((charts.groups(names, before, after, condition, spans),), caption)


def _headline(
    results: Sequence[ComparedRun],
    validated: Sequence[ComparedRun],
    condition: str | None,
    effect: ConditionSummary | None,
) -> str:
    if condition is None:
        return f"{len(results)} tasks."
    changes = [each.conditions[condition].summary.accuracy.delta for each in validated]
    if effect is None:
        terms = " and ".join(differing(validated))
        return (
            f"Over {len(validated)} runs, {condition} changes accuracy by {min(changes):+.1f} to "
            f"{max(changes):+.1f} points{_exceeded(validated, condition)}; no mean, since they "
            f"differ in {terms}."
        )
    accuracy = effect.accuracy
    beside = f", beyond {effect.n_beyond} of {effect.n_controls} random controls"
    if not effect.n_controls:
        some = any(each.conditions[condition].summary.n_controls for each in validated)
        beside = f", without random controls{' that all of them have' if some else ''}"
    return (
        f"Over {len(validated)} task{'s' if len(validated) > 1 else ''}, {condition} changes "
        f"accuracy by {accuracy.delta:+.1f} points (95% {accuracy.low:+.1f} to "
        f"{accuracy.high:+.1f}){beside}; by task from {min(changes):+.1f} to {max(changes):+.1f}."
    )


def _exceeded(validated: Sequence[ComparedRun], condition: str) -> str:
    effects = [each.conditions[condition].summary for each in validated]
    all_of_them = sum(0 < each.n_controls == each.n_beyond for each in effects)
    if not any(each.n_controls for each in effects):
        return ", without random controls"
    return f", in {all_of_them} of them beyond all random controls"


# The table at the end of a command on several runs -----------------------------------------------

# The conditions that a line has room for.
_CLOSING = ("suppress_good", "degrade", "enhance")
_CLOSING_NOTE = (
    "Accuracy without intervention; its change in points (95% interval by question), and how many "
    "of the layer-matched random controls the condition exceeds."
)
_TOGETHER_NOTE = (
    "All: the mean over the docs of all tasks, and the tasks' controls pooled in their order."
)


def closing_table(results: Sequence[ComparedRun]) -> str | None:
    """The table; None with fewer than two validated runs, or without a condition in common."""
    validated = [each for each in results if each.rows]
    shared = shared_conditions(validated)
    names = [name for name in _CLOSING if name in shared] or shared[:1]
    if len(validated) < 2 or not names:
        return None
    terms = differing(validated)
    rows = [
        [
            escaped(each.facts.task),
            *(escaped(each.shared[name]) for name in terms),
            f"{each.conditions[UNMASKED].summary.accuracy.unmasked:.1f}",
            *(_closing_cell(each.conditions[name].summary) for name in names),
        ]
        for each in validated
    ]
    note = _CLOSING_NOTE
    if not terms:
        together = over_tasks(validated)
        unmasked = f"{together[names[0]].accuracy.unmasked:.1f}"
        rows.append(["all", unmasked, *(_closing_cell(together[name]) for name in names)])
        note = f"{note} {_TOGETHER_NOTE}"
    return f"{markdown_table(['task', *terms, 'unmasked %', *names], rows)}\n\n{note}\n"


def _closing_cell(effect: ConditionSummary) -> str:
    exceeded = f", {effect.n_beyond} of {effect.n_controls}" if effect.n_controls else ""
    return f"{interval_text(effect.accuracy)}{exceeded}"
