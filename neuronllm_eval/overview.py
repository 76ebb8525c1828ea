"""`report.html` of a folder with several runs, such as those of a group of tasks.

It has one row per run, from `run.yaml` and `summary.json`, and leads to the page of each. There is
a mean over runs only if they are of the same model, method and number of neurons.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from neuronllm_eval import charts
from neuronllm_eval.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.markdown_text import one_line
from neuronllm_eval.page_sections import Figure, Section
from neuronllm_eval.report_page import page_of
from neuronllm_eval.report_tables import Table
from neuronllm_eval.run_directory import (
    PAGE_FILE,
    RunDirectory,
    find_runs,
    write_whole,
)
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.stored_summary import StoredSummary
from neuronllm_eval.summary import ConditionSummary

logger = logging.getLogger(__name__)
_GENERATOR = "neuronllm-eval overview"
_LONGEST = 48  # signs of a fact; a path tells most by its end
_HEAD_BYTES = 65536  # the style sheet is in the head, and small


@dataclass(frozen=True)
class TaskResult:
    """What a run's summary says.

    Attributes:
        task: its name.
        folder: of the run, below that of the page.
        n_questions: that judged; 0 before validation.
        accuracy: by condition that edits something, percent; empty before validation.
        deltas: by condition, as a text: delta and interval, or why there is none.
        model: name or path, and revision.
        method: with its settings, if it has any.
        top_k: good and bad neurons that were judged; None before validation.
    """

    task: str
    folder: str
    n_questions: int
    accuracy: dict[str, float]
    deltas: dict[str, str]
    model: str = ""
    method: str = ""
    top_k: int | None = None

    @property
    def terms(self) -> dict[str, str]:
        """What must be the same in runs for a mean over them, by name."""
        count = "" if self.top_k is None else str(self.top_k)
        return {"model": self.model, "method": self.method, "neurons of a kind": count}


def write_overviews(runs: Sequence[RunDirectory], top: Path) -> None:
    """`write_overview` for every folder that one of the runs lies in, `top` or below it.

    Above `top`, as of a single run, a page is written anew where there is one already.
    """
    for folder in dict.fromkeys(run.path.parent for run in runs):
        if folder.resolve().is_relative_to(top.resolve()) or _is_overview(folder / PAGE_FILE):
            write_overview(folder)


def write_overview(folder: Path) -> None:
    """Write the page of a folder; where there are not several runs in it, remove an earlier one.

    Runs that cannot be read are left out with a warning: they may be of other commands.

    Raises:
        ArtifactError: a folder is in the page's place.
    """
    runs = [] if RunDirectory(folder).settings.exists() else find_runs(folder)
    results = []
    for run in runs:
        try:
            results.append(read_result(run))
        except ArtifactError as error:
            logger.warning("%s is left out of %s: %s", run.path, folder / PAGE_FILE, error.found)
    if len(results) > 1:
        title = one_line(folder.resolve().name)
        write_whole(folder / PAGE_FILE, render_overview(title, results))
    elif _is_overview(folder / PAGE_FILE):
        (folder / PAGE_FILE).unlink()


def _is_overview(path: Path) -> bool:
    """Whether a file is a page of several runs, as this module writes it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return f'<meta name="generator" content="{_GENERATOR}">'.encode() in head


def read_result(run: RunDirectory) -> TaskResult:
    """What a run came to.

    Raises:
        ArtifactError: `run.yaml` or `summary.json` is damaged.
    """
    settings = RunSettings.load(run.settings)
    task, model, method = settings.task, _model(settings), _method(settings)
    if not run.summary.is_file():
        return TaskResult(task, run.path.name, 0, {}, {}, model, method)
    stored = StoredSummary.load(run.summary).conditions
    known = {each.name: each for each in stored}
    found = {name: known[name] for name in CONDITIONS if name in known}
    wrong = [name for name, each in found.items() if not 0 <= each.accuracy.condition <= 100]
    if UNMASKED not in found or wrong:
        raise ArtifactError(
            f"{run.summary} has {'accuracies beyond 100%' if wrong else 'no unmasked run'}",
            expected="a file as this package writes it",
            remedy="run `neuronllm-eval report` on it",
        )
    return TaskResult(
        task,
        run.path.name,
        found[UNMASKED].accuracy.n_questions,
        {
            name: each.accuracy.condition
            for name, each in found.items()
            if each.is_judged or name == UNMASKED
        },
        {name: _delta(each) for name, each in found.items() if name != UNMASKED},
        model,
        method,
        next((each.top_k for each in stored if each.name in found and each.top_k), None),
    )


