"""Rows in words: what models, methods and runs are called, and every figure as text. Pure.

Figures are rounded as in `report.md`. Models, methods and directories have the shortest names that
tell them apart, not paths, digests and JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.interventions.conditions import UNMASKED, factor_text
from neuronllm_eval.reporting.condition_tables import ONE_ANSWER
from neuronllm_eval.reporting.wording import cost_text, p_text

# Columns of `--columns` and their heads, in order.
HEADS = {
    "rank": "rank",
    "set": "set",
    "model": "model",
    "task": "task",
    "method": "method",
    "seed": "seed",
    "n_runs": "runs",
    "run": "run",
    "condition": "condition",
    "top_k": "K",
    "found": "good/bad",
    "scale": "factor",
    "n_questions": "questions",
    "chance": "chance %",
    "accuracy": "accuracy %",
    "note": "edited",
    "delta": "delta (points)",
    "interval": "95% interval",
    "p_holm": "p (Holm)",
    "mcnemar": "McNemar p (Holm)",
    "flips": "lost, gained",
    "controls": "controls outdone",
    "control_rank": "rank among controls, p",
    "rac": "RAC %",
    "rcc": "RCC %",
    "consistent": "consistent %",
    "consistent_delta": "consistent change",
    "position_bias": "position bias %",
    "position_bias_delta": "position bias change",
    "majority": "majority %",
    "top_answer": "same answer %",
    "collapsed": "one answer",
    "calibrated": "calibrated %",
    "calibrated_change": "calibrated change",
    "calibrated_p_holm": "calibrated p (Holm)",
    "balanced": "balanced %",
    "balanced_change": "balanced change",
    "balanced_p_holm": "balanced p (Holm)",
    "option_mass": "option mass",
    "option_mass_relative": "option mass, % of unmasked",
    "others_delta": "other tasks (points)",
    "kl": "KL (nats), controls",
    "perplexity": "perplexity, controls",
}


def _level(value: float) -> str:
    return f"{value:.1f}"


def _points(value: float) -> str:
    return f"{value:+.1f}"


_LEVELS = (
    "chance", "accuracy", "consistent", "position_bias", "majority", "top_answer", "calibrated",
    "balanced",
)  # fmt: skip
_FORMATS: dict[str, Callable[..., str]] = {
    "task": one_line,
    "scale": factor_text,
    "collapsed": lambda value: "yes" if value else "",
    **dict.fromkeys(("p_holm", "calibrated_p_holm", "balanced_p_holm"), p_text),
    **dict.fromkeys(("option_mass", "option_mass_relative"), "{:.3g}".format),
    **dict.fromkeys(_LEVELS, _level),
    **dict.fromkeys(("delta", "consistent_delta", "position_bias_delta", "others_delta"), _points),
}


def in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """All columns of `HEADS` as text; empty where there is nothing.

    Args:
        frame: of `ranking.ranked`.
    """
    models = model_labels(list(frame[["model", "model_hash", "dtype"]].itertuples(index=False)))
    methods = frame[["model_hash", "task", "method", "method_settings"]].itertuples(index=False)
    directory, _ = directories(list(frame["run"]))
    several = frame["n_ranked"].where(frame["n_ranked"] > 1)
    words = {
        "rank": _filled("{} of {}", frame["rank"], several),
        "model": [models[digest] for digest in frame["model_hash"]],
        "method": method_labels(list(methods)),
        "seed": list(frame["seeds"]),
        "run": [directory[path] for path in frame["run"]],
        "found": list(frame["n_neurons"].where(frame["n_neurons"] != _all_neurons(frame), "")),
        "interval": _filled("{:+.1f} to {:+.1f}", frame["low"], frame["high"]),
        "mcnemar": _cells(frame["mcnemar_p_holm"], p_text),
        "flips": _filled("{}, {}", frame["n_lost"], frame["n_gained"]),
        "controls": _filled("{} of {}", frame["controls_outdone"], frame["n_controls"]),
        "control_rank": _filled(
            "{} of {}, {}",
            frame["n_as_extreme"] + 1,
            frame["n_controls"] + 1,
            frame["control_p"].map(p_text, na_action="ignore"),
        ),
        **{
            f"{name}_change": _with_interval(frame, f"{name}_delta", f"{name}_low", f"{name}_high")
            for name in ("calibrated", "balanced")
        },
        "rac": _with_interval(frame, "rac", "rac_low", "rac_high"),
        "rcc": _with_interval(frame, "rcc", "rcc_low", "rcc_high"),
        "kl": _beside_controls(frame, "kl"),
        "perplexity": _beside_controls(frame, "perplexity"),
    }
    for name in HEADS:
        if name not in words:
            words[name] = _cells(frame[name], _FORMATS.get(name, str))
    return pd.DataFrame(words, index=frame.index, columns=list(HEADS), dtype=object)


def side_by_side_cells(frame: pd.DataFrame, words: pd.DataFrame) -> pd.DataFrame:
    """The cells of tables that have a column for each condition; a note where nothing was edited.

    Returns:
        Text columns `change`, `calibrated`, `edited`, `tests` and `control_rank`.
    """
    is_unmasked = frame["condition"] == UNMASKED
    change = pd.Series(_with_interval(frame, "delta", "low", "high"), frame.index)
    tests = _filled("{}, {} ({})", frame["p_holm"].map(p_text, na_action="ignore"),
                    words["mcnemar"].where(words["mcnemar"] != ""), words["flips"])  # fmt: skip
    cells = {
        "change": change.where(~is_unmasked, words["accuracy"]),
        "calibrated": words["calibrated_change"].where(~is_unmasked, words["calibrated"]),
        "edited": frame["n_edited"].fillna(""),
        "tests": pd.Series(tests, frame.index),
        "control_rank": words["control_rank"],
    }
    has_collapsed = frame["collapsed"].fillna(False)
    return pd.DataFrame(
        {
            name: [
                _with_notes(text, note, ONE_ANSWER if collapsed and name == "change" else "")
                for text, note, collapsed in zip(column, words["note"], has_collapsed, strict=True)
            ]
            for name, column in cells.items()
        },
        index=frame.index,
    )


def _with_notes(text: str, *notes: str) -> str:
    """A cell with its notes in brackets, or these alone where it has no figure."""
    note = ", ".join(filter(None, notes))
    return f"{text} ({note})" if note and text not in ("", "0") else note or text


def _cells(values: pd.Series, text: Callable[..., str]) -> list[str]:
    return ["" if pd.isna(value) else text(value) for value in values]


def _filled(template: str, *columns: pd.Series) -> list[str]:
    """The template with each row's values; empty where one is missing."""
    return [
        "" if any(map(pd.isna, values)) else template.format(*values)
        for values in zip(*columns, strict=True)
    ]


