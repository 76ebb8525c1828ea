"""All conditions over a task's validation split, scored together.

1. Conditions, the points of a sweep over them and their random controls are factors on every neuron
   (`condition_plan`).
2. The engine scores every prompt under all of them: at the scored position in one pass, at all
   positions by a full pass each.
3. Per doc and condition, the option log-likelihoods and the KL divergence to the unmasked model go
   to `conditions.jsonl`; the harness computes its own metrics and result files from the first
   (`harness.results`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine, OptionScores
from neuronllm_eval.engine.option_logits import score_shared_tokens
from neuronllm_eval.errors import DocError
from neuronllm_eval.harness.results import Answers
from neuronllm_eval.prompts import NOT_FINITE, SCORED, Prompt, Question


@dataclass(frozen=True)
class DocScores:
    """One doc (proxy) under every condition: a line of `conditions.jsonl`.

    Attributes:
        question_id: its question.
        doc_id: its index in the task.
        gold: index of the gold option.
        loglikelihoods: [conditions, options] float32, log-nats of all of an option's tokens.
        greedy: [conditions, options] bool.
        kl: [conditions] float32, KL(first condition || condition) of the distribution of the token
            behind the context, nats.
    """

    question_id: str
    doc_id: int
    gold: int
    loglikelihoods: NDArray[np.float32]
    greedy: NDArray[np.bool_]
    kl: NDArray[np.float32]

    def to_record(self) -> dict[str, Any]:
        """JSON values that hold it exactly."""
        return {
            "question_id": self.question_id,
            "doc_id": self.doc_id,
            "gold": self.gold,
            "loglikelihoods": self.loglikelihoods.tolist(),
            "greedy": self.greedy.tolist(),
            "kl": self.kl.tolist(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> DocScores:
        """The scores of `to_record`."""
        types: dict[str, Any] = {"loglikelihoods": np.float32, "greedy": np.bool_, "kl": np.float32}
        arrays: dict[str, Any] = {
            name: np.asarray(record[name], dtype) for name, dtype in types.items()
        }
        return cls(**{**record, **arrays})


def score_conditions(
    engine: Engine,
    questions: Sequence[Question],
    factors: NDArray[Any],
    batch_size: int,
    units: Iterable[range] | None = None,
) -> Iterator[tuple[Question, list[DocScores] | DocError]]:
    """Score every question's prompts under every condition, one by one as they are taken.

    Args:
        engine: scores the prompts.
        questions: the validation split's questions.
        factors: [conditions, layers, neurons], of any type that holds them exactly; KL divergences
            are from the first condition.
        batch_size: prompts per pass; whole questions, so at least one question's.
        units: indices of the questions to do; all if not given.

    Yields:
        each question with its docs' scores, in order; or with a DocError if it gives NaN or
        infinity under some condition.
    """
    score = partial(engine.score, scales=torch.from_numpy(factors))
    for index, results in in_batches(questions, batch_size, score, units):
        question = questions[index]
        try:
            docs = [
                _doc_scores(question.question_id, prompt, result, engine)
                for prompt, result in zip(question.prompts, results, strict=True)
            ]
        except DocError as error:
            yield question, error
        else:
            yield question, docs


def _doc_scores(
    question_id: str, prompt: Prompt, result: OptionScores, engine: Engine
) -> DocScores:
    shared, shared_greedy = 0.0, True  # if all positions are edited, the engine includes them
    if engine.positions == SCORED:
        shared, shared_greedy = score_shared_tokens(engine.model, prompt)
    loglikelihoods = result.loglikelihoods.numpy() + np.float32(shared)
    greedy = result.greedy.numpy() & shared_greedy
    kl = result.kl.numpy()
    if not (np.isfinite(loglikelihoods).all() and np.isfinite(kl).all()):
        raise DocError(
            f"doc {prompt.doc_id} has NaN or infinite log-likelihoods under some condition",
            expected="finite numbers",
            remedy="load the model in float32 or bfloat16, or use smaller scales",
            reason=NOT_FINITE,
        )
    return DocScores(question_id, prompt.doc_id, prompt.gold, loglikelihoods, greedy, kl)


def answers_under(docs: Sequence[DocScores], condition: int) -> Answers:
    """The model's answers to the harness under condition number `condition`."""
    return {
        doc.doc_id: list(
            zip(doc.loglikelihoods[condition].tolist(), doc.greedy[condition].tolist(), strict=True)
        )
        for doc in docs
    }
