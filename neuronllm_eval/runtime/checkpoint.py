"""What the ranks of a stage have finished, on disk: nothing lost, nothing counted twice.

1. Each rank keeps its own part: its finished units, their records and its sums. Records are lines
   of a file that only grows. A generation of the part's state says which units are finished, how
   much of the records file belongs to them, and holds the sums: all in one file, written under
   a temporary name, flushed to the disk and renamed.
2. The two latest generations are kept. One that is damaged (a digest covers every byte, that of the
   records too) is passed over for the one before, with a warning.
3. Parts are merged into one, the base, at the start and at the end of a stage. Sums are int64, so
   the order does not matter. A part whose units are in the base already was merged before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import require_size

logger = logging.getLogger(__name__)
BASE = "base"
_STATES = ("0.safetensors", "1.safetensors")  # generations take turns
_PART_NAME = re.compile(r"(?P<name>rank-\d+)\.(0\.safetensors|1\.safetensors|jsonl)")
_CHUNK = 1 << 20  # bytes
_MOST_BYTES = 1 << 34  # of the sums of all neurons


@dataclass(frozen=True)
class Tally:
    """Sums over finished units, which add up in any order.

    Attributes:
        arrays: int64, of one shape per name.
        counts: whole numbers.
    """

    arrays: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        arrays = {**self.arrays}
        for name, array in other.arrays.items():
            arrays[name] = arrays[name] + array if name in arrays else array
        counts = {**self.counts}
        for name, count in other.counts.items():
            counts[name] = counts.get(name, 0) + count
        return Tally(arrays, counts)


def rank_part(rank: int) -> str:
    """The name of a rank's part."""
    return f"rank-{rank}"


