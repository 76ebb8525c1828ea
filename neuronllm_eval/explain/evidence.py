"""What some neurons do at single questions: a second pass over questions they were selected on.

1. Every prompt is attributed as in the identification; a question's attributions are summed over
   its proxies.
2. The same pass records the neurons' activations: at the scored position (of options of several
   tokens, at the last token of the context), or, for neurons selected at all positions, their mean
   over the context.
3. Every prompt is scored with each of the neurons alone at 0 and at twice its value, at the
   positions of the run (`single_neuron_effects`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine, option_cross_entropy, target_values
from neuronllm_eval.engine.option_logits import counted_shared
from neuronllm_eval.prompts import SCORED, Question

Location = tuple[int, int]


@dataclass(frozen=True)
class Mean:
    """A mean over prompts.

    Attributes:
        value: None without prompts.
        stderr: clustered by question, since a question's prompts are alike; None with fewer than
            two questions.
        n_prompts: number of prompts.
        n_questions: number of questions that these are of.
    """

    value: float | None
    stderr: float | None
    n_prompts: int
    n_questions: int

    @classmethod
    def of(cls, values: NDArray[np.float64], question_of: NDArray[np.int64]) -> Mean:
        """The mean of `values` [prompts], of the questions `question_of` [prompts]."""
        distinct, positions = np.unique(question_of, return_inverse=True)
        n, n_prompts = len(distinct), len(values)
        if not n:
            return cls(None, None, 0, 0)
        mean = float(values.mean())
        residuals = np.bincount(positions, values - mean, n)
        variance = float(np.square(residuals).sum()) / n_prompts**2
        stderr = math.sqrt(n / (n - 1) * variance) if n > 1 else None
        return cls(mean, stderr, n_prompts, n)


@dataclass(frozen=True)
class Evidence:
    """Some neurons at some questions.

    Attributes:
        questions: those of the pass.
        attributions: [questions, neurons] float64, the method's values, summed over prompts.
        activations: [prompts, neurons] float64, at the scored position, or means over contexts.
        single_effects: [prompts, 2, neurons] float64, see `single_neuron_effects`.
        correct: [prompts] bool, whether the likeliest option is the gold one.
        question_of: [prompts] int64, index of the prompt's question.
    """

    questions: tuple[Question, ...]
    attributions: NDArray[np.float64]
    activations: NDArray[np.float64]
    single_effects: NDArray[np.float64]
    correct: NDArray[np.bool_]
    question_of: NDArray[np.int64]

    def share_positive(self, neuron: int) -> float:
        """Share of the prompts on which the neuron's activation is above 0."""
        return float((self.activations[:, neuron] > 0).mean())

    def mean_activation(self, neuron: int, correct: bool) -> Mean:
        """Over the prompts that are answered correctly, or over the others."""
        chosen = self.correct == correct
        return Mean.of(self.activations[chosen, neuron], self.question_of[chosen])

    def value(self, neuron: int) -> float:
        """The method's mean value per prompt."""
        return float(self.attributions[:, neuron].sum()) / len(self.question_of)

    def knockout(self, neuron: int) -> Mean:
        """F minus F without the neuron, in log-nats."""
        return Mean.of(self.single_effects[:, 0, neuron], self.question_of)

    def doubling(self, neuron: int) -> Mean:
        """F with twice the neuron minus F, in log-nats."""
        return Mean.of(self.single_effects[:, 1, neuron], self.question_of)


def single_neuron_effects(
    engine: Engine,
    questions: Sequence[Question],
    locations: Sequence[Location],
    batch_size: int,
    done: Callable[[], object] = lambda: None,
) -> NDArray[np.float64]:
    """What each neuron alone does to F, the log-softmax over the options at the gold one.

    An attribution is about a path along which all of a layer's neurons grow together; this is about
    the neuron in the model as it is. Exact; each neuron adds two edited copies of a prompt.

    Args:
        engine: scores the prompts, and defines at which positions neurons are scaled.
        questions: at least one.
        locations: (layer, index) of each neuron.
        batch_size: prompts of a pass.
        done: called after each question.

    Returns:
        [prompts, 2, neurons] log-nats: F minus F with the neuron at 0 (knockout), and F with it at
        twice its value minus F (doubling).
    """
    n = len(locations)
    scales = torch.ones(1 + 2 * n, *engine.layers.shape)
    for number, (layer, index) in enumerate(locations):
        scales[1 + number, layer, index] = 0.0
        scales[1 + n + number, layer, index] = 2.0
    rows = []
    for index, scores in in_batches(
        questions, batch_size, lambda prompts: engine.score(prompts, scales)
    ):
        for prompt, score in zip(questions[index].prompts, scores, strict=True):
            # If all positions are edited, the engine includes the tokens that the options share.
            shared = counted_shared(engine.model, prompt) if engine.positions == SCORED else 0.0
            loglikelihoods = score.loglikelihoods.double()
            target = target_values(option_cross_entropy, loglikelihoods, prompt, shared)
            without, doubled = target[1 : 1 + n], target[1 + n :]
            rows.append(torch.stack((target[0] - without, doubled - target[0])).cpu().numpy())
        done()
    return np.stack(rows)
