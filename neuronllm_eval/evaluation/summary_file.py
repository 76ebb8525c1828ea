"""`summary.json`, read back as strictly as it was written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.formats.json_files import exact_keys, occurs_twice, read_json
from neuronllm_eval.interventions.conditions import CONDITIONS

_AGAIN = "run `neuronllm-eval report` on the run"
_KEYS = {"task", "split", "docs", "positions", "split_half", "conditions"}
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class StoredSummary:
    """What `summary.json` says, but for the docs and the stability, which other files have.

    Attributes:
        task: name of the harness task.
        split: the split that judged.
        applied_at: positions at which conditions were applied.
        conditions: one per condition and point.
        metrics: by name of condition or point, the harness's metrics; NaN where they are none.
    """

    task: str
    split: str
    applied_at: str
    conditions: tuple[ConditionSummary, ...]
    metrics: Mapping[str, Mapping[str, float]]

    @classmethod
    def load(cls, path: Path) -> StoredSummary:
        """Read a `summary.json`.

        Raises:
            ArtifactError: it is missing or damaged, or holds what no report writes.
        """
        found = exact_keys(read_json(path, _AGAIN), _KEYS, path, "the file", _AGAIN)
        lines = found["conditions"]
        if not isinstance(lines, list) or not lines:
            raise _refusal(path, f"conditions is {lines!r:.100}")
        names = {"chosen_at", "applied_at"}
        where = exact_keys(found["positions"], names, path, "positions", _AGAIN)
        for name, text in (*where.items(), ("task", found["task"]), ("split", found["split"])):
            if not isinstance(text, str):
                raise _refusal(path, f"{name} is {text!r:.100}")
        conditions, metrics = [], {}
        for line in lines:
            rest = dict(line) if isinstance(line, dict) else {}
            own = _numbers(rest.pop("metrics", None), path)
            rest.setdefault("edited", None)  # earlier versions did not say
            summary = _made(ConditionSummary, rest, path)
            conditions.append(summary)
            metrics[summary.name] = own
            if summary.condition not in CONDITIONS:
                raise _refusal(path, f"condition is {summary.condition!r:.100}")
        if twice := occurs_twice(each.name for each in conditions):
            raise _refusal(path, f"{twice} is there twice")
        return cls(found["task"], found["split"], where["applied_at"], tuple(conditions), metrics)


def _made(cls: type[_Made], values: Any, path: Path) -> _Made:
    """A frozen dataclass of what `dataclasses.asdict` made of one; null stands for NaN."""
    kinds = get_type_hints(cls)
    given = exact_keys(values, set(kinds), path, cls.__name__, _AGAIN)
    return cls(**{name: _value(kinds[name], given[name], name, path) for name in kinds})


def _value(kind: Any, value: Any, name: str, path: Path) -> Any:
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    (kind,) = (each for each in kinds if each is not type(None))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _made(kind, value, path)
    if kind is float:
        return _number(value, name, path)
    if type(value) is not kind:
        raise _refusal(path, f"{name} is {value!r:.100}")
    return value


def _number(value: Any, name: str, path: Path) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not abs(value) < 1e308:
        raise _refusal(path, f"{name} is {value!r:.100}")
    return float(value)


def _numbers(values: Any, path: Path) -> dict[str, float]:
    if not isinstance(values, dict):
        raise _refusal(path, f"metrics is {values!r:.100}")
    return {name: _number(value, f"metric {name}", path) for name, value in values.items()}


def _refusal(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what:.300}",
        expected="a file as `neuronllm-eval report` writes it",
        remedy=_AGAIN,
    )
