"""Metrics of AQUA tasks, as the harness calls them: one value per doc, then one number per metric.

The question is the unit, since its proxies are not independent.

| metric | meaning |
|---|---|
| `acc` | share of correct answers over all docs (proxies) |
| `acc_consistent` | share of questions answered correctly on every proxy |
| `acc_majority` | share of questions whose most frequent answer is correct; ties count in part |
| `fortuity` | share of questions correct on their first proxy, but not on every one |
| `position_bias` | total variation distance between predicted and gold letters |

With `orders: original` or `swap` the first proxy shows the options in the data's order, so that
`fortuity + acc_consistent` is the accuracy of a single prompt per question, as in benchmarks; with
`drawn` it has a drawn order.

Standard errors: `acc`'s is clustered by question; those of the shares of questions are of a mean
(`n - 1` in the variance, as the harness's `mean_stderr`); `position_bias` has a bootstrap over
questions. The harness has no standard errors for metrics that are not plain means, so each is a
separate metric, named as the harness names them.

A question without all of its proxies, which `--limit` can cause, counts for `acc` and
`position_bias` only; where no question is complete, the others are NaN. With fewer than two
questions, standard errors are NaN. The harness gathers the values of all processes before it calls
these, in any order; a repeated proxy counts once.

Source: AQUA and fortuity are of arXiv 2601.04548; the formulas are our reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.aqua.proxies import LETTERS

METRICS = ("acc", "acc_consistent", "acc_majority", "fortuity", "position_bias")
N_RESAMPLES = 500


class Answer(NamedTuple):
    """What a model answered to one proxy; a list of these values in the harness's sample files.

    Attributes:
        question_id: the question.
        proxy: number of the copy, from 0.
        n_proxies: number of copies of the question.
        gold: letter of the gold option, from 0.
        predicted: predicted letter, from 0.
        chosen: the predicted option, as its index in the original doc.
    """

    question_id: str
    proxy: int
    n_proxies: int
    gold: int
    predicted: int
    chosen: int


# The harness dumps the source of functions that YAML files name into its result files, and task
# hashes follow from it: the text of the functions without an underscore, docstrings included, must
# stay as it is, or finished runs are taken for those of another task.


def process_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float | Answer]:
    """A doc's value of each metric.

    Args:
        doc: a proxy, with the columns `aqua_task.PROXY_COLUMNS`.
        results: per option (log-likelihood, whether greedy decoding would say it).

    Returns:
        1.0 or 0.0 for `acc`; for all others what is needed to know it by question.
    """
    predicted = int(np.argmax([loglikelihood for loglikelihood, _ in results]))
    answer = Answer(
        question_id=str(doc["question_id"]),
        proxy=int(doc["proxy"]),
        n_proxies=int(doc["n_proxies"]),
        gold=int(doc["answer"]),
        predicted=predicted,
        chosen=int(doc["order"][predicted]),
    )
    values: dict[str, float | Answer] = {"acc": float(predicted == answer.gold)}
    for metric in METRICS:
        values.setdefault(metric, answer)
        # After its metric, for which the harness writes a standard error of its own, or "N/A".
        values[f"{metric}_stderr"] = answer
    return values


@dataclass(frozen=True)
class _Questions:
    """Answers by question, in the order of their ids.

    Attributes:
        n_asked: `[questions]` proxies answered.
        n_right: `[questions]` proxies answered correctly.
        complete: `[questions]` whether all proxies were answered.
        first: `[questions]` 1 if the first proxy answered is correct, else 0.
        majority: `[questions]` 1 if the option predicted most often is the gold, 1 / k if it ties
            with k - 1 others, else 0.
        letters: `[questions, letters]` how much more often a letter is predicted than gold.
    """

    n_asked: NDArray[np.int64]
    n_right: NDArray[np.int64]
    complete: NDArray[np.bool_]
    first: NDArray[np.int64]
    majority: NDArray[np.float64]
    letters: NDArray[np.int64]


def _by_question(answers: Sequence[Answer]) -> _Questions:
    return _grouped(tuple(answers))


# The harness calls all metrics of a task one after the other, with the same answers.
@lru_cache(maxsize=1)
def _grouped(answers: tuple[Answer, ...]) -> _Questions:
    ordered = sorted(answers)
    ids = np.array([answer.question_id for answer in ordered], dtype=object)
    numbers = np.array([answer[1:] for answer in ordered], dtype=np.int64)
    starts = np.append(True, ids[1:] != ids[:-1])
    once = starts | np.append(True, numbers[1:, 0] != numbers[:-1, 0])
    question = (np.cumsum(starts) - 1)[once]
    n_proxies, gold, predicted, chosen = numbers[once, 1:].T
    starts = starts[once]
    n = int(question[-1]) + 1

    def count(options: NDArray[np.int64]) -> NDArray[np.int64]:
        """[questions, options] how often each occurs."""
        cells = np.bincount(question * len(LETTERS) + options, minlength=n * len(LETTERS))
        return cells.reshape(n, len(LETTERS))

    correct = (gold == predicted).astype(np.int64)
    n_asked = np.bincount(question)
    n_right = np.bincount(question, weights=correct).astype(np.int64)
    votes = count(chosen)
    most = votes.max(axis=1)
    winners = (votes == most[:, None]).sum(axis=1)
    return _Questions(
        n_asked=n_asked,
        n_right=n_right,
        complete=n_asked == n_proxies[starts],
        first=correct[starts],
        majority=np.where(n_right == most, 1 / winners, 0.0),
        letters=count(predicted) - count(gold),
    )


def _consistent(answers: Sequence[Answer]) -> NDArray[Any]:
    """[complete questions] whether every proxy is correct."""
    questions = _by_question(answers)
    return (questions.n_right == questions.n_asked)[questions.complete]


def _majority(answers: Sequence[Answer]) -> NDArray[Any]:
    """[complete questions] share of the vote's winners that is gold."""
    questions = _by_question(answers)
    return questions.majority[questions.complete]


