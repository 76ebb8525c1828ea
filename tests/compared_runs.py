"""Runs made up for tables over several: of so many docs, the first ones are correct."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from neuronllm_eval.comparison.comparability import Terms
from neuronllm_eval.comparison.rows import ComparedRun, Row, RunFacts
from neuronllm_eval.evaluation.condition_effects import summaries_of
from tests.doc_tables import answered
from tests.harness_fixtures import neuron_set

TERMS = Terms(
    split="test",
    n_questions=60,
    question_ids="q",
    docs="d",
    n_proxies="3",
    orders="original",
    letter_style="A.",
    n_options="",
    distractors="none",
    num_fewshot="1",
    description="x",
    system_instruction="",
    chat_template="none",
    multiturn=True,
    metadata="m",
    task_config="c",
    chosen_split="train",
    n_chosen_on=120,
    chosen_at="scored",
    applied_at="scored",
    top_k=41,
    suppress=0.0,
    enhance=2.0,
    lm_eval="0.4.13",
    neuronllm_eval="0.1.0",
)
FACTS = RunFacts(
    path="runs/one",
    model="org/model",
    model_hash="h1",
    dtype="float32",
    task="demo",
    method="ace",
    settings='{"n_steps": 5}',
    seed=0,
)
_SHARED = ("model", "method", "neurons of a kind", "factors", "positions")


def waiting(task: str, **shared: str) -> ComparedRun:
    """A run that is not validated; `shared` with _ for spaces."""
    facts = dataclasses.replace(FACTS, task=task, path=task)
    values = {name: shared.get(name.replace(" ", "_"), "") for name in _SHARED}
    return ComparedRun(facts, neuron_set(), missing="validate", shared=values)


def evaluated(
    task: str, correct: Mapping[str, int], n_docs: int = 20, **shared: str
) -> ComparedRun:
    """A validated run.

    Args:
        task: its name, and its folder.
        correct: by condition or random control, docs that are answered correctly.
        n_docs: one of each question.
        **shared: as in `waiting`.
    """
    questions = [f"q{number}" for number in range(n_docs)]
    rows = {name: "1" * count + "0" * (n_docs - count) for name, count in correct.items()}
    return with_docs(waiting(task, **shared), answered(questions, **rows))


def with_docs(run: ComparedRun, docs: Any) -> ComparedRun:
    """The run as its docs make it."""
    top_k = run.neurons.top_k
    rows = tuple(
        Row((run.facts,), TERMS, top_k, summary, (top_k,), (top_k,))
        for summary in summaries_of(docs, {}, top_k, run.scales)
    )
    return dataclasses.replace(
        run, rows=rows, missing="", docs=docs, top_k=top_k, repeat_terms=TERMS.of_repeats(60, 60)
    )


def changed(run: ComparedRun, **facts: Any) -> ComparedRun:
    """The run with other facts, such as another task."""
    return dataclasses.replace(run, facts=dataclasses.replace(run.facts, **facts))


def sharing(run: ComparedRun, **shared: str) -> ComparedRun:
    """The run with other shared settings."""
    values = {name.replace("_", " "): value for name, value in shared.items()}
    return dataclasses.replace(run, shared={**run.shared, **values})
