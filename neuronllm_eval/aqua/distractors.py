"""Wrong options for questions that have none or too few, and fewer for those with too many. Pure.

1. The pool is the right answers of the same task's questions, without repeats (`AnswerPool`).
2. A question gets answers of others that are neither its own right answer nor an option it has,
   compared after `normalise`; with `length`, of about its right answer's length.
3. A question with more options than wanted keeps the right one and a draw of the others.

Draws depend on the seed, the question's id and the pool, so on the task's other questions.
"""

from __future__ import annotations

import string
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from neuronllm_eval.aqua.proxies import keyed_draw
from neuronllm_eval.errors import DocError, UsageError

DISTRACTORS = ("none", "random", "length")
# How many answers of about the same length a draw chooses from, per distractor wanted.
_NEAREST = 16
# Not signs that belong to an answer: -5, 10%, C++, #1.
_EDGES = ".,;:!?\"'`()[]{}…" + string.whitespace
_ARTICLES = ("a ", "an ", "the ")


def normalise(text: str) -> str:
    """A text without what does not tell answers apart: case, spacing, outer marks, an article."""
    text = " ".join(text.casefold().split()).strip(_EDGES)
    for article in _ARTICLES:
        text = text.removeprefix(article)
    return text


@dataclass(frozen=True)
class AnswerPool:
    """Answers to draw wrong options from, by length.

    Attributes:
        answers: (length in characters, normalised text, text), sorted; no two normalise alike.
    """

    answers: tuple[tuple[int, str, str], ...]

    @classmethod
    def of(cls, answers: Iterable[str]) -> AnswerPool:
        """The pool of some answers; of those that normalise alike, the first in sorting stays."""
        known: dict[str, str] = {}
        for answer in sorted(set(answers)):
            known.setdefault(normalise(answer), answer)
        known.pop("", None)
        return cls(tuple(sorted((len(text), key, text) for key, text in known.items())))

    def draw(
        self, gold: str, taken: Iterable[str], count: int, *, key: tuple[object, ...], how: str
    ) -> tuple[str, ...]:
        """Wrong options for one question.

        Args:
            gold: the right answer.
            taken: further options that the question has.
            count: how many are wanted.
            key: what the draw depends on: the seed and the question's id.
            how: `random`, or `length` for answers of about the length of `gold`.

        Returns:
            `[count]` texts, none of which normalises like `gold`, like one of `taken` or like
            another.

        Raises:
            DocError: the pool has too few of them.
            UsageError: there is no such way to draw.
        """
        if how not in DISTRACTORS[1:]:
            raise UsageError(
                f"distractors is {how!r}", expected=" or ".join(DISTRACTORS), remedy="use random"
            )
        used = {normalise(text) for text in (gold, *taken)}
        candidates = self._nearest(len(gold), _NEAREST * count, used) if how == "length" else None
        if candidates is None:
            candidates = self._sample(count, used, key)
        if len(candidates) < count:
            raise DocError(
                f"there are {len(candidates)} other answers to draw {count} distractors from",
                expected="a task with more different answers",
                remedy="ask for fewer options (n_options)",
                reason="too few other answers for distractors",
            )
        return tuple(
            sorted(candidates, key=lambda text: keyed_draw("distractor", *key, text))[:count]
        )

    def _nearest(self, length: int, count: int, used: set[str]) -> list[str]:
        """The `count` unused answers nearest in length."""
        right = bisect_left(self.answers, (length, "", ""))
        left = right - 1
        found: list[str] = []
        while len(found) < count and (left >= 0 or right < len(self.answers)):
            longer = self.answers[right][0] - length if right < len(self.answers) else None
            shorter = length - self.answers[left][0] if left >= 0 else None
            if shorter is None or (longer is not None and longer <= shorter):
                _, key, text = self.answers[right]
                right += 1
            else:
                _, key, text = self.answers[left]
                left -= 1
            if key not in used:
                found.append(text)
        return found

    def _sample(self, count: int, used: set[str], key: tuple[object, ...]) -> list[str]:
        """`count` unused answers; all that are unused where they are few."""
        if len(self.answers) <= _NEAREST * count + len(used):
            return [text for _, known, text in self.answers if known not in used]
        found: dict[str, str] = {}
        attempt = 0
        while len(found) < count:
            place = keyed_draw("place", *key, attempt) % len(self.answers)
            _, known, text = self.answers[place]
            if known not in used:
                found[known] = text
            attempt += 1
        return list(found.values())


def keep_options(
    choices: tuple[str, ...], answer: int, count: int, *, key: tuple[object, ...]
) -> tuple[tuple[str, ...], int]:
    """The right option and a draw of the others, in the order they had.

    Args:
        choices: the options, `[n_options]`.
        answer: index of the right one.
        count: how many options stay, 2 or more.
        key: what the draw depends on: the seed and the question's id.

    Returns:
        `[min(count, n_options)]` options, and the index of the right one among them.
    """
    if len(choices) <= count:
        return choices, answer
    others = [index for index in range(len(choices)) if index != answer]
    others.sort(key=lambda index: keyed_draw("keep", *key, index))
    kept = sorted([answer, *others[: count - 1]])
    return tuple(choices[index] for index in kept), kept.index(answer)
