"""What methods' neurons did, over repeats with other seeds. Pure.

1. Repeats are pooled: a delta is the mean over the docs of all of them, and a question that several
   of them ask is one question to the bootstrap, so that asking it again does not narrow the
   interval. That other seeds choose other neurons is in the interval only as far as the repeats
   show it.
2. Each condition is tested as in a run's report: p by question, McNemar's test of the pooled docs,
   and both by Holm's method for the conditions of the same method, number of neurons and task.
3. Controls are pooled too: the first random control of every repeat is one, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.comparison.method_runs import Compared, Key
from neuronllm_eval.evaluation.condition_effects import EXPECTED_SIGN, Corrected, corrected_together
from neuronllm_eval.evaluation.doc_table import numbered
from neuronllm_eval.evaluation.stats.paired_delta import (
    PairedDelta,
    RelativeChange,
    paired_delta,
    points_between,
    relative_change,
)
from neuronllm_eval.evaluation.stats.significance import (
    ControlRank,
    McNemar,
    mcnemar,
    random_control_rank,
)
from neuronllm_eval.interventions.conditions import UNMASKED, Edited

SWAPPED = "enhance_minus_degrade"
PAPERS = ("degrade", "enhance")
Measure = Literal["correct", "confidence"]


@dataclass(frozen=True)
class Tested:
    """The tests of one condition.

    Attributes:
        mcnemar: docs gained and lost over all repeats, with McNemar's exact test.
        corrected: p by question and McNemar's p, for the conditions of the same method.
        controls: the place among the random controls, pooled; None without any.
    """

    mcnemar: McNemar
    corrected: Corrected
    controls: ControlRank | None


@dataclass(frozen=True)
class Effect:
    """What a method's neurons did in its repeats.

    Attributes:
        key: what the repeats have in common.
        seeds: of the repeats.
        n_good: good neurons of each repeat.
        n_bad: bad ones.
        unmasked: accuracy without intervention, percent.
        edited: by condition what it edits in each repeat, also where that is nothing.
        accuracy: by condition that edits something the paired delta to unmasked, and `SWAPPED`.
        confidence: the same of the softmax over options at gold.
        tests: by condition, those of the accuracy.
        rac: of the conditions in `PAPERS`, the relative change of accuracy.
        rcc: the same of the confidence.
    """

    key: Key
    seeds: tuple[int, ...]
    n_good: tuple[int, ...]
    n_bad: tuple[int, ...]
    unmasked: float
    edited: dict[str, tuple[Edited, ...]]
    accuracy: dict[str, PairedDelta]
    confidence: dict[str, PairedDelta]
    tests: dict[str, Tested]
    rac: dict[str, RelativeChange]
    rcc: dict[str, RelativeChange]

    def note(self, condition: str) -> str:
        """What there was not to edit (`Edited.note`); empty if some repeat lacked nothing."""
        notes = [each.note for each in self.edited.get(condition, ())]
        return " / ".join(dict.fromkeys(notes)) if all(notes) else ""


def groups(found: Sequence[Compared]) -> dict[Key, list[Compared]]:
    """Repeats together, by model, task, number of neurons and method."""
    by_key: dict[Key, list[Compared]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    order = sorted(by_key, key=lambda key: (key.model, key.task, key.split, key.top_k))
    return {key: by_key[key] for key in order}


def effect(repeats: Sequence[Compared], n_resamples: int = 10_000) -> Effect:
    """What a method's neurons did.

    Args:
        repeats: of one key, at least one; conditions that not all of them have are left out.
        n_resamples: draws of the bootstrap.
    """
    shared = [n for n in repeats[0].names if all(n in each.names for each in repeats)]
    edited = {name: tuple(each.edited[name] for each in repeats) for name in shared}
    conditions = [name for name in shared if any(own.n_neurons for own in edited[name])]
    questions = numbered([name for each in repeats for name in each.table.question_ids])
    pairs = {name: (UNMASKED, name) for name in conditions}
    if set(PAPERS) <= set(conditions):
        pairs[SWAPPED] = PAPERS

    def values(measure: Measure, name: str) -> NDArray[np.float64]:
        return np.concatenate([doc_values(each, measure, name) for each in repeats])

    def deltas(measure: Measure) -> dict[str, PairedDelta]:
        return {
            name: paired_delta(
                values(measure, before),
                values(measure, after),
                questions,
                n_resamples=n_resamples,
            )
            for name, (before, after) in pairs.items()
        }

    def relative(measure: Measure) -> dict[str, RelativeChange]:
        return {
            name: relative_change(
                values(measure, UNMASKED),
                values(measure, name),
                questions,
                n_resamples=n_resamples,
            )
            for name in PAPERS
            if name in pairs
        }

    accuracy = deltas("correct")
    return Effect(
        repeats[0].key,
        tuple(each.seed for each in repeats),
        tuple(each.n_good for each in repeats),
        tuple(each.n_bad for each in repeats),
        100 * float(values("correct", UNMASKED).mean()),
        edited,
        accuracy,
        deltas("confidence"),
        _tests(repeats, {name: accuracy[name] for name in conditions}, edited),
        relative("correct"),
        relative("confidence"),
    )


def _tests(
    repeats: Sequence[Compared],
    accuracy: dict[str, PairedDelta],
    edited: dict[str, tuple[Edited, ...]],
) -> dict[str, Tested]:
    """By condition; those that are the same in every repeat are one test."""

    def right(name: str) -> NDArray[np.float64]:
        return np.concatenate([doc_values(each, "correct", name) for each in repeats])

    flips = {name: mcnemar(right(UNMASKED), right(name)) for name in accuracy}
    counted = {name: same_as(edited[name]) or name for name in accuracy}
    corrected = corrected_together(
        {
            name: (accuracy[name].p_value, flips[name].p_value)
            for name, other in counted.items()
            if name == other
        }
    )
    return {
        name: Tested(
            flips[name], corrected[counted[name]], _place(repeats, name, accuracy[name].delta)
        )
        for name in accuracy
    }


def same_as(edited: Sequence[Edited]) -> str | None:
    """The condition that edits the same in every repeat; None where there is none."""
    names = {each.same_as for each in edited}
    return names.pop() if len(names) == 1 else None


def _place(repeats: Sequence[Compared], condition: str, delta: float) -> ControlRank | None:
    """Among as many controls as all repeats have: the first of each are one, and so on.

    Their seeds differ with the run's.
    """
    drawn = list(zip(*(each.controls.get(condition, []) for each in repeats), strict=False))
    if not drawn:
        return None

    def right(names: Sequence[str]) -> NDArray[np.float64]:
        parts = zip(repeats, names, strict=True)
        return np.concatenate([doc_values(each, "correct", name) for each, name in parts])

    before = right([UNMASKED] * len(repeats))
    deltas = [points_between(before, right(names)) for names in drawn]
    return random_control_rank(delta, deltas, EXPECTED_SIGN[condition])


def doc_values(each: Compared, measure: Measure, condition: str) -> NDArray[np.float64]:
    """[docs] right (1) or wrong (0), or the confidence, under a condition or a control."""
    by_name = each.table.correct if measure == "correct" else each.table.confidence
    return by_name[each.names.get(condition, condition)]
