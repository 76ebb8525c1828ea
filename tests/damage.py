"""Spoiled copies of a run's files, and what a folder holds, to see that nothing of it is lost."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save

from neuronllm_eval.runs.directory import RunDirectory

Damage = Callable[[RunDirectory], object]


def contents(path: Path) -> dict[str, str]:
    """What lies below a folder: a digest of each file, and the name of everything else."""
    return {
        each.relative_to(path).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest()
        if each.is_file()
        else "no file"
        for each in sorted(path.rglob("*"))
    }


def as_bytes(name: str, content: bytes | str) -> Damage:
    """Other bytes in a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda run: (run.path / name).write_bytes(data)


def replaced(name: str, old: str, new: str) -> Damage:
    """Another text at one place of a file, which must have it."""

    def damage(run: RunDirectory) -> None:
        text = (run.path / name).read_text()
        assert old in text
        (run.path / name).write_text(text.replace(old, new, 1))

    return damage


def gone(name: str) -> Damage:
    return lambda run: (run.path / name).unlink()


def folder(name: str) -> Damage:
    """A folder where the file was."""

    def damage(run: RunDirectory) -> None:
        (run.path / name).unlink()
        (run.path / name).mkdir()

    return damage


def sparse(name: str, size: int) -> Damage:
    """A file of so many bytes, none of which take room on the disk."""

    def damage(run: RunDirectory) -> None:
        with (run.path / name).open("ab") as file:
            file.truncate(size)

    return damage


def as_json(name: str, change: Callable[[Any], object]) -> Damage:
    """A JSON file whose values were changed in place."""

    def damage(run: RunDirectory) -> None:
        values = json.loads((run.path / name).read_text())
        change(values)
        (run.path / name).write_text(json.dumps(values))

    return damage


def as_yaml(change: Callable[[Any], object]) -> Damage:
    """run.yaml, whose values were changed in place."""

    def damage(run: RunDirectory) -> None:
        values = yaml.safe_load(run.settings.read_text())
        change(values)
        run.settings.write_text(yaml.safe_dump(values))

    return damage


def settings(**changes: Any) -> Damage:
    """run.yaml with other settings."""
    return as_yaml(lambda values: values["settings"].update(changes))


def lines(change: Callable[[list[Any]], object]) -> Damage:
    """conditions.jsonl, whose lines were changed in place."""

    def damage(run: RunDirectory) -> None:
        values = [json.loads(line) for line in run.conditions.read_text().splitlines()]
        change(values)
        run.conditions.write_text("".join(json.dumps(line) + "\n" for line in values))

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    """scores.safetensors, whose arrays were changed in place."""

    def damage(run: RunDirectory) -> None:
        arrays = load_file(run.scores)
        with safe_open(run.scores, "numpy") as file:
            metadata = file.metadata()
        change(arrays)
        run.scores.write_bytes(save(arrays, metadata))

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """scores.safetensors, whose header claims something else."""
    return lambda run: run.scores.write_bytes(with_header(run.scores.read_bytes(), change))


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with another header."""
    length = int.from_bytes(content[:8], "little")
    values = json.loads(content[8 : 8 + length])
    change(values)
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def laughs(depth: int = 9) -> str:
    """YAML of a few lines that stands for 8 ** depth values."""
    names = [f"n{level}" for level in range(depth + 1)]
    first = f"{names[0]}: &{names[0]} [{', '.join(['ha'] * 8)}]\n"
    rest = (
        f"{name}: &{name} [{', '.join([f'*{below}'] * 8)}]\n"
        for below, name in itertools.pairwise(names)
    )
    return first + "".join(rest)
