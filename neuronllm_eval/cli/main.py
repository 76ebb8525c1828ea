"""The command line: `neuronllm-eval identify | validate | report | ...`, and `run_eval.py`.

Flags carry lm_eval's names where lm_eval has them (`arguments.py`). Only this module prints, and
`__main__`, which refuses some commands before this one is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import shtab
import torch
import transformers

from neuronllm_eval.cli import arguments
from neuronllm_eval.cli import export as export_command
from neuronllm_eval.cli.compare import compare, compare_methods
from neuronllm_eval.cli.config_file import with_config
from neuronllm_eval.cli.explain import explain
from neuronllm_eval.cli.identify import Listeners, identify
from neuronllm_eval.cli.parsers import Command, main_parser, run_eval_parser
from neuronllm_eval.cli.report import DISK_ERRORS, report
from neuronllm_eval.cli.run_lm_eval import run_lm_eval
from neuronllm_eval.cli.validate import validate
from neuronllm_eval.errors import NeuronLLMError, UsageError
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.formats.terminal import fitted, terminal_width
from neuronllm_eval.harness.aqua_conversion.convert import write_yaml
from neuronllm_eval.harness.packaged_tasks import tasks_dir
from neuronllm_eval.reporting.cost_table import estimate_line
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.distributed import OtherRankFailed, own_rank
from neuronllm_eval.runtime.signals import Interrupted, handled
from neuronllm_eval.stages.cost_estimate import Estimate
from neuronllm_eval.stages.load_model import load_model
from neuronllm_eval.stages.load_questions import (
    aqua_overrides,
    load_run_task,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.stages.verify import verify

logger = logging.getLogger(__name__)
# An error of all processes is the first one's to tell: the others give it so many seconds.
_FIRST_WORD = 1.0
_PIPE_CLOSED = 141  # as the shell has it: 128 and the number of SIGPIPE
DEMO_OUTPUT = "runs/demo"
# Sizes at which the demo ends within a minute on two cores.
DEMO_LIMIT = 120
DEMO_BATCH_SIZE = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `neuronllm-eval`; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["leaderboard"]:  # for one release
        print("leaderboard is now `neuronllm-eval compare --rank`", file=sys.stderr)
        given[:1] = ["compare", "--rank"]
    if given[:1] == ["run"]:
        return _guarded(lambda: run_lm_eval(given[1:]))
    if given[:1] == ["push"]:
        return _guarded(_refuse_push)

    def execute() -> int:
        parser = main_parser(COMMANDS)
        options = parser.parse_args(with_config(given, *parser.of_command(given)))
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
        identify(options, _LISTENERS, validate=True)
        return 0

    return _guarded(execute)


def _refuse_push() -> int:
    raise UsageError(
        "`neuronllm-eval push` is no longer a command",
        expected="`hf upload`, the Hub's own: run directories and exports hold no secrets",
        remedy="log in with `hf auth login`, then run `hf upload USER/REPO DIR . "
        "--exclude validation_docs.jsonl`",
    )


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
        if error.errno not in DISK_ERRORS:
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


def _announce(expected: Estimate) -> None:
    print(estimate_line(expected), file=sys.stderr)


def _show(text: object) -> None:
    """Print what people are to read; on a terminal its tables fit, elsewhere they are whole."""
    print(fitted(str(text), terminal_width()))


_LISTENERS = Listeners(_show, _announce)


def _identify(options: argparse.Namespace) -> int:
    identify(options, _LISTENERS)
    return 0


def _compare_methods(options: argparse.Namespace) -> int:
    # The runs' own reports are not shown; what they would take is.
    listeners = dataclasses.replace(_LISTENERS, show=_show if options.dry_run else lambda _: None)

    def evaluate(own: argparse.Namespace, seconds: dict[str, float]) -> list[RunDirectory]:
        return identify(own, listeners, validate=True, seconds=seconds)

    return compare_methods(options, evaluate, print)


def _validate(options: argparse.Namespace) -> int:
    validate(options, _LISTENERS)
    return 0


def _verify(options: argparse.Namespace) -> int:
    sound = True
    for run in runs_below([Path(options.run_dir)]):
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
            _show(f"{run.path}\n\n{table}\n\n{verdict}.")
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


def _complete(options: argparse.Namespace) -> int:
    print(shtab.complete(main_parser(COMMANDS), options.shell))
    return 0


COMMANDS: dict[str, Command] = {
    "identify": _identify,
    "validate": _validate,
    "report": lambda options: report(options, _show),
    "verify": _verify,
    "export": lambda options: export_command.export(options, print),
    "compare": lambda options: compare(options, print),
    "compare-methods": _compare_methods,
    "explain": lambda options: explain(options, _show),
    "tasks": _tasks,
    "tasks make": _make_tasks,
    "completion": _complete,
}


def _set_up_logging(verbosity: str) -> None:
    rank = own_rank()
    mark = f"[rank {rank}] " if rank else ""
    logging.basicConfig(format=f"{mark}%(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(verbosity)
    if rank and verbosity == "WARNING":  # the first process warns for all, but of its memory
        logging.getLogger("neuronllm_eval").setLevel("ERROR")
        logging.getLogger("neuronllm_eval.engine.batching").setLevel("WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have letters the terminal has not
            stream.reconfigure(errors="backslashreplace")
    if verbosity not in ("DEBUG", "INFO"):
        transformers.utils.logging.set_verbosity_error()
        if rank or not sys.stderr.isatty():  # of loading and writing weights
            transformers.utils.logging.disable_progress_bar()
        # The harness warns about its own defaults on every load, and bars every build of requests.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
