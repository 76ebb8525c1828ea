"""A titled table with notes: what every output format prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

LONGEST_NOTE = 20_000  # characters


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: may be empty.
        table: cells as text under their heads; None for none.
        notes: sentences below it.
    """

    title: str
    table: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


def are_figures(cells: Sequence[str]) -> bool:
    """Whether a column holds figures, which stand at the right."""
    return all(cell[:1] in "+-<0123456789" for cell in cells)
