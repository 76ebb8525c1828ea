"""What neurons do for every gold option alike, and what for one at the expense of another. Pure.

Like the letter bias of `explain`, from the method's values summed by gold option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError


@dataclass(frozen=True)
class LabelParts:
    """Parts of neurons' values, in the method's units.

    Attributes:
        task: [neurons] mean over gold options of the mean value of their prompts.
        label: [neurons] population standard deviation of the latter over gold options.
        index: [neurons] -1 to 1: 1 where every gold option gains, or loses, alike; -1 where they
            cancel out; NaN where both parts are 0.
    """

    task: NDArray[np.float64]
    label: NDArray[np.float64]
    index: NDArray[np.float64]

    @property
    def is_label(self) -> NDArray[np.bool_]:
        """[neurons] whether the label part is the larger."""
        return self.index < 0


def label_parts(sums: NDArray[np.float64], counts: Sequence[int]) -> LabelParts | None:
    """The parts of neurons; None with fewer than two gold options.

    Args:
        sums: [options, neurons] the method's values, summed by gold option.
        counts: [options] prompts by gold option; options that never are gold are left out.
    """
    prompts = np.asarray(counts)
    occurs = prompts > 0
    if occurs.sum() < 2:
        return None
    means = sums[occurs] / prompts[occurs, None]
    largest = np.abs(means).max(0)
    scaled = means / np.where(largest == 0, 1.0, largest)  # squares within what a float can hold
    task, label = scaled.mean(0), scaled.std(0)
    both = task**2 + label**2
    known = np.where(both == 0, np.nan, both)
    return LabelParts(task * largest, label * largest, (task**2 - label**2) / known)


def gold_counts(
    gold: Iterable[int], n_letters: int, n_prompts: int, path: Path
) -> NDArray[np.int64]:
    """[letters] how many prompts have each gold letter.

    Args:
        gold: [prompts] of `questions.jsonl`.
        n_letters: letters that attributions were summed by.
        n_prompts: expected number of prompts.
        path: the file, for error messages.

    Raises:
        ArtifactError: the prompts do not fit that.
    """
    counts = Counter(gold)
    if counts.total() != n_prompts or not set(counts) <= set(range(n_letters)):
        raise ArtifactError(
            f"{path} has {counts.total()} prompts with the gold letters {sorted(counts)}, "
            f"the scores {n_prompts} prompts with {n_letters} letters",
            expected="files of one run",
            remedy="run identify again",
        )
    return np.array([counts[letter] for letter in range(n_letters)], dtype=np.int64)
