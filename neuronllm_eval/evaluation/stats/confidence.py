"""Log-likelihoods of options -> what was answered, and how surely; pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.stats.checks import (
    FloatArray,
    IntArray,
    checked_options,
    require_integers,
)


def softmax_confidence(loglikelihoods: ArrayLike, gold: ArrayLike) -> FloatArray:
    """Confidence: the softmax over the options at the gold option.

    Args:
        loglikelihoods: [..., options], log-nats.
        gold: [...], integer index of the right option.

    Returns:
        [...], probabilities, 0 to 1 (a 0-d array for a single doc).

    Raises:
        UsageError: an input is empty or not finite, shapes do not match, or gold is not an
            integer or out of range.
    """
    options = checked_options(loglikelihoods)
    right = np.asarray(gold)
    if right.shape != options.shape[:-1]:
        raise UsageError(
            f"gold has shape {right.shape}, loglikelihoods {options.shape}",
            expected=f"gold of shape {options.shape[:-1]}, one index per doc",
            remedy="pass gold and loglikelihoods of the same docs",
        )
    require_integers("gold", right)
    outside = (right < 0) | (right >= options.shape[-1])
    if outside.any():
        raise UsageError(
            f"gold holds {right[outside][0]}",
            expected=f"0 to {options.shape[-1] - 1}, as there are {options.shape[-1]} options",
            remedy="check that gold counts from 0 and that no option is missing",
        )
    weights = np.exp(options - options.max(axis=-1, keepdims=True))  # [..., options]
    at_gold = np.take_along_axis(weights, right[..., np.newaxis].astype(np.int64), axis=-1)
    confidence: FloatArray = np.asarray(at_gold[..., 0] / weights.sum(axis=-1))
    return confidence


def predictions(loglikelihoods: ArrayLike) -> IntArray:
    """The option with the highest log-likelihood, the first of equals, as the harness takes it.

    Args:
        loglikelihoods: [..., options], log-nats.

    Returns:
        [...], option indices (a 0-d array for a single doc).

    Raises:
        UsageError: the input is empty or not finite.
    """
    return np.asarray(checked_options(loglikelihoods).argmax(axis=-1), dtype=np.int64)