def _delta(summary: ConditionSummary) -> str:
    if not summary.is_judged:
        return "" if summary.edited is None else summary.edited.note
    found = summary.accuracy
    return f"{found.delta:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def _model(settings: RunSettings) -> str:
    known = settings.model_args
    parts = [str(known.get("pretrained", ""))]
    parts += [f"{name}={known[name]}" for name in ("revision", "peft", "delta") if known.get(name)]
    return ", ".join(parts)


def _method(settings: RunSettings) -> str:
    given = (f"{name}={value}" for name, value in settings.method_args.items())
    return ", ".join([settings.method, *given])


def render_overview(title: str, results: Sequence[TaskResult]) -> str:
    """The page's content; the same runs give the same bytes.

    Args:
        title: above it.
        results: of the tasks, in order.
    """
    judged = [each for each in results if each.accuracy]
    names = [name for name in CONDITIONS if all(name in each.deltas for each in judged)]
    conditions = names if judged else []
    differing = _differing(results)
    rows = tuple(
        (
            each.task,
            *(each.terms[name] for name in differing),
            str(each.n_questions) if each.accuracy else "not judged yet",
            *([f"{each.accuracy[UNMASKED]:.1f}"] if each.accuracy else [""] * bool(judged)),
            *(each.deltas.get(name, "") for name in conditions),
        )
        for each in results
    )
    heads = ("unmasked %", *(f"{name}, points" for name in conditions)) if judged else ()
    note = "Accuracy without intervention, and its change in points (95% interval)."
    table = Table(
        "Accuracy by task", ("task", *differing, "questions", *heads), rows, note if judged else ""
    )
    measured = (name for name in conditions if all(name in each.accuracy for each in judged))
    main = next(measured, None)
    links = tuple((one_line(each.task), f"{quote(each.folder)}/{PAGE_FILE}") for each in results)
    section = Section(
        "tasks",
        "By task",
        figures=() if main is None else (_figure(judged, main),),
        tables=(table,),
        links=links,
    )
    facts = [
        (name.capitalize(), value if len(value) <= _LONGEST else f"…{value[1 - _LONGEST :]}")
        for name, value in (judged or results)[0].terms.items()
        if value and name not in differing
    ]
    return page_of(title, _headline(results, judged, main), facts, [section], _GENERATOR)


def _differing(results: Sequence[TaskResult]) -> list[str]:
    """The names of the terms that runs do not share; what is not known yet is left aside."""
    return [
        name
        for name in results[0].terms
        if len({each.terms[name] for each in results if each.terms[name]}) > 1
    ]


def _figure(judged: Sequence[TaskResult], condition: str) -> Figure:
    names = [one_line(each.task) for each in judged]
    before = [each.accuracy[UNMASKED] for each in judged]
    after = [each.accuracy[condition] for each in judged]
    caption = "Accuracy on each task; those that lost most stand first."
    return Figure((charts.groups(names, before, after, condition),), caption)


def _headline(
    results: Sequence[TaskResult], judged: Sequence[TaskResult], condition: str | None
) -> str:
    if condition is None:
        return f"{len(results)} tasks."
    differing = _differing(judged)
    changes = [each.accuracy[condition] - each.accuracy[UNMASKED] for each in judged]
    if differing:
        return (
            f"Over {len(judged)} runs, {condition} changes accuracy by {min(changes):+.1f} to "
            f"{max(changes):+.1f} points; no mean, since they differ in {' and '.join(differing)}."
        )
    return (
        f"Over {len(judged)} task{'s' if len(judged) > 1 else ''}, {condition} changes accuracy by "
        f"{sum(changes) / len(changes):+.1f} points on average, "
        f"from {min(changes):+.1f} to {max(changes):+.1f}."
    )
