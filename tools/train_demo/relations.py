"""Building blocks of the word lists: relations written as plain text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact: `pairs` maps a subject to its answer, templates put both into words.

    `questions` use `{k}` for the subject; `statements` use `{k}` and `{v}` for subject and answer.
    """

    pairs: dict[str, str]
    questions: tuple[str, ...]
    statements: tuple[str, ...]


def pairs(text: str) -> dict[str, str]:
    """`"a:b c:d"` as a dict; a subject given twice would teach two answers and is refused."""
    items = [item.split(":") for item in text.split()]
    answers = {key: value for key, value in items}
    if len(answers) != len(items):
        raise ValueError(f"a subject is listed twice in {text[:40]!r}...")
    return answers


def groups(**members: str) -> dict[str, str]:
    """`group="a b c"` as `{"a": "group", ...}`."""
    return pairs(
        " ".join(f"{word}:{group}" for group, words in members.items() for word in words.split())
    )


def both_ways(relation: dict[str, str]) -> dict[str, str]:
    """A symmetric relation, such as being opposites, in both directions."""
    return pairs(" ".join(f"{a}:{b} {b}:{a}" for a, b in relation.items()))


def wordings(text: str) -> tuple[str, ...]:
    """Templates separated by bars."""
    return tuple(text.split(" | "))


def successors(words: str) -> dict[str, str]:
    """Each word of a circle mapped to the next one."""
    ring = words.split()
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))
