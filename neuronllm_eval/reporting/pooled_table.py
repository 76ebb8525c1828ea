"""What a command that went through several runs ends with: one table, a row for each. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from neuronllm_eval.evaluation.pooled_effects import (
    Effect,
    TaskResult,
    differing,
    pooled,
    shared_conditions,
)
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.interventions.conditions import UNMASKED

# Of the conditions, those that a line has room for.
_MAIN = ("suppress_good", "degrade", "enhance")
_NOTE = (
    "Accuracy without intervention; its change in points (95% interval by question), and how many "
    "of the layer-matched random controls the condition outdid."
)
_TOGETHER = (
    "All: the mean over the docs of all tasks, and the tasks' controls pooled in their order."
)


def closing_table(results: Sequence[TaskResult]) -> str | None:
    """The table; None where fewer than two runs were judged, or under no condition in common.

    Args:
        results: of the runs, in order.
    """
    judged = [each for each in results if each.effects]
    shared = shared_conditions(judged)
    names = [name for name in _MAIN if name in shared] or shared[:1]
    if len(judged) < 2 or not names:
        return None
    terms = differing(judged)
    rows = [
        [
            escaped(each.task),
            *(escaped(each.terms[name]) for name in terms),
            f"{each.effects[UNMASKED].accuracy.unmasked:.1f}",
            *(_cell(each.effects[name]) for name in names),
        ]
        for each in judged
    ]
    note = _NOTE
    if not terms:
        together = [pooled(judged, name) for name in names]
        rows.append(["all", f"{together[0].accuracy.unmasked:.1f}", *map(_cell, together)])
        note = f"{note} {_TOGETHER}"
    return f"{markdown_table(['task', *terms, 'unmasked %', *names], rows)}\n\n{note}\n"


def _cell(effect: Effect) -> str:
    found = effect.accuracy
    outdone = f", {effect.n_beyond} of {effect.n_controls}" if effect.n_controls else ""
    return f"{found.delta:+.1f} ({found.low:+.1f} to {found.high:+.1f}){outdone}"
