"""A stage's work as fixed units of whole questions, and what decides its numbers.

1. The units follow from the questions and the batch size alone, in the questions' order. Neither
   the number of processes nor an interruption changes which prompts go through the model together.
2. The identity names everything that decides the numbers. Work of another identity is never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.formats.typed_files import artifact, load
from neuronllm_eval.prompts import Question

WORK_FILE = "work.json"
_REMEDY = "repeat the command as it was, or pass --overwrite to start over"


def units_of(questions: Sequence[Question], batch_size: int) -> tuple[range, ...]:
    """Ranges of questions that go together: about `batch_size` prompts, whole questions."""
    found, start = [], 0
    while start < len(questions):
        stop = end_of_batch(questions, start, len(questions), batch_size)
        found.append(range(start, stop))
        start = stop
    return tuple(found)


def end_of_batch(questions: Sequence[Question], start: int, end: int, size: int) -> int:
    """The end of a batch of whole questions, one at least, with about `size` prompts."""
    stop, n_prompts = start, 0
    while stop < end:
        n_prompts += len(questions[stop].prompts)
        if stop > start and n_prompts > size:
            break
        stop += 1
    return stop


def prompts_digest(questions: Iterable[Question]) -> str:
    """A digest of every question's id and of its prompts' token ids."""
    state = hashlib.sha256()
    for question in questions:
        prompts = [
            (prompt.doc_id, prompt.context, prompt.options, prompt.gold, prompt.n_shared)
            for prompt in question.prompts
        ]
        state.update(json.dumps([question.question_id, prompts]).encode())
    return state.hexdigest()[:16]


@artifact
@dataclass(frozen=True)
class WorkFile:
    """The content of `work.json`; see `Work`."""

    identity: dict[str, Any]
    batch_size: int
    fingerprint: str
    schema_version: Literal[1] = 1


@dataclass(frozen=True)
class Work:
    """What one stage has to do.

    Attributes:
        identity: everything that decides the numbers, by names a user knows; JSON values.
        units: ranges of the questions that go together, in order.
        batch_size: from which the units were made.
    """

    identity: dict[str, Any]
    units: tuple[range, ...]
    batch_size: int

    @classmethod
    def plan(cls, identity: dict[str, Any], questions: Sequence[Question], batch_size: int) -> Work:
        """The work on these questions; the digest of their prompts joins the identity."""
        identity = {**identity, "prompts": prompts_digest(questions)}
        as_read_back = json.loads(json.dumps(identity, default=str))
        return cls(as_read_back, units_of(questions, batch_size), batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the identity and the units."""
        bounds = [[unit.start, unit.stop] for unit in self.units]
        text = json.dumps([self.identity, bounds], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The content of `work.json`."""
        return dump_json(asdict(WorkFile(self.identity, self.batch_size, self.fingerprint)))

    def require_same(self, path: Path) -> None:
        """Refuse to resume the work of the `work.json` at `path` unless it is this.

        Raises:
            UsageError: it is other work; names what differs.
            ArtifactError: the file is damaged.
        """
        recorded = _read(path)
        if recorded.fingerprint == self.fingerprint:
            return
        there = recorded.identity
        names = sorted({*there, *self.identity})
        differing = {
            name: (self.identity.get(name), there.get(name))
            for name in names
            if self.identity.get(name) != there.get(name)
        }
        if recorded.batch_size != self.batch_size:
            differing.setdefault("batch_size", (self.batch_size, recorded.batch_size))
        raise other_settings(path.parent, differing)


def other_settings(path: Path, differing: dict[str, tuple[Any, Any]]) -> UsageError:
    """The refusal to mix settings.

    Args:
        path: where the earlier work lies.
        differing: per setting, (its value now, its value there).
    """
    listed = ", ".join(
        f"{name} {_difference(now, there)}" for name, (now, there) in differing.items()
    )
    return UsageError(
        f"{path} already holds a run of other settings: {listed or 'another version wrote it'}",
        expected="the settings it was started with",
        remedy=_REMEDY + ", or another --output_path",
    )


def _difference(now: Any, there: Any) -> str:
    """Two values; of two lists only what the other has not."""
    if isinstance(now, list) and isinstance(there, list):
        parts = [
            (_beyond(now, there), "has {} more than there"),
            (_beyond(there, now), "is missing {}"),
        ]
        if said := " and ".join(text.format(_short(each)) for each, text in parts if each):
            return said
    return f"is {_short(now)}, there {_short(there)}"


def _beyond(values: list[Any], others: list[Any]) -> list[Any]:
    known = set(map(repr, others))
    return [each for each in values if repr(each) not in known]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def recorded_batch_size(path: Path) -> int | None:
    """The batch size of the work that a `work.json` describes; None if there is none."""
    return _read(path).batch_size if path.is_file() else None


def recorded_identity(path: Path) -> dict[str, Any] | None:
    """The identity of that work; None if there is none."""
    return _read(path).identity if path.is_file() else None


def _read(path: Path) -> WorkFile:
    try:
        return load(WorkFile, path, "pass --overwrite to start over")
    except ArtifactError as error:
        raise ArtifactError(
            f"the unfinished run cannot be resumed: {error.found}",
            expected=error.expected,
            remedy=error.remedy,
        ) from error
