"""Results of tasks made up for pages and tables: of so many docs, the first ones are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuronllm_eval.evaluation.pooled_effects import Answers, Effect, TaskResult, pooled
from neuronllm_eval.evaluation.stats.paired_delta import paired_delta
from neuronllm_eval.interventions.conditions import UNMASKED


def judged(task: str, right: Mapping[str, int], n_docs: int = 20, **terms: Any) -> TaskResult:
    """A result.

    Args:
        task: its name, and its folder.
        right: by condition or random control, docs that are answered right.
        n_docs: one of each question.
        **terms: model, method and top_k.
    """
    correct = {name: (np.arange(n_docs) < count).astype(float) for name, count in right.items()}
    answers = Answers(tuple(f"q{number}" for number in range(n_docs)), correct)
    before = correct[UNMASKED]
    effects = {UNMASKED: Effect(paired_delta(before, before, np.arange(n_docs)))}
    alone = TaskResult(task, task, {}, answers)
    conditions = [name for name in right if name != UNMASKED and ".random_" not in name]
    effects |= {name: pooled([alone], name) for name in conditions}
    return TaskResult(task, task, effects, answers, **terms)
