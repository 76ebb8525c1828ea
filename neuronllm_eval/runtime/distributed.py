"""The processes of one run, as `accelerate launch` or `torchrun` starts them: who is who.

They meet at the borders of stages only, over gloo: a barrier, or a small JSON value that the first
rank decides. Nothing of the computation is sent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import (
    is_cuda_available,
    is_npu_available,
    is_xpu_available,
    parse_flag_from_env,
)
from torch import distributed

from neuronllm_eval.errors import UsageError
from neuronllm_eval.runtime.process import OtherRankFailed

# A rank may wait for another's whole share of the work.
_PATIENCE = timedelta(weeks=52)
_POLL = 0.02  # seconds
Value = TypeVar("Value")


def meet(device: str | None = None) -> PartialState | None:
    """Accelerate's state of the processes that the launcher started; None if there is but one.

    Called before lm_eval calls accelerate: that would take a machine without an accelerator for
    one process unless `accelerate launch --cpu` had started it.

    Args:
        device: `cpu` keeps accelerate off the accelerators that a machine has.

    Raises:
        UsageError: they cannot reach each other.
    """
    n_processes = os.environ.get("WORLD_SIZE", "1")
    if not n_processes.isdecimal() or n_processes.startswith("0"):
        raise UsageError(
            f"WORLD_SIZE is {n_processes!r:.100} in the environment",
            expected="a number of processes, as accelerate and torchrun set it",
            remedy="unset WORLD_SIZE",
        )
    if n_processes == "1":
        return None
    some = is_cuda_available() or is_xpu_available() or is_npu_available()
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not some
    reason: object = "accelerate was told before that there is one"
    try:
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        state, reason = None, error
    if state is None or str(state.num_processes) != os.environ["WORLD_SIZE"]:
        raise UsageError(
            f"the {os.environ['WORLD_SIZE']} processes cannot reach each other: {reason}",
            expected="processes started by accelerate launch or torchrun",
            remedy="check WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT",
        )
    return state


@contextmanager
def other_ranks_needed() -> Iterator[None]:
    """What torch raises when a process is gone becomes `OtherRankFailed`."""
    try:
        yield
    except RuntimeError as error:
        raise OtherRankFailed(f"another process of the run has ended: {error}") from error


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run, over all machines.

    Attributes:
        rank: 0 to `n_ranks` - 1; the first one decides, prints and writes the artifacts.
        n_ranks: number of processes.
        group: the process group, where there are several.
    """

    rank: int = 0
    n_ranks: int = 1
    group: Any = None

    @classmethod
    def join(cls, device: str | None = None) -> Ranks:
        """Meet the other processes, if the launcher started any.

        Args:
            device: as for `meet`.

        Raises:
            UsageError: they cannot be reached.
        """
        state = meet(device)
        if state is None:
            return cls()
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes, group)

    @property
    def is_first(self) -> bool:
        """Whether this process decides, prints and writes the artifacts."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has come here.

        Raises:
            OtherRankFailed: one never will.
        """
        if self.n_ranks > 1:
            self._complete(distributed.barrier, group=self.group)

    def on_first(self, action: Callable[[], Value]) -> Value:
        """What `action` returns on the first rank, the only one that calls it.

        Args:
            action: returns a value that JSON holds.

        Raises:
            OtherRankFailed: on the others, where it raised on the first.
        """
        if self.n_ranks == 1:
            return action()
        content = json.dumps(action()).encode() if self.is_first else b""
        size = torch.tensor([len(content)])
        self._complete(distributed.broadcast, size, group=self.group, src=0)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._complete(distributed.broadcast, data, group=self.group, src=0)
        value: Value = json.loads(data.numpy().tobytes())
        return value

    def _complete(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Wait in Python, where signals are heard."""
        with other_ranks_needed():
            work = collective(*arguments, **options, async_op=True)
            while not work.is_completed():
                time.sleep(_POLL)
            work.wait()

    def leave(self) -> None:
        """Wait for the others, and close the connections."""
        if self.n_ranks > 1:
            self.wait()
            PartialState().destroy_process_group()


def share_docs(lm: Any) -> None:
    """Make a harness model split the docs over all processes of all machines.

    lm_eval 0.4.13 does so only where a machine has several GPUs, and takes a process's place on its
    own machine for its rank. A model that was built outside, or is split by `tp_plan`, has no
    `accelerator`: there lm_eval's own rule stays.
    """
    accelerator = getattr(lm, "accelerator", None)
    if accelerator is not None:
        lm._rank = accelerator.process_index
        lm._world_size = accelerator.num_processes
