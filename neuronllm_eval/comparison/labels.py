"""What people read instead of paths, digests and JSON: the shortest names that differ. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Sequence

import pandas as pd

from neuronllm_eval.comparison.leaderboard import last_part
from neuronllm_eval.comparison.leaderboard_rows import BoardRun
from neuronllm_eval.comparison.method_runs import Key
from neuronllm_eval.formats.markdown import one_line


class Names:
    """Names of models, tasks and methods.

    Args:
        keys: of all runs that are named together.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.several_models = len({key.model for key in keys}) > 1
        self._alike = _differing((_short(key), key.model) for key in keys)
        self._splits = _differing((_task(key), key.split) for key in keys)
        self._settings = _varying(keys, lambda key: key.method, lambda key: key.settings)
        self._terms = _varying(keys, _task, lambda key: key.terms)

    def model(self, key: Key) -> str:
        """The end of a model's name, with the digest of its weights where another has it too."""
        name = _short(key)
        return f"{name} ({key.model[1].rsplit(':', 1)[-1][:8]})" if name in self._alike else name

    def task(self, key: Key) -> str:
        """A task, with its split where several judged."""
        return f"{key.task} ({key.split})" if _task(key) in self._splits else key.task

    def method(self, key: Key) -> str:
        """A method, with the settings and terms in which runs differ."""
        told = [pair for pair in key.settings if (key.method, pair[0]) in self._settings]
        told += [pair for pair in key.terms if (_task(key), pair[0]) in self._terms]
        return " ".join([key.method, *(f"{name}={value}" for name, value in told)])


def _short(key: Key) -> str:
    return key.model[0].rstrip("/").rsplit("/", 1)[-1]


def _task(key: Key) -> Hashable:
    return key.model, key.task


def _varying(
    keys: Sequence[Key],
    group: Callable[[Key], Hashable],
    named: Callable[[Key], tuple[tuple[str, str], ...]],
) -> set[Hashable]:
    """(group, name) of the names whose value differs within a group of keys."""
    return _differing(((group(key), name), value) for key in keys for name, value in named(key))


def _differing(pairs: Iterable[tuple[Hashable, Hashable]]) -> set[Hashable]:
    """The first of each pair that stands with several others."""
    found: dict[Hashable, set[Hashable]] = {}
    for first, second in pairs:
        found.setdefault(first, set()).add(second)
    return {first for first, others in found.items() if len(others) > 1}


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
