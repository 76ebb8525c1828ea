"""Several runs as one: repeats with other seeds, or tasks of one model and method. Pure.

1. Runs are pooled by their docs, one run's after the other's: a delta is the mean over all docs. A
   question that several runs ask is one question to the bootstrap, so that repeating it does not
   narrow the interval. That other seeds select other neurons is in the interval only as far as the
   repeats show it.
2. Random controls are pooled by their order: the first of every run is one, the second, and so on;
   their seeds differ with the run's.
3. The pooled docs are summarised as those of one run: interval and p by question, McNemar's test by
   doc, both after Holm's correction for the conditions, and the rank among the controls.
4. Methods are held against one of them by what they do to the same docs: the mean over docs of
   enhance minus degrade of the one minus that of the other, with interval and p by question; p is
   corrected by Holm's method for all methods held against the same one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.attribution.methods import ACE
from neuronllm_eval.comparison.comparability import Terms
from neuronllm_eval.comparison.rows import ComparedRun, Row, RunFacts, joint_note
from neuronllm_eval.comparison.words import method_labels
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summaries_of
from neuronllm_eval.evaluation.doc_table import DocTable, numbered, without_controls
from neuronllm_eval.evaluation.robust_effects import ControlledDelta
from neuronllm_eval.evaluation.stats.balanced_delta import balanced_delta
from neuronllm_eval.evaluation.stats.paired_delta import (
    MeanChange,
    RelativeChange,
    mean_change,
    paired_delta,
    relative_change,
)
from neuronllm_eval.evaluation.stats.significance import holm
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    UNMASKED,
    ConditionName,
    Edited,
    control_name,
    edited_by,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet

SWAPPED = "enhance_minus_degrade"
PAPERS = ("degrade", "enhance")  # conditions whose relative changes the paper reports


# Docs -------------------------------------------------------------------------------------------


def docs_at(run: ComparedRun, top_k: int) -> DocTable:
    """A run's docs under the conditions of one K and of the run's own factors."""
    assert run.docs is not None
    names = _names_at(run, top_k)
    return _with_columns([run.docs], {new: [name] for new, name in names.items()})


def _names_at(run: ComparedRun, top_k: int) -> dict[str, str]:
    """New name -> the run's name of conditions and random controls of one K.

    Conditions have their plain names, also where they are points of a sweep; random controls are
    numbered in the order of their seeds.
    """
    names = {UNMASKED: UNMASKED}
    controls: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name, parts in _at_run_factors(run):
        if (parts.top_k or run.top_k) != top_k:
            continue
        if parts.seed is None:
            names[parts.condition] = name
        else:
            of_kind = controls.setdefault((parts.condition, parts.match), [])
            of_kind.append((parts.seed, name))
    for (condition, match), seeds_and_names in controls.items():
        for number, (_, name) in enumerate(sorted(seeds_and_names)):
            names[control_name(condition, number, match)] = name
    return names


def _at_run_factors(run: ComparedRun) -> list[tuple[str, ConditionName]]:
    """The conditions, points and controls with the run's own factors, but for the unmasked run."""
    assert run.docs is not None
    parsed = [(name, ConditionName.parse(name)) for name in run.docs.conditions]
    return [
        (name, parts)
        for name, parts in parsed
        if name != UNMASKED and parts.scales(run.scales) == run.scales
    ]


def concatenated(tables: Sequence[DocTable]) -> DocTable:
    """The docs of several tables, under the conditions and controls that all of them have."""
    shared = [name for name in tables[0].conditions if all(name in t.conditions for t in tables)]
    return _with_columns(tables, {name: [name] * len(tables) for name in shared})


def _with_columns(tables: Sequence[DocTable], names: Mapping[str, Sequence[str]]) -> DocTable:
    """One table of several, by condition with the name that each of them has for it."""

    def columns(part: str) -> dict[str, NDArray[Any]]:
        return {
            name: np.concatenate(
                [getattr(t, part)[own] for t, own in zip(tables, of_tables, strict=True)]
            )
            for name, of_tables in names.items()
        }

    question_ids = tuple(question for table in tables for question in table.question_ids)
    return dataclasses.replace(
        tables[0],
        conditions=tuple(names),
        doc_ids=tuple(doc for table in tables for doc in table.doc_ids),
        question_ids=question_ids,
        question_index=numbered(question_ids),
        n_options=np.concatenate([table.n_options for table in tables]),
        gold=np.concatenate([table.gold for table in tables]),
        predicted=columns("predicted"),
        correct=columns("correct"),
        confidence=columns("confidence"),
        calibrated=columns("calibrated"),
        option_mass=columns("option_mass"),
        kl=columns("kl") if all(table.kl for table in tables) else {},
    )


