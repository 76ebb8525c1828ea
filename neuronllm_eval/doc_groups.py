"""The family or subject that a doc of a benchmark is of, where its data name one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The first of these columns with a text counts; the AQUA form of a doc has the first of them.
GROUP_COLUMNS = ("group", "subject", "subfamily", "category", "family", "domain")
_LONGEST = 60  # signs of a name


def group_of(doc: Mapping[str, Any]) -> str:
    """The family or subject that a doc is of; empty where it names none."""
    named = (doc.get(name) for name in GROUP_COLUMNS)
    found = next((text for text in named if isinstance(text, str) and text.strip()), "")
    return found if len(found) <= _LONGEST else ""
