"""The table of what a run's conditions do to other tasks (`validate --also`). Pure."""

from __future__ import annotations

from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.wording import interval_text, tested

OTHERS_NOTE = (
    "The same neurons, conditions and random controls on the validation questions of other tasks. "
    "Delta in points (95% interval, paired, by question), then the mean of the random controls; "
    "p of these tasks is in their own summary.json, corrected for the conditions of one task. "
    "First row: accuracy of the unmasked model and that of guessing."
)


def others_table(report: TaskReport) -> tuple[Table, ...]:
    """A row for each condition, a column for the run's own task and each other one."""
    assert report.answers is not None
    chance = report.answers.unmasked_against_chance.chance
    own = {summary.name: summary for summary in report.summaries}
    columns = [(own, chance), *((other.by_name, other.chance) for other in report.others)]
    heads = ("condition", f"{report.task} (own)", *(other.task for other in report.others))
    unmasked = [
        f"{summaries[UNMASKED].accuracy.unmasked:.1f}% ({100 * chance:.1f}%)"
        for summaries, chance in columns
    ]
    rows = [
        (name, *(effect_text(summaries[name]) for summaries, _ in columns))
        for name in (summary.name for summary in tested(report.summaries))
        if all(name in summaries for summaries, _ in columns)
    ]
    return (Table("Own and other tasks", heads, ((UNMASKED, *unmasked), *rows)),)


def effect_text(summary: ConditionSummary) -> str:
    """A condition's delta with its interval, and the mean of its random controls."""
    text = interval_text(summary.accuracy)
    if summary.controls is None or not summary.controls.n_controls:
        return text
    return f"{text}; random {summary.controls.mean:+.1f}"
