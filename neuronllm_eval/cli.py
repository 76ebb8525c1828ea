"""The command line: `neuronllm-eval identify | validate | report | ...`, and `run_eval.py`.

Flags carry lm_eval's names where lm_eval has them (`arguments.py`). Only this module prints, and
`__main__`, which refuses some commands before this one is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from neuronllm_eval import arguments, export_command, hub_command
from neuronllm_eval.adapter import write_yaml
from neuronllm_eval.compare_command import compare_finished, compare_methods
from neuronllm_eval.config_file import with_config
from neuronllm_eval.errors import ArtifactError, NeuronLLMError, UsageError
from neuronllm_eval.estimate import Estimate
from neuronllm_eval.estimate_text import estimate_line, estimate_table
from neuronllm_eval.explain_command import explain
from neuronllm_eval.identified_files import method_runs
from neuronllm_eval.identify_stage import identify_by_methods
from neuronllm_eval.interrupts import Interrupted, handled
from neuronllm_eval.leaderboard_command import show_leaderboard
from neuronllm_eval.loading import load_model
from neuronllm_eval.method_arguments import chosen_methods
from neuronllm_eval.overview import write_overview
from neuronllm_eval.parsers import Command, main_parser, run_eval_parser
from neuronllm_eval.preparation import estimate_identification, estimate_validation
from neuronllm_eval.ranks import OtherRankFailed, Ranks, own_rank
from neuronllm_eval.report import markdown_table
from neuronllm_eval.report_stage import report_task
from neuronllm_eval.resuming import refuse_before_work, validation_goes_on
from neuronllm_eval.run_command import run_lm_eval
from neuronllm_eval.run_directory import RunDirectory, find_runs
from neuronllm_eval.run_tasks import (
    aqua_overrides,
    load_run_task,
    load_run_tasks,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.selftest_command import selftest
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.shared_work import Launch
from neuronllm_eval.stored_run import load_neurons
from neuronllm_eval.tasks_path import tasks_dir
from neuronllm_eval.validate_stage import validate_task
from neuronllm_eval.validation import ConditionPlan
from neuronllm_eval.verification import verify

logger = logging.getLogger(__name__)
# An error of all processes is the first one's to tell: the others give it so many seconds.
_FIRST_WORD = 1.0
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
_PIPE_CLOSED = 141  # as the shell has it: 128 and the number of SIGPIPE
DEFAULT_OUTPUT = "runs"
DEMO_OUTPUT = "runs/demo"
# Sizes at which the demo ends within a minute on two cores.
DEMO_LIMIT = 120
DEMO_BATCH_SIZE = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `neuronllm-eval`; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["run"]:
        return _guarded(lambda: run_lm_eval(given[1:]))

    def execute() -> int:
        parser = main_parser(COMMANDS)
        own = parser.commands.get(given[0]) if given else None
        words = given if own is None else with_config(given, own, 1)
        options = parser.parse_args(words)
        options.command = ("neuronllm-eval", *given)
        _set_up_logging(options.verbosity)
        return int(options.execute(options))

    return _guarded(execute)


def run_eval_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `run_eval.py`: identify, validate and report in one go."""
    given = list(sys.argv[1:] if argv is None else argv)

    def execute() -> int:
        parser = run_eval_parser()
        options = parser.parse_args(with_config(given, parser, 0))
        options.command = ("run_eval.py", *given)
        is_demo = given in ([], ["--dry_run"])
        if is_demo:
            options.limit, options.batch_size = DEMO_LIMIT, DEMO_BATCH_SIZE
            options.output_path, options.overwrite = DEMO_OUTPUT, True
            torch.set_num_threads(1)  # the embedded model is too small to share out
        _set_up_logging(options.verbosity)
        if is_demo and not options.dry_run and Path(DEMO_OUTPUT).is_dir():
            logger.warning("%s: the demo that was there is replaced", DEMO_OUTPUT)
        return _identify(options, validate=True)

    return _guarded(execute)


