"""The settings that a run's provenance holds as JSON, in words. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# How an AQUA task was asked, by the names of `AquaSettings`, in the order of the sentence.
_PHRASES: dict[str, Callable[[Any], str]] = {
    "n_proxies": lambda value: f"{value} proxies of each question",
    "orders": lambda value: f"orders of the options: {value}",
    "letter_style": lambda value: f"letters written {value}",
    "n_options": lambda value: (
        "options as the data have them" if value is None else f"{value} options"
    ),
    "distractors": lambda value: (
        "no distractors" if value == "none" else f"distractors: {value}"
    ),
    "on_bad_doc": lambda value: f"docs that cannot be asked: {value}",
    "n_demonstrations": lambda value: f"{value} questions set aside for demonstrations",
    "max_selection": lambda value: f"at most {value} docs read to choose on",
    "seed": lambda value: f"seed {value}",
}  # fmt: skip


def asked_words(text: str) -> str:
    """How a task was asked, in words; names that are not known as they are.

    Args:
        text: JSON of an object, as `Provenance.asked`; anything else comes back as it is.
    """
    values = _object(text)
    if values is None:
        return text
    known = [phrase(values[name]) for name, phrase in _PHRASES.items() if name in values]
    return "; ".join([*known, *_pairs({k: v for k, v in values.items() if k not in _PHRASES})])


def method_words(method: str, text: str) -> str:
    """A method with its settings.

    Args:
        method: its name.
        text: JSON of an object, as `Provenance.method_args`; anything else follows as it is.
    """
    values = _object(text)
    return ", ".join([method, *([text] if values is None else _pairs(values))])


def _pairs(values: dict[str, Any]) -> list[str]:
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]


def _object(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # what others wrote: it is shown as it is
        return None
    return values if isinstance(values, dict) else None
