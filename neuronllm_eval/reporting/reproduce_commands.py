"""The two commands that make a run again, from what its files say. Pure.

They depend on settings alone: not on how often a run was interrupted, nor on how many processes
worked on it, nor on which of several commands and configuration files it was made with;
access tokens among the model arguments are left out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import UNMASKED, ConditionName, Scales, factor_text
from neuronllm_eval.runs.directory import without_secrets
from neuronllm_eval.runs.settings import RunSettings

OUTPUT = "runs/again"
_MODEL_FLAGS = ("limit", "batch_size", "device", "engine")
# Names of a run's settings that are flags of the same name, with one value each.
_PLAIN = (
    "num_fewshot", "system_instruction", "description", "overlap", "seed", "selection_split",
    "on_bad_doc", "n_proxies", "orders", "letter_style", "n_options", "distractors", "method",
    "positions", "quadrature", "n_steps", "top_z", "top_k", "ambiguous", "attribution_dtype",
    *_MODEL_FLAGS,
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What a validation scored.

    Attributes:
        names: of conditions, points and random controls.
        top_k: good and bad neurons of the conditions that are no points.
        scales: their factors.
        positions: where they were applied.
        limit: questions; None for all.
        batch_size: prompts of a pass; None where it is not known.
    """

    names: tuple[str, ...]
    top_k: int
    scales: Scales
    positions: str
    limit: int | None
    batch_size: int | None = None


def identify_command(settings: RunSettings) -> str:
    """The command that finds the same neurons."""
    values = {name: getattr(settings, name) for name in _PLAIN}
    template: Any = settings.apply_chat_template
    flags = {
        "model_args": _pairs(without_secrets(settings.model_args)),
        "tasks": settings.task,
        "include_path": list(settings.include_path) or None,
        # An empty list is a flag without a value.
        "apply_chat_template": {True: [], False: None}.get(template, template),
        "metadata": json.dumps(settings.metadata, default=str) if settings.metadata else None,
        "method_args": _pairs(settings.method_args) or None,
        **values,
    }
    defaults = RunSettings(model_args={}, task="")
    left_out = {name for name in _PLAIN if values[name] == getattr(defaults, name)}
    known = {name: value for name, value in flags.items() if name not in left_out}
    return _command("neuronllm-eval identify", {**known, "output_path": OUTPUT})


def validate_command(settings: RunSettings, judged: Judged) -> str:
    """The command that judges them in the same way."""
    plan, counts = _plan(judged)
    scales, default = judged.scales, Scales()
    flags: dict[str, Any] = {
        "conditions": ",".join(plan.conditions),
        "n_random": plan.n_random,
        "seed": plan.seed or None,
        "top_k": ",".join(map(str, counts)),
        "scale": ",".join(map(factor_text, plan.sweep.scales)) or None,
        "suppress_scale": _unless(scales.suppress, default.suppress),
        "enhance_scale": _unless(scales.enhance, default.enhance),
        "positions": _unless(judged.positions, settings.positions),
        "limit": _unless(judged.limit, settings.limit),
        "batch_size": _unless(judged.batch_size, settings.batch_size),
    }
    return _command(f"neuronllm-eval validate {OUTPUT}", flags)


def _plan(judged: Judged) -> tuple[ConditionPlan, tuple[int, ...]]:
    """A plan that scores the same names, as a sweep where it is one, and its numbers of neurons."""
    parts = [ConditionName.parse(name) for name in judged.names]
    seeds = {each.seed for each in parts if each.seed is not None}
    controls: dict[str, Any] = {"n_random": len(seeds), "seed": min(seeds, default=0)}
    chosen = [each for each in parts if each.seed is None and each.condition != UNMASKED]
    whole = tuple(each.condition for each in chosen if each.top_k is None)
    counts = tuple(sorted({each.top_k for each in chosen if each.top_k} | {judged.top_k}))
    points = {each.scale for each in chosen if each.scale is not None}
    own = [{judged.scales.suppress}, {judged.scales.enhance}]
    for more in (set(), *own, own[0] | own[1]):  # the run's own factor may have been listed
        listed = sorted(points | more)
        if any(factor < 0 for factor in listed) or listed == [1]:
            continue
        sweep = Sweep(tuple(map(float, counts)), tuple(listed))
        points_of = sweep.points(whole, judged.scales, counts)
        plan = ConditionPlan(whole, scales=judged.scales, points=points_of, **controls)
        if plan.names == judged.names:
            return replace(plan, sweep=sweep), counts
    named = tuple(name for name in judged.names if name != UNMASKED)
    return ConditionPlan(named, n_random=0, scales=judged.scales), (judged.top_k,)


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value


def _pairs(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def _quoted(text: str) -> str:
    """A word for the shell; of one with line breaks and the like, in signs that can be seen."""
    if text.isprintable():
        return shlex.quote(text)
    seen = (sign if sign.isprintable() and sign not in "\\'" else _escape(sign) for sign in text)
    return f"$'{''.join(seen)}'"


def _escape(sign: str) -> str:
    return f"\\{sign}" if sign in "\\'" else f"\\U{ord(sign):08x}"


def _command(start: str, flags: Mapping[str, Any]) -> str:
    """A command over several lines; flags whose value is None are left out."""
    parts = [start]
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [factor_text(each) if isinstance(each, float) else str(each) for each in values]
        parts.append(" ".join([f"--{name}", *map(_quoted, texts)]))
    return " \\\n    ".join(parts)
