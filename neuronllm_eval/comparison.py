"""Methods side by side: the deltas of validated runs, by model, task, method and number of neurons.

Every figure is computed anew from `conditions.jsonl`. Runs that differ only in their seed are
repeats of each other.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from neuronllm_eval.conditions import UNMASKED, ConditionName, Scales
from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.fingerprints import digest
from neuronllm_eval.markdown_text import escaped
from neuronllm_eval.neurons import NeuronSet
from neuronllm_eval.relative_changes import relative_accuracy_change, relative_confidence_change
from neuronllm_eval.report import markdown_table
from neuronllm_eval.run_directory import RunDirectory, read_lines
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.statistics import PairedDelta, paired_delta
from neuronllm_eval.stored_run import ValidationRecord, load_neurons

SWAPPED = "enhance_minus_degrade"
# Of a run's settings, those that are compared, are in the key, or do not decide numbers.
_NOT_COMPARED = ("seed", "model_args", "task", "include_path", "method", "method_args", "top_k",
                 "batch_size", "device", "engine")  # fmt: skip
SHOWN = ("suppress_good", "suppress_bad", "enhance_good", "enhance_bad", "degrade", "enhance")
_PAPERS = ("degrade", "enhance")


class Key(NamedTuple):
    """What makes runs comparable.

    Attributes:
        model: name and weights' digest.
        task: of the harness.
        split: that judged.
        method: that scored the neurons.
        method_args: its settings, JSON.
        settings: digest of all else that decides how neurons are chosen and judged, the seed aside.
        top_k: good and bad neurons that were asked for.
    """

    model: tuple[str, str]
    task: str
    split: str
    method: str
    method_args: str
    settings: str
    top_k: int


@dataclass(frozen=True)
class Compared:
    """What a run's first `top_k` neurons did.

    Attributes:
        key: see `Key`.
        seed: of the run's questions.
        settings: all that `Key.settings` is a digest of, by name.
        n_good: good neurons that there were; a method may find fewer than asked for.
        n_bad: bad ones.
        accuracy: by condition the paired delta to unmasked, and `enhance_minus_degrade`.
        confidence: the same of the softmax over options at gold.
    """

    key: Key
    seed: int
    settings: dict[str, str]
    n_good: int
    n_bad: int
    accuracy: dict[str, PairedDelta]
    confidence: dict[str, PairedDelta]


def compare(runs: Sequence[RunDirectory], n_resamples: int = 10_000) -> list[Compared]:
    """Read validated runs.

    Args:
        runs: their directories.
        n_resamples: draws of the bootstrap.

    Raises:
        ArtifactError: a run is not validated, or cannot be read; or two are the same run.
    """
    found: list[Compared] = []
    places: dict[tuple[Key, int], RunDirectory] = {}
    twins: list[RunDirectory] = []
    for run in runs:
        own = _of_run(run, n_resamples)
        for each in own:
            other = places.setdefault((each.key, each.seed), run)
            twins = twins or ([other, run] if other is not run else [])
        found += own
    if twins:
        raise ArtifactError(
            "two of the runs are of the same model, task, method, settings and seed, such as "
            f"{twins[0].path} and {twins[1].path}",
            expected="each once",
            remedy="name the runs to compare one by one",
        )
    return found


def _of_run(run: RunDirectory, n_resamples: int) -> list[Compared]:
    settings = RunSettings.load(run.settings)
    neurons = load_neurons(run, settings)
    if not run.conditions.is_file():
        raise ArtifactError(
            f"{run.path} is not validated",
            expected=run.conditions.name,
            remedy=f"run `neuronllm-eval validate {run.path}` first",
        )
    record = ValidationRecord.load(run.validation)
    table = DocTable.from_lines(read_lines(run.conditions), run.conditions, settings.task)
    known = neurons.provenance
    by_count: dict[int, dict[str, str]] = {}
    for name in table.conditions:
        parts = ConditionName.parse(name)
        if parts.seed is None and name != UNMASKED and _as_the_run(parts, record.scales):
            count = parts.top_k or record.top_k
            by_count.setdefault(count, {})[parts.condition] = name
    found = []
    others = _other_settings(settings, record)
    for count, names in sorted(by_count.items()):
        key = Key(
            (known.model, known.model_hash),
            settings.task,
            table.split,
            known.method,
            known.method_args,
            digest(json.dumps(others, sort_keys=True)),
            count,
        )
        chosen: NeuronSet = neurons.top(count)
        deltas = [
            _deltas(table.correct, table, names, n_resamples),
            _deltas(table.confidence, table, names, n_resamples),
        ]
        found.append(Compared(key, known.seed, others, len(chosen.good), len(chosen.bad), *deltas))
    return found


def _other_settings(settings: RunSettings, record: ValidationRecord) -> dict[str, str]:
    values = asdict(settings)
    for name in _NOT_COMPARED:
        del values[name]
    values |= {f"{name}_scale": factor for name, factor in asdict(record.scales).items()}
    values["judged at"] = record.positions
    return {name: str(value) for name, value in values.items()}


def _as_the_run(parts: ConditionName, scales: Scales) -> bool:
    """Whether a condition has the run's own factors: other factors are no comparison of methods."""
    return parts.scales(scales) == scales


def _deltas(
    values: Any, table: DocTable, names: dict[str, str], n_resamples: int
) -> dict[str, PairedDelta]:
    def paired(before: str, after: str) -> PairedDelta:
        return paired_delta(
            values[before], values[after], table.question_index, n_resamples=n_resamples
        )

    found = {condition: paired(UNMASKED, name) for condition, name in names.items()}
    if set(_PAPERS) <= set(names):
        found[SWAPPED] = paired(names["degrade"], names["enhance"])
    return found


