"""`neuronllm-eval identify` and `run_eval.py`: flags -> runs, with or without their validation."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuronllm_eval.cli import arguments
from neuronllm_eval.cli.arguments import chosen_methods
from neuronllm_eval.cli.launch import launched, take_locks
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.interventions.score_conditions import ConditionPlan
from neuronllm_eval.reporting.cost_table import estimate_table
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.resumable_work import Launch
from neuronllm_eval.stages.cost_estimate import Estimate
from neuronllm_eval.stages.identify import Announce, identify_by_methods
from neuronllm_eval.stages.load_model import LoadedModel, load_model
from neuronllm_eval.stages.load_questions import (
    load_run_tasks,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.stages.prepare import estimate_identification, estimate_validation
from neuronllm_eval.stages.resume import refuse_before_work
from neuronllm_eval.stages.validate import validate_task
from neuronllm_eval.stages.write_identified import MethodRun, method_runs

DEFAULT_OUTPUT = "runs"
Load = Callable[[RunSettings], LoadedModel]


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Who is told what a command has to say.

    Attributes:
        show: what people are to read.
        announce: beforehand, what a long stage will take; None to have nothing measured.
    """

    show: Callable[[str], object]
    announce: Announce | None = None


def identify(
    options: argparse.Namespace,
    listeners: Listeners,
    *,
    validate: bool = False,
    seconds: dict[str, float] | None = None,
    load: Load | None = None,
) -> list[RunDirectory]:
    """Identify, and validate on request; the directories of the runs, none of a dry run.

    Args:
        options: parsed flags.
        listeners: see `Listeners`.
        validate: whether the neurons are judged too.
        seconds: is told what took how long.
        load: makes the model; `load_model` if not given.

    Raises:
        NeuronLLMError: whatever flags, tasks, models and folders can be wrong in.
    """
    # Whatever flags can be wrong in is refused before any work.
    plan = arguments.condition_plan(options) if validate else None
    if plan is None:
        arguments.require_one_top_k(options)
    settings = arguments.run_settings(options)
    RunDirectory(_output(options)).require_writable()
    with launched(options) as launch:
        return _identify_in(
            launch, options, settings, plan, listeners, {} if seconds is None else seconds,
            load or load_model,
        )  # fmt: skip


def _output(options: argparse.Namespace) -> Path:
    return Path(options.output_path or DEFAULT_OUTPUT)


def _identify_in(
    launch: Launch,
    options: argparse.Namespace,
    settings: RunSettings,
    plan: ConditionPlan | None,
    listeners: Listeners,
    seconds: dict[str, float],
    load: Load,
) -> list[RunDirectory]:
    output, announce = _output(options), listeners.announce
    methods = chosen_methods(options.method, options.method_args)
    tasks = [
        (method_runs(output, methods, name), own, task)
        for name, (own, task) in load_run_tasks(settings).items()
    ]
    runs = [(each.run, each.settings(own)) for own_runs, own, _ in tasks for each in own_runs]
    launch.ranks.on_first(
        lambda: refuse_before_work(
            runs,
            validating=plan is not None,
            overwrite=launch.overwrite,
            resume=launch.keep,
        )
    )
    if not options.dry_run:
        take_locks(launch, [run for run, _ in runs])
    launch = dataclasses.replace(launch, keep=True)  # what is left would have been refused
    model = load(settings)
    # All questions of all tasks are built first: what is wrong with one of them shows at once.
    asked = [
        (selection_questions(model.lm, own, task), validation_questions(model.lm, own, task))
        for _, own, task in tasks
    ]
    if options.dry_run:
        estimates: list[Estimate] = []
        for (own_runs, own, _), (choosing, judging) in zip(tasks, asked, strict=True):
            path = own_runs[0].run.path
            estimates.append(estimate_identification(model, own, choosing, path, methods))
            if plan is not None:
                judged = [estimate_validation(model, own, judging, plan, path)] * len(methods)
                estimates += judged
        if launch.ranks.is_first:
            listeners.show(estimate_table(estimates))
        return []
    for (own_runs, own, _), (choosing, judging) in zip(tasks, asked, strict=True):
        left = [each for each in own_runs if launch.overwrite or not each.run.neurons.is_file()]
        with _timed(seconds if left else {}, _pass_of(own.task, left)):
            found = identify_by_methods(model, own, choosing, own_runs, launch, announce)
        for each, neurons in zip(own_runs, found, strict=True):
            if plan is not None:
                points, mine = plan.over(neurons), each.settings(own)
                is_left = launch.overwrite or not each.run.conditions.is_file()
                with _timed(seconds if is_left else {}, f"validate {own.task} {each.method.name}"):
                    validate_task(model, mine, judging, *points, each.run, launch, announce)
            if launch.ranks.is_first:
                report_task(each.run, listeners.show)
    if launch.ranks.is_first:
        results = write_overviews([run for run, _ in runs], output)
        if (table := closing_table(results)) is not None:
            listeners.show(table)
        listeners.show(f"written to {output}")
    return [run for run, _ in runs]


def _pass_of(task: str, left: Sequence[MethodRun]) -> str:
    """The stage that finds the neurons: one time for all methods that share the pass."""
    names = ", ".join(each.method.name for each in left)
    return f"identify {task} ({names} together)" if len(left) > 1 else f"identify {task} {names}"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
