"""Which neurons the runs of one model share: of every two runs, their good and bad sets. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.rows import ComparedRun
from neuronllm_eval.comparison.words import directories, model_labels, shortest_labels
from neuronllm_eval.formats.tables import Section
from neuronllm_eval.neurons.neuron_set import COMPARED, Locations

# Of one model, so that it takes seconds: 4,950 pairs, four comparisons each.
MOST_COMPARED = 100
# Pairs of runs of a model that tables show, those that share most; json and csv have all.
MOST_PAIRS = 30
_NOTE = (
    "Neurons that two runs share, the Jaccard index (shared over those in either), and in brackets "
    "its expectation for random sets with as many neurons in each layer."
)
_HEADS = ("run", "other run", "good", "bad", "good in other's bad", "bad in other's good")


def overlaps(runs: Sequence[ComparedRun]) -> tuple[pd.DataFrame, list[str]]:
    """How far the neuron sets of all pairs of runs of a model overlap, and what was left out.

    Returns:
        A frame with four rows for each pair: the two runs, which sets of them (`neurons` and
        `other_neurons`, good or bad), their sizes, the neurons in both, and the Jaccard index and
        its expectation by chance, missing if both sets are empty. And a sentence for every model
        with more than `MOST_COMPARED` runs.
    """
    by_model: dict[tuple[str, tuple[int, int]], list[ComparedRun]] = {}
    for run in runs:
        by_model.setdefault((run.facts.model_hash, run.neurons.shape), []).append(run)
    rows, left_out = [], []
    for of_model in by_model.values():
        of_model.sort(key=lambda run: (run.facts.task, run.facts.method, run.facts.seed,
                                       run.facts.path))  # fmt: skip
        if len(of_model) > MOST_COMPARED:
            left_out.append(
                f"{len(of_model)} runs of {of_model[0].facts.model}: only the first "
                f"{MOST_COMPARED}, by task and method, are compared; --tasks and --methods choose "
                "others."
            )
        compared = [(run, _locations(run)) for run in of_model[:MOST_COMPARED]]
        for one, other in itertools.combinations(compared, 2):
            rows += [_overlap(one, other, sets) for sets in COMPARED]
    return pd.DataFrame(rows), left_out


def _locations(run: ComparedRun) -> dict[str, Locations]:
    sets = {"good": run.neurons.good, "bad": run.neurons.bad}
    return {name: Locations.of(neurons, run.neurons.n_layers) for name, neurons in sets.items()}


def _overlap(
    one: tuple[ComparedRun, dict[str, Locations]],
    other: tuple[ComparedRun, dict[str, Locations]],
    sets: tuple[str, str],
) -> dict[str, Any]:
    facts, others = one[0].facts, other[0].facts
    overlap = one[1][sets[0]].overlap(other[1][sets[1]], one[0].neurons.shape[1])
    return {
        "model": facts.model,
        "model_hash": facts.model_hash,
        "task": facts.task,
        "method": facts.method,
        "seed": facts.seed,
        "run": facts.path,
        "other_task": others.task,
        "other_method": others.method,
        "other_seed": others.seed,
        "other_run": others.path,
        "neurons": sets[0],
        "other_neurons": sets[1],
        "size": overlap.sizes[0],
        "other_size": overlap.sizes[1],
        "shared": overlap.shared,
        "jaccard": overlap.jaccard,
        "chance": overlap.chance,
    }


def overlap_sections(frame: pd.DataFrame, runs: Sequence[ComparedRun]) -> list[Section]:
    """A section for each model with several runs, the pairs that share most first."""
    if frame.empty:
        return []
    labels = _run_labels(runs)
    titles = model_labels([(run.facts.model, run.facts.model_hash, "") for run in runs])
    sections = []
    for model, of_model in frame.groupby("model_hash", sort=False):
        agreeing = of_model[of_model["neurons"] == of_model["other_neurons"]]
        shared = agreeing.groupby(["run", "other_run"], sort=False)["jaccard"].sum()
        order = shared.sort_values(ascending=False, kind="stable").index
        cells = {
            pair: [_cell(row) for row in rows.to_dict("records")]
            for pair, rows in of_model.groupby(["run", "other_run"], sort=False)
        }
        shown = [[labels[pair[0]], labels[pair[1]], *cells[pair]] for pair in order[:MOST_PAIRS]]
        notes = [_NOTE]
        if len(order) > MOST_PAIRS:
            notes.append(
                f"{len(order) - MOST_PAIRS} more pairs, which share less; json has all, and csv "
                "with --overlaps."
            )
        table = pd.DataFrame(shown, columns=list(_HEADS), dtype=object)
        sections.append(
            Section(f"Neurons shared by runs of {titles[str(model)]}", table, tuple(notes))
        )
    return sections


def _cell(row: Mapping[Any, Any]) -> str:
    smaller = min(row["size"], row["other_size"])
    if not smaller:
        return ""
    return f"{row['shared']} of {smaller}, {row['jaccard']:.2f} ({row['chance']:.2f})"


def _run_labels(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """By directory, what to call a run among those of its model."""
    below, _ = directories([run.facts.path for run in runs])
    forms = []
    for facts in (run.facts for run in runs):
        name = f"{facts.task} {facts.method}"
        forms.append([name, f"{name} seed {facts.seed}", below[facts.path]])
    labels = shortest_labels(forms, [run.facts.model_hash for run in runs])
    return {run.facts.path: label for run, label in zip(runs, labels, strict=True)}