def _guarded(action: Callable[[], int]) -> int:
    """Turn this package's errors into one readable message and an exit code."""
    try:
        rank = own_rank()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    mark = f"[rank {rank}] " if rank else ""
    try:
        with handled():
            return action()
    except OtherRankFailed as error:
        logger.info("%s%s", mark, error)  # that one says why
        return 1
    except NeuronLLMError as error:
        if rank:
            time.sleep(_FIRST_WORD)
        print(f"{mark}error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print(
            f"{mark}error: {error.filename or 'a file'} cannot be written: {error.strerror}.\n"
            "Expected: a disk with room, that can be written.\n"
            "Remedy: make room, or let it be written, then repeat the command: it goes on.",
            file=sys.stderr,
        )
        return 1
    except (torch.OutOfMemoryError, MemoryError) as error:  # where no smaller batch would help
        said = str(error).splitlines()[:1] or ["the system has none left"]
        print(
            f"{mark}error: out of memory: {said[0].rstrip('.')}.\n"
            "Expected: room for the model, a batch of prompts and the scores of all neurons.\n"
            "Remedy: free memory and repeat the command: it goes on; or start anew with a smaller "
            "--batch_size and --overwrite.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt as error:
        note = error.note if isinstance(error, Interrupted) else ""
        if not rank:
            print(f"interrupted; {note}" if note else "interrupted", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 130


@contextmanager
def _launched(options: argparse.Namespace) -> Iterator[Launch]:
    """The processes of this command, and what it does with what is there."""
    arguments.require_launch(options)
    launch = Launch(
        Ranks.join(options.device),
        options.checkpoint_every,
        options.overwrite,
        options.resume,
        command=options.command,
    )
    try:
        yield launch
        launch.ranks.leave()
    finally:
        launch.locks.release()


def _take_locks(launch: Launch, runs: Sequence[RunDirectory]) -> None:
    """Lock the run directories that are there; others are locked when they are made."""
    launch.ranks.on_first(
        lambda: launch.locks.take_all(run.path for run in runs if run.path.is_dir())
    )


def _identify(
    options: argparse.Namespace,
    *,
    validate: bool = False,
    show: Callable[[str], object] = print,
    seconds: dict[str, float] | None = None,
) -> int:
    # Whatever flags can be wrong in is refused before any work.
    plan = arguments.condition_plan(options) if validate else None
    if plan is None:
        arguments.require_one_top_k(options)
    settings = arguments.run_settings(options)
    RunDirectory(Path(options.output_path or DEFAULT_OUTPUT)).require_writable()
    with _launched(options) as launch:
        return _identify_in(
            launch, options, settings, plan, show, {} if seconds is None else seconds
        )


def _identify_in(
    launch: Launch,
    options: argparse.Namespace,
    settings: RunSettings,
    plan: ConditionPlan | None,
    show: Callable[[str], object],
    seconds: dict[str, float],
) -> int:
    output = Path(options.output_path or DEFAULT_OUTPUT)
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
        _take_locks(launch, [run for run, _ in runs])
    launch = dataclasses.replace(launch, keep=True)  # what is left would have been refused
    model = load_model(settings)
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
            print(estimate_table(estimates))
        return 0
    for (own_runs, own, _), (choosing, judging) in zip(tasks, asked, strict=True):
        with _timed(seconds, f"identify {own.task}"):
            found = identify_by_methods(model, own, choosing, own_runs, launch, _announce)
        for each, neurons in zip(own_runs, found, strict=True):
            if plan is not None:
                points, mine = plan.over(neurons), each.settings(own)
                with _timed(seconds, f"validate {own.task} {each.method.name}"):
                    validate_task(model, mine, judging, *points, each.run, launch, _announce)
            if launch.ranks.is_first:
                report_task(each.run, show)
    if launch.ranks.is_first:
        for folder in dict.fromkeys(run.path.parent for run, _ in runs):
            write_overview(folder)
        show(f"written to {output}")
    return 0


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)


def _compare_methods(options: argparse.Namespace) -> int:
    def evaluate(own: argparse.Namespace, seconds: dict[str, float]) -> int:
        return _identify(own, validate=True, show=lambda _: None, seconds=seconds)

    return compare_methods(options, evaluate, print)


def _validate(options: argparse.Namespace) -> int:
    plan = arguments.condition_plan(options)
    with _launched(options) as launch:
        return _validate_in(launch, options, plan)


def _validate_in(launch: Launch, options: argparse.Namespace, plan: ConditionPlan) -> int:
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
        for run in find_runs(Path(options.run_dir))
        for settings in [RunSettings.load(run.settings)]
    ]
    if not options.dry_run:
        for run, _, _, _ in runs:
            run.require_writable()
        _take_locks(launch, [run for run, _, _, _ in runs])
    goes_on = launch.ranks.on_first(lambda: any(validation_goes_on(run) for run, _, _, _ in runs))
    launch = dataclasses.replace(launch, keep=(launch.keep or goes_on) and not launch.overwrite)
    for run, saved, judged, points in runs:
        settings = dataclasses.replace(saved, **given)
        arguments.require_counts(settings)
        arguments.require_trust(settings, options.trust_remote_code)
        task = load_run_task(settings)
        if model is None or loaded != settings.model_args:
            model, loaded = load_model(settings), settings.model_args
        questions = validation_questions(model.lm, settings, task)
        if options.dry_run:
            estimates.append(
                estimate_validation(model, settings, questions, points, run.path, judged)
            )
            continue
        validate_task(model, settings, questions, judged, points, run, launch, _announce)
        if launch.ranks.is_first:
            report_task(run, print)
    if options.dry_run and launch.ranks.is_first:
        print(estimate_table(estimates))
    elif launch.ranks.is_first:
        write_overview(Path(options.run_dir))
    return 0


