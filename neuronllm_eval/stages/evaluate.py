"""Whole commands: identify, validate and report, for all tasks, methods and runs of the settings.

`identify_runs` and `validate_runs` are what `neuronllm_eval.identify` and `validate` call, and what
the command line calls.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.attribution.methods import Auto, Method, make_method
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.errors import UsageError
from neuronllm_eval.formats.settings_model import command_words
from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.reporting.task_report import read_identified
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.artifacts import load_neurons
from neuronllm_eval.runs.directory import RunDirectory, runs_below
from neuronllm_eval.runs.settings import (
    AUTO_METHOD,
    EvaluateSettings,
    IdentifySettings,
    LaunchSettings,
    RunSettings,
    SelectionSettings,
    ValidateSettings,
)
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.resumable_work import Launch, is_unfinished
from neuronllm_eval.stages.cost_estimate import Estimate, estimate_table
from neuronllm_eval.stages.identify import estimate_identification, identify_task
from neuronllm_eval.stages.load import (
    Load,
    MethodRun,
    StageInput,
    load_model,
    load_run_task,
    load_run_tasks,
    loaded_once,
    method_runs,
    require_trust,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.stages.other_tasks import as_found, other_tasks, require_others
from neuronllm_eval.stages.prepare import quadrature_of
from neuronllm_eval.stages.resume import refuse_before_work, validation_is_left
from neuronllm_eval.stages.validate import estimate_validation, validate_task

Show = Callable[[str], object]


def identify_runs(
    request: IdentifySettings,
    launch_settings: LaunchSettings,
    show: Show,
    announce: Show | None = None,
    *,
    load: Load = load_model,
    seconds: dict[str, float] | None = None,
) -> list[RunDirectory]:
    """Identify neurons, and validate them if the settings are `EvaluateSettings`.

    Args:
        request: what to identify, and under which conditions to validate.
        launch_settings: resuming, overwriting, checkpoints, dry run.
        show: receives what people are to read.
        announce: receives beforehand what a long stage will take; None to measure nothing.
        load: makes the model.
        seconds: receives how long each stage took.

    Returns:
        the directories of the runs; none of a dry run.

    Raises:
        NeuronLLMError: settings, tasks, the model or the folder cannot be used.
    """
    # Whatever settings alone can be wrong in is refused before any work.
    plan = condition_plan(request) if isinstance(request, EvaluateSettings) else None
    settings, methods = requested_settings(request), chosen_methods(request)
    RunDirectory(request.output_path).require_writable()
    seconds = {} if seconds is None else seconds
    with launched(request, launch_settings, announce) as launch:
        # 1. A run directory for each task and method.
        tasks = load_run_tasks(settings)
        runs = {name: method_runs(request.output_path, methods, name) for name in tasks}
        requested = [
            (method_run.run, method_run.settings(task_settings))
            for name, (task_settings, _) in tasks.items()
            for method_run in runs[name]
        ]
        launch.ranks.on_first(lambda: refuse_before_work(requested, plan is not None, launch))
        directories = [run for run, _ in requested]
        if not launch_settings.dry_run:
            take_locks(launch, directories)
        launch = dataclasses.replace(launch, keep=True)  # what is left would have been refused
        # 2. The model, and all questions of all tasks: what is wrong with one shows at once.
        model = load(settings)
        most = resolve_count(settings.top_k, math.prod(model.layers.shape), "top_k")
        if plan is not None:
            plan.require_at_most(most)
        selection = {
            name: StageInput(model, own, selection_questions(model.lm, own, task))
            for name, (own, task) in tasks.items()
        }
        validation = {
            name: StageInput(model, own, validation_questions(model.lm, own, task))
            for name, (own, task) in tasks.items()
        }
        selection = {
            name: inputs.expecting(validation[name].questions) for name, inputs in selection.items()
        }
        if launch_settings.dry_run:
            estimates: list[Estimate] = []
            for name in tasks:
                estimates.append(estimate_identification(selection[name], runs[name], launch))
                if plan is not None:
                    estimates += _estimated(runs[name], validation[name], plan, launch)
            return _show_estimates(estimates, launch, show)
        # 3. The stages of each task.
        for name in tasks:
            unfinished = [one for one in runs[name] if launch.overwrite or not one.is_identified]
            with _timed(seconds if unfinished else {}, _pass_name(name, unfinished)):
                sets = identify_task(selection[name], runs[name], launch)
            for method_run, neurons in zip(runs[name], sets, strict=True):
                run = method_run.run
                if plan is not None:
                    is_left = launch.overwrite or not run.conditions.is_file()
                    stage = f"validate {name} {method_run.method.name}"
                    inputs = method_run.of_method(validation[name])
                    with _timed(seconds if is_left else {}, stage):
                        own_plan = _plan_of(plan, method_run)
                        validate_task(inputs, *own_plan.over(neurons), run, launch)
                if launch.ranks.is_first:
                    report_task(run, show, brief=True)
        if launch.ranks.is_first:
            _show_overview(directories, request.output_path, show)
            show(f"written to {request.output_path}")
    return directories


def _plan_of(plan: ConditionPlan, method_run: MethodRun) -> ConditionPlan:
    """What is validated of a method's neurons: all that `auto` took, not the most it might take."""
    if not isinstance(method_run.method, Auto):
        return plan
    return dataclasses.replace(plan, sweep=dataclasses.replace(plan.sweep, top_k=()))


