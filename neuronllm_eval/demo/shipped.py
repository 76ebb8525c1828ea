"""Where the demo's shipped files lie, and how to read its questions.

Kept apart from the generators so that reading the shipped questions costs one file and no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAMILIES: tuple[str, ...] = ("knowledge", "arithmetic", "sentiment", "topic")
SPLITS: tuple[str, ...] = ("selection", "validation", "demonstration")

MODEL_DIR: Path = Path(__file__).parent / "model"
QUESTIONS_DIR: Path = Path(__file__).parent / "questions"


def load_questions(
    family: str, split: str, *, questions_dir: Path = QUESTIONS_DIR
) -> list[dict[str, Any]]:
    """The docs of one family and split, in file order.

    Each doc has `id`, `question`, `choices` (four distinct strings), `answer` (index of the right
    choice) and `subfamily`.

    Raises:
        ValueError: if the family or the split does not exist.
    """
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; the families are {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    text = (questions_dir / f"{family}.{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