def groups(found: Sequence[Compared]) -> dict[Key, list[Compared]]:
    """Repeats together, by model, task, number of neurons and method."""
    by_key: dict[Key, list[Compared]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    order = sorted(by_key, key=lambda key: (key.model, key.task, key.split, key.top_k))
    return {key: by_key[key] for key in order}


def delta_table(found: Sequence[Compared]) -> str:
    """Accuracy deltas in points: mean over repeats, and the interval.

    Of one run that is its bootstrap interval, of several the smallest and the largest delta.
    """
    shown = [name for name in (*SHOWN, SWAPPED) if any(name in each.accuracy for each in found)]
    rows, varying = [], _varying(found)
    for key, repeats in groups(found).items():
        unmasked = statistics.fmean(_unmasked(each) for each in repeats)
        cells = [_cell([each.accuracy[name] for each in repeats if name in each.accuracy])
                 for name in shown]  # fmt: skip
        rows.append([*_lead(key, repeats, varying), f"{unmasked:.1f}", *cells])
    heads = [*_LEAD, "unmasked", *(name.replace("_", " ") for name in shown)]
    return markdown_table(heads, rows)


def overview(found: Sequence[Compared]) -> str:
    """Enhance minus degrade in points, mean over repeats: one column per model and task."""
    by_column: dict[tuple[int, str], dict[tuple[str, str], str]] = {}
    columns: dict[tuple[str, str], None] = {}
    varying = _varying(found)
    for key, repeats in groups(found).items():
        values = [each.accuracy[SWAPPED] for each in repeats if SWAPPED in each.accuracy]
        lead = _lead(key, repeats, varying)
        column = (lead[0], lead[1])
        columns[column] = None
        by_column.setdefault((key.top_k, lead[3]), {})[column] = _cell(values)
    several = len({model for model, _ in columns}) > 1
    heads = [f"{model}: {task}" if several else task for model, task in columns]
    rows = [
        [str(top_k), method, *(cells.get(column, "") for column in columns)]
        for (top_k, method), cells in sorted(by_column.items(), key=lambda each: each[0][0])
    ]
    return markdown_table(["K", "method", *heads], rows)


def relative_table(found: Sequence[Compared]) -> str:
    """RAC and RCC of degrade and enhance in percent, as the paper lays its table out."""
    rows, varying = [], _varying(found)
    for key, repeats in groups(found).items():
        full = [each for each in repeats if set(_PAPERS) <= set(each.accuracy)]
        if not full:
            continue
        changes = [
            statistics.fmean(change(each, name) for each in full)
            for name in _PAPERS
            for change in (_rac, _rcc)
        ]
        cells = ["" if math.isnan(value) else f"{value:+.1f}" for value in changes]
        rows.append([*_lead(key, full, varying), *cells])
    heads = [f"{name} {measure}" for name in _PAPERS for measure in ("RAC %", "RCC %")]
    return markdown_table([*_LEAD, *heads], rows)


_LEAD = ("model", "task", "K", "method", "good, bad", "runs")


def _varying(found: Sequence[Compared]) -> list[str]:
    """Settings in which runs of one model and task differ."""
    names = dict.fromkeys(name for each in found for name in each.settings)
    by_task: dict[tuple[tuple[str, str], str], list[Compared]] = {}
    for each in found:
        by_task.setdefault((each.key.model, each.key.task), []).append(each)
    return [
        name
        for name in names
        if any(len({each.settings.get(name) for each in own}) > 1 for own in by_task.values())
    ]


def _lead(key: Key, repeats: Sequence[Compared], varying: Sequence[str]) -> list[str]:
    sizes = sorted({f"{each.n_good}, {each.n_bad}" for each in repeats})
    name = key.model[0].rstrip("/").rsplit("/", 1)[-1]
    settings = {} if key.method_args == "{}" else json.loads(key.method_args)
    settings |= {each: repeats[0].settings.get(each, "") for each in varying}
    method = " ".join([key.method, *(f"{each}={value}" for each, value in settings.items())])
    fixed = (name, key.task, str(key.top_k), method, " / ".join(sizes), str(len(repeats)))
    return [escaped(each) for each in fixed]


def _unmasked(each: Compared) -> float:
    return next(iter(each.accuracy.values())).unmasked


def _cell(deltas: Sequence[PairedDelta]) -> str:
    if not deltas:
        return ""
    if len(deltas) == 1:
        return f"{deltas[0].delta:+.1f} [{deltas[0].low:+.1f}, {deltas[0].high:+.1f}]"
    values = [each.delta for each in deltas]
    return f"{statistics.fmean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})"


def _rac(each: Compared, name: str) -> float:
    delta = each.accuracy[name]
    return relative_accuracy_change(delta.unmasked, delta.condition)


def _rcc(each: Compared, name: str) -> float:
    delta = each.confidence[name]
    return relative_confidence_change(delta.unmasked, delta.condition)


def as_json(found: Sequence[Compared], seconds: dict[str, float]) -> dict[str, Any]:
    """The content of `comparison.json`.

    Args:
        found: what `compare` gives.
        seconds: by stage, what it took here; stages that were finished before are not there.
    """
    rows = []
    for each in found:
        model, weights = each.key.model
        lead = {**each.key._asdict(), "model": model, "model_hash": weights}
        rest = asdict(each)
        del rest["key"]
        relative = {
            name: {"rac": _number(_rac(each, name)), "rcc": _number(_rcc(each, name))}
            for name in each.accuracy
            if name != SWAPPED
        }
        rows.append({**lead, **rest, "relative": relative})
    return {"rows": rows, "seconds": seconds}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
