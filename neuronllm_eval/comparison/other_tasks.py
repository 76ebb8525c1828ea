"""Tables of what the conditions of runs do to other tasks (`validate --also`). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.rows import ComparedRun, Row
from neuronllm_eval.comparison.words import HEADS, last_part, method_labels
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.tables import Section
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.other_tasks import effect_text

_LEAD = ("model", "task", "method", "seed", "top_k", "condition")
_NOTE = (
    "What the conditions do to the task that the neurons were selected on (own) and to others "
    "(validate --also): delta in points (95% interval, by question), then the mean of the random "
    "controls. Seeds are not pooled."
)


def others_section(runs: Sequence[ComparedRun]) -> list[Section]:
    """A row for each run and condition, a column for each other task; nothing without any."""
    facts = [run.facts for run in runs]
    labels = method_labels([(run.model_hash, run.task, run.method, run.settings) for run in facts])
    methods = {run.path: label for run, label in zip(facts, labels, strict=True)}
    rows = [
        {
            **{HEADS[name]: str(value) for name, value in _lead(run, row).items()},
            HEADS["method"]: methods[run.facts.path],
            "own": effect_text(row.summary),
            **{f"on {one_line(task)}": effect_text(found) for task, found in effects.items()},
        }
        for run, row, effects in _with_effects(runs)
    ]
    if not rows:
        return []
    table = pd.DataFrame(rows).fillna("")
    constant = [head for head in map(HEADS.get, _LEAD[:-1]) if table[head].nunique() == 1]
    return [Section("On other tasks", table.drop(columns=constant), (_NOTE,))]


def others_records(runs: Iterable[ComparedRun]) -> list[dict[str, Any]]:
    """A record for each run, condition and other task, for programs."""
    return [
        {
            "run": run.facts.path,
            **_lead(run, row),
            "model": run.facts.model,
            "condition": row.condition,
            "name": row.summary.name,
            "own_delta": row.summary.accuracy.delta,
            "on": task,
            "n_questions": found.accuracy.n_questions,
            "unmasked": found.accuracy.unmasked,
            "accuracy": found.accuracy.condition,
            "delta": found.accuracy.delta,
            "low": found.accuracy.low,
            "high": found.accuracy.high,
            "p_value": found.accuracy.p_value,
            "controls_mean": None if found.controls is None else found.controls.mean,
            "n_controls": found.n_controls,
        }
        for run, row, effects in _with_effects(runs)
        for task, found in effects.items()
    ]


def _lead(run: ComparedRun, row: Row) -> dict[str, Any]:
    model, method = one_line(last_part(run.facts.model)), one_line(run.facts.method)
    values = (model, one_line(run.facts.task), method, run.facts.seed, row.top_k, row.summary.name)
    return dict(zip(_LEAD, values, strict=True))


def _with_effects(
    runs: Iterable[ComparedRun],
) -> Iterator[tuple[ComparedRun, Row, dict[str, ConditionSummary]]]:
    """The conditions that were evaluated, each with its effects on other tasks, if any."""
    for run in runs:
        for row in run.rows:
            name = row.summary.name
            effects = {
                each.task: each.summaries[name] for each in run.others if name in each.summaries
            }
            if effects and row.is_evaluated and name != UNMASKED:
                yield run, row, effects
