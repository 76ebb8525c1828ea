"""The table that a command over several runs ends with: a row for each, and one for all. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from neuronllm_eval.comparison.pooling import differing, over_tasks, shared_conditions
from neuronllm_eval.comparison.rows import ComparedRun
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
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


def closing_table(results: Sequence[ComparedRun]) -> str | None:
    """The table; None where fewer than two runs were judged, or under no condition in common.

    Args:
        results: of the runs, in order.
    """
    judged = [each for each in results if each.rows]
    shared = shared_conditions(judged)
    names = [name for name in _MAIN if name in shared] or shared[:1]
    if len(judged) < 2 or not names:
        return None
    terms = differing(judged)
    rows = [
        [
            escaped(each.facts.task),
            *(escaped(each.shared[name]) for name in terms),
            f"{each.conditions[UNMASKED].summary.accuracy.unmasked:.1f}",
            *(_cell(each.conditions[name].summary) for name in names),
        ]
        for each in judged
    ]
    note = _NOTE
    if not terms:
        together = over_tasks(judged)
        unmasked = f"{together[names[0]].accuracy.unmasked:.1f}"
        rows.append(["all", unmasked, *(_cell(together[name]) for name in names)])
        note = f"{note} {_TOGETHER}"
    return f"{markdown_table(['task', *terms, 'unmasked %', *names], rows)}\n\n{note}\n"


def _cell(effect: ConditionSummary) -> str:
    change = effect.accuracy
    outdone = f", {effect.n_beyond} of {effect.n_controls}" if effect.n_controls else ""
    return f"{change.delta:+.1f} ({change.low:+.1f} to {change.high:+.1f}){outdone}"
