"""What the unmasked model gives each option whatever the question: for calibrated targets.

The prior of an option is its mean log-probability among the options, as far as it differs from that
of the others, over the first prompts of some selection questions. An option is its place among the
options: a label or a letter in most tasks, and nothing in tasks whose options differ by question,
where priors are near zero.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.special

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
_MOST_QUESTIONS = 128
_DIGITS = 3  # log-nats; what rounding of the model changes is far less


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
    """[most options] of some questions, evenly spaced, in log-nats; see above.

    Args:
        engine: scores the prompts unmasked.
        questions: of the selection split.
        batch_size: prompts per pass.
    """
    step = -(-len(questions) // _MOST_QUESTIONS)
    some = [replace(each, prompts=each.prompts[:1]) for each in questions[::step]]
    n_options = max(len(each.prompts[0].options) for each in some)
    totals, counts = np.zeros(n_options), np.zeros(n_options)
    unmasked = np.ones((1, *engine.layers.shape), np.int8)
    for question, docs in score_conditions(engine, some, unmasked, batch_size):
        if isinstance(docs, DocError):  # identification excludes it too
            continue
        (prompt,), (doc,) = question.prompts, docs
        scores = ranking_scores(doc.loglikelihoods[np.newaxis].astype(float), [prompt.lengths])
        values = scipy.special.log_softmax(scores[0, 0])
        totals[: len(values)] += values - values.mean()
        counts[: len(values)] += 1
    means = totals / np.maximum(counts, 1)
    return tuple(np.round(means, _DIGITS).tolist())