def _announce(expected: Estimate) -> None:
    print(estimate_line(expected), file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    unwritten: list[str] = []
    show = print if not own_rank() else None
    for run in find_runs(Path(options.run_dir)):
        try:
            report_task(run, show)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            unwritten.append(f"{run.path} ({error.strerror})")
    if not unwritten and not own_rank():
        write_overview(Path(options.run_dir))
    if unwritten:
        raise ArtifactError(
            f"the report cannot be written: {', '.join(unwritten)}",
            expected="a disk with room, that can be written",
            remedy="make room, or take the tables that are printed above",
        )
    return 0


def _verify(options: argparse.Namespace) -> int:
    sound = True
    for run in find_runs(Path(options.run_dir)):
        kept = RunSettings.load(run.settings)
        given = arguments.given(options, "batch_size", "device", "engine")
        settings = dataclasses.replace(kept, **given)
        arguments.require_counts(dataclasses.replace(settings, limit=options.limit))
        arguments.require_trust(settings, options.trust_remote_code)
        task = load_run_task(settings)
        model = load_model(settings)
        everything = dataclasses.replace(settings, limit=None)
        checks = verify(
            model,
            settings,
            selection_questions(model.lm, settings, task),
            validation_questions(model.lm, everything, task),
            run,
            options.limit,
        )
        rows = [[check.name, "yes" if check.sound else "NO", check.detail] for check in checks]
        if not own_rank():  # every process verifies for itself, and one speaks
            n_wrong = sum(not check.sound for check in checks)
            verdict = f"{n_wrong} of {len(checks)} checks failed" if n_wrong else "All is sound"
            table = markdown_table(["check", "sound", "detail"], rows)
            print(f"{run.path}\n\n{table}\n\n{verdict}.")
        sound = sound and all(check.sound for check in checks)
    return 0 if sound else 1


def _tasks(options: argparse.Namespace) -> int:
    print(tasks_dir())
    return 0


def _make_tasks(options: argparse.Namespace) -> int:
    overrides = aqua_overrides(arguments.aqua_settings(options))
    folder = Path(options.output_path)
    for path in write_yaml(options.task, folder, options.include_path, overrides):
        print(path)
    return 0


COMMANDS: dict[str, Command] = {
    "identify": _identify,
    "validate": _validate,
    "report": _report,
    "verify": _verify,
    "export": lambda options: export_command.export(options, print),
    "push": lambda options: hub_command.push(options, print),
    "compare": lambda options: compare_finished(options, print),
    "compare-methods": _compare_methods,
    "leaderboard": lambda options: show_leaderboard(options, print),
    "explain": lambda options: explain(options, print),
    "tasks": _tasks,
    "tasks make": _make_tasks,
    "selftest": lambda options: selftest(options, print),
}


def _set_up_logging(verbosity: str) -> None:
    rank = own_rank()
    mark = f"[rank {rank}] " if rank else ""
    logging.basicConfig(format=f"{mark}%(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(verbosity)
    if rank and verbosity == "WARNING":  # the first process warns for all, but of its memory
        logging.getLogger("neuronllm_eval").setLevel("ERROR")
        logging.getLogger("neuronllm_eval.batch_sizes").setLevel("WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have letters the terminal has not
            stream.reconfigure(errors="backslashreplace")
    if verbosity not in ("DEBUG", "INFO"):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        # The harness warns about its own defaults on every load, and bars every build of requests.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