# Tasks of one model and method ------------------------------------------------------------------


def differing(runs: Sequence[ComparedRun]) -> list[str]:
    """Names of the shared settings in which runs differ; those not yet known do not count."""
    return [
        name
        for name in runs[0].shared
        if len({run.shared[name] for run in runs if run.shared[name]}) > 1
    ]


def shared_conditions(runs: Sequence[ComparedRun]) -> list[str]:
    """The conditions that all runs were evaluated under, but for the unmasked model."""
    return [
        name
        for name in CONDITIONS
        if name != UNMASKED
        and runs
        and all(name in run.conditions and run.conditions[name].is_evaluated for run in runs)
    ]


def over_tasks(
    runs: Sequence[ComparedRun], n_resamples: int = 10_000
) -> dict[str, ConditionSummary]:
    """What the conditions did over the docs of all runs, by condition that all of them have.

    Args:
        runs: of one model, method, K, factors and positions (`differing`).
        n_resamples: draws of the bootstrap and of the permutation test.
    """
    # Whatever the order of the runs, the draws are the same.
    runs = sorted(runs, key=lambda run: (run.facts.task, Path(run.facts.path).name, run.facts.path))
    conditions, tables = shared_conditions(runs), []
    for run in runs:
        table = docs_at(run, run.top_k)
        names = tuple(repr((run.facts.task, question)) for question in table.question_ids)
        tables.append(dataclasses.replace(table, question_ids=names))
    pooled = summaries_of(concatenated(tables), {}, runs[0].top_k, runs[0].scales, n_resamples)
    return {summary.name: summary for summary in pooled if summary.name in conditions}


# Repeats with other seeds -----------------------------------------------------------------------


class RepeatKey(NamedTuple):
    """What repeats have in common.

    Attributes:
        model_hash: digest of the weights, which may have several names.
        task: of the harness.
        terms: `Terms.of_repeats`.
        top_k: good and bad neurons requested.
        method: that selected the neurons.
        settings: of the method, JSON.
    """

    model_hash: str
    task: str
    terms: Terms
    top_k: int
    method: str
    settings: str

    @classmethod
    def of(cls, run: RunFacts, terms: Terms, top_k: int) -> RepeatKey:
        """The key of a run at one K."""
        return cls(run.model_hash, run.task, terms, top_k, run.method, run.settings)


def key_of(row: Row) -> RepeatKey:
    """The key of pooled repeats."""
    return RepeatKey.of(row.run, row.terms, row.top_k)


@dataclass(frozen=True)
class Repeat:
    """A run's first neurons, so many of each kind, and what they did.

    Attributes:
        run: the run.
        docs: `docs_at` of that number.
        perplexity: of the plain text, by condition and random control; empty if not measured.
        edited: by condition, what it edits.
        neurons: good and bad ones; a method may find fewer.
    """

    run: ComparedRun
    docs: DocTable
    perplexity: Mapping[str, float]
    edited: Mapping[str, Edited]
    neurons: NeuronSet

    @property
    def evaluated(self) -> list[str]:
        """The conditions that edit something."""
        return [name for name, edited in self.edited.items() if edited.n_neurons]


def repeats(runs: Sequence[ComparedRun]) -> dict[RepeatKey, list[Repeat]]:
    """Validated runs by what repeats have in common, for every number of neurons.

    Raises:
        ArtifactError: two are the same run.
    """
    groups: dict[RepeatKey, list[Repeat]] = {}
    for run in runs:
        assert run.repeat_terms is not None
        for top_k in sorted({parts.top_k or run.top_k for _, parts in _at_run_factors(run)}):
            docs, neurons = docs_at(run, top_k), run.neurons.top(top_k)
            edited = edited_by(without_controls(docs.conditions), neurons, run.scales)
            key = RepeatKey.of(run.facts, run.repeat_terms, top_k)
            perplexity = {
                new: run.perplexity[name]
                for new, name in _names_at(run, top_k).items()
                if name in run.perplexity
            }
            repeat = Repeat(run, docs, perplexity, edited, neurons)
            groups.setdefault(key, []).append(repeat)
    for group in groups.values():
        _require_other_seeds(group)

    def order(key: RepeatKey) -> tuple[str | int, ...]:
        model = groups[key][0].run.facts.model
        return model, key.model_hash, key.task, key.terms.split, key.top_k

    return {key: groups[key] for key in sorted(groups, key=order)}


