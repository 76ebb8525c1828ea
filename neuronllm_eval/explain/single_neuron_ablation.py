"""What single neurons are worth by themselves: scored without each, and with each doubled.

An attribution is about a path, along which all of a layer's neurons grow together; this is about
the neuron in the model as it is. Exact, and one more edited copy of a prompt for each neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine, option_cross_entropy
from neuronllm_eval.prompts import Question


def worth_alone(
    engine: Engine,
    questions: Sequence[Question],
    places: Sequence[tuple[int, int]],
    batch_size: int,
    done: Callable[[], object] = lambda: None,
) -> NDArray[np.float64]:
    """What each neuron does to F, the log-softmax over the options at the gold one.

    Args:
        engine: scores the prompts, and says at which positions neurons are scaled.
        questions: at least one.
        places: (layer, index) of each neuron.
        batch_size: prompts of a pass.
        done: called after each question.

    Returns:
        [prompts, 2, neurons] log-nats: F less F with the neuron at 0 (knockout), and F with it at
        twice its value less F (doubling).
    """
    n = len(places)
    scales = torch.ones(1 + 2 * n, *engine.layers.shape)
    for number, (layer, index) in enumerate(places):
        scales[1 + number, layer, index] = 0.0
        scales[1 + n + number, layer, index] = 2.0
    rows = []
    for index, found in in_batches(
        questions, batch_size, lambda prompts: engine.score(prompts, scales)
    ):
        for prompt, each in zip(questions[index].prompts, found, strict=True):
            target = option_cross_entropy(each.loglikelihoods.double(), prompt.gold)
            without, doubled = target[1 : 1 + n], target[1 + n :]
            rows.append(torch.stack((target[0] - without, doubled - target[0])).cpu().numpy())
        done()
    return np.stack(rows)
