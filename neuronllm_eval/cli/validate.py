"""`neuronllm-eval validate`: the neurons of runs that are there, judged."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from neuronllm_eval.cli import arguments
from neuronllm_eval.cli.identify import Listeners, Load
from neuronllm_eval.cli.launch import launched, take_locks
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.interventions.score_conditions import ConditionPlan
from neuronllm_eval.reporting.cost_table import estimate_table
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.reader import load_neurons
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.resumable_work import Launch
from neuronllm_eval.stages.cost_estimate import Estimate
from neuronllm_eval.stages.load_model import load_model
from neuronllm_eval.stages.load_questions import load_run_task, validation_questions
from neuronllm_eval.stages.prepare import estimate_validation
from neuronllm_eval.stages.resume import validation_goes_on
from neuronllm_eval.stages.validate import validate_task


def validate(
    options: argparse.Namespace, listeners: Listeners, *, load: Load | None = None
) -> list[RunDirectory]:
    """Judge every run at `options.run_dir`; the directories of the runs, none of a dry run.

    Args:
        options: parsed flags.
        listeners: as `identify_command.identify`.
        load: makes the model; `load_model` if not given.

    Raises:
        NeuronLLMError: whatever flags, runs and models can be wrong in.
    """
    plan = arguments.condition_plan(options)
    with launched(options) as launch:
        return _validate_in(launch, options, plan, listeners, load or load_model)


def _validate_in(
    launch: Launch,
    options: argparse.Namespace,
    plan: ConditionPlan,
    listeners: Listeners,
    load: Load,
) -> list[RunDirectory]:
    given = arguments.given(options, "batch_size", "device", "limit", "engine")
    model, loaded = None, None
    estimates: list[Estimate] = []
    # A number of neurons that one of the runs does not have is refused before any is judged.
    runs = [
        (
            run,
            settings,
            *arguments.plan_for(plan, options, settings).over(load_neurons(run, settings)),
        )
        for run in runs_below([Path(options.run_dir)])
        for settings in [RunSettings.load(run.settings)]
    ]
    if not options.dry_run:
        for run, _, _, _ in runs:
            run.require_writable()
        take_locks(launch, [run for run, _, _, _ in runs])
    goes_on = launch.ranks.on_first(lambda: any(validation_goes_on(run) for run, _, _, _ in runs))
    launch = dataclasses.replace(launch, keep=(launch.keep or goes_on) and not launch.overwrite)
    for run, saved, judged, points in runs:
        settings = dataclasses.replace(saved, **given)
        arguments.require_counts(settings)
        arguments.require_trust(settings, options.trust_remote_code)
        task = load_run_task(settings)
        if model is None or loaded != settings.model_args:
            model, loaded = load(settings), settings.model_args
        questions = validation_questions(model.lm, settings, task)
        if options.dry_run:
            estimates.append(
                estimate_validation(model, settings, questions, points, run.path, judged)
            )
            continue
        announce = listeners.announce
        validate_task(model, settings, questions, judged, points, run, launch, announce)
        if launch.ranks.is_first:
            report_task(run, listeners.show)
    if options.dry_run and launch.ranks.is_first:
        listeners.show(estimate_table(estimates))
    elif launch.ranks.is_first:
        results = write_overviews([run for run, _, _, _ in runs], Path(options.run_dir))
        if (table := closing_table(results)) is not None:
            listeners.show(table)
    return [] if options.dry_run else [run for run, _, _, _ in runs]
