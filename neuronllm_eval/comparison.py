"""Methods side by side, by model, task, method and number of neurons: what is shown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuronllm_eval.compared import Compared
from neuronllm_eval.comparison_names import Names
from neuronllm_eval.method_differences import Difference, differences, reference
from neuronllm_eval.method_effects import SWAPPED, Effect, effect, groups


@dataclass(frozen=True)
class Comparison:
    """What is shown of runs.

    Attributes:
        effects: a method's repeats together.
        single: every run by itself.
        differences: of methods to the one they are held against.
    """

    effects: tuple[Effect, ...]
    single: tuple[Effect, ...]
    differences: tuple[Difference, ...]

    @property
    def names(self) -> Names:
        """What models, tasks and methods are called."""
        return Names([each.key for each in self.effects])


def compare(
    found: Sequence[Compared],
    against: str | None = None,
    n_resamples: int = 10_000,
    progress: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compute what is shown of runs.

    Args:
        found: what `compared_runs.read_compared` gives.
        against: the method that others are held against (`method_effects.reference`).
        n_resamples: draws of the bootstrap.
        progress: is called after each of `found`.

    Raises:
        UsageError: as `reference`.
    """
    held = reference(found, against)  # refuses first
    differing = differences(found, held, n_resamples) if held else []
    single: dict[int, Effect] = {}
    for each in found:
        single[id(each)] = effect([each], n_resamples)
        progress()
    pooled = (
        single[id(own[0])] if len(own) == 1 else effect(own, n_resamples)
        for own in groups(found).values()
    )
    return Comparison(
        tuple(each for each in pooled if each.edited),
        tuple(single.values()),
        tuple(differing),
    )


def against_text(found: Comparison) -> str:
    """What the methods are held against; empty if nothing is."""
    names = found.names
    return " or ".join(dict.fromkeys(names.method(each.against) for each in found.differences))


def unpaired(found: Comparison) -> list[str]:
    """Methods that are held against none, though there are several; task and K with each."""
    paired = {key for each in found.differences for key in (each.key, each.against)}
    variants = {(each.key.method, each.key.settings) for each in found.effects}
    names = found.names
    return [
        f"{names.method(each.key)} ({names.task(each.key)}, K {each.key.top_k})"
        for each in found.effects
        if len(variants) > 1 and each.key not in paired and SWAPPED in each.accuracy
    ]
