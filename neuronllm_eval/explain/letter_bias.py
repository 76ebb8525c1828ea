"""Whether a neuron is about the letter or about what the letter stands for. Pure.

A neuron's attributions are averaged by gold letter: m_g for letter g, over the prompts whose right
option has it. The letter-bias index (our definition) is the share of their second moment that lies
between letters:

    index = variance of m_g over letters / mean of m_g squared = 1 - (mean of m_g)^2 / mean of m_g^2

1. 0: the same for every gold letter, whichever sign: a content neuron.
2. 1: the letters cancel out. A neuron that only raises the logit of one letter helps where that is
   the gold one, and hurts as much in sum where it is not.
3. In between: helping one letter of L and leaving the others alone gives 1 - 1 / L.

AQUA asks each question with its right option under several letters, so content is much the same
for all of them; of other tasks the index also has what questions of each gold letter differ in. So
does chance: with few prompts for each letter it is too high.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.errors import ArtifactError

# From this index on, more than half of the second moment lies between letters.
LETTER_NEURON = 0.5


@dataclass(frozen=True)
class LetterProfile:
    """A neuron's attribution by gold letter.

    Attributes:
        means: per letter, the method's value a prompt; None for a letter that is never right.
        index: the letter-bias index, 0 to 1; None where it is not defined.
    """

    means: tuple[float | None, ...]
    index: float | None

    @property
    def reading(self) -> Literal["letter", "content", ""]:
        """`letter`, `content`, or empty where the index is not defined."""
        if self.index is None:
            return ""
        return "letter" if self.index >= LETTER_NEURON else "content"


def letter_bias(means: ArrayLike) -> float | None:
    """The letter-bias index.

    Args:
        means: [letters] mean attribution by gold letter.

    Returns:
        0 to 1; None with fewer than two letters, or where all means are 0.
    """
    values = np.asarray(means, dtype=np.float64)
    largest = np.abs(values).max(initial=0.0)
    if values.size < 2 or largest == 0:
        return None
    values = values / largest  # squares stay within what a float can hold
    return float(np.clip(1 - values.mean() ** 2 / (values**2).mean(), 0.0, 1.0))


def letter_profile(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> LetterProfile:
    """A neuron's profile.

    Args:
        sums: [letters] the method's values added up by gold letter.
        counts: [letters] prompts with that gold letter.
    """
    there = counts > 0
    means = sums / np.maximum(counts, 1)
    return LetterProfile(
        tuple(float(mean) if known else None for mean, known in zip(means, there, strict=True)),
        letter_bias(means[there]),
    )


def gold_counts(
    lines: Sequence[Mapping[str, Any]], n_letters: int, n_prompts: int, path: Path
) -> NDArray[np.int64]:
    """[letters] how many prompts have each gold letter.

    Args:
        lines: of `questions.jsonl`.
        n_letters: letters that attributions were added up by.
        n_prompts: how many prompts there must be.
        path: the file, for error messages.

    Raises:
        ArtifactError: the lines do not fit that.
    """
    counts: Counter[int] = Counter()
    for number, line in enumerate(lines, 1):
        gold = line.get("gold")
        if not isinstance(gold, list) or not all(
            type(letter) is int and 0 <= letter < n_letters for letter in gold
        ):
            raise ArtifactError(
                f"{path}: line {number} has gold {gold!r:.100}",
                expected=f"a list of letters, as numbers from 0 to {n_letters - 1}",
                remedy="run identify again",
            )
        counts.update(gold)
    if counts.total() != n_prompts:
        raise ArtifactError(
            f"{path} is of {counts.total()} prompts, the scores of {n_prompts}",
            expected="files of one run",
            remedy="run identify again",
        )
    return np.array([counts[letter] for letter in range(n_letters)], dtype=np.int64)
