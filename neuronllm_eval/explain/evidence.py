"""What some neurons do at single questions: a second pass over those that chose them.

1. Every prompt is attributed again, as it was (`asked_again`); a question's attributions are
   summed over its proxies.
2. The same pass notes the neurons' activations: at the scored position (of options of several
   tokens, at the last token of the context), or their mean over the context of runs whose neurons
   were chosen at all positions.
3. Every prompt is scored with each of the neurons alone at 0 and at twice its value, where the run
   chose them (`knockouts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.prompts import Question

Place = tuple[int, int]


@dataclass(frozen=True)
class Mean:
    """A mean over prompts.

    Attributes:
        value: None without prompts.
        stderr: clustered by question, since a question's prompts are alike; None with fewer than
            two questions.
        n_prompts: prompts there are.
        n_questions: questions that these are of.
    """

    value: float | None
    stderr: float | None
    n_prompts: int
    n_questions: int

    @classmethod
    def of(cls, values: NDArray[np.float64], question_of: NDArray[np.int64]) -> Mean:
        """The mean of `values` [prompts], of the questions `question_of` [prompts]."""
        known, places = np.unique(question_of, return_inverse=True)
        n, n_prompts = len(known), len(values)
        if not n:
            return cls(None, None, 0, 0)
        mean = float(values.mean())
        residuals = np.bincount(places, values - mean, n)
        variance = float(np.square(residuals).sum()) / n_prompts**2
        stderr = math.sqrt(n / (n - 1) * variance) if n > 1 else None
        return cls(mean, stderr, n_prompts, n)


@dataclass(frozen=True)
class Evidence:
    """Some neurons at some questions.

    Attributes:
        questions: what was asked.
        attributions: [questions, neurons] float64, the method's values, summed over prompts.
        activations: [prompts, neurons] float64, at the scored position, or means over contexts.
        alone: [prompts, 2, neurons] float64, `knockouts.worth_alone`.
        right: [prompts] bool, whether the likeliest option is the gold one.
        question_of: [prompts] int64, the question's place.
    """

    questions: tuple[Question, ...]
    attributions: NDArray[np.float64]
    activations: NDArray[np.float64]
    alone: NDArray[np.float64]
    right: NDArray[np.bool_]
    question_of: NDArray[np.int64]

    def share_positive(self, neuron: int) -> float:
        """Share of the prompts on which the neuron's activation is above 0."""
        return float((self.activations[:, neuron] > 0).mean())

    def mean_activation(self, neuron: int, right: bool) -> Mean:
        """Of the prompts that were answered right, or wrong."""
        chosen = self.right == right
        return Mean.of(self.activations[chosen, neuron], self.question_of[chosen])

    def value(self, neuron: int) -> float:
        """The method's value a prompt."""
        return float(self.attributions[:, neuron].sum()) / len(self.question_of)

    def knockout(self, neuron: int) -> Mean:
        """F less that without the neuron: what it is worth by itself."""
        return Mean.of(self.alone[:, 0, neuron], self.question_of)

    def doubling(self, neuron: int) -> Mean:
        """F with twice the neuron less F."""
        return Mean.of(self.alone[:, 1, neuron], self.question_of)
