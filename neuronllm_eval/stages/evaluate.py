"""Whole commands: identify, validate and report, for all tasks, methods and runs of the settings.

`identify_runs` and `validate_runs` are what `neuronllm_eval.identify` and `validate` call, and what
the command line calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neuronllm_eval.attribution.methods import Method, make_method
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.errors import UsageError
from neuronllm_eval.formats.settings_model import command_words
from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.artifacts import load_neurons, load_settings
from neuronllm_eval.runs.directory import RunDirectory, runs_below
from neuronllm_eval.runs.settings import (
    EvaluateSettings,
    IdentifySettings,
    LaunchSettings,
    RunSettings,
    SelectionSettings,
    ValidateSettings,
)
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.resumable_work import Launch
from neuronllm_eval.stages.cost_estimate import Estimate, estimate_table
from neuronllm_eval.stages.identify import Announce, identify_task
from neuronllm_eval.stages.load import (
    LoadedModel,
    load_model,
    load_run_task,
    load_run_tasks,
    prompt_digests,
    require_trust,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.stages.prepare import (
    estimate_identification,
    estimate_validation,
    quadrature_of,
)
from neuronllm_eval.stages.resume import refuse_before_work, validation_is_left
from neuronllm_eval.stages.validate import validate_task
from neuronllm_eval.stages.write_identified import MethodRun, method_runs

Load = Callable[[RunSettings], LoadedModel]


@dataclass(frozen=True)
class Listeners:
    """Who is told what a command has to say.

    Attributes:
        show: receives what people are to read.
        announce: receives beforehand what a long stage will take; None to measure nothing.
    """

    show: Callable[[str], object]
    announce: Announce | None = None


def identify_runs(
    asked: IdentifySettings,
    how: LaunchSettings,
    listeners: Listeners,
    *,
    load: Load | None = None,
    seconds: dict[str, float] | None = None,
) -> list[RunDirectory]:
    """Identify neurons, and validate them if the settings are `EvaluateSettings`.

    Args:
        asked: what to identify, and under which conditions to validate.
        how: resuming, overwriting, checkpoints, dry run.
        listeners: see `Listeners`.
        load: makes the model; `load_model` if not given.
        seconds: receives how long each stage took.

    Returns:
        the directories of the runs; none of a dry run.

    Raises:
        NeuronLLMError: settings, tasks, the model or the folder cannot be used.
    """
    # Whatever settings alone can be wrong in is refused before any work.
    plan = condition_plan(asked) if isinstance(asked, EvaluateSettings) else None
    requested = requested_settings(asked)
    methods = chosen_methods(asked)
    RunDirectory(asked.output_path).require_writable()
    with launched(asked, how) as launch:
        tasks = load_run_tasks(requested)
        runs = {name: method_runs(asked.output_path, methods, name) for name in tasks}
        directories = [each.run for name in tasks for each in runs[name]]
        as_asked = [each.settings(tasks[name][0]) for name in tasks for each in runs[name]]
        launch.ranks.on_first(
            lambda: refuse_before_work(
                list(zip(directories, as_asked, strict=True)),
                validating=plan is not None,
                overwrite=launch.overwrite,
                resume=launch.keep,
            )
        )
        if not how.dry_run:
            take_locks(launch, directories)
        launch = dataclasses.replace(launch, keep=True)  # what is left would have been refused
        model = (load or load_model)(requested)
        # All questions of all tasks are built first: what is wrong with one of them shows at once.
        selection = {
            name: selection_questions(model.lm, settings, task)
            for name, (settings, task) in tasks.items()
        }
        validation = {
            name: validation_questions(model.lm, settings, task)
            for name, (settings, task) in tasks.items()
        }
        for name, (settings, task) in tasks.items():
            digests = {"validation_prompts": prompt_digests(validation[name])}
            tasks[name] = settings.model_copy(update=digests), task
        if how.dry_run:
            estimates: list[Estimate] = []
            for name, (settings, _) in tasks.items():
                path = runs[name][0].run.path
                estimates.append(
                    estimate_identification(model, settings, selection[name], path, methods)
                )
                if plan is not None:
                    one = estimate_validation(model, settings, validation[name], plan, path)
                    estimates += [one] * len(methods)
            return _show_estimates(estimates, launch, listeners)
        timed = _Seconds(seconds)
        announce = listeners.announce
        for name, (settings, _) in tasks.items():
            left = [each for each in runs[name] if launch.overwrite or not _exists(each.run)]
            with timed(_pass_name(name, left), bool(left)):
                sets = identify_task(model, settings, selection[name], runs[name], launch, announce)
            for each, neurons in zip(runs[name], sets, strict=True):
                run, own = each.run, each.settings(settings)
                if plan is not None:
                    is_left = launch.overwrite or not run.conditions.is_file()
                    with timed(f"validate {name} {each.method.name}", is_left):
                        top, points = plan.over(neurons)
                        validate_task(
                            model, own, validation[name], top, points, run, launch, announce
                        )
                if launch.ranks.is_first:
                    report_task(run, listeners.show, brief=True)
        if launch.ranks.is_first:
            _show_overview(directories, asked.output_path, listeners)
            listeners.show(f"written to {asked.output_path}")
    return directories


def _exists(run: RunDirectory) -> bool:
    return run.neurons.is_file()


def _pass_name(task: str, left: Sequence[MethodRun]) -> str:
    """The stage that finds the neurons: one time for all methods that share the pass."""
    names = ", ".join(each.method.name for each in left)
    return f"identify {task} ({names} together)" if len(left) > 1 else f"identify {task} {names}"


def _show_estimates(
    estimates: Sequence[Estimate], launch: Launch, listeners: Listeners
) -> list[RunDirectory]:
    if launch.ranks.is_first:
        listeners.show(estimate_table(estimates))
    return []


def _show_overview(runs: Sequence[RunDirectory], folder: Path, listeners: Listeners) -> None:
    """Write the page of several runs, and show them in one table."""
    table = closing_table(write_overviews(runs, folder))
    if table is not None:
        listeners.show(table)


class _Seconds:
    """Notes how long stages take."""

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, stage: str, is_left: bool) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._seconds is not None and is_left:
            self._seconds[stage] = round(time.perf_counter() - started, 3)


def validate_runs(
    asked: ValidateSettings, how: LaunchSettings, listeners: Listeners, *, load: Load | None = None
) -> list[RunDirectory]:
    """Validate the neurons of every run at and below `run_dir`.

    Args:
        asked: which runs, under which conditions.
        how: resuming, overwriting, checkpoints, dry run.
        listeners: see `Listeners`.
        load: makes the model; `load_model` if not given.

    Returns:
        the directories of the runs; none of a dry run.

    Raises:
        NeuronLLMError: settings, runs or the model cannot be used.
    """
    plan = condition_plan(asked)
    with launched(asked, how) as launch:
        # A number of neurons that one of the runs does not have is refused before any validation.
        work = []
        for run in runs_below([asked.run_dir]):
            settings = load_settings(run)
            own = dataclasses.replace(plan, positions=asked.positions or settings.positions)
            work.append((run, settings, *own.over(load_neurons(run, settings))))
        runs = [run for run, *_ in work]
        if not how.dry_run:
            for run in runs:
                run.require_writable()
            take_locks(launch, runs)
        is_left = launch.ranks.on_first(lambda: any(validation_is_left(run) for run in runs))
        launch = dataclasses.replace(launch, keep=(launch.keep or is_left) and not launch.overwrite)
        model, model_args = None, None
        estimates: list[Estimate] = []
        for run, saved, neurons, points in work:
            settings = saved.model_copy(update=asked.overrides())
            require_trust(settings, asked.trust_remote_code)
            task = load_run_task(settings)
            if model is None or model_args != settings.model_args:
                model, model_args = (load or load_model)(settings), settings.model_args
            questions = validation_questions(model.lm, settings, task)
            if how.dry_run:
                estimates.append(
                    estimate_validation(model, settings, questions, points, run.path, neurons)
                )
                continue
            announce = listeners.announce
            validate_task(model, settings, questions, neurons, points, run, launch, announce)
            if launch.ranks.is_first:
                report_task(run, listeners.show, brief=len(runs) > 1)
        if how.dry_run:
            return _show_estimates(estimates, launch, listeners)
        if launch.ranks.is_first:
            _show_overview(runs, asked.run_dir, listeners)
    return runs


# What the settings ask for ------------------------------------------------------------------------


def requested_settings(asked: IdentifySettings) -> RunSettings:
    """The settings of the runs, before tasks and methods are told apart.

    Raises:
        UsageError: a value that no task or model can make right.
    """
    if len(asked.top_k) != 1 and not isinstance(asked, EvaluateSettings):
        raise UsageError(
            f"top_k holds {len(asked.top_k)} numbers",
            expected="one number for identify",
            remedy="give identify the largest, and the list to `neuronllm-eval validate`",
        )
    model_args = {"pretrained": str(MODEL_DIR)} if asked.model_args is None else asked.model_args
    if "pretrained" not in model_args:
        raise UsageError(
            f"model_args names no model: {model_args!r:.100}",
            expected="pretrained=NAME_OR_PATH",
            remedy="add pretrained= to --model_args",
        )
    quadrature_of(asked)  # refuses a wrong number of nodes
    first = chosen_methods(asked)[0]
    return RunSettings(
        **{name: getattr(asked, name) for name in SelectionSettings.model_fields},
        model_args=model_args,
        task=",".join(asked.tasks),
        include_path=tuple(str(path.resolve()) for path in asked.include_path),
        metadata=asked.metadata,
        method=first.name,
        method_args=dataclasses.asdict(first),
        top_k=max(asked.top_k),
    )


def chosen_methods(asked: IdentifySettings) -> tuple[Method, ...]:
    """The methods; each of the given settings goes to those that have it.

    Raises:
        UsageError: an unknown or repeated method, a setting that none of them has, or a value that
            it cannot have.
    """
    if len(set(asked.method)) < len(asked.method):
        raise UsageError(
            f"method is {','.join(asked.method)!r}",
            expected="each method once",
            remedy="check --method",
        )
    fields = {
        name: {field.name for field in dataclasses.fields(make_method(name))}
        for name in asked.method
    }
    if unknown := sorted(set(asked.method_args).difference(*fields.values())):
        raise UsageError(
            f"no chosen method has a setting {unknown[0]!r:.100}",
            expected=", ".join(sorted(set().union(*fields.values())))
            or f"none with --method {','.join(asked.method)}",
            remedy="check --method_args",
        )
    return tuple(
        make_method(name, {key: asked.method_args[key] for key in known & set(asked.method_args)})
        for name, known in fields.items()
    )


def condition_plan(asked: EvaluateSettings | ValidateSettings) -> ConditionPlan:
    """What validation scores.

    Raises:
        UsageError: an unknown condition, too many controls, a scale that is not finite, or numbers
            of neurons and factors that make no sweep.
    """
    return ConditionPlan(
        conditions=asked.conditions,
        n_random=asked.n_random,
        seed=asked.seed or 0,
        scales=Scales(asked.suppress_scale, asked.enhance_scale),
        sweep=Sweep(asked.top_k, asked.scale),
        positions=asked.positions or SCORED,
    )


# Processes and locks ------------------------------------------------------------------------------


@contextmanager
def launched(asked: IdentifySettings | ValidateSettings, how: LaunchSettings) -> Iterator[Launch]:
    """Meet the other processes of the command; release its locks at the end.

    Raises:
        UsageError: the processes cannot reach each other.
    """
    launch = Launch(
        Ranks.join(asked.device),
        how.checkpoint_every,
        how.overwrite,
        how.resume,
        command=(*asked.program, *command_words(asked)),
    )
    try:
        yield launch
        launch.ranks.leave()
    finally:
        launch.locks.release()


def take_locks(launch: Launch, runs: Sequence[RunDirectory]) -> None:
    """Lock the run directories that exist; others are locked when they are made."""
    launch.ranks.on_first(lambda: launch.locks.take(run.path for run in runs if run.path.is_dir()))
