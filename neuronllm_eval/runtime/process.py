"""This process: its rank among those of a run, its progress bars, and the signals that end it.

SIGINT (Ctrl-C) and SIGTERM end it at once, or after the work at hand:

1. Within `handled` a signal raises `Interrupted` where the program stands, so that files and hooks
   are cleaned up on the way out.
2. Within `deferred` it is noted only; the loop that does the work asks for it (`Stop`).

Nothing heavy is loaded with this module.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any

from neuronllm_eval.errors import NeuronLLMError, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches a process twice, from the terminal and from its launcher: still one wish, if
# the second comes within so many seconds.
_ONE_WISH = 2.0
_BARS_SHOWN: ContextVar[bool] = ContextVar("bars_shown", default=True)
_Handler = Callable[[int, FrameType | None], None]


def own_rank() -> int:
    """This process's number among those of the run, as the launcher gave it; 0 without one.

    Raises:
        UsageError: the environment holds no number.
    """
    rank = os.environ.get("RANK", "0")
    if not (rank.isdecimal() and len(rank) < 10):
        raise UsageError(
            f"RANK is {rank!r:.100} in the environment",
            expected="a number, as accelerate and torchrun set it",
            remedy="unset RANK",
        )
    return int(rank)


class OtherRankFailed(NeuronLLMError):
    """Another process of the run has ended; it says why."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Args:
        number: of the signal.
        note: what is saved and how to resume; empty where there is nothing.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(note)
        self.exit_code = 128 + number
        self.note = note


class Stop:
    """Whether a signal has asked for the end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C does not wait."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _ONE_WISH:
            raise Interrupted(number)

    def obey(self, note: str) -> None:
        """Raise `Interrupted` with a note if a signal came."""
        if self.signal is not None:
            raise Interrupted(self.signal, note)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def handled() -> Iterator[None]:
    """Within the context, a signal raises `Interrupted`."""
    with _handlers(_raise):
        yield


@contextmanager
def deferred() -> Iterator[Stop]:
    """Within the context, the first signal is only noted in the `Stop`."""
    stop = Stop()
    with _handlers(stop.note):
        yield stop


@contextmanager
def _handlers(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


# Progress bars ----------------------------------------------------------------------------------


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the context no bar is shown, nor transformers' own of loading weights."""
    from transformers.utils import logging as transformers_logging

    token = _BARS_SHOWN.set(False)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        _BARS_SHOWN.reset(token)
        if was_enabled:
            transformers_logging.enable_progress_bar()


def bar(*, shown: bool = True, **settings: Any) -> tqdm[Any]:
    """A progress bar, on a terminal only and if `shown`; the other arguments are tqdm's."""
    from tqdm import tqdm

    return tqdm(disable=bars_disabled() or (None if shown else True), **settings)


def bars_disabled() -> bool | None:
    """tqdm's `disable`: None shows a bar on a terminal only."""
    return None if _BARS_SHOWN.get() else True