class Part:
    """A part of a stage's work, as far as it is finished.

    Args:
        folder: of the stage's checkpoint.
        name: `base`, or that of a rank.
        fingerprint: of the stage's work.
    """

    def __init__(self, folder: Path, name: str, fingerprint: str) -> None:
        self.folder, self.name, self.fingerprint = folder, name, fingerprint
        self.done: list[int] = []
        self.tally = Tally()
        self.lines = folder / f"{name}.jsonl"
        self._sequence = 0
        self._n_bytes = 0
        self._digest = hashlib.sha256()
        self._n_saved = 0

    # Writing ------------------------------------------------------------------------------------

    def add(self, unit: int, records: Sequence[dict[str, Any]]) -> None:
        """Note a finished unit and its records; kept from the next `save` on."""
        line = json.dumps({"unit": unit, "records": list(records)}, allow_nan=False)
        self._append(line.encode() + b"\n")
        self.done.append(unit)

    def _append(self, content: bytes) -> None:
        mode = "r+b" if self.lines.exists() else "wb"
        with _writing(self.lines), open(self.lines, mode) as file:
            file.truncate(self._n_bytes)  # what an interruption left beyond goes
            file.seek(self._n_bytes)
            file.write(content)
        self._n_bytes += len(content)
        self._digest.update(content)

    def save(self, tally: Tally) -> None:
        """Write a generation: the units so far, and their sums.

        Raises:
            ArtifactError: the disk is full or read-only; the generations before are untouched.
        """
        if self._sequence and len(self.done) == self._n_saved:
            return
        self.tally = tally
        self._sequence += 1
        state = {
            "fingerprint": self.fingerprint,
            "sequence": self._sequence,
            "done": self.done,
            "counts": tally.counts,
            "n_bytes": self._n_bytes,
            "records": self._digest.hexdigest(),
        }
        text = json.dumps(state, sort_keys=True)
        metadata = {"state": text, "sha256": _state_digest(text, tally.arrays)}
        path = self.folder / f"{self.name}.{_STATES[self._sequence % 2]}"
        with _writing(path):
            if self.lines.exists():
                _flush(self.lines)
            write_durably(path, save(tally.arrays, metadata))
        self._n_saved = len(self.done)

    def merge(self, other: Part) -> bool:
        """Take over another part's units; False if all of them are here already.

        Raises:
            ArtifactError: some are here and others are not.
        """
        twice = set(self.done) & set(other.done)
        if twice == set(other.done):
            return False
        if twice:
            raise ArtifactError(
                f"{self.folder}: the parts {self.name} and {other.name} both hold units "
                f"{sorted(twice)[:5]}",
                expected="every unit in one part",
                remedy="pass --overwrite to start over",
            )
        with open(other.lines, "rb") as file:
            for chunk in _chunks(file, other._n_bytes):
                self._append(chunk)
        self.done += other.done
        self.save(self.tally + other.tally)
        return True

    def remove(self) -> None:
        """Remove the part's files."""
        for ending in (*_STATES, "jsonl"):
            (self.folder / f"{self.name}.{ending}").unlink(missing_ok=True)

    # Reading ------------------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: Path, name: str, fingerprint: str) -> Part:
        """The newest intact generation of a part; an empty part if there is none.

        What is damaged is named in the log. Its questions are recomputed.
        """
        intact, damaged = [], []
        for ending in _STATES:
            path = folder / f"{name}.{ending}"
            if not path.exists():
                continue
            try:
                intact.append(cls._read(path, folder, name, fingerprint))
            except ArtifactError as error:
                damaged.append(error.found)
        newest = max(intact, key=lambda part: part._sequence, default=None)
        if damaged:
            so = "the generation before is used" if newest else "its questions are recomputed"
            logger.warning("%s; %s", "; ".join(damaged), so)
        return newest or cls(folder, name, fingerprint)

    @classmethod
    def _read(cls, path: Path, folder: Path, name: str, fingerprint: str) -> Part:
        require_size(path, _MOST_BYTES, "pass --overwrite to start over")
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            text = metadata["state"]
            if metadata["sha256"] != _state_digest(text, arrays):
                raise ValueError("its digest is not that of its content")
            state = json.loads(text)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"the checkpoint {path} is damaged: {error}") from error
        if state["fingerprint"] != fingerprint:
            raise ArtifactError(f"the checkpoint {path} is of other work")
        part = cls(folder, name, fingerprint)
        part.done, part.tally = list(state["done"]), Tally(arrays, state["counts"])
        part._sequence, part._n_bytes = state["sequence"], state["n_bytes"]
        part._n_saved = len(part.done)
        try:
            if part._n_bytes:
                with open(part.lines, "rb") as file:
                    for chunk in _chunks(file, part._n_bytes):
                        part._digest.update(chunk)
        except OSError as error:
            raise ArtifactError(f"the checkpoint {part.lines} is damaged: {error}") from error
        if part._digest.hexdigest() != state["records"]:
            raise ArtifactError(f"the checkpoint {part.lines} is damaged: not what was written")
        return part

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished units, in the units' order."""
        starts = {}
        if not self.done:
            return
        with open(self.lines, "rb") as file:
            start = 0
            while start < self._n_bytes:
                line = file.readline()
                starts[int(json.loads(line)["unit"])] = start
                start += len(line)
            for unit in sorted(starts):
                file.seek(starts[unit])
                yield from json.loads(file.readline())["records"]


def merge_parts(folder: Path, fingerprint: str) -> Part:
    """The base, with what every rank's part adds to it; the parts are removed.

    Raises:
        ArtifactError: two parts hold the same units, or the disk cannot be written.
    """
    base = Part.read(folder, BASE, fingerprint)
    found = (_PART_NAME.fullmatch(path.name) for path in folder.iterdir())
    for name in sorted({match["name"] for match in found if match}):
        part = Part.read(folder, name, fingerprint)
        base.merge(part)
        part.remove()
    return base


# Files ------------------------------------------------------------------------------------------


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there, even if the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # a link there would be followed
        temporary.write_bytes(content)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write what it holds of a file, or of a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"the checkpoint {path} cannot be written: {error.strerror or error}",
            expected="a disk with room, that can be written",
            remedy="make room, then repeat the command: it resumes from the checkpoint before",
        ) from error


def _chunks(file: Any, n_bytes: int) -> Iterator[bytes]:
    """The first bytes of an open file.

    Raises:
        OSError: it has fewer.
    """
    while n_bytes:
        chunk = file.read(min(_CHUNK, n_bytes))
        if not chunk:
            raise OSError(f"{n_bytes} bytes are missing at its end")
        n_bytes -= len(chunk)
        yield chunk


def _state_digest(text: str, arrays: dict[str, NDArray[Any]]) -> str:
    state = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"{name}{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
