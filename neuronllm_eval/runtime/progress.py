"""Bars that show how far work is: on a terminal only, and nowhere within `hidden`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

_SHOWN: ContextVar[bool] = ContextVar("shown", default=True)


@contextmanager
def hidden() -> Iterator[None]:
    """Within the context no bar is shown, nor transformers' own of loading weights."""
    token = _SHOWN.set(False)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        _SHOWN.reset(token)
        if was_enabled:
            transformers_logging.enable_progress_bar()


def bar(*, shown: bool = True, **settings: Any) -> tqdm[Any]:
    """A bar, if `shown`; the other arguments are tqdm's."""
    return tqdm(disable=disable(shown), **settings)


def disable(shown: bool = True) -> bool | None:
    """tqdm's argument: None shows a bar on a terminal only."""
    return None if shown and _SHOWN.get() else True
