"""What people read instead of paths, digests and JSON: the shortest names that differ. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

import pandas as pd

from neuronllm_eval.leaderboard import last_part
from neuronllm_eval.leaderboard_runs import BoardRun
from neuronllm_eval.markdown_text import one_line


def model_labels(models: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What to call each model, by the digest of its weights: as short as tells them apart.

    Args:
        models: (name, digest, dtype), any number of times.
    """
    known = {digest: (name, dtype) for name, digest, dtype in sorted(models, reverse=True)}
    forms: tuple[Callable[[str, str, str], str], ...] = (
        lambda name, _digest, _dtype: last_part(name),
        lambda name, _digest, _dtype: name,
        lambda name, _digest, dtype: f"{last_part(name)} ({dtype})",
        lambda name, _digest, dtype: f"{name} ({dtype})",
        lambda name, digest, dtype: f"{name} ({dtype}, {digest})",
    )
    for form in forms:
        found = {key: one_line(form(name, key, dtype)) for key, (name, dtype) in known.items()}
        if len(set(found.values())) == len(found):
            return found
    return {key: key for key in known}


def method_labels(frame: pd.DataFrame) -> list[str]:
    """Of each row the method, with the settings in which its runs of a model and task differ."""
    settings = [json.loads(text) for text in frame["method_settings"]]
    keys = list(zip(frame["model_hash"], frame["task"], frame["method"], strict=True))
    values: dict[tuple[tuple[str, str, str], str], set[str]] = {}
    for key, own in zip(keys, settings, strict=True):
        for name, value in own.items():
            values.setdefault((key, name), set()).add(str(value))
    found = []
    for key, own in zip(keys, settings, strict=True):
        varying = [f"{name}={own[name]}" for name in own if len(values[key, name]) > 1]
        found.append(one_line(f"{key[2]} ({', '.join(varying)})" if varying else key[2]))
    return found


def directories(paths: Sequence[str]) -> tuple[dict[str, str], str]:
    """What to call directories, and below which one that is; empty where it is none.

    Args:
        paths: any number of times.
    """
    known = {path: os.path.abspath(path) for path in paths}
    if len(set(known.values())) < 2:
        return {path: one_line(path) for path in known}, ""
    above = os.path.commonpath(known.values())
    return {path: one_line(os.path.relpath(known[path], above)) for path in known}, above


def run_labels(runs: Sequence[BoardRun]) -> dict[str, str]:
    """By directory, what to call a run among those of its model."""
    below, _ = directories([run.path for run in runs])
    forms: tuple[Callable[[BoardRun], str], ...] = (
        lambda run: f"{run.task} {run.method}",
        lambda run: f"{run.task} {run.method} seed {run.seed}",
        lambda run: below[run.path],
    )
    for form in forms:
        named = {run.path: one_line(form(run)) for run in runs}
        if len({(run.model_hash, named[run.path]) for run in runs}) == len(runs):
            break
    return named
