"""How far methods differ, on the same docs. Pure.

Two methods differ by what they do to the same docs: the mean over docs of enhance minus degrade of
the one minus that of the other, with interval and p by question; p is corrected by Holm's method
for all methods held against the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neuronllm_eval.attribution.methods import ACE
from neuronllm_eval.comparison.labels import method_labels
from neuronllm_eval.comparison.pooling import PAPERS, Repeat, RepeatKey
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
    labels = method_labels([(*key[:3], key.method, key.settings) for key in variants.values()])
    named = dict(zip(variants, labels, strict=True))
    expected = dict.fromkeys(named[each] for each in of_name or variants)
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
    blocks: dict[RepeatKey, dict[Reference, RepeatKey]] = {}
    for key in groups:
        block = blocks.setdefault(key._replace(method="", settings=""), {})
        block[Reference(key.method, key.settings)] = key
    found = []
    for block in blocks.values():
        other = block.pop(against, None)
        pairs = {} if other is None else {
            key: pairs for key in block.values() if (pairs := _pairs(groups[key], groups[other]))
        }  # fmt: skip
        changes = [_change(pair, n_resamples) for pair in pairs.values()]
        p_values = holm([change.p_value for change in changes])
        for (key, pair), change, p_holm in zip(pairs.items(), changes, p_values, strict=True):
            seeds = tuple(each.run.facts.seed for each, _ in pair)
            assert other is not None
            found.append(Difference(key, other, seeds, len(groups[key]), change, p_holm))
    return found


def unpaired(keys: Sequence[RepeatKey], found: Sequence[Difference]) -> list[RepeatKey]:
    """Those that are held against none, though there are several methods."""
    paired = {key for each in found for key in (each.key, each.against)}
    several = len({(key.method, key.settings) for key in keys}) > 1
    return [key for key in keys if several and key not in paired]


def _pairs(group: Sequence[Repeat], others: Iterable[Repeat]) -> list[tuple[Repeat, Repeat]]:
    """Repeats of the same seed and docs that have both conditions."""
    by_seed = {each.run.facts.seed: each for each in others}
    pairs = [(e, by_seed[e.run.facts.seed]) for e in group if e.run.facts.seed in by_seed]
    return [
        (one, other)
        for one, other in pairs
        if one.docs.doc_ids == other.docs.doc_ids
        and one.docs.question_ids == other.docs.question_ids
        and np.array_equal(one.docs.gold, other.docs.gold)
        and all(set(PAPERS) <= set(each.evaluated) for each in (one, other))
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