def _require_other_seeds(group: Sequence[Repeat]) -> None:
    paths: dict[int, str] = {}
    for facts in (repeat.run.facts for repeat in group):
        other = paths.setdefault(facts.seed, facts.path)
        if other != facts.path:
            raise ArtifactError(
                "two of the runs are of the same model, task, method, settings and seed, such as "
                f"{other} and {facts.path}",
                expected="each once",
                remedy="name the runs to compare one by one, or use --rank",
            )


def pool(key: RepeatKey, group: Sequence[Repeat], n_resamples: int = 10_000) -> list[Row]:
    """Repeats as rows: those of their conditions, and enhance minus degrade.

    Conditions that not all repeats have are left out; there is no row if that leaves none.
    """
    docs = concatenated([repeat.docs for repeat in group])
    edited = {name: _together([repeat.edited[name] for repeat in group])
              for name in group[0].edited if name in docs.conditions}  # fmt: skip
    if not edited:
        return []
    summaries = summaries_of(
        docs,
        edited,
        key.top_k,
        group[0].run.scales,
        n_resamples,
        perplexity=_pooled_perplexity(group),
    )
    row = Row(
        runs=tuple(repeat.run.facts for repeat in group),
        terms=key.terms,
        top_k=key.top_k,
        summary=summaries[0],
        n_good=tuple(len(repeat.neurons.good) for repeat in group),
        n_bad=tuple(len(repeat.neurons.bad) for repeat in group),
    )
    rows = [
        dataclasses.replace(
            row,
            summary=summary,
            edited=tuple(repeat.edited[summary.name] for repeat in group if summary.name in edited),
            relative=_relative(docs, summary, n_resamples) if summary.name in PAPERS else {},
        )
        for summary in summaries
    ]
    if all(name in edited and edited[name].n_neurons for name in PAPERS):
        rows.append(dataclasses.replace(row, summary=_swapped(docs, summaries[0], n_resamples)))
    return rows


def _pooled_perplexity(group: Sequence[Repeat]) -> dict[str, float]:
    """The geometric mean over repeats, by what all of them have.

    All have it of the same text, so it is the perplexity of all their passes over it together.
    """
    first, *others = [repeat.perplexity for repeat in group]
    names = [name for name in first if all(name in other for other in others)]
    return {
        name: math.exp(fmean(math.log(repeat.perplexity[name]) for repeat in group))
        for name in names
    }


def _together(edited: Sequence[Edited]) -> Edited:
    """What a condition edits at most in several repeats; `same_as` and note if all agree."""
    same = {one.same_as for one in edited}
    return Edited(
        max(one.n_good for one in edited),
        max(one.n_bad for one in edited),
        same.pop() if len(same) == 1 else None,
        joint_note(edited),
    )


def _relative(
    docs: DocTable, summary: ConditionSummary, n_resamples: int
) -> dict[str, RelativeChange]:
    if not summary.is_evaluated:
        return {}
    return {
        name: relative_change(
            values[UNMASKED], values[summary.name], docs.question_index, n_resamples=n_resamples
        )
        for name, values in (("rac", docs.correct), ("rcc", docs.confidence))
    }


def _swapped(docs: DocTable, unmasked: ConditionSummary, n_resamples: int) -> ConditionSummary:
    """Enhance against degrade in place of the unmasked model."""
    low, high = PAPERS
    accuracy, confidence = (
        paired_delta(values[low], values[high], docs.question_index, n_resamples=n_resamples)
        for values in (docs.correct, docs.confidence)
    )
    return dataclasses.replace(
        unmasked,
        name=SWAPPED,
        condition=SWAPPED,
        accuracy=accuracy,
        confidence=confidence,
        rac=math.nan,
        rcc=math.nan,
        calibrated=ControlledDelta(
            **vars(
                paired_delta(
                    docs.calibrated[low],
                    docs.calibrated[high],
                    docs.question_index,
                    n_resamples=n_resamples,
                )
            )
        ),
        balanced=ControlledDelta(
            **vars(
                balanced_delta(
                    docs.correct[low],
                    docs.correct[high],
                    docs.question_index,
                    docs.gold,
                    n_resamples=n_resamples,
                )
            )
        ),
        by_gold=None,
        top_answer=None,
        collapsed=None,
        option_mass=None,
        kl=None,
        perplexity=None,
    )


