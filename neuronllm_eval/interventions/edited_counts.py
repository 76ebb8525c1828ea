"""How many of the chosen neurons each condition edits, and which conditions do the same. Pure.

A method may find no bad neurons (`tn` and `qrnca` never do), or fewer than were asked for. Then a
condition of bad neurons edits nothing, and its figures would be those of the unmasked model; and
`degrade` is `suppress_good` under another name, so that testing both is one test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuronllm_eval.interventions.conditions import (
    OPERATIONS,
    UNMASKED,
    ConditionName,
    Scales,
    only_operation,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class Edited:
    """What a condition edits.

    Attributes:
        n_good: good neurons whose factor is not 1.
        n_bad: bad ones.
        same_as: the condition that gives the same neurons the same factors, and stands for both
            where tests are counted; None where there is none, or it is this one.
        note: what is missing: "no bad neurons", "good only", "factor 1"; empty where nothing is.
    """

    n_good: int
    n_bad: int
    same_as: str | None = None
    note: str = ""

    @property
    def n_neurons(self) -> int:
        """Good and bad ones together; 0 where there is nothing to be judged."""
        return self.n_good + self.n_bad


def edited_by(names: Iterable[str], chosen: NeuronSet, scales: Scales) -> dict[str, Edited]:
    """What each condition and point edits.

    Args:
        names: of conditions and points; `unmasked` and random controls are left out.
        chosen: the good and bad neurons that were judged.
        scales: the run's own factors.

    Raises:
        ArtifactError: a point of more neurons than there are.
    """
    parsed = {name: ConditionName.parse(name) for name in names}
    parsed = {
        name: parts
        for name, parts in parsed.items()
        if parts.seed is None and parts.condition != UNMASKED
    }
    found: dict[str, Edited] = {}
    first: dict[frozenset[tuple[int, int, float]], str] = {}
    # The plainest name stands for all that do the same: no point, and of one operation.
    for name, parts in sorted(parsed.items(), key=lambda each: _plainness(*each)):
        neurons = parts.neurons(chosen)
        edits = parts.edits(neurons, scales)
        rows = zip(edits.layers.tolist(), edits.indices.tolist(), edits.factors.tolist(),
                   strict=True)  # fmt: skip
        changed = frozenset(row for row in rows if row[2] != 1)
        good = {neuron.location for neuron in neurons.good}
        n_good = sum((layer, index) in good for layer, index, _ in changed)
        counts = (n_good, len(changed) - n_good)
        same = first.setdefault(changed, name) if changed else name
        note = _note(parts.condition, counts, (len(neurons.good), len(neurons.bad)))
        found[name] = Edited(*counts, None if same == name else same, note)
    return {name: found[name] for name in parsed}


def _plainness(name: str, parts: ConditionName) -> tuple[bool, bool]:
    return name != parts.condition, only_operation(parts.condition) is None


def _note(condition: str, edited: tuple[int, int], there: tuple[int, int]) -> str:
    """What is missing, by the numbers of good and of bad neurons."""
    operations = zip(("good", "bad"), OPERATIONS[condition], edited, there, strict=True)
    touched = [(kind, count, most) for kind, operation, count, most in operations if operation]
    with_some = [kind for kind, count, _ in touched if count]
    if with_some:
        return "" if len(with_some) == len(touched) else f"{with_some[0]} only"
    if any(most for _, _, most in touched):
        return "factor 1"
    return f"no {touched[0][0]} neurons" if len(touched) == 1 else "no neurons"
