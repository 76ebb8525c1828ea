"""`run_eval.py` and `neuronllm-eval identify | validate | report | verify | tasks | completion`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import shtab
import torch

from neuronllm_eval.cli.commands import (
    CompletionSettings,
    MakeTasksSettings,
    ModelTypeSettings,
    ReportSettings,
    VerifySettings,
    main_parser,
)
from neuronllm_eval.comparison.several_tasks import closing_table, write_overviews
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.aqua_conversion.convert import write_yaml
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.artifacts import load_settings
from neuronllm_eval.runs.directory import RunDirectory, runs_below
from neuronllm_eval.runs.settings import (
    EvaluateSettings,
    IdentifySettings,
    LaunchSettings,
    ValidateSettings,
)
from neuronllm_eval.runtime.process import DISK_ERRORS, own_rank
from neuronllm_eval.stages.cost_estimate import Estimate, estimate_line
from neuronllm_eval.stages.evaluate import Listeners, identify_runs, validate_runs
from neuronllm_eval.stages.load import (
    aqua_overrides,
    load_model,
    load_run_task,
    require_trust,
)
from neuronllm_eval.stages.verify import Check, check_files
from neuronllm_eval.stages.verify import verify as verify_run

logger = logging.getLogger(__name__)
DEMO_OUTPUT = Path("runs/demo")
# Sizes at which the demo ends within a minute on two cores.
DEMO = {"limit": 120, "batch_size": 48, "output_path": DEMO_OUTPUT}
Show = Callable[[object], object]


def announce(expected: Estimate) -> None:
    """Print beforehand what a long stage will take."""
    print(estimate_line(expected), file=sys.stderr)


def identify(
    asked: IdentifySettings, how: LaunchSettings, _model: ModelTypeSettings, show: Show
) -> int:
    """Identify neurons."""
    identify_runs(asked, how, Listeners(show, announce))
    return 0


def run_eval(
    asked: EvaluateSettings, how: LaunchSettings, _model: ModelTypeSettings, show: Show
) -> int:
    """Identify, validate and report; the demo, if no setting but `dry_run` is given."""
    if not asked.model_fields_set and how.model_fields_set <= {"dry_run"}:
        asked = asked.model_copy(update=DEMO)
        how = how.model_copy(update={"overwrite": True})
        torch.set_num_threads(1)  # the embedded model is too small to share out
        if not how.dry_run and DEMO_OUTPUT.is_dir():
            logger.warning("%s: the demo that was there is replaced", DEMO_OUTPUT)
    identify_runs(asked, how, Listeners(show, announce))
    return 0


def validate(asked: ValidateSettings, how: LaunchSettings, show: Show) -> int:
    """Validate the neurons of runs."""
    validate_runs(asked, how, Listeners(show, announce))
    return 0


# Report -----------------------------------------------------------------------------------------


def report(settings: ReportSettings, show: Show) -> int:
    """Rewrite the report of every run at and below a directory. No model is loaded.

    Raises:
        ArtifactError: there is no run; after all else, some are damaged or cannot be written.
    """
    is_first = not own_rank()
    runs = runs_below([settings.run_dir])
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


def verify(asked: VerifySettings, show: Show) -> int:
    """Recompute part of every run at and below a directory; 1 if something differs."""
    passed = True
    for run in runs_below([asked.run_dir]):
        checks = _checks(run, asked)
        rows = [[check.name, "yes" if check.passed else "NO", check.detail] for check in checks]
        if not own_rank():  # every process verifies for itself, and one prints
            n_wrong = sum(not check.passed for check in checks)
            verdict = (
                f"{n_wrong} of {len(checks)} checks failed" if n_wrong else "All checks passed"
            )
            table = markdown_table(["check", "passed", "detail"], rows)
            show(f"{run.path}\n\n{table}\n\n{verdict}.")
        passed = passed and all(check.passed for check in checks)
    return 0 if passed else 1


def _checks(run: RunDirectory, asked: VerifySettings) -> list[Check]:
    """Those of the files, and where these are as they were written, those of what they say."""
    files = check_files(run)
    if not files.passed:
        return [files]
    overrides = {name: value for name, value in asked.overrides().items() if name != "limit"}
    settings = load_settings(run).model_copy(update=overrides)
    require_trust(settings, asked.trust_remote_code)
    task = load_run_task(settings)
    model = load_model(settings)
    return [files, *verify_run(model, settings, task, run, asked.limit)]


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