# Methods held against each other --------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far enhance minus degrade of a method differs from that of another.

    Attributes:
        key: of the method.
        against: of the other.
        seeds: of the repeats that both have.
        n_repeats: of the method.
        change: the method's minus the other's.
        p_holm: p after Holm's correction for the methods held against the same one.
    """

    key: RepeatKey
    against: RepeatKey
    seeds: tuple[int, ...]
    n_repeats: int
    change: MeanChange
    p_holm: float


class Reference(NamedTuple):
    """A method that others are held against: its name, and its settings as JSON."""

    method: str
    settings: str


def reference(keys: Sequence[RepeatKey], against: str | None) -> Reference | None:
    """The method that others are held against.

    Args:
        keys: of repeats of any models, tasks and methods.
        against: its name, and settings where runs have it with several, such as
            `ace ambiguous=drop`; `ace` or the first if not given.

    Returns:
        None if none was given and runs have the method with several settings.

    Raises:
        UsageError: no run is of that method and settings, or runs of it differ in others.
    """
    variants = {Reference(key.method, key.settings): key for key in keys}
    methods = dict.fromkeys(variant.method for variant in variants)
    default = ACE.name if ACE.name in methods else next(iter(methods), "")
    name, *words = (against or default).split() or [""]
    of_name = [variant for variant in variants if variant.method == name]
    fitting = [
        variant
        for variant in of_name
        if set(words) <= {f"{k}={v}" for k, v in json.loads(variant.settings).items()}
    ]
    if len(fitting) == 1:
        return fitting[0]
    if against is None:
        return None
    labels = method_labels([(*key[:2], key.method, key.settings) for key in variants.values()])
    named = dict(zip(variants, labels, strict=True))
    expected = dict.fromkeys(named[variant] for variant in of_name or variants)
    raise UsageError(
        f"{len(fitting) or 'no'} methods of the runs are {against!r:.100}",
        expected=f"one of: {'; '.join(expected)}",
        remedy="check --against",
    )


def differences(
    groups: Mapping[RepeatKey, Sequence[Repeat]], against: Reference, n_resamples: int = 10_000
) -> list[Difference]:
    """Every method against one, where both have the same seeds and docs.

    Args:
        groups: of `pooling.repeats`.
        against: what the others are held against.
        n_resamples: draws of the bootstrap.
    """
    by_task: dict[RepeatKey, list[RepeatKey]] = {}  # and by model, terms and K
    for key in groups:
        by_task.setdefault(key._replace(method="", settings=""), []).append(key)
    results = []
    for keys in by_task.values():
        other = next((key for key in keys if (key.method, key.settings) == against), None)
        if other is None:
            continue
        pairs = {key: _pairs(groups[key], groups[other]) for key in keys if key != other}
        pairs = {key: both for key, both in pairs.items() if both}
        changes = [_change(both, n_resamples) for both in pairs.values()]
        p_values = holm([change.p_value for change in changes])
        for (key, both), change, p_holm in zip(pairs.items(), changes, p_values, strict=True):
            seeds = tuple(repeat.run.facts.seed for repeat, _ in both)
            results.append(Difference(key, other, seeds, len(groups[key]), change, p_holm))
    return results


def unpaired(keys: Sequence[RepeatKey], differences: Sequence[Difference]) -> list[RepeatKey]:
    """Those that are held against none, though there are several methods."""
    paired = {key for difference in differences for key in (difference.key, difference.against)}
    several = len({(key.method, key.settings) for key in keys}) > 1
    return [key for key in keys if several and key not in paired]


def _pairs(group: Sequence[Repeat], others: Sequence[Repeat]) -> list[tuple[Repeat, Repeat]]:
    """Repeats of the same seed and docs that have both conditions."""
    return [
        (one, other)
        for one in group
        for other in others
        if one.run.facts.seed == other.run.facts.seed
        and one.docs.doc_ids == other.docs.doc_ids
        and one.docs.question_ids == other.docs.question_ids
        and np.array_equal(one.docs.gold, other.docs.gold)
        and set(PAPERS) <= set(one.evaluated) & set(other.evaluated)
    ]


def _change(pairs: Sequence[tuple[Repeat, Repeat]], n_resamples: int) -> MeanChange:
    low, high = PAPERS
    changes = np.concatenate(
        [
            (one.docs.correct[high] - one.docs.correct[low])
            - (other.docs.correct[high] - other.docs.correct[low])
            for one, other in pairs
        ]
    )
    questions = numbered([name for one, _ in pairs for name in one.docs.question_ids])
    return mean_change(changes, questions, n_resamples=n_resamples)
