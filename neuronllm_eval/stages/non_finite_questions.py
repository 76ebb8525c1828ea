"""Questions that give NaN or infinity: named, counted, and kept out of every sum and average."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from neuronllm_eval.errors import DocError
from neuronllm_eval.formats.atomic import write_lines
from neuronllm_eval.prompts import Question
from neuronllm_eval.runs.artifacts import ExcludedQuestion
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.resumable_work import SharedWork
from neuronllm_eval.stages.load_questions import prompt_settings

logger = logging.getLogger(__name__)


def set_aside(
    question: Question, error: DocError, settings: RunSettings, shared: SharedWork
) -> None:
    """Record a question that gives NaN or infinity, or let it end the run if the user says so.

    Raises:
        DocError: the question's, with `--on_bad_doc fail`.
    """
    if prompt_settings(settings).on_bad_doc == "fail":
        raise error
    doc_ids = [prompt.doc_id for prompt in question.prompts]
    known = {"question_id": question.question_id, "doc_ids": doc_ids}
    shared.record({"set_aside": {**known, "reason": error.reason}})


def without_set_aside(
    records: Iterable[dict[str, Any]], run: RunDirectory, role: str
) -> list[dict[str, Any]]:
    """The records of questions that count; the others go to a file of their own, if there are any.

    Raises:
        DocError: none counts.
    """
    kept, aside = [], []
    for record in records:
        if "set_aside" in record:
            aside.append(record["set_aside"])
        else:
            kept.append(record)
    if aside:
        example = f"question {aside[0]['question_id']}"
        logger.warning(
            "%s: %d questions of the %s split give %s and are set aside, such as %s",
            run.path, len(aside), role, aside[0]["reason"], example,
        )  # fmt: skip
        write_lines(run.set_aside(role), aside)
        excluded = [
            ExcludedQuestion(line["question_id"], tuple(line["doc_ids"]), line["reason"])
            for line in aside
        ]
        run.keep(run.set_aside(role), excluded)
    if not kept:
        raise DocError(
            f"{run.path}: every question of the {role} split gives NaN or infinite numbers",
            expected="finite log-likelihoods and gradients",
            remedy="load the model in float32 or bfloat16 (--model_args dtype=float32), or use "
            "smaller scales; then pass --overwrite",
        )
    return kept