def _all_neurons(frame: pd.DataFrame) -> pd.Series:
    return frame["top_k"].map(lambda k: f"{k}/{k}", na_action="ignore")


def _with_interval(frame: pd.DataFrame, name: str, low: str, high: str) -> list[str]:
    """Points with their interval in brackets, where there is one."""
    bounds = _filled(" [{:+.1f}, {:+.1f}]", frame[low], frame[high])
    return [f"{v}{b}" for v, b in zip(_cells(frame[name], _points), bounds, strict=True)]


def _beside_controls(frame: pd.DataFrame, name: str) -> list[str]:
    """A cost, with the mean of the random controls where there are any."""
    controls = _filled(", {}", frame[f"{name}_controls"].map(cost_text, na_action="ignore"))
    return [f"{v}{c}" for v, c in zip(_cells(frame[name], cost_text), controls, strict=True)]


# Names ------------------------------------------------------------------------------------------


def last_part(model: str) -> str:
    """The last part of a model's name or path."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def model_labels(models: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What to call each model, by the digest of its weights: as short as tells them apart.

    Args:
        models: (name, digest, dtype), any number of times.
    """
    by_digest = {digest: (name, dtype) for name, digest, dtype in sorted(models, reverse=True)}
    forms = [
        [last_part(name), name, f"{last_part(name)} ({dtype})", f"{name} ({dtype})",
         f"{name} ({dtype}, {digest})", digest]
        for digest, (name, dtype) in by_digest.items()
    ]  # fmt: skip
    return dict(zip(by_digest, shortest_labels(forms), strict=True))


def shortest_labels(forms: Sequence[Sequence[str]], groups: Sequence[str] = ()) -> list[str]:
    """A label for each thing, all in the first form that tells them apart; else in the last.

    Args:
        forms: [things][forms], the shortest first.
        groups: [things] within which the labels must differ; one group if not given.
    """
    labels: list[str] = []
    for number in range(len(forms[0]) if forms else 0):
        labels = [one_line(form[number]) for form in forms]
        if len(set(zip(groups or labels, labels, strict=True))) == len(labels):
            break
    return labels


def method_labels(methods: Sequence[tuple[str, ...]]) -> list[str]:
    """Each method, with the settings in which it differs within its group.

    Args:
        methods: of a group such as a model and task (any number of names), the method, and its
            settings as JSON.
    """
    settings: list[dict[str, Any]] = [json.loads(text) for *_, text in methods]
    groups = [tuple(names) for *names, _ in methods]
    values: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for group, of_method in zip(groups, settings, strict=True):
        for name, value in of_method.items():
            values.setdefault((group, name), set()).add(str(value))
    labels = []
    for group, of_method in zip(groups, settings, strict=True):
        varying = [f"{k}={v}" for k, v in of_method.items() if len(values[group, k]) > 1]
        labels.append(one_line(" ".join([group[-1], *varying])))
    return labels


def directories(paths: Sequence[str]) -> tuple[dict[str, str], str]:
    """What to call directories, and the one they are relative to; empty where there is none."""
    absolute = {path: os.path.abspath(path) for path in paths}
    if len(set(absolute.values())) < 2:
        return {path: one_line(path) for path in absolute}, ""
    above = os.path.commonpath(absolute.values())
    return {path: one_line(os.path.relpath(absolute[path], above)) for path in absolute}, above
