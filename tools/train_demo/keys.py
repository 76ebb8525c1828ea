"""Questions, the keys they are made from, and the split in which each key lives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

TRAINING = "training"

# Shares of the keys that live in each split, in percent. What is left over is for training.
_HOMES: dict[str, dict[str, int]] = {
    "knowledge": {"selection": 47, "validation": 47, "demonstration": 6},
    "arithmetic": {"selection": 20, "validation": 20, "demonstration": 3},
    "sentiment": {"selection": 25, "validation": 25, "demonstration": 5},
    "topic": {"selection": 25, "validation": 25, "demonstration": 5},
}


@dataclass(frozen=True)
class Question:
    """A question before its options are ordered: the gold answer and three distractors."""

    text: str
    gold: str
    distractors: tuple[str, str, str]
    subfamily: str
    keys: frozenset[str]

    @property
    def options(self) -> frozenset[str]:
        """The four options, whatever their order."""
        return frozenset((self.gold, *self.distractors))

    @property
    def identity(self) -> tuple[str, frozenset[str]]:
        """What makes two questions the same one."""
        return (self.text.lower(), self.options)


@cache
def percentile(name: str) -> int:
    """A number in 0..99 that depends on the name only, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100


@cache
def home(family: str, key: str) -> str:
    """The split in which questions on this key live, or `training`."""
    place = percentile(f"home of {family}/{key}")
    for split, share in _HOMES[family].items():
        if place < share:
            return split
        place -= share
    return TRAINING


def is_drilled(family: str, key: str) -> bool:
    """Whether training practises what this key is about with lettered options.

    All facts, adjectives and topic words are taught as plain statements, facts also as open
    questions. Those that are not drilled have to be put to a use that was never practised, which
    keeps these families from being perfect.
    """
    if family == "knowledge":
        return percentile(f"drill of {key}") < 65
    if family in ("sentiment", "topic"):
        return all(percentile(f"drill of {part}") < 82 for part in key.split("+"))
    return True
