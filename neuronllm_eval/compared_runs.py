"""Validated runs as a comparison of methods reads them: one for every number of neurons.

Runs that differ only in their seed are repeats of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from neuronllm_eval.conditions import UNMASKED, ConditionName, Scales
from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.run_directory import RunDirectory, read_lines
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.stored_run import ValidationRecord, load_neurons

# Of a run's settings, those that are compared, are in the key, or do not decide numbers.
_NOT_COMPARED = ("seed", "model_args", "task", "include_path", "method", "method_args", "top_k",
                 "batch_size", "device", "engine")  # fmt: skip


class Key(NamedTuple):
    """What repeats have in common.

    Attributes:
        model: name and weights' digest.
        task: of the harness.
        split: that judged.
        settings: names and values of all that decides how neurons are chosen and judged and is
            not named here, the seed aside.
        top_k: good and bad neurons that were asked for.
        method: that scored the neurons.
        method_args: its settings, JSON.
    """

    model: tuple[str, str]
    task: str
    split: str
    settings: tuple[tuple[str, str], ...]
    top_k: int
    method: str
    method_args: str


@dataclass(frozen=True)
class Compared:
    """What a run's first `top_k` neurons did.

    Attributes:
        key: see `Key`.
        seed: of the run's questions.
        n_good: good neurons that there were; a method may find fewer than asked for.
        n_bad: bad ones.
        table: right or wrong and confidence of every doc.
        names: what the table calls each condition.
    """

    key: Key
    seed: int
    n_good: int
    n_bad: int
    table: DocTable
    names: dict[str, str]


def read_compared(runs: Sequence[RunDirectory]) -> list[Compared]:
    """Read validated runs.

    Args:
        runs: their directories.

    Raises:
        ArtifactError: a run is not validated, or cannot be read; or two are the same run.
    """
    found: list[Compared] = []
    places: dict[tuple[Key, int], RunDirectory] = {}
    twins: list[RunDirectory] = []
    for run in runs:
        own = _of_run(run)
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


def _of_run(run: RunDirectory) -> list[Compared]:
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
    for count, names in sorted(by_count.items()):
        key = Key(
            (known.model, known.model_hash),
            settings.task,
            table.split,
            _other_settings(settings, record),
            count,
            known.method,
            known.method_args,
        )
        chosen = neurons.top(count)
        found.append(Compared(key, known.seed, len(chosen.good), len(chosen.bad), table, names))
    return found


def _other_settings(settings: RunSettings, record: ValidationRecord) -> tuple[tuple[str, str], ...]:
    values = {k: v for k, v in asdict(settings).items() if k not in _NOT_COMPARED}
    values |= {f"{name}_scale": factor for name, factor in asdict(record.scales).items()}
    values["judged at"] = record.positions
    return tuple((name, str(value)) for name, value in values.items())


def _as_the_run(parts: ConditionName, scales: Scales) -> bool:
    """Whether a condition has the run's own factors: other factors are no comparison of methods."""
    return parts.scales(scales) == scales
