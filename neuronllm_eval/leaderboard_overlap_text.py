"""The overlaps of neuron sets as people read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from neuronllm_eval.leaderboard_labels import model_labels, run_labels
from neuronllm_eval.leaderboard_overlaps import RunsOverlap
from neuronllm_eval.leaderboard_runs import BoardRun
from neuronllm_eval.sections import Section

# Pairs of runs of a model that are shown, those that share most; json and csv have all.
MOST_PAIRS = 30
_NOTE = (
    "Neurons that two runs share, the Jaccard index (shared over those in either), and in brackets "
    "what is expected of random sets with as many neurons in each layer."
)
_HEADS = ("run", "other run", "good", "bad", "good in other's bad", "bad in other's good")


def overlap_sections(found: Sequence[RunsOverlap], runs: Sequence[BoardRun]) -> list[Section]:
    """A section for each model with several runs, the pairs that share most first."""
    labels = run_labels(runs)
    titles = model_labels([(run.model, run.model_hash, "") for run in runs])
    by_model: dict[str, dict[tuple[str, str], list[RunsOverlap]]] = {}
    for each in found:
        pairs = by_model.setdefault(each.model_hash, {})
        pairs.setdefault((each.run, each.other_run), []).append(each)
    sections = []
    for model, pairs in by_model.items():
        order = sorted(pairs, key=lambda pair: -sum(_likeness(each) for each in pairs[pair]))
        shown = [
            [labels[one], labels[other], *map(_overlap_cell, pairs[one, other])]
            for one, other in order[:MOST_PAIRS]
        ]
        n_left = len(order) - len(shown)
        left = (f"{n_left} more pairs, which share less; json has all, and csv with --overlaps.",)
        sections.append(
            Section(
                f"Neurons shared by runs of {titles[model]}",
                pd.DataFrame(shown, columns=list(_HEADS), dtype=object),
                (_NOTE, *(left if n_left else ())),
            )
        )
    return sections


def _likeness(each: RunsOverlap) -> float:
    return (each.jaccard or 0.0) if each.neurons == each.other_neurons else 0.0


def _overlap_cell(each: RunsOverlap) -> str:
    smaller = min(each.size, each.other_size)
    if not smaller:
        return ""
    return f"{each.shared} of {smaller}, {each.jaccard or 0:.2f} ({each.chance or 0:.2f})"
