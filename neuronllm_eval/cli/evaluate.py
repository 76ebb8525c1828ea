"""`run_eval.py` and the commands of `neuronllm-eval` that make and read runs; tasks, completion."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import shtab
import torch

from neuronllm_eval.cli.commands import (
    CompletionSettings,
    ExplainSettings,
    MakeTasksSettings,
    ModelTypeSettings,
    ReportSettings,
    VerifySettings,
    main_parser,
)
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.other_tasks import finished_others
from neuronllm_eval.explain.explanation import Explanation, NeuronExplanation, SetOverlap
from neuronllm_eval.explain.explanation_markdown import overlap_table, render, summary
from neuronllm_eval.explain.token_effects import read_tokens, tokens_json
from neuronllm_eval.formats.inert_text import inert
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.aqua_conversion.convert import write_yaml
from neuronllm_eval.neurons.neuron_set import COMPARED, overlap
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.artifacts import load_neurons, load_settings
from neuronllm_eval.runs.directory import RunDirectory, runs_below
from neuronllm_eval.runs.settings import (
    ComputeSettings,
    EvaluateSettings,
    IdentifySettings,
    LaunchSettings,
    ValidateSettings,
)
from neuronllm_eval.runtime.process import DISK_ERRORS, own_rank
from neuronllm_eval.stages.evaluate import identify_runs, validate_runs
from neuronllm_eval.stages.explain import StoredRun, explain_run
from neuronllm_eval.stages.load import (
    Load,
    StageInput,
    aqua_overrides,
    load_run_task,
    loaded_once,
    require_trust,
    selection_questions,
)
from neuronllm_eval.stages.verify import Check, check_files, verify_other
from neuronllm_eval.stages.verify import verify as verify_run

logger = logging.getLogger(__name__)
DEMO_OUTPUT = Path("runs/demo")
# Sizes at which the demo ends within a minute on two cores.
DEMO = {"limit": 120, "batch_size": 48, "output_path": DEMO_OUTPUT}
Show = Callable[[object], object]


def announce(estimate: str) -> None:
    """Print beforehand what a long stage will take."""
    print(inert(estimate), file=sys.stderr)


def identify(
    request: IdentifySettings, launch: LaunchSettings, _model: ModelTypeSettings, show: Show
) -> int:
    """Identify neurons."""
    identify_runs(request, launch, show, announce)
    return 0


def run_eval(
    request: EvaluateSettings, launch: LaunchSettings, _model: ModelTypeSettings, show: Show
) -> int:
    """Identify, validate and report; the demo, if no setting but `dry_run` is given."""
    if not request.model_fields_set and launch.model_fields_set <= {"dry_run"}:
        request = request.model_copy(update=DEMO)
        launch = launch.model_copy(update={"overwrite": True})
        torch.set_num_threads(1)  # the embedded model is too small to share out
        if not launch.dry_run and DEMO_OUTPUT.is_dir():
            logger.warning("%s: the demo that was there is replaced", DEMO_OUTPUT)
    identify_runs(request, launch, show, announce)
    return 0


def validate(request: ValidateSettings, launch: LaunchSettings, show: Show) -> int:
    """Validate the neurons of runs."""
    validate_runs(request, launch, show, announce)
    return 0


# Report -----------------------------------------------------------------------------------------


def report(settings: ReportSettings, show: Show) -> int:
    """Rewrite the report of every run at and below a directory. No model is loaded.

    Raises:
        ArtifactError: there is no run; after all else, some are damaged or cannot be written.
        UsageError: there are several, and the user may not know.
    """
    is_first = not own_rank()
    runs = runs_below([settings.run_dir])
    if len(runs) > 1 and not settings.yes:
        listed = ", ".join(str(run.path) for run in runs)
        raise UsageError(
            f"{settings.run_dir} contains {len(runs)} runs: {listed}",
            expected="one run, or your consent, since their reports are rewritten",
            remedy="name one of them, or pass --yes",
        )
    damaged: dict[Path, ArtifactError] = {}
    unwritten: dict[Path, str] = {}
    for run in runs:
        try:
            report_task(run, show if is_first else None)
        except ArtifactError as error:
            damaged[run.path] = error
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            unwritten[run.path] = error.strerror or ""
    if is_first and not unwritten:
        table = closing_table(write_overviews(runs, settings.run_dir))
        if table is not None:
            show(table)
    if damaged or unwritten:
        raise _without_report(damaged, unwritten)
    return 0


def _without_report(
    damaged: Mapping[Path, ArtifactError], unwritten: Mapping[Path, str]
) -> ArtifactError:
    if not unwritten:
        if len(damaged) == 1:
            (error,) = damaged.values()
            return error
        return ArtifactError(
            f"{len(damaged)} runs cannot be read, and have no new report:\n{_listed(damaged)}",
            expected="files as this package writes them",
            remedy="run validate, or identify, again on these, or move them away",
        )
    others = f"\nand of these the files are damaged:\n{_listed(damaged)}" if damaged else ""
    listed = ", ".join(f"{path} ({why})" for path, why in unwritten.items())
    return ArtifactError(
        f"the report cannot be written: {listed}{others}",
        expected="a disk with room, that can be written",
        remedy="make room, or take the tables that are printed above",
    )


def _listed(damaged: Mapping[Path, ArtifactError]) -> str:
    return "\n".join(f"  {path}: {error.found}" for path, error in damaged.items())


# Verify -----------------------------------------------------------------------------------------


def verify(request: VerifySettings, show: Show) -> int:
    """Recompute part of every run at and below a directory; 1 if something differs."""
    load, passed = loaded_once(), True
    for run in runs_below([request.run_dir]):
        checks = _checks(run, request, load)
        rows = [[check.name, "yes" if check.passed else "NO", check.detail] for check in checks]
        n_wrong = sum(not check.passed for check in checks)
        if not own_rank():  # every process verifies for itself, and one prints
            verdict = (
                f"{n_wrong} of {len(checks)} checks failed" if n_wrong else "All checks passed"
            )
            table = markdown_table(["check", "passed", "detail"], rows)
            show(f"{run.path}\n\n{table}\n\n{verdict}.")
        passed = passed and not n_wrong
    return 0 if passed else 1


def _checks(run: RunDirectory, request: VerifySettings, load: Load) -> list[Check]:
    """Those of the files, and those of what they say, where they can be read."""
    others = finished_others(run)
    files = [check_files(each) for each in (run, *others)]
    try:
        settings = load_settings(run).model_copy(update=_computation(request))
        require_trust(settings, request.trust_remote_code)
        task = load_run_task(settings)
        other_settings = [
            load_settings(other).model_copy(update=_computation(request)) for other in others
        ]
        for each in other_settings:
            require_trust(each, request.trust_remote_code)
        other_tasks = [load_run_task(each) for each in other_settings]
        model, neurons = load(settings), load_neurons(run, settings)
        checks = [*files, *verify_run(model, settings, task, run, request.limit)]
        for other in zip(other_settings, other_tasks, others, strict=True):
            checks += verify_other(model, *other, neurons, request.limit)
        return checks
    except ArtifactError:
        if all(check.passed for check in files):
            raise
        return files


def _computation(request: ComputeSettings) -> dict[str, Any]:
    """The settings that were given in place of a run's own; here the limit is none of them."""
    return {name: value for name, value in request.overrides().items() if name != "limit"}


