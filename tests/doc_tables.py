"""A small table of docs, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuronllm_eval.evaluation.doc_table import DocTable, numbered

HERE = Path("conditions.jsonl")
TASK = "a_task"


def odds(*weights: float) -> list[float]:
    """Log-likelihoods of options whose probabilities are in proportion to the weights."""
    return [math.log(weight / sum(weights)) for weight in weights]


def line(question: str, doc_id: int, gold: int, **rows: list[float]) -> dict:
    return {
        "task": TASK,
        "split": "test",
        "doc_id": doc_id,
        "question_id": question,
        "gold": gold,
        "loglikelihoods": rows,
    }


def answered(question_ids: Sequence[str], split: str = "test", **correct: str) -> DocTable:
    """Right (1) or wrong (0) of each doc, by condition; the first of two options is right."""
    rows = {name: np.array([float(digit) for digit in digits]) for name, digits in correct.items()}
    n_docs = len(question_ids)
    zeros = np.zeros(n_docs, dtype=np.int64)
    return DocTable(
        conditions=tuple(rows),
        split=split,
        doc_ids=tuple(range(n_docs)),
        question_ids=tuple(question_ids),
        question_index=numbered(question_ids),
        n_options=zeros + 2,
        gold=zeros,
        predicted={name: (1 - row).astype(np.int64) for name, row in rows.items()},
        correct=rows,
        confidence=rows,
    )


# Right or wrong and confidence (softmax at gold), unmasked -> degrade:
#   q1  right 3/4 -> wrong 1/4
#   q1  wrong 1/2 -> right 4/5   (a tie goes to the first option, which is not the gold)
#   q2  right 5/8 -> wrong 1/8   (three options)
#   q3  wrong 1/10 -> wrong 1/10
LINES = [
    line("q1", 0, 0, unmasked=odds(3, 1), degrade=odds(1, 3)),
    line("q1", 1, 1, unmasked=odds(1, 1), degrade=odds(1, 4)),
    line("q2", 2, 2, unmasked=odds(1, 2, 5), degrade=odds(5, 2, 1)),
    line("q3", 3, 0, unmasked=odds(1, 9), degrade=odds(1, 9)),
]


def the_table(lines: list[dict] | None = None) -> DocTable:
    return DocTable.from_lines(LINES if lines is None else lines, HERE, TASK)
