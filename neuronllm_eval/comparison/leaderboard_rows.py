"""One run as the leaderboard sees it: its files, read and checked to be of one validation.

No figure is computed anew, and of `conditions.jsonl` only the start of each line is read, so that
a hundred runs take seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuronllm_eval.comparison.comparability import method_settings, run_terms
from neuronllm_eval.comparison.leaderboard import Entry
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.doc_ids import AskedDocs, asked_docs
from neuronllm_eval.evaluation.summary_file import StoredSummary
from neuronllm_eval.interventions.conditions import (
    UNMASKED,
    ConditionName,
    Edited,
    Scales,
    edited_by,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.overlap import Places
from neuronllm_eval.runs.artifacts import (
    ValidationRecord,
    load_neurons,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings

_AGAIN = "run validate again"


@dataclass(frozen=True)
class BoardRun:
    """A run.

    Attributes:
        path: its directory.
        model: as the run names it.
        model_hash: digest of its weights.
        task: of the harness.
        method: that chose the neurons.
        seed: of the questions.
        shape: the model's [layers, neurons].
        places: the `good` and the `bad` neurons that were chosen.
        entries: of its conditions and points; none before validation.
        lacks: what is to be done before it has entries; empty where it has.
    """

    path: str
    model: str
    model_hash: str
    task: str
    method: str
    seed: int
    shape: tuple[int, int]
    places: Mapping[str, Places]
    entries: tuple[Entry, ...]
    lacks: str


def read_run(run: RunDirectory, with_points: bool = False) -> BoardRun:
    """Read a run.

    Args:
        run: its directory.
        with_points: whether points of a sweep are entries too.

    Raises:
        ArtifactError: a file is missing or damaged, or files are of different validations.
    """
    settings = load_settings(run)
    neurons = load_neurons(run, settings)
    lacks = ""
    if not (run.conditions.exists() or run.summary.exists()):
        lacks = "validate"
    elif not run.summary.exists():
        lacks = "report"
    known = neurons.provenance
    entries = () if lacks else _entries(run, settings, neurons)
    return BoardRun(
        path=str(run.path),
        model=known.model,
        model_hash=known.model_hash,
        task=settings.task,
        method=known.method,
        seed=known.seed,
        shape=neurons.shape,
        places={
            kind: Places.of(getattr(neurons, kind), neurons.n_layers) for kind in ("good", "bad")
        },
        entries=tuple(each for each in entries if with_points or each.name == each.condition),
        lacks=lacks,
    )


def _entries(run: RunDirectory, settings: RunSettings, neurons: NeuronSet) -> tuple[Entry, ...]:
    record = load_validation(run)
    judged = record.validated(neurons, run.validation)
    summary = StoredSummary.load(run.summary)
    asked = asked_docs(run.conditions, settings.task)
    _require_one_validation(run, settings, record, summary, asked)
    terms, _ = run_terms(run, settings, neurons, record, asked)
    unmasked = summary.metrics.get(UNMASKED, {})
    method = method_settings(settings)
    known = neurons.provenance
    # Summaries of earlier versions do not say what was edited.
    edited = edited_by((each.name for each in summary.conditions), judged, record.scales)
    found = []
    for each in summary.conditions:
        parts = ConditionName.parse(each.name)
        scales = parts.scales(record.scales)
        count = parts.top_k or record.top_k
        chosen = neurons.top(count)
        own = edited.get(each.name, Edited(len(chosen.good), len(chosen.bad)))
        metrics = summary.metrics[each.name] if own.n_neurons else {}
        found.append(
            Entry(
                model=known.model,
                model_hash=known.model_hash,
                dtype=known.dtype,
                task=settings.task,
                method=known.method,
                method_settings=json.dumps(method, sort_keys=True),
                seed=known.seed,
                condition=each.condition,
                name=each.name,
                top_k=each.top_k,
                scale=each.scale,
                n_good=len(chosen.good),
                n_bad=len(chosen.bad),
                n_questions=each.accuracy.n_questions,
                n_docs=each.accuracy.n_docs,
                accuracy=each.accuracy.condition if own.n_neurons else None,
                note=own.note or None,
                **_change(each if own.n_neurons else None),
                consistent=_percent(metrics.get("acc_consistent")),
                consistent_delta=_delta("acc_consistent", metrics, unmasked, each),
                position_bias=_percent(metrics.get("position_bias")),
                position_bias_delta=_delta("position_bias", metrics, unmasked, each),
                majority=_percent(metrics.get("acc_majority")),
                run=str(run.path),
                terms=dataclasses.replace(
                    terms,
                    top_k=count,
                    suppress=float(scales.suppress),
                    enhance=float(scales.enhance),
                ),
            )
        )
    return tuple(found)


def _change(summary: ConditionSummary | None) -> dict[str, Any]:
    """A delta, its tests, and a place among controls: nothing unmasked, or where nothing changed.

    Args:
        summary: None of a condition that edits nothing.
    """
    if summary is None or summary.name == UNMASKED or summary.corrected is None:
        names = ("delta", "low", "high", "p_value", "p_holm", "controls_outdone", "n_controls",
                 "control_p")  # fmt: skip
        return dict.fromkeys(names)
    accuracy, controls = summary.accuracy, summary.controls
    ranked = controls if controls is not None and controls.n_controls else None
    return {
        "delta": accuracy.delta,
        "low": accuracy.low,
        "high": accuracy.high,
        "p_value": accuracy.p_value,
        "p_holm": summary.corrected.p_value,
        "controls_outdone": summary.n_beyond if ranked else None,
        "n_controls": ranked.n_controls if ranked else None,
        "control_p": ranked.p_value if ranked else None,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _delta(
    name: str,
    metrics: Mapping[str, float],
    unmasked: Mapping[str, float],
    summary: ConditionSummary,
) -> float | None:
    if summary.name == UNMASKED or name not in metrics or name not in unmasked:
        return None
    return 100 * (metrics[name] - unmasked[name])


def _require_one_validation(
    run: RunDirectory,
    settings: RunSettings,
    record: ValidationRecord,
    summary: StoredSummary,
    asked: AskedDocs,
) -> None:
    """Refuse a summary that other files contradict, and names that are no conditions."""
    judged = (settings.task, asked.split, record.positions, asked.conditions)
    told = (summary.task, summary.split, summary.applied_at, tuple(summary.metrics))
    same = told == judged and UNMASKED in summary.metrics
    for each in summary.conditions:
        try:
            parts = ConditionName.parse(each.name)
        except UsageError as error:
            raise ArtifactError(
                f"{run.summary}: {error.found}", expected=error.expected, remedy=_AGAIN
            ) from error
        count = None if each.name == UNMASKED else parts.top_k or record.top_k
        same = same and (each.condition, each.top_k) == (parts.condition, count)
        same = same and each.scale in (None, *_factors(parts, record.scales))
        n_judged = (each.accuracy.n_docs, each.accuracy.n_questions)
        same = same and n_judged == (len(asked.docs), len(asked.questions))
    if not same:
        raise ArtifactError(
            f"{run.summary} is not of what {run.validation.name} and {run.conditions.name} hold",
            expected="files of one validation",
            remedy=f"run `neuronllm-eval report {run.path}`",
        )


def _factors(parts: ConditionName, scales: Scales) -> tuple[float, float]:
    own = parts.scales(scales)
    return float(own.suppress), float(own.enhance)
