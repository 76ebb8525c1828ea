"""Choose a method's settings on the selection split alone: `--method auto`.

1. The sums of either half of the selection questions give scores, and these the neurons of every
   candidate: a penalty of `ace_balanced` and a number of neurons.
2. The questions of the other half are scored under enhance and degrade of all of them in one pass,
   with checkpoints.
3. `evaluation.method_choice` compares the candidates; the first rank keeps the choice.

Validation questions play no part.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.attribution.methods import Auto, Floats
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.method_choice import MethodChoice, Scored, choose
from neuronllm_eval.interventions.conditions import (
    CONDITION_OPERATIONS,
    Edits,
    Scales,
    stack_factors,
)
from neuronllm_eval.interventions.score_conditions import DocScores, score_conditions
from neuronllm_eval.neurons.selection import highest, resolve_count
from neuronllm_eval.prompts import Question
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, Work, close
from neuronllm_eval.stages.cost_estimate import Stage

logger = logging.getLogger(__name__)
# Tried unless the user gives one.
PENALTIES = (0.0, 1.0, 2.0, 4.0)
# Numbers of neurons that are tried, as shares of --top_k.
SHARES = (1, 1 / 4, 1 / 16, 1 / 64)
_CONDITIONS = ("enhance", "degrade")  # in the order of `method_choice.choose`
_Candidates = list[tuple[float, int]]


def choose_settings(
    stage: Stage,
    method: Auto,
    top_k: float,
    sums: ScoreSums | None,
    run: RunDirectory,
    launch: Launch,
) -> MethodChoice | None:
    """The best settings of a method, by cross-fitting between the halves of the questions.

    Args:
        stage: the identification, with its engine and all its questions.
        method: that leaves its settings open.
        top_k: most good and bad neurons, a count or a share.
        sums: over all questions; on the first rank only.
        run: the directory, with the checkpoints.
        launch: the processes.

    Returns:
        the choice, on the first rank; None on the others.
    """
    candidates = _candidates(stage, method, top_k)
    scored: list[list[Scored]] = []
    for half in (0, 1):
        edits = launch.ranks.on_first(partial(_all_edits, method, candidates, sums, half))
        factors = stack_factors(
            stage.engine.layers.shape,
            [{(layer, index): factor for layer, index, factor in each} for each in edits],
        )
        questions = stage.questions[1 - half :: 2]
        folder = run.choosing(half)
        identity = {"half": half, "factors": hashlib.sha256(factors.tobytes()).hexdigest()}
        plan = Work.plan(identity, questions, stage.batch_size)
        if launch.ranks.on_first(lambda: not launch.resumes(plan, folder)):  # noqa: B023
            launch.ranks.on_first(lambda: close(folder))  # noqa: B023
        work = SharedWork(plan, folder, launch)
        scored.append(_scored(stage, questions, factors, work, half))
    if not launch.ranks.is_first:
        return None
    choice = choose(candidates, scored)
    for half in (0, 1):
        close(run.choosing(half))
    n_docs = sum(len(question.prompts) for question in stage.questions)
    _tell(choice, stage.task, n_docs)
    return choice


def _candidates(stage: Stage, method: Auto, top_k: float) -> _Candidates:
    layers = stage.engine.layers
    most = resolve_count(top_k, layers.n_layers * layers.width, "top_k")
    counts = sorted({max(1, round(most * share)) for share in SHARES})
    penalties = PENALTIES if method.penalty is None else (method.penalty,)
    return list(itertools.product(penalties, counts))


def _all_edits(
    method: Auto, candidates: _Candidates, sums: ScoreSums | None, half: int
) -> list[list[tuple[int, int, float]]]:
    """(layer, index, factor) of edited neurons: unmasked, then by candidate and condition.

    `half` is that of the questions that select the neurons.
    """
    assert sums is not None
    edits: list[list[tuple[int, int, float]]] = [[]]
    scores: dict[float, Floats] = {}
    for penalty, count in candidates:
        if penalty not in scores:
            scores[penalty] = replace(method, penalty=penalty).halves(sums, [])[half]
        for condition in _CONDITIONS:
            edited = _edits(scores[penalty], count, condition)
            edits.append([(*location, factor) for location, factor in edited.items()])
    return edits


def _edits(score: Floats, count: int, condition: str) -> Edits:
    groups = (highest(score, count), highest(-score, count))
    return {
        location: Scales().factor(operation)
        for operation, group in zip(CONDITION_OPERATIONS[condition], groups, strict=True)
        if operation
        for location in group
    }


def _scored(
    stage: Stage,
    questions: Sequence[Question],
    factors: NDArray[np.generic],
    work: SharedWork,
    half: int,
) -> list[Scored]:
    """The docs of some questions under all factors; empty on ranks other than the first."""
    with work.units(f"choose settings, half {half + 1} of 2") as units:
        for _, docs in score_conditions(stage.engine, questions, factors, stage.batch_size, units):
            if isinstance(
                docs, DocError
            ):  # of some candidate: the question compares none (`_tell`)
                continue
            for doc in docs:
                work.record(doc.to_record())
    finished = work.finish()
    lengths = {
        prompt.doc_id: prompt.lengths for question in questions for prompt in question.prompts
    }
    records: Iterator[dict[str, object]] = iter(()) if finished is None else finished.records()
    scores = map(DocScores.from_record, records)
    return [Scored(doc.gold, doc.loglikelihoods, lengths[doc.doc_id]) for doc in scores]


def _tell(choice: MethodChoice, task: str, n_docs: int) -> None:
    best = choice.best
    if choice.n_docs < n_docs:
        logger.warning(
            "%s: settings are chosen on %d of %d docs: the others give NaN or infinite numbers "
            "under some candidate",
            task,
            choice.n_docs,
            n_docs,
        )
    if not best.is_sound:
        logger.warning(
            "%s: under enhance every candidate takes more than a fifth of the options' "
            "probability, or gives 90%% or more of the docs one answer; the best of them is taken. "
            "Fewer neurons (--top_k) may do less harm.",
            task,
        )
    logger.info(
        "%s: chosen on the selection questions: penalty %g, %d neurons",
        task,
        best.penalty,
        best.top_k,
    )
