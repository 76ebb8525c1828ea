"""How far methods differ, on the same docs. Pure.

Two methods differ by what they do to the same docs: the mean over docs of enhance minus degrade of
the one minus that of the other, with interval and p by question (`statistics`); p is corrected by
Holm's method for the methods that are held against the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.attribution.methods import ACE
from neuronllm_eval.comparison.labels import Names
from neuronllm_eval.comparison.method_effects import PAPERS, doc_values, groups
from neuronllm_eval.comparison.method_runs import Compared, Key
from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.doc_table import numbered
from neuronllm_eval.evaluation.stats.paired_delta import MeanChange, mean_change
from neuronllm_eval.evaluation.stats.significance import holm


@dataclass(frozen=True)
class Difference:
    """How far enhance minus degrade of a method differs from that of another.

    Attributes:
        key: of the method.
        against: of the other.
        seeds: of the repeats that both have.
        change: the method's minus the other's.
        corrected_p: p after Holm's correction for the methods held against the same one.
    """

    key: Key
    against: Key
    seeds: tuple[int, ...]
    change: MeanChange
    corrected_p: float


class Reference(NamedTuple):
    """A method that others are held against.

    Attributes:
        method: its name.
        settings: as `Key.settings`.
    """

    method: str
    settings: tuple[tuple[str, str], ...]


def reference(found: Sequence[Compared], against: str | None) -> Reference | None:
    """The method that others are held against.

    Args:
        found: runs of any models, tasks and methods.
        against: its name, and settings where runs have it with several, such as
            `ace ambiguous=drop`; `ace` or the first if not given.

    Returns:
        None if none was given and runs have the method with several settings.

    Raises:
        UsageError: no run is of that method and settings, or runs of it differ in others.
    """
    keys = {Reference(each.key.method, each.key.settings): each.key for each in found}
    methods = dict.fromkeys(variant.method for variant in keys)
    default = ACE.name if ACE.name in methods else next(iter(methods), "")
    name, *wanted = (against or default).split() or [""]
    of_name = [variant for variant in keys if variant.method == name]
    fitting = [each for each in of_name if set(wanted) <= {f"{k}={v}" for k, v in each.settings}]
    if len(fitting) == 1:
        return fitting[0]
    if against is None:
        return None
    names = Names(list(keys.values()))
    known = dict.fromkeys(names.method(keys[each]) for each in of_name or keys)
    raise UsageError(
        f"{len(fitting) or 'no'} methods of the runs are {against!r:.100}",
        expected=f"one of: {'; '.join(known)}",
        remedy="check --against",
    )


def differences(
    found: Sequence[Compared], against: Reference, n_resamples: int = 10_000
) -> list[Difference]:
    """Every method against one, where both have the same seeds and docs.

    Args:
        found: runs of any models, tasks and methods.
        against: what the others are held against.
        n_resamples: draws of the bootstrap.
    """
    blocks: dict[Key, list[list[Compared]]] = {}
    for key, repeats in groups(found).items():
        blocks.setdefault(key._replace(method="", settings=()), []).append(repeats)
    return [each for block in blocks.values() for each in _of_block(block, against, n_resamples)]


def _of_block(
    block: Sequence[Sequence[Compared]], against: Reference, n_resamples: int
) -> list[Difference]:
    by_method = {Reference(own[0].key.method, own[0].key.settings): own for own in block}
    others = by_method.pop(against, [])
    pairs = [pair for own in by_method.values() if (pair := _same_docs(own, others))]
    changes = [_change(pair, n_resamples) for pair in pairs]
    corrected = holm([each.p_value for each in changes])
    return [
        Difference(
            pair[0][0].key, pair[0][1].key, tuple(each.seed for each, _ in pair), change, p_value
        )
        for pair, change, p_value in zip(pairs, changes, corrected, strict=True)
    ]


def _same_docs(
    repeats: Sequence[Compared], others: Iterable[Compared]
) -> list[tuple[Compared, Compared]]:
    """Repeats of the same seed and docs that have what is compared."""
    by_seed = {each.seed: each for each in others}
    pairs = [(each, by_seed[each.seed]) for each in repeats if each.seed in by_seed]
    return [
        pair
        for pair in pairs
        if pair[0].table.doc_ids == pair[1].table.doc_ids
        and pair[0].table.question_ids == pair[1].table.question_ids
        and np.array_equal(pair[0].table.gold, pair[1].table.gold)
        and all(set(PAPERS) <= set(each.judged) for each in pair)
    ]


def _change(pairs: Sequence[tuple[Compared, Compared]], n_resamples: int) -> MeanChange:
    def swapped(each: Compared) -> NDArray[np.float64]:
        low, high = (doc_values(each, "correct", name) for name in PAPERS)
        return np.asarray(high - low)

    changes = np.concatenate([swapped(each) - swapped(other) for each, other in pairs])
    questions = numbered([name for each, _ in pairs for name in each.table.question_ids])
    return mean_change(changes, questions, n_resamples=n_resamples)
