"""Validated runs as a comparison of methods reads them: one for every number of neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from neuronllm_eval.comparison.comparability import method_settings, run_terms
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_ids import AskedDocs
from neuronllm_eval.evaluation.doc_table import DocTable, doc_table
from neuronllm_eval.interventions.conditions import (
    UNMASKED,
    ConditionName,
    Edited,
    Scales,
    edited_by,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import (
    load_neurons,
    load_settings,
    load_validation,
    validation_limit,
)
from neuronllm_eval.runs.directory import RunDirectory


class Key(NamedTuple):
    """What repeats have in common.

    Attributes:
        model: name and weights' digest.
        task: of the harness.
        split: that judged.
        terms: names and values of all else that has to be equal where methods are compared, the
            seed and what it changes aside (`comparability.Terms`), and how many questions were
            asked for (`limit`).
        top_k: good and bad neurons that were asked for.
        method: that scored the neurons.
        settings: names and values of what the method was set to (`run_terms.method_settings`).
    """

    model: tuple[str, str]
    task: str
    split: str
    terms: tuple[tuple[str, str], ...]
    top_k: int
    method: str
    settings: tuple[tuple[str, str], ...]


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
        edited: by condition, how many neurons it edits; `same_as` is a condition too.
        controls: by condition, what the table calls each random control, in order.
    """

    key: Key
    seed: int
    n_good: int
    n_bad: int
    table: DocTable
    names: dict[str, str]
    edited: dict[str, Edited]
    controls: dict[str, list[str]]

    @property
    def judged(self) -> list[str]:
        """The conditions that edit something."""
        return [name for name in self.names if self.edited[name].n_neurons]


# Terms that another seed changes, and those that a key has by themselves. Another seed may lose a
# few questions, which are too long in its orders; how many were asked for is the limit.
_NOT_IN_KEY = ("question_ids", "docs", "n_questions", "n_chosen_on", "split", "top_k")


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
    settings = load_settings(run)
    neurons = load_neurons(run, settings)
    if not run.conditions.is_file():
        raise ArtifactError(
            f"{run.path} is not validated",
            expected=run.conditions.name,
            remedy=f"run `neuronllm-eval validate {run.path}` first",
        )
    record = load_validation(run)
    table = doc_table(run, settings.task)
    known = neurons.provenance
    terms = asdict(run_terms(run, settings, neurons, record, AskedDocs.of(table))[0])
    judged = record.validated(neurons, run.validation)
    terms = {name: value for name, value in terms.items() if name not in _NOT_IN_KEY}
    terms["limit"] = _limit(settings.limit, validation_limit(run, settings))
    by_count: dict[int, dict[str, str]] = {}
    controls: dict[int, dict[str, list[str]]] = {}
    for name in table.conditions:
        parts = ConditionName.parse(name)
        if name != UNMASKED and _as_the_run(parts, record.scales):
            count = parts.top_k or record.top_k
            if parts.seed is None:
                by_count.setdefault(count, {})[parts.condition] = name
            else:
                of_count = controls.setdefault(count, {})
                of_count.setdefault(parts.condition, []).append(name)
    found = []
    for count, names in sorted(by_count.items()):
        key = Key(
            (known.model, known.model_hash),
            settings.task,
            table.split,
            tuple((n, str(value)) for n, value in terms.items()),
            count,
            known.method,
            tuple((n, str(value)) for n, value in method_settings(settings).items()),
        )
        chosen = neurons.top(count)
        found.append(
            Compared(
                key,
                known.seed,
                len(chosen.good),
                len(chosen.bad),
                table,
                names,
                _edited(names, judged, record.scales),
                controls.get(count, {}),
            )
        )
    return found


def _limit(choosing: int | None, judging: int | None) -> str:
    """How many questions were asked for, at most; none is all that there are."""
    chosen, judged = ("none" if limit is None else str(limit) for limit in (choosing, judging))
    return chosen if chosen == judged else f"{chosen} to choose, {judged} to judge"


def _edited(names: Mapping[str, str], judged: NeuronSet, scales: Scales) -> dict[str, Edited]:
    """By condition, of one number of neurons; another condition goes by that name too."""
    found = edited_by(names.values(), judged, scales)
    conditions: dict[str | None, str] = {name: condition for condition, name in names.items()}
    return {
        condition: dataclasses.replace(found[name], same_as=conditions.get(found[name].same_as))
        for condition, name in names.items()
    }


def _as_the_run(parts: ConditionName, scales: Scales) -> bool:
    """Whether a condition has the run's own factors: other factors are no comparison of methods."""
    return parts.scales(scales) == scales
