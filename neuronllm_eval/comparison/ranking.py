"""Rows as one frame with comparable sets and ranks, in order; patterns for the wanted ones. Pure.

1. Rows of a task are split into comparable sets (`comparability`).
2. Within a task, set, condition and K they are ranked by the delta, in the condition's direction.
3. They are ordered by group, task, condition, set and rank; or by a column.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet, comparable_sets
from neuronllm_eval.comparison.pooling import SWAPPED
from neuronllm_eval.comparison.rows import ComparedRun, Row
from neuronllm_eval.comparison.words import last_part
from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.interventions.conditions import CONDITIONS, EXPECTED_SIGN, UNMASKED

GROUPS = ("task", "model", "method")
_ORDER = (*CONDITIONS, SWAPPED)
# Columns of csv and json, in order.
_NAMES = """
task set rank n_ranked model model_hash dtype method method_settings seed n_runs condition name
top_k scale n_good n_bad n_neurons n_edited n_questions n_docs accuracy note delta low high p_value
p_holm controls_outdone n_controls n_as_extreme control_p n_lost n_gained mcnemar_p mcnemar_p_holm
n_tests confidence confidence_delta confidence_low confidence_high rac rac_low rac_high rcc rcc_low
rcc_high consistent consistent_delta position_bias position_bias_delta majority top_answer kl
kl_controls perplexity perplexity_controls seeds run
""".split()
_TEXTS = """
task set model model_hash dtype method method_settings condition name n_neurons n_edited note seeds
run
""".split()
_COUNTS = """
rank n_ranked seed n_runs top_k n_good n_bad n_questions n_docs controls_outdone n_controls
n_as_extreme n_lost n_gained n_tests
""".split()
COLUMNS = {
    name: "string" if name in _TEXTS else "Int64" if name in _COUNTS else "float64"
    for name in _NAMES
}


@dataclass(frozen=True)
class RankedRows:
    """Rows as a frame.

    Attributes:
        frame: the columns of `COLUMNS`, with missing values where there is nothing; the index is
            the place of the row among those that were given.
        sets: that may be compared; their letters are the column `set`.
    """

    frame: pd.DataFrame
    sets: tuple[ComparableSet, ...]


def ranked(rows: Sequence[Row]) -> RankedRows:
    """Sets and ranks of rows, in the order they were given."""
    sets = comparable_sets(
        [(row.run.task, run.path, row.terms) for row in rows for run in row.runs]
    )
    letters = {(one.task, one.terms): one.letter for one in sets}
    lines = [{**_values(row), "set": letters[row.run.task, row.terms]} for row in rows]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    towards = pd.to_numeric(frame["delta"]) * frame["condition"].map(EXPECTED_SIGN)
    within = towards.groupby(
        [frame["task"], frame["set"], frame["condition"], frame["top_k"].fillna(0)]
    )
    frame = frame.assign(
        rank=within.rank(method="min", ascending=False),  # equal deltas share the better rank
        n_ranked=within.transform("count").where(towards.notna()),
    )
    return RankedRows(frame.astype(COLUMNS), tuple(sets))


def _values(row: Row) -> dict[str, Any]:
    """A row's values by column, but for its set and rank."""
    run, summary = row.run, row.summary
    values = {
        "task": run.task,
        "model": run.model,
        "model_hash": run.model_hash,
        "dtype": run.dtype,
        "method": run.method,
        "method_settings": run.settings,
        "seed": _only([run.seed for run in row.runs]),
        "n_runs": len(row.runs),
        "condition": row.condition,
        "name": summary.name,
        "top_k": None if row.condition == UNMASKED else row.top_k,
        "scale": summary.scale,
        "n_good": _only(row.n_good),
        "n_bad": _only(row.n_bad),
        "n_neurons": _each(f"{g}/{b}" for g, b in zip(row.n_good, row.n_bad, strict=True)),
        "n_edited": _each(str(edited.n_neurons) for edited in row.edited) or None,
        "n_questions": summary.accuracy.n_questions,
        "n_docs": summary.accuracy.n_docs,
        "note": row.note or None,
        "seeds": ", ".join(str(run.seed) for run in row.runs),
        "run": ", ".join(run.path for run in row.runs),
        **row.metrics,
    }
    if row.is_evaluated and row.condition != SWAPPED:
        values |= {"accuracy": summary.accuracy.condition,
                   "confidence": summary.confidence.condition,
                   "top_answer": summary.top_answer,
                   **_costs(summary)}  # fmt: skip
    if row.is_evaluated and row.condition != UNMASKED:
        values |= _changes(row)
    return values


def _costs(summary: ConditionSummary) -> dict[str, float]:
    """What the edit costs, and the mean of its random controls; nothing that is not finite."""
    values: dict[str, float] = {}
    for name, cost in (("kl", summary.kl), ("perplexity", summary.perplexity)):
        if cost is not None:
            values |= {name: cost.value, f"{name}_controls": cost.controls_mean}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _only(values: Sequence[Any]) -> Any:
    """The value that all repeats have; None where they differ."""
    return values[0] if len(set(values)) == 1 else None


