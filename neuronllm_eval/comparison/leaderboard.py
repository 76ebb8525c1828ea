"""Many runs side by side: models, tasks, methods and conditions. Pure.

1. Each condition of each run is an `Entry`.
2. Entries of a task are parted into comparable sets (`comparability`).
3. Within a task, set and condition they are ranked by the delta, in the condition's direction.
4. They are put in order: the group, the task, the condition, the set, the rank; or as is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet, Terms, comparable_sets
from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.condition_effects import EXPECTED_SIGN
from neuronllm_eval.interventions.conditions import CONDITIONS


@dataclass(frozen=True)
class Entry:
    """What one condition, or one point of a sweep, of one run did; None where there is nothing.

    Attributes:
        model: as the run names it.
        model_hash: digest of its weights.
        dtype: of its weights.
        task: of the harness.
        method: that chose the neurons.
        method_settings: of it, JSON.
        seed: of the questions.
        condition: one of `conditions.CONDITIONS`.
        name: that of the condition, but for points.
        top_k: good and bad neurons that were asked for.
        scale: factor of the condition's only operation.
        n_good: good neurons that there were; a method may find fewer.
        n_bad: bad ones.
        n_questions: that judged.
        n_docs: their docs.
        accuracy: percent.
        note: why it was not judged, as "no bad neurons", or "good only".
        delta: condition minus unmasked, percentage points.
        low: lower bound of its 95% interval.
        high: upper bound.
        p_value: of the delta, by question.
        p_holm: the same, corrected as `report.md` does.
        controls_outdone: random controls that moved less in the expected direction.
        n_controls: random controls that there were.
        control_p: one-sided empirical p among them.
        consistent: questions right under every order of the options, percent.
        consistent_delta: against unmasked, percentage points.
        position_bias: total variation between letters said and right, percent.
        position_bias_delta: against unmasked, percentage points.
        majority: questions whose most frequent answer is right, percent.
        run: its directory.
        terms: what it may be compared under.
    """

    model: str
    model_hash: str
    dtype: str
    task: str
    method: str
    method_settings: str
    seed: int
    condition: str
    name: str
    top_k: int | None
    scale: float | None
    n_good: int
    n_bad: int
    n_questions: int
    n_docs: int
    accuracy: float | None
    note: str | None
    delta: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    controls_outdone: int | None
    n_controls: int | None
    control_p: float | None
    consistent: float | None
    consistent_delta: float | None
    position_bias: float | None
    position_bias_delta: float | None
    majority: float | None
    run: str
    terms: Terms


# Names and types of the columns of csv and json, in order; "terms" become the letter of the set.
_TYPES = {"str": "string", "str | None": "string", "int": "Int64", "int | None": "Int64"}
COLUMNS: dict[str, str] = {
    "task": "string",
    "set": "string",
    "rank": "Int64",
    "n_ranked": "Int64",
    **{
        field.name: _TYPES.get(str(field.type), "float64")
        for field in dataclasses.fields(Entry)
        if field.name not in ("task", "terms")
    },
}


def last_part(model: str) -> str:
    """The last part of a model's name or path."""
    return model.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Leaderboard:
    """The table.

    Attributes:
        frame: the columns of `COLUMNS`, with missing values where there is nothing.
        sets: that may be compared; the letter is the column `set`.
    """

    frame: pd.DataFrame
    sets: tuple[ComparableSet, ...]


def leaderboard(
    entries: Sequence[Entry],
    group_by: str = "task",
    sort_by: str | None = None,
    ascending: bool = False,
) -> Leaderboard:
    """Sets, ranks and order of the entries.

    Args:
        entries: of all runs.
        group_by: one of `leaderboard_choices.GROUPS`; what stands together.
        sort_by: one of `COLUMNS`, for another order within each group; what is missing comes last.
        ascending: the smallest, or first by alphabet, first.

    Raises:
        UsageError: no such column.
    """
    if sort_by is not None and sort_by not in COLUMNS:
        raise UsageError(
            f"there is no column {sort_by!r:.100}",
            expected=", ".join(COLUMNS),
            remedy="check --sort_by",
        )
    sets = comparable_sets([(each.task, each.run, each.terms) for each in entries])
    letters = {(each.task, each.terms): each.letter for each in sets}
    lines = [
        {
            **{field.name: getattr(each, field.name) for field in dataclasses.fields(each)},
            "set": letters[each.task, each.terms],
        }
        for each in entries
    ]
    frame = _ranked(pd.DataFrame(lines))[list(COLUMNS)].astype(COLUMNS)
    return Leaderboard(_in_order(frame, group_by, sort_by, ascending), tuple(sets))


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """With places by the delta, in the expected direction; equal deltas share the better place."""
    towards = pd.to_numeric(frame["delta"]) * frame["condition"].map(EXPECTED_SIGN)
    alike = towards.groupby([frame["task"], frame["set"], frame["condition"]])
    return frame.assign(
        rank=alike.rank(method="min", ascending=False),
        n_ranked=alike.transform("count").where(towards.notna()),
    )


def _in_order(
    frame: pd.DataFrame, group_by: str, sort_by: str | None, ascending: bool
) -> pd.DataFrame:
    keys = frame.assign(
        _model=frame["model"].map(last_part),
        _condition=frame["condition"].map(CONDITIONS.index),
        _letters=frame["set"].str.len(),  # z before aa
    )
    lead = ["_model", "model_hash"] if group_by == "model" else [group_by]
    usual = ["task", "_condition", "_letters", "set", "rank", "_model", "method", "seed", "run"]
    keys = keys.sort_values([*lead, *usual], kind="stable", na_position="last")
    if sort_by is not None:
        keys = keys.sort_values(sort_by, ascending=ascending, kind="stable", na_position="last")
        keys = keys.sort_values(lead, kind="stable")
    return frame.loc[keys.index].reset_index(drop=True)