def _pass_name(task: str, runs: Sequence[MethodRun]) -> str:
    """The stage that identifies neurons: one time for all methods that share the pass."""
    names = ", ".join(method_run.method.name for method_run in runs)
    return f"identify {task} ({names} together)" if len(runs) > 1 else f"identify {task} {names}"


def _estimated(
    runs: Sequence[MethodRun], inputs: StageInput, plan: ConditionPlan, launch: Launch
) -> Iterator[Estimate]:
    """What validating each method's neurons takes; the same for all that are still to be found."""
    of_any = functools.cache(lambda: estimate_validation(inputs, plan, runs[0].run, launch))
    for method_run in runs:
        run, settings = method_run.run, method_run.settings(inputs.settings)
        if launch.overwrite or not method_run.is_identified or is_unfinished(run.identifying):
            yield of_any()
            continue
        neurons, run_plan = _plan_of(plan, method_run).over(load_neurons(run, settings))
        of_method = method_run.of_method(inputs)
        yield estimate_validation(of_method, run_plan, run, launch, neurons)


def _show_estimates(
    estimates: Sequence[Estimate], launch: Launch, show: Show
) -> list[RunDirectory]:
    if launch.ranks.is_first:
        show(estimate_table(estimates))
    return []


def _show_overview(runs: Sequence[RunDirectory], folder: Path, show: Show) -> None:
    """Write the page of several runs, and show them in one table."""
    table = closing_table(write_overviews(runs, folder))
    if table is not None:
        show(table)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage takes."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def validate_runs(
    request: ValidateSettings,
    launch_settings: LaunchSettings,
    show: Show,
    announce: Show | None = None,
    *,
    load: Load = load_model,
) -> list[RunDirectory]:
    """Validate the neurons of every run at and below `run_dir`.

    Args:
        request: which runs, under which conditions, and on which tasks besides.
        launch_settings: resuming, overwriting, checkpoints, dry run.
        show: receives what people are to read.
        announce: receives beforehand what a long stage will take; None to measure nothing.
        load: makes the model.

    Returns:
        the directories of the runs; none of a dry run.

    Raises:
        NeuronLLMError: settings, runs or the model cannot be used.
    """
    plan = condition_plan(request)
    load = loaded_once(load)
    with launched(request, launch_settings, announce) as launch:
        # What cannot be read, and a number of neurons that one of the runs does not have, is
        # refused before any validation.
        work = []
        for run in runs_below([request.run_dir]):
            run.require_writable()
            run.require_places()
            settings, neurons, _ = read_identified(run)
            positions = request.positions or settings.positions
            run_plan = dataclasses.replace(plan, positions=positions)
            settings = settings.model_copy(update=request.overrides())
            require_trust(settings, request.trust_remote_code)
            task = load_run_task(settings)
            others = other_tasks(run, settings, request.also, request.include_path)
            work.append(([(run, settings, task), *others], *run_plan.over(neurons)))
        runs = [of_run[0][0] for of_run, *_ in work]
        directories = [directory for of_run, *_ in work for directory, *_ in of_run]
        require_others(request.also, directories)
        if not launch_settings.dry_run:
            take_locks(launch, runs)
        is_left = launch.ranks.on_first(lambda: any(map(validation_is_left, directories)))
        launch = dataclasses.replace(launch, keep=(launch.keep or is_left) and not launch.overwrite)
        estimates: list[Estimate] = []
        for of_run, neurons, run_plan in work:
            for directory, inputs in _validation_inputs(of_run, load):
                if launch_settings.dry_run:
                    of_task = estimate_validation(inputs, run_plan, directory, launch, neurons)
                    estimates.append(of_task)
                else:
                    validate_task(inputs, neurons, run_plan, directory, launch)
            if launch.ranks.is_first and not launch_settings.dry_run:
                report_task(of_run[0][0], show, brief=len(runs) > 1)
        if launch_settings.dry_run:
            return _show_estimates(estimates, launch, show)
        if launch.ranks.is_first:
            _show_overview(runs, request.run_dir, show)
    return runs


