"""Wrong options for questions that have none or too few, and fewer for those with too many. Pure.

1. The pool is the gold answers of the same task's questions, without repeats (`AnswerPool`).
2. A question gets answers of others that are neither its gold answer nor one of its options,
   compared after `normalise`; with `length`, of about its gold answer's length.
3. A question with too many options keeps the gold one and a draw of the others.

Draws depend on the seed, the question's id and the pool, so on the task's other questions.
"""

from __future__ import annotations

import string
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from neuronllm_eval.aqua.proxies import keyed_draw
from neuronllm_eval.errors import DocError

DISTRACTORS = ("none", "random", "length")
# Candidates of about the same length, per distractor.
_NEAREST = 16
# Not characters that belong to an answer: -5, 10%, C++, #1.
_EDGES = ".,;:!?\"'`()[]{}…" + string.whitespace
_ARTICLES = ("a ", "an ", "the ")


def normalise(text: str) -> str:
    """A text without case, extra spacing, outer marks and an article."""
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
        """The pool of some answers; of those that normalise alike, the first in sorting order."""
        texts: dict[str, str] = {}
        for answer in sorted(set(answers)):
            texts.setdefault(normalise(answer), answer)
        texts.pop("", None)
        return cls(tuple(sorted((len(text), key, text) for key, text in texts.items())))

    def draw(
        self, gold: str, taken: Iterable[str], count: int, *, key: tuple[object, ...], how: str
    ) -> tuple[str, ...]:
        """Wrong options for one question.

        Args:
            gold: the gold answer.
            taken: the question's other options.
            count: number of distractors.
            key: what the draw depends on: the seed and the question's id.
            how: `random`, or `length` for answers of about the length of `gold`.

        Returns:
            `[count]` texts, none of which normalises like `gold`, like one of `taken` or like
            another.

        Raises:
            DocError: the pool has too few of them.
        """
        used = {normalise(text) for text in (gold, *taken)}
        candidates = self._nearest(len(gold), _NEAREST * count, used) if how == "length" else None
        if candidates is None:
            candidates = self._sample(count, used, key)
        if len(candidates) < count:
            raise DocError(
                f"there are {len(candidates)} other answers to draw {count} distractors from",
                expected="a task with more distinct answers",
                remedy="lower n_options",
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
        """`count` unused answers; all of them if they are few."""
        if len(self.answers) <= _NEAREST * count + len(used):
            return [text for _, normalised, text in self.answers if normalised not in used]
        found: dict[str, str] = {}
        attempt = 0
        while len(found) < count:
            index = keyed_draw("place", *key, attempt) % len(self.answers)
            _, normalised, text = self.answers[index]
            if normalised not in used:
                found[normalised] = text
            attempt += 1
        return list(found.values())


def keep_options(
    choices: tuple[str, ...], answer: int, count: int, *, key: tuple[object, ...]
) -> tuple[tuple[str, ...], int]:
    """The gold option and a draw of the others, in their order.

    Args:
        choices: the options, `[n_options]`.
        answer: index of the gold one.
        count: number of options to keep, 2 or more.
        key: what the draw depends on: the seed and the question's id.

    Returns:
        `[min(count, n_options)]` options, and the index of the gold one among them.
    """
    if len(choices) <= count:
        return choices, answer
    others = [index for index in range(len(choices)) if index != answer]
    others.sort(key=lambda index: keyed_draw("keep", *key, index))
    indices = sorted([answer, *others[: count - 1]])
    return tuple(choices[index] for index in indices), indices.index(answer)
