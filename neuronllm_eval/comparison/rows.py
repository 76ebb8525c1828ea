"""Finished runs as rows (run x condition x number of neurons), of which every table is made.

1. The figures of a row are those of `summary.json`; none is recomputed.
2. `summary.json`, `validation.json` and `conditions.jsonl` must be of one validation. Without
   `with_docs` only the start of each line of `conditions.jsonl` is read, so that a hundred runs
   take seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuronllm_eval.comparison.comparability import Terms, method_settings, run_terms
from neuronllm_eval.comparison.other_effects import Effects, mean_delta, read_effects
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.condition_effects import (
    ConditionSummary,
    StoredSummary,
    load_summary,
    with_edited,
)
from neuronllm_eval.evaluation.doc_table import DocTable, EvaluatedDocs, doc_table, evaluated_docs
from neuronllm_eval.evaluation.edit_cost import recorded_perplexity
from neuronllm_eval.evaluation.stats.paired_delta import RelativeChange
from neuronllm_eval.interventions.conditions import (
    UNMASKED,
    ConditionName,
    Edited,
    Scales,
    edited_by,
    factor_text,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import (
    ValidationRecord,
    load_neurons,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings

_TOLERANCE = 1e-6  # percentage points, between summary.json and conditions.jsonl
# Column -> metric of AQUA tasks, and whether the change against the unmasked model is shown too.
_METRICS = {
    "consistent": ("acc_consistent", True),
    "position_bias": ("position_bias", True),
    "majority": ("acc_majority", False),
}


@dataclass(frozen=True)
class RunFacts:
    """Which run it is.

    Attributes:
        path: its directory.
        model: name or path, as the run has it.
        model_hash: digest of the weights.
        dtype: of the weights.
        task: of the harness.
        method: that selected the neurons.
        settings: of the method, JSON.
        seed: of the questions.
    """

    path: str
    model: str
    model_hash: str
    dtype: str
    task: str
    method: str
    settings: str
    seed: int


@dataclass(frozen=True)
class Row:
    """What one condition did at one number of neurons, in one run or in repeats that are pooled.

    Attributes:
        runs: one; several where repeats with other seeds are pooled.
        terms: under which it may be compared.
        top_k: good and bad neurons requested.
        summary: its figures.
        n_good: [runs] good neurons that there were; a method may find fewer than K.
        n_bad: [runs] bad ones.
        edited: [runs] what the condition edits; empty for the unmasked model.
        metrics: percent, and percentage points of change, by column; empty where pooled.
        relative: "rac" and "rcc" with intervals; empty where not pooled.
        others_delta: mean change over the other tasks of the run, in points; None without any, and
            where pooled.
    """

    runs: tuple[RunFacts, ...]
    terms: Terms
    top_k: int
    summary: ConditionSummary
    n_good: tuple[int, ...]
    n_bad: tuple[int, ...]
    edited: tuple[Edited, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    relative: Mapping[str, RelativeChange] = field(default_factory=dict)
    others_delta: float | None = None

    @property
    def run(self) -> RunFacts:
        """The first of its runs: pooled ones differ in seed and directory alone."""
        return self.runs[0]

    @property
    def condition(self) -> str:
        """One of `conditions.CONDITIONS`, or `pooling.SWAPPED`."""
        return self.summary.condition

    @property
    def is_evaluated(self) -> bool:
        """Whether it has figures: a condition that edits nothing has none."""
        return not self.edited or any(edited.n_neurons for edited in self.edited)

    @property
    def note(self) -> str:
        """What there was not to edit, such as "no bad neurons"; empty if nothing was missing."""
        return joint_note(self.edited)


def joint_note(edited: Sequence[Edited]) -> str:
    """The notes of one condition in several runs, each once; empty if one of them has none."""
    notes = [one.note for one in edited]
    return " / ".join(dict.fromkeys(notes)) if all(notes) else ""


@dataclass(frozen=True)
class ComparedRun:
    """A run with its rows.

    Attributes:
        facts: which run it is.
        neurons: good and bad ones that were selected.
        rows: of its conditions and points; none before validation.
        missing: the command that it needs before it has rows; empty where it has them.
        shared: by name, what must be equal in runs of several tasks for a mean over these.
        repeat_terms: what repeats with other seeds have in common; None before validation.
        top_k: good and bad neurons of its conditions; 0 before validation.
        scales: factors of its conditions.
        docs: answers to its validation docs; None unless requested.
        others: what its conditions do to other tasks.
        perplexity: of the plain text, by condition and random control; empty unless requested.
    """

    facts: RunFacts
    neurons: NeuronSet
    rows: tuple[Row, ...] = ()
    missing: str = ""
    shared: Mapping[str, str] = field(default_factory=dict)
    repeat_terms: Terms | None = None
    top_k: int = 0
    scales: Scales = field(default_factory=Scales)
    docs: DocTable | None = None
    others: tuple[Effects, ...] = ()
    perplexity: Mapping[str, float] = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, Row]:
        """The rows that are no points of a sweep, by condition."""
        return {row.condition: row for row in self.rows if not row.summary.is_point}


def read_run(run: RunDirectory, *, with_docs: bool = False) -> ComparedRun:
    """Read a run; `with_docs`, also how it answered every doc.

    Raises:
        ArtifactError: a file is missing or damaged, or files are of different validations.
    """
    settings = load_settings(run)
    run.require_listed("validate")
    neurons = load_neurons(run, settings)
    origin = neurons.provenance
    facts = RunFacts(
        path=str(run.path),
        model=origin.model,
        model_hash=origin.model_hash,
        dtype=origin.dtype,
        task=settings.task,
        method=origin.method,
        settings=json.dumps(method_settings(settings), sort_keys=True),
        seed=origin.seed,
    )
    missing = ""
    if not run.summary.exists():
        missing = "report" if run.conditions.exists() else "validate"
    result = ComparedRun(facts, neurons, missing=missing, shared=_shared(settings))
    return result if missing else _with_rows(result, run, settings, with_docs)


def _with_rows(
    result: ComparedRun, run: RunDirectory, settings: RunSettings, with_docs: bool
) -> ComparedRun:
    record, summary = load_validation(run), load_summary(run)
    validated = record.validated(result.neurons, run.validation)
    docs = doc_table(run, settings.task) if with_docs else None
    if docs is None:
        evaluated = evaluated_docs(run.conditions, settings.task)
    else:
        evaluated = EvaluatedDocs.of(docs)
    _require_one_validation(run, settings, record, summary, evaluated)
    if docs is not None:
        _require_same_accuracies(run, summary, docs)
    terms, repeat_terms = run_terms(run, settings, result.neurons, record, evaluated)
    # Summaries of earlier versions do not have what was edited.
    names = [condition.name for condition in summary.conditions]
    edited = edited_by(names, validated, record.scales)
    others = read_effects(run, record)
    rows = []
    for condition in summary.conditions:
        name, parts = condition.name, ConditionName.parse(condition.name)
        selected = result.neurons.top(parts.top_k or record.top_k)
        row = Row(
            runs=(result.facts,),
            terms=dataclasses.replace(
                terms, top_k=selected.top_k, scales=parts.scales(record.scales)
            ),
            top_k=selected.top_k,
            summary=with_edited(condition, edited.get(name)),
            n_good=(len(selected.good),),
            n_bad=(len(selected.bad),),
            edited=(edited[name],) if name in edited else (),
            others_delta=None if name == UNMASKED else mean_delta(others, name),
        )
        if row.is_evaluated:
            row = dataclasses.replace(row, metrics=_metrics(summary.metrics, name))
        rows.append(row)
    return dataclasses.replace(
        result,
        rows=tuple(rows),
        shared=_shared(settings, record),
        repeat_terms=repeat_terms,
        top_k=record.top_k,
        scales=record.scales,
        docs=docs,
        others=others,
        perplexity={} if docs is None else recorded_perplexity(run, docs),
    )


def _shared(settings: RunSettings, record: ValidationRecord | None = None) -> dict[str, str]:
    """Names and values of what must be equal for a mean over tasks; empty where not yet known."""
    args = settings.model_args
    model = [str(args.get("pretrained", ""))]
    parts = ("revision", "subfolder", "gguf_file", "peft", "delta")
    model += [f"{name}={args[name]}" for name in parts if args.get(name)]
    given = {name: value for name, value in settings.method_args.items() if value is not None}
    method = [settings.method, *(f"{name}={value}" for name, value in given.items())]
    factors = () if record is None else dataclasses.astuple(record.scales)
    return {
        "model": ", ".join(model),
        "method": ", ".join(method),
        "neurons of a kind": "" if record is None else str(record.top_k),
        "factors": ", ".join(map(factor_text, factors)),
        "positions": "" if record is None else record.positions,
    }


def _metrics(metrics: Mapping[str, Mapping[str, float]], condition: str) -> dict[str, float]:
    """By column, percent and percentage points against the unmasked model."""
    values, unmasked = metrics[condition], metrics.get(UNMASKED, {})
    columns = {}
    for column, (metric, with_change) in _METRICS.items():
        if metric in values:
            columns[column] = 100 * values[metric]
            if with_change and metric in unmasked and condition != UNMASKED:
                columns[f"{column}_delta"] = 100 * (values[metric] - unmasked[metric])
    return columns


def _require_one_validation(
    run: RunDirectory,
    settings: RunSettings,
    record: ValidationRecord,
    summary: StoredSummary,
    docs: EvaluatedDocs,
) -> None:
    """Refuse a summary that other files contradict, and names that are no conditions."""
    expected = (settings.task, docs.split, record.positions, docs.conditions)
    stored = (summary.task, summary.split, summary.applied_at, tuple(summary.metrics))
    same = stored == expected and UNMASKED in summary.metrics
    counts = (len(docs.docs), len(docs.questions))
    for condition in summary.conditions:
        try:
            parts = ConditionName.parse(condition.name)
        except UsageError as error:
            raise ArtifactError(
                f"{run.summary}: {error.found}",
                expected=error.expected,
                remedy="run validate again",
            ) from error
        accuracy, scales = condition.accuracy, parts.scales(record.scales)
        top_k = None if condition.name == UNMASKED else parts.top_k or record.top_k
        same = (
            same
            and (condition.condition, condition.top_k) == (parts.condition, top_k)
            and condition.scale in (None, *map(float, dataclasses.astuple(scales)))
            and (accuracy.n_docs, accuracy.n_questions) == counts
        )
    if not same:
        raise _of_another_validation(run)


def _require_same_accuracies(run: RunDirectory, summary: StoredSummary, docs: DocTable) -> None:
    for condition in summary.conditions:
        accuracy = 100 * float(docs.correct[condition.name].mean())
        if not abs(accuracy - condition.accuracy.condition) < _TOLERANCE:
            raise _of_another_validation(run)


def _of_another_validation(run: RunDirectory) -> ArtifactError:
    return ArtifactError(
        f"{run.summary} is not of what {run.validation.name} and {run.conditions.name} hold",
        expected="files of one validation",
        remedy=f"run `neuronllm-eval report {run.path}`",
    )