def _each(texts: Iterable[str]) -> str:
    """Those of the repeats, each once."""
    return " or ".join(dict.fromkeys(texts))


def _changes(row: Row) -> dict[str, Any]:
    """Changes against the unmasked model, their tests, and the rank among the controls."""
    summary = row.summary
    accuracy, confidence = summary.accuracy, summary.confidence
    values: dict[str, Any] = {
        "delta": accuracy.delta,
        "low": accuracy.low,
        "high": accuracy.high,
        "p_value": accuracy.p_value,
        "confidence_delta": confidence.delta,
        "confidence_low": confidence.low,
        "confidence_high": confidence.high,
        "rac": summary.rac,
        "rcc": summary.rcc,
    }
    for name, change in row.relative.items():
        values |= {f"{name}_low": change.low, f"{name}_high": change.high}
    if (flips := summary.mcnemar) is not None:
        values |= {"n_lost": flips.n_lost, "n_gained": flips.n_gained, "mcnemar_p": flips.p_value}
    if (corrected := summary.corrected) is not None:
        values |= {
            "p_holm": corrected.p_value,
            "n_tests": corrected.n_tests,
            "mcnemar_p_holm": corrected.mcnemar_p_value,
        }
    if (controls := summary.controls) is not None and controls.n_controls:
        values |= {
            "controls_outdone": summary.n_beyond,
            "n_controls": controls.n_controls,
            "n_as_extreme": controls.n_as_extreme,
            "control_p": controls.p_value,
        }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def in_order(
    frame: pd.DataFrame, group_by: str, sort_by: str | None = None, ascending: bool = False
) -> pd.DataFrame:
    """The rows in order; what is missing comes last.

    Args:
        frame: of `ranked`.
        group_by: one of `GROUPS`; its rows stand together.
        sort_by: one of `COLUMNS`, for another order within each group.
        ascending: whether the smallest, or first by alphabet, comes first.

    Raises:
        UsageError: no such column.
    """
    if sort_by is not None and sort_by not in COLUMNS:
        raise UsageError(
            f"there is no column {sort_by!r:.100}",
            expected=", ".join(COLUMNS),
            remedy="check --sort_by",
        )
    keys = frame.assign(
        _model=frame["model"].map(last_part),
        _condition=frame["condition"].map(_ORDER.index),
        _letters=frame["set"].str.len(),  # z before aa
    )
    lead = ["_model", "model_hash"] if group_by == "model" else [group_by]
    usual = ["task", "_condition", "_letters", "set", "top_k", "rank", "_model", "method", "seeds",
             "run"]  # fmt: skip
    keys = keys.sort_values([*lead, *usual], kind="stable", na_position="last")
    if sort_by is not None:
        keys = keys.sort_values(sort_by, ascending=ascending, kind="stable", na_position="last")
        keys = keys.sort_values(lead, kind="stable")
    return frame.loc[keys.index]


# Which runs and rows ----------------------------------------------------------------------------

# flag -> what of a run its patterns may fit.
_OF_RUNS: Mapping[str, Callable[[ComparedRun], tuple[str, ...]]] = {
    "models": lambda run: (last_part(run.facts.model), run.facts.model),
    "tasks": lambda run: (run.facts.task,),
    "methods": lambda run: (run.facts.method,),
}
FILTERS = (*_OF_RUNS, "conditions")


def wanted(runs: Sequence[ComparedRun], patterns: Mapping[str, Sequence[str]]) -> list[ComparedRun]:
    """The runs that fit, with the rows that do.

    Args:
        runs: of any models, tasks and methods.
        patterns: as of file names, by flag (`FILTERS`).

    Raises:
        UsageError: nothing fits a pattern, or no run fits all flags together.
    """
    conditions = patterns.get("conditions", ())
    for flag, names_of in _OF_RUNS.items():
        _require_use(flag, patterns.get(flag, ()), [names_of(run) for run in runs])
    _require_use("conditions", conditions, [names_of_row(row) for run in runs for row in run.rows])
    fitting = [
        dataclasses.replace(
            run, rows=tuple(r for r in run.rows if fits(conditions, names_of_row(r)))
        )
        for run in runs
        if all(fits(patterns.get(flag, ()), names_of(run)) for flag, names_of in _OF_RUNS.items())
    ]
    if not fitting:
        raise UsageError(
            "no run fits --models, --tasks and --methods together",
            expected="patterns that leave one",
            remedy="leave one of the flags away",
        )
    return fitting


def names_of_row(row: Row) -> tuple[str, str]:
    """What patterns of `--conditions` may fit."""
    return row.condition, row.summary.name


def fits(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether one of the names fits one of the patterns; without any, all do."""
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _require_use(flag: str, patterns: Sequence[str], names: Sequence[tuple[str, ...]]) -> None:
    for pattern in patterns:
        if not any(fits([pattern], alternatives) for alternatives in names):
            first = sorted({alternatives[0] for alternatives in names})
            more = "; points need --points" if flag == "conditions" else ""
            raise UsageError(
                f"no run has {flag} that fit {pattern!r:.100}",
                expected=f"patterns for {', '.join(first) or 'nothing, as there are none'}",
                remedy=f"check --{flag}{more}",
            )
