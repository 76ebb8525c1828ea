"""The command line: `neuronllm-eval identify | validate | report | ...`, and `run_eval.py`.

Flags carry lm_eval's names where lm_eval has them (`runs.settings`). Only this folder prints.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from neuronllm_eval.cli import commands
from neuronllm_eval.cli.flags import Parser
from neuronllm_eval.errors import NeuronLLMError, UsageError
from neuronllm_eval.formats.inert_text import inert, redacted
from neuronllm_eval.runtime.process import (
    DISK_ERRORS,
    Interrupted,
    OtherRankFailed,
    handled,
    own_rank,
)

logger = logging.getLogger(__name__)
# An error of all processes is the first one's to print: the others give it so many seconds.
_FIRST_WORD = 1.0
_PIPE_CLOSED = 141  # as the shell has it: 128 and the number of SIGPIPE
# Commands of release 0.1: what there is instead, and how to get it.
_REMOVED = {
    "push": (
        "`hf upload`, the Hub's own: run directories and exports hold no secrets",
        "log in with `hf auth login`, then run `hf upload USER/REPO DIR . "
        "--exclude validation_docs.jsonl --exclude .lock`",
    ),
    "selftest": (
        "the benchmark with planted neurons, in a clone of the repository",
        "run `python -m benchmarks.planted_truth`",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `neuronllm-eval`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["leaderboard"]:  # for one release
        print("leaderboard is now `neuronllm-eval compare --rank`", file=sys.stderr)
        words[:1] = ["compare", "--rank"]
    if words[:1] == ["run"]:
        return _guarded(lambda: int(commands.load("run_lm_eval:run_lm_eval")(words[1:])))
    if words and words[0] in _REMOVED:
        return _guarded(lambda: _refuse(words[0]))
    return _guarded(lambda: _run(commands.main_parser(words), words))


def run_eval_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `run_eval.py`: identify, validate and report in one go."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run(commands.run_eval_parser(), words))


def _run(parser: Parser, words: Sequence[str]) -> int:
    """Run the command that a command line names."""
    command, (*settings, log) = commands.parsed(parser, words)
    _set_up_logging(log.verbosity)
    return int(commands.load(command.run)(*settings, show))


def show(text: object) -> None:
    """Print what people are to read; on a terminal its tables fit, elsewhere they are whole."""
    from neuronllm_eval.formats.terminal import fitted, terminal_width

    print(fitted(inert(redacted(str(text))), terminal_width()))


def show_error(text: object) -> None:
    """Print what is no result: errors, and what a stage announces."""
    print(inert(redacted(str(text))), file=sys.stderr)


def _refuse(command: str) -> int:
    expected, remedy = _REMOVED[command]
    raise UsageError(
        f"`neuronllm-eval {command}` is no longer a command", expected=expected, remedy=remedy
    )


def _guarded(action: Callable[[], int]) -> int:
    """Turn this package's errors into one readable message and an exit code."""
    try:
        rank = own_rank()
    except UsageError as error:
        show_error(f"error: {error}")
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
        show_error(f"{mark}error: {error}")
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        show_error(
            f"{mark}error: {error.filename or 'a file'} cannot be written: {error.strerror}.\n"
            "Expected: a disk with room, that can be written.\n"
            "Remedy: make room, or let it be written, then repeat the command: it resumes."
        )
        return 1
    except _memory_errors() as error:  # where no smaller batch would help
        said = str(error).splitlines()[:1] or ["the system has none left"]
        show_error(
            f"{mark}error: out of memory: {said[0].rstrip('.')}.\n"
            "Expected: room for the model, a batch of prompts and the scores of all neurons.\n"
            "Remedy: free memory and repeat the command: it resumes; or start from scratch with a "
            "smaller --batch_size and --overwrite."
        )
        return 1
    except KeyboardInterrupt as error:
        note = error.note if isinstance(error, Interrupted) else ""
        if not rank:
            show_error(f"interrupted; {note}" if note else "interrupted")
        return error.exit_code if isinstance(error, Interrupted) else 130


def _memory_errors() -> tuple[type[BaseException], ...]:
    torch = sys.modules.get("torch")
    return (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)


class _InertFormatter(logging.Formatter):
    """Messages of this package and of others, whose texts may come from anywhere."""

    def format(self, record: logging.LogRecord) -> str:
        return inert(redacted(super().format(record)))


def _set_up_logging(verbosity: str) -> None:
    rank = own_rank()
    mark = f"[rank {rank}] " if rank else ""
    handler = logging.StreamHandler()
    handler.setFormatter(_InertFormatter(f"{mark}%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger().setLevel(verbosity)
    if rank and verbosity == "WARNING":  # the first process warns for all, but of its memory
        logging.getLogger("neuronllm_eval").setLevel("ERROR")
        logging.getLogger("neuronllm_eval.engine.batching").setLevel("WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have letters the terminal has not
            stream.reconfigure(errors="backslashreplace")
    if verbosity not in ("DEBUG", "INFO"):
        _quieten_libraries(rank)


def _quieten_libraries(rank: int) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if rank or not sys.stderr.isatty():  # of loading and writing weights
        transformers.utils.logging.disable_progress_bar()
    # The harness warns about its own defaults on every load, and bars every build of requests.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
