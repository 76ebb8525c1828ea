"""Checks of what comes into the statistics: shapes, types, ranges; each with a readable error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuronllm_eval.errors import UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def check_resampling(confidence_level: float, n_resamples: int, seed: int) -> None:
    if not 0.0 < confidence_level < 1.0:
        raise UsageError(
            f"confidence_level is {confidence_level}",
            expected="a number between 0 and 1, both excluded",
            remedy="pass 0.95 for a 95% interval",
        )
    if n_resamples < 1:
        raise UsageError(
            f"n_resamples is {n_resamples}",
            expected="1 or more",
            remedy="leave n_resamples at its default of 10000",
        )
    if seed < 0:
        raise UsageError(f"seed is {seed}", expected="0 or more", remedy="pass a seed from 0 up")


def checked_array(name: str, values: ArrayLike) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} is not an array of numbers ({error})",
            expected="numbers only, in rows of equal length",
            remedy=f"remove what is missing or not a number from {name}",
        ) from error
    if array.size == 0:
        raise UsageError(
            f"{name} is empty",
            expected="at least one value",
            remedy=f"check that the file or split that {name} comes from is not empty",
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise UsageError(
            f"{name} holds {bad.size} non-finite value(s), first {array.flat[bad[0]]} "
            f"at position {bad[0]}",
            expected="finite numbers",
            remedy="score that doc again in a wider dtype, or leave it out of every condition",
        )
    return array


def checked_vector(name: str, values: ArrayLike) -> FloatArray:
    array = checked_array(name, values)
    require_vector(name, array)
    return array


def checked_options(loglikelihoods: ArrayLike) -> FloatArray:
    array = checked_array("loglikelihoods", loglikelihoods)
    if array.ndim == 0:
        raise UsageError(
            "loglikelihoods is a single number",
            expected="an array of shape [..., options]",
            remedy="pass the log-likelihoods of all options of a doc",
        )
    return array


def checked_accuracies(name: str, values: ArrayLike) -> FloatArray:
    array = checked_vector(name, values)
    outside = np.flatnonzero((array < 0) | (array > 1))
    if outside.size:
        raise UsageError(
            f"{name} holds {array[outside[0]]:g} at position {outside[0]}",
            expected="0 (wrong) to 1 (right) per doc",
            remedy=f"pass per-doc correctness as {name}, not percentages or log-likelihoods",
        )
    return array


def question_labels(labels: ArrayLike, *, like: tuple[str, FloatArray]) -> tuple[IntArray, int]:
    """Labels [docs] as ranks 0 .. questions - 1, and the number of questions."""
    array = np.asarray(labels)
    require_vector("question_index", array)
    require_same_length("question_index", array, *like)
    require_integers("question_index", array)
    unique, ranks = np.unique(array, return_inverse=True)
    return ranks.astype(np.int64), unique.size


def require_vector(name: str, array: NDArray[Any]) -> None:
    if array.ndim != 1:
        raise UsageError(
            f"{name} has shape {array.shape}",
            expected="one dimension",
            remedy=f"flatten {name}, in the same order as the arrays it goes with",
        )


def require_integers(name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "iu":
        raise UsageError(
            f"{name} has dtype {array.dtype}",
            expected="integers",
            remedy=f"convert {name} to integers after checking it for missing values",
        )


def require_same_length(name: str, array: NDArray[Any], other: str, others: NDArray[Any]) -> None:
    if array.size != others.size:
        raise UsageError(
            f"{name} has {array.size} value(s), {other} has {others.size}",
            expected="equal lengths, one value of each per item",
            remedy=f"pair {name} and {other} by doc or neuron before comparing them",
        )


def checked_number(name: str, value: float) -> float:
    array = checked_array(name, value)
    if array.ndim != 0:
        raise UsageError(
            f"{name} has shape {array.shape}",
            expected="a single number",
            remedy=f"pass the mean over docs as {name}",
        )
    return float(array)
