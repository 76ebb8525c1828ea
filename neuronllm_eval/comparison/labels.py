"""What people read instead of paths, digests and JSON: the shortest names that differ. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from neuronllm_eval.formats.markdown import one_line


def last_part(model: str) -> str:
    """The last part of a model's name or path."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def model_labels(models: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What to call each model, by the digest of its weights: as short as tells them apart.

    Args:
        models: (name, digest, dtype), any number of times.
    """
    by_digest = {digest: (name, dtype) for name, digest, dtype in sorted(models, reverse=True)}
    forms: tuple[Callable[[str, str, str], str], ...] = (
        lambda name, _digest, _dtype: last_part(name),
        lambda name, _digest, _dtype: name,
        lambda name, _digest, dtype: f"{last_part(name)} ({dtype})",
        lambda name, _digest, dtype: f"{name} ({dtype})",
        lambda name, digest, dtype: f"{name} ({dtype}, {digest})",
    )
    for form in forms:
        labels = {key: one_line(form(name, key, dtype)) for key, (name, dtype) in by_digest.items()}
        if len(set(labels.values())) == len(labels):
            return labels
    return {digest: digest for digest in by_digest}


def method_labels(methods: Sequence[tuple[str, ...]]) -> list[str]:
    """Each method, with the settings in which it differs within its group.

    Args:
        methods: of a group such as a model and task (any number of names), the method, and its
            settings as JSON.
    """
    values: dict[tuple[tuple[str, ...], str], set[str]] = {}
    settings = [
        {name: str(value) for name, value in json.loads(text).items()} for *_, text in methods
    ]
    for (*group, _), of_method in zip(methods, settings, strict=True):
        for name, value in of_method.items():
            values.setdefault((tuple(group), name), set()).add(value)
    labels = []
    for (*group, _), of_method in zip(methods, settings, strict=True):
        varying = [
            f"{name}={value}"
            for name, value in of_method.items()
            if len(values[tuple(group), name]) > 1
        ]
        labels.append(one_line(" ".join([group[-1], *varying])))
    return labels


def directories(paths: Sequence[str]) -> tuple[dict[str, str], str]:
    """What to call directories, and the one they are relative to; empty where there is none."""
    absolute = {path: os.path.abspath(path) for path in paths}
    if len(set(absolute.values())) < 2:
        return {path: one_line(path) for path in absolute}, ""
    above = os.path.commonpath(absolute.values())
    return {path: one_line(os.path.relpath(absolute[path], above)) for path in absolute}, above
