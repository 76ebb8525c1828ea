"""Which neurons the runs of one model share: of every two runs, their good and bad sets. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet
from neuronllm_eval.comparison.leaderboard_rows import BoardRun
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.neurons.overlap import COMPARED


def overlap_frame(overlaps: Sequence[RunsOverlap]) -> pd.DataFrame:
    """A row for each."""
    return pd.DataFrame([asdict(each) for each in overlaps])


def as_json(
    frame: pd.DataFrame,
    overlaps: Sequence[RunsOverlap],
    sets: Sequence[ComparableSet],
    unfinished: Sequence[Mapping[str, str]],
    damaged: Sequence[Mapping[str, str]],
) -> str:
    """All there is; null where there is nothing.

    Args:
        frame: the rows.
        overlaps: of neuron sets.
        sets: that may be compared.
        unfinished: runs without results.
        damaged: runs that cannot be read, and why.
    """
    return dump_json(
        {
            "rows": _records(frame),
            "overlaps": [asdict(each) for each in overlaps],
            "sets": [asdict(each) for each in sets],
            "unfinished": list(unfinished),
            "damaged": list(damaged),
        }
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


# Of one model, so that it takes seconds: 4,950 pairs, four comparisons each.
MOST_COMPARED = 100


@dataclass(frozen=True)
class RunsOverlap:
    """How far a set of one run and a set of another run of the same model overlap.

    Attributes:
        model: as the first run names it.
        model_hash: digest of its weights.
        task: of the first run; so are `method`, `seed` and `run`.
        other_task: of the second; so are `other_method`, `other_seed` and `other_run`.
        neurons: `good` or `bad`, of the first run.
        other_neurons: of the second.
        size: neurons of the first set.
        other_size: of the second.
        shared: neurons in both.
        jaccard: shared over those in either, 0 to 1; None if both sets are empty.
        chance: the Jaccard index expected of random sets with as many neurons in each layer.
    """

    model: str
    model_hash: str
    task: str
    method: str
    seed: int
    run: str
    other_task: str
    other_method: str
    other_seed: int
    other_run: str
    neurons: str
    other_neurons: str
    size: int
    other_size: int
    shared: int
    jaccard: float | None
    chance: float | None


def overlaps(runs: Sequence[BoardRun]) -> tuple[list[RunsOverlap], list[str]]:
    """The overlaps of all pairs, by model, and what was left out.

    Args:
        runs: of any models; validated or not.

    Returns:
        four rows of each pair, and a sentence for every model with more than `MOST_COMPARED` runs.
    """
    by_model: dict[tuple[str, tuple[int, int]], list[BoardRun]] = {}
    for run in runs:
        by_model.setdefault((run.model_hash, run.shape), []).append(run)
    found, left_out = [], []
    for own in by_model.values():
        own.sort(key=lambda run: (run.task, run.method, run.seed, run.path))
        if len(own) > MOST_COMPARED:
            left_out.append(
                f"{len(own)} runs of {own[0].model}: only the first {MOST_COMPARED}, by task and "
                "method, are compared; --tasks and --methods choose others."
            )
        for one, two in itertools.combinations(own[:MOST_COMPARED], 2):
            found += [_overlap(one, two, kinds) for kinds in COMPARED]
    return found, left_out


def _overlap(one: BoardRun, two: BoardRun, kinds: tuple[str, str]) -> RunsOverlap:
    known = one.places[kinds[0]].overlap(two.places[kinds[1]], one.shape[1])
    return RunsOverlap(
        model=one.model,
        model_hash=one.model_hash,
        task=one.task,
        method=one.method,
        seed=one.seed,
        run=one.path,
        other_task=two.task,
        other_method=two.method,
        other_seed=two.seed,
        other_run=two.path,
        neurons=kinds[0],
        other_neurons=kinds[1],
        size=known.sizes[0],
        other_size=known.sizes[1],
        shared=known.shared,
        jaccard=known.jaccard,
        chance=known.chance,
    )
