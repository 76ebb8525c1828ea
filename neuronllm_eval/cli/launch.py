"""What a command that writes runs does around its work: meet the processes, hold the locks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from neuronllm_eval.cli import arguments
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.resumable_work import Launch


@contextmanager
def launched(options: argparse.Namespace) -> Iterator[Launch]:
    """The processes of this command, and what it does with what is there.

    Raises:
        UsageError: a flag of the launch makes no sense, or the processes cannot meet.
    """
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


def take_locks(launch: Launch, runs: Sequence[RunDirectory]) -> None:
    """Lock the run directories that are there; others are locked when they are made."""
    launch.ranks.on_first(
        lambda: launch.locks.take_all(run.path for run in runs if run.path.is_dir())
    )