# Explain ----------------------------------------------------------------------------------------


def explain(request: ExplainSettings, show: Show) -> int:
    """Explain every run at and below some directories.

    All that is stored, which the reports are rewritten from, is read and compared before the first
    model is loaded.
    """
    runs = [StoredRun.load(run, _computation(request)) for run in runs_below(request.run_dir)]
    for stored in runs:
        require_trust(stored.settings, request.trust_remote_code)
        stored.run.require_writable()
        stored.run.require_places()
        TaskReport.load(stored.run)
    tasks = [load_run_task(stored.settings) for stored in runs]
    names = _distinct_names(runs)
    overlaps = _overlaps(names, runs)
    load, is_first = loaded_once(), not own_rank()
    for name, stored, task in zip(names, runs, tasks, strict=True):
        model = load(stored.settings)
        questions = selection_questions(model.lm, stored.settings, task)
        inputs = StageInput(model, stored.settings, questions)
        pairs = tuple(pair for pair in overlaps if name in pair.runs)
        explanation = explain_run(inputs, stored, pairs, request.top_n, request.limit)
        if is_first:  # every process explains for itself, and one prints
            if len(runs) > 1:
                show(f"# {name}\n")
            show(summary(explanation))
            _write_explanation(explanation, stored.run)
    if is_first:
        if overlaps:
            show(f"## Overlap of sets\n\n{overlap_table(overlaps)}\n")
        show("\n".join(f"written to {stored.run.explanation_text}" for stored in runs))
    return 0


def _write_explanation(explanation: Explanation, run: RunDirectory) -> None:
    run.write(run.explanation, explanation.to_json())
    run.write(run.explanation_text, render(explanation))
    listed = map(NeuronExplanation.listed_tokens, explanation.neurons)
    tokens = {**read_tokens(run.tokens), **{neuron.key: neuron for neuron in listed}}
    values = {key: neuron.listed() for key, neuron in tokens.items()}
    run.write(run.tokens, tokens_json(tokens.values()), values)
    report_task(run)  # its page and tables have the tokens from now on


def _distinct_names(runs: Sequence[StoredRun]) -> list[str]:
    """What to call each run: its directory's name, or its path where names repeat."""
    names = [stored.run.path.name for stored in runs]
    return names if len(set(names)) == len(names) else [str(stored.run.path) for stored in runs]


def _overlaps(names: Sequence[str], runs: Sequence[StoredRun]) -> list[SetOverlap]:
    """Of every two runs, how far their sets overlap; None where the models differ."""
    overlaps = []
    named = zip(names, (stored.neurons for stored in runs), strict=True)
    for (name, neurons), (other_name, others) in itertools.combinations(named, 2):
        is_same_model = neurons.shape == others.shape and (
            neurons.provenance.model_hash == others.provenance.model_hash
        )
        for sets in COMPARED:
            first, second = getattr(neurons, sets[0]), getattr(others, sets[1])
            shared = overlap(first, second, neurons.shape) if is_same_model else None
            overlaps.append(SetOverlap((name, other_name), sets, shared))
    return overlaps


# Tasks and completion -----------------------------------------------------------------------------


def print_folder(show: Show) -> int:
    """Print the folder of the packaged tasks."""
    show(tasks_dir())
    return 0


def make(settings: MakeTasksSettings, show: Show) -> int:
    """Write AQUA tasks, and print their paths."""
    folders = [str(path) for path in settings.include_path]
    overrides = aqua_overrides(settings)
    for path in write_yaml(settings.task, settings.output_path, folders, overrides):
        show(path)
    return 0


def complete(settings: CompletionSettings, show: Show) -> int:
    """Print the script of a shell."""
    show(shtab.complete(main_parser(), settings.shell))
    return 0
