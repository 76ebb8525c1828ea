"""What the unmasked model gives each option whatever the question: for calibrated targets.

Priors b make the calibrated target largest: they maximise the mean, over gold options c, of the
mean F over the prompts whose gold option is the c-th, where F is the log-softmax at gold of what
options are compared by, less b. There adding a constant to an option in every prompt changes the
mean by nothing, to first order. An option is its place among the options: a label or a letter in
most tasks; in tasks whose options differ by question a position, with priors near zero.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

from neuronllm_eval.attribution.methods import Method
from neuronllm_eval.engine.interface import Engine, calibrated_cross_entropy
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.doc_table import ranking_scores
from neuronllm_eval.interventions.score_conditions import score_conditions
from neuronllm_eval.prompts import Question
from neuronllm_eval.runtime.checkpoint import write_durably
from neuronllm_eval.runtime.resumable_work import SharedWork
from neuronllm_eval.stages.cost_estimate import Stage

PRIORS_FILE = "priors.json"  # of a checkpoint
_DIGITS = 4  # log-nats
_RIDGE = 1e-3  # keeps the prior of an option that is never gold finite


def needs_priors(methods: Sequence[Method]) -> bool:
    """Whether some method's target is calibrated."""
    return any(
        quantity.target is calibrated_cross_entropy
        for method in methods
        for quantity in method.quantities
    )


def shared_priors(stage: Stage, methods: Sequence[Method], work: SharedWork) -> tuple[float, ...]:
    """The priors of a stage's questions, the same for all processes and after an interruption.

    Args:
        stage: with the engine and all questions.
        methods: empty priors are returned if none of them needs any.
        work: in whose checkpoint they are kept.
    """
    if not needs_priors(methods):
        return ()
    path = work.folder / PRIORS_FILE

    def on_first() -> list[float]:
        if not path.is_file():
            priors = option_priors(stage.engine, stage.questions, stage.batch_size)
            write_durably(path, json.dumps(priors).encode())
        return [float(prior) for prior in json.loads(path.read_text())]

    return tuple(work.ranks.on_first(on_first))


def option_priors(
    engine: Engine, questions: Sequence[Question], batch_size: int
) -> tuple[float, ...]:
    """[most options] of all prompts of some questions, log-nats; see above.

    Args:
        engine: scores the prompts unmasked.
        questions: of the selection split.
        batch_size: prompts per pass.
    """
    scores, gold = [], []
    unmasked = np.ones((1, *engine.layers.shape), np.int8)
    for question, docs in score_conditions(engine, questions, unmasked, batch_size):
        if isinstance(docs, DocError):  # identification excludes it too
            continue
        for prompt, doc in zip(question.prompts, docs, strict=True):
            values = doc.loglikelihoods[np.newaxis].astype(np.float64)
            scores.append(ranking_scores(values, [prompt.lengths])[0, 0])
            gold.append(prompt.gold)
    if not scores:
        return (0.0,) * max(len(p.options) for question in questions for p in question.prompts)
    return fitted_priors(scores, np.array(gold))


def fitted_priors(
    scores: Sequence[NDArray[np.float64]], gold: NDArray[np.int64]
) -> tuple[float, ...]:
    """[most options] priors, log-nats, which sum to zero.

    Args:
        scores: [prompts] what each prompt's options are compared by, [options].
        gold: [prompts] indices of the gold options.
    """
    n_options = max(map(len, scores))
    table = np.full((len(scores), n_options), -np.inf)
    for row, values in zip(table, scores, strict=True):
        row[: len(values)] = values
    counts = np.bincount(gold, minlength=n_options)
    weights = 1 / (counts[gold] * np.count_nonzero(counts))
    is_gold = np.eye(n_options)[gold]

    def loss(priors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logs = scipy.special.log_softmax(table - priors, axis=1)
        gradient = weights @ (is_gold - np.exp(logs)) + _RIDGE * priors
        return -weights @ logs[np.arange(len(gold)), gold] + _RIDGE / 2 * priors @ priors, gradient

    found = scipy.optimize.minimize(loss, np.zeros(n_options), jac=True, method="L-BFGS-B").x
    return tuple(np.round(found - found.mean(), _DIGITS).tolist())