def _fortuitous(answers: Sequence[Answer]) -> NDArray[Any]:
    """[complete questions] whether the first proxy is correct, and another is not."""
    questions = _by_question(answers)
    return ((questions.first == 1) & (questions.n_right < questions.n_asked))[questions.complete]


def _mean(scores: NDArray[Any]) -> float:
    return float(scores.mean()) if len(scores) else math.nan


def _mean_stderr(scores: NDArray[Any]) -> float:
    return float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan


def acc_stderr(answers: Sequence[Answer]) -> float:
    """Standard error of `acc`, clustered by question; NaN for fewer than two questions.

    With one proxy per question it is the harness's `mean_stderr`.
    """
    questions = _by_question(answers)
    n, n_docs = len(questions.n_asked), questions.n_asked.sum()
    if n < 2:
        return math.nan
    residuals = questions.n_right - questions.n_asked * (questions.n_right.sum() / n_docs)
    return float(math.sqrt(n / (n - 1) * np.square(residuals).sum()) / n_docs)


def acc_consistent(answers: Sequence[Answer]) -> float:
    """Share of complete questions that are right on every proxy."""
    return _mean(_consistent(answers))


def acc_consistent_stderr(answers: Sequence[Answer]) -> float:
    """Standard error of `acc_consistent`."""
    return _mean_stderr(_consistent(answers))


def acc_majority(answers: Sequence[Answer]) -> float:
    """Share of complete questions whose most frequent answer is right; ties count in part."""
    return _mean(_majority(answers))


def acc_majority_stderr(answers: Sequence[Answer]) -> float:
    """Standard error of `acc_majority`."""
    return _mean_stderr(_majority(answers))


def fortuity(answers: Sequence[Answer]) -> float:
    """Share of complete questions right on the first proxy, but not on every proxy."""
    return _mean(_fortuitous(answers))


def fortuity_stderr(answers: Sequence[Answer]) -> float:
    """Standard error of `fortuity`."""
    return _mean_stderr(_fortuitous(answers))


def position_bias(answers: Sequence[Answer]) -> float:
    """Total variation, 0 to 1, between the predicted letters and the golds' over all docs.

    Chance alone makes it positive where answers are wrong, the more so the fewer questions.
    """
    questions = _by_question(answers)
    excess = np.abs(questions.letters.sum(axis=0)).sum()
    return float(excess / 2 / questions.n_asked.sum())


def position_bias_stderr(answers: Sequence[Answer]) -> float:
    """Bootstrap standard error of `position_bias`, over questions; repeatable."""
    questions = _by_question(answers)
    n = len(questions.n_asked)
    if n < 2:
        return math.nan
    # To draw questions is to draw kinds of questions by their frequency, and those are fewer.
    kinds, counts = np.unique(
        np.column_stack([questions.n_asked, questions.letters]), axis=0, return_counts=True
    )
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=N_RESAMPLES)
    sums = draws.astype(np.float64) @ kinds
    biases = np.abs(sums[:, 1:]).sum(axis=1) / 2 / sums[:, 0]
    return float(np.std(biases, ddof=1))
