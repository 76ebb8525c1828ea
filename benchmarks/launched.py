"""Commands of this package in 1 to N real processes that communicate over gloo.

Started as by torchrun, but forked from a server that has imported everything: a launch takes a
second or two instead of ten. Nothing ends the others when one dies; they must detect it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# As torchrun sets it; else one process alone takes all cores, and its sums round differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")
CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = [
    "neuronllm_eval.cli.main",
    "neuronllm_eval.cli.evaluate",
    "neuronllm_eval.stages.evaluate",
    "neuronllm_eval.masked_lm.model",
    "transformers.models.llama.modeling_llama",
    "lm_eval.__main__",
    "lm_eval.evaluator",
]
CONTEXT.set_forkserver_preload(IMPORTED)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _run(
    rank: int,
    n_ranks: int,
    port: int,
    log: str,
    entry: str,
    arguments: list[str],
    before: Callable[[int], object] | None,
) -> None:
    """What each process does."""
    if n_ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks}
        names |= {"LOCAL_WORLD_SIZE": n_ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    from neuronllm_eval.cli import main as cli

    if before is not None:
        before(rank)
    sys.exit(getattr(cli, entry)(arguments))


class Launched:
    """Processes that work on one command.

    Args:
        n_ranks: how many.
        arguments: of the command.
        log: file for what they say.
        entry: function of `neuronllm_eval.cli.main`.
        before: called in each process with its rank, before the command.
    """

    def __init__(
        self,
        n_ranks: int,
        arguments: Sequence[object],
        log: Path,
        entry: str = "main",
        before: Callable[[int], object] | None = None,
    ) -> None:
        self.log, port = log, free_port()
        given = [str(argument) for argument in arguments]
        self.processes = [
            CONTEXT.Process(
                target=_run, args=(rank, n_ranks, port, str(log), entry, given, before), daemon=True
            )
            for rank in range(n_ranks)
        ]
        for process in self.processes:
            process.start()

    def send(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to all, or to some."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)  # type: ignore[arg-type]

    def wait(self, timeout: float = 120.0) -> list[int]:
        """Exit codes; minus the signal's number for those that one has ended.

        Raises:
            TimeoutError: some have not ended; they are killed.
        """
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        if any(process.is_alive() for process in self.processes):
            self.send(signal.SIGKILL)
            raise TimeoutError(f"still at work after {timeout} s:\n{self.output()}")
        return [int(process.exitcode or 0) for process in self.processes]

    def output(self) -> str:
        """What they have written to the terminal."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""