def _validation_inputs(
    of_run: Sequence[tuple[RunDirectory, RunSettings, ConfigurableTask]], load: Load
) -> list[tuple[RunDirectory, StageInput]]:
    """The questions of a run's task and of the others, all before the first is scored."""
    inputs = []
    for directory, settings, task in of_run:
        model = load(settings)
        of_task = StageInput(model, settings, validation_questions(model.lm, settings, task))
        inputs.append((directory, of_task if directory.home is None else as_found(of_task)))
    return inputs


# What the settings ask for ------------------------------------------------------------------------


def requested_settings(request: IdentifySettings) -> RunSettings:
    """The settings of the runs, before tasks and methods are told apart.

    Raises:
        UsageError: a value that no task or model can make right.
    """
    if len(request.top_k) != 1 and not isinstance(request, EvaluateSettings):
        raise UsageError(
            f"top_k holds {len(request.top_k)} numbers",
            expected="one number for identify",
            remedy="give identify the largest, and the list to `neuronllm-eval validate`",
        )
    if len(request.top_k) != 1 and AUTO_METHOD in request.method:
        raise UsageError(
            f"top_k holds {len(request.top_k)} numbers, and method auto chooses the number",
            expected="one number, the largest to try",
            remedy="check --top_k, or name a method, such as --method ace_balanced",
        )
    model_args = request.model_args
    if model_args is None:
        model_args = {"pretrained": str(MODEL_DIR)}
    if "pretrained" not in model_args:
        raise UsageError(
            f"model_args names no model: {model_args!r:.100}",
            expected="pretrained=NAME_OR_PATH",
            remedy="add pretrained= to --model_args",
        )
    quadrature_of(request)  # refuses a wrong number of nodes
    first = chosen_methods(request)[0]
    return RunSettings(
        **{name: getattr(request, name) for name in SelectionSettings.model_fields},
        model_args=model_args,
        task=",".join(request.tasks),
        include_path=tuple(str(path.resolve()) for path in request.include_path),
        metadata=request.metadata,
        method=first.name,
        method_args=dataclasses.asdict(first),
        top_k=max(request.top_k),
    )


def chosen_methods(request: IdentifySettings) -> tuple[Method, ...]:
    """The methods; each of the given settings goes to those that have it.

    Raises:
        UsageError: an unknown or repeated method, a setting that none of them has, or a value that
            it cannot have.
    """
    if len(set(request.method)) < len(request.method):
        raise UsageError(
            f"method is {','.join(request.method)!r}",
            expected="each method once",
            remedy="check --method",
        )
    fields = {
        name: {field.name for field in dataclasses.fields(make_method(name))}
        for name in request.method
    }
    if unknown := sorted(set(request.method_args).difference(*fields.values())):
        raise UsageError(
            f"no chosen method has a setting {unknown[0]!r:.100}",
            expected=", ".join(sorted(set().union(*fields.values())))
            or f"none with --method {','.join(request.method)}",
            remedy="check --method_args",
        )
    return tuple(
        make_method(name, {key: value for key, value in request.method_args.items() if key in keys})
        for name, keys in fields.items()
    )


def condition_plan(request: EvaluateSettings | ValidateSettings) -> ConditionPlan:
    """What validation scores.

    Raises:
        UsageError: too many controls, a scale that is not finite, or numbers of neurons and
            factors that make no sweep.
    """
    return ConditionPlan(
        conditions=request.conditions,
        n_random=request.n_random,
        seed=request.seed or 0,
        scales=Scales(request.suppress_scale, request.enhance_scale),
        sweep=Sweep(request.top_k, request.scale),
        positions=request.positions or SCORED,
        match=request.match_controls,
        perplexity=request.perplexity,
    )


# Processes and locks ------------------------------------------------------------------------------


@contextmanager
def launched(
    request: IdentifySettings | ValidateSettings,
    launch_settings: LaunchSettings,
    announce: Show | None,
) -> Iterator[Launch]:
    """Meet the other processes of the command; release its locks at the end.

    Raises:
        UsageError: the processes cannot reach each other.
    """
    launch = Launch(
        Ranks.join(request.device),
        launch_settings.checkpoint_every,
        launch_settings.overwrite,
        launch_settings.resume,
        command=(*request.program, *command_words(request)),
        announce=announce,
    )
    try:
        yield launch
        launch.ranks.leave()
    finally:
        launch.locks.release()


def take_locks(launch: Launch, runs: Sequence[RunDirectory]) -> None:
    """Lock the run directories that exist; others are locked when they are made."""
    launch.ranks.on_first(lambda: launch.locks.take(run.path for run in runs if run.path.is_dir()))
