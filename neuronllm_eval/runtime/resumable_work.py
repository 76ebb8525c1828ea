"""One stage's work: units of whole questions, shared among the ranks and kept in checkpoints.

1. The units follow from the questions and the batch size alone, in the questions' order. Neither
   the number of processes nor an interruption changes which prompts go through the model together.
2. The identity names everything that decides the numbers. Work of another identity is never mixed.
3. The first rank merges what earlier launches left, and tells all ranks which units are done.
4. Of the others, in order, rank r of N takes number r, r + N, ...
5. Each rank saves its part from time to time, when it is asked to stop, and at its end.
6. When all have ended, the first merges the parts and checks that nothing is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import BaseFileLock, FileLock, Timeout

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.formats.typed_files import artifact, load
from neuronllm_eval.prompts import Question
from neuronllm_eval.runtime.checkpoint import Part, Tally, merge_parts, rank_part, write_durably
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.process import Interrupted, Stop, bar, deferred

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)
LOCK_FILE = ".lock"
WORK_FILE = "work.json"
# Files that a process was writing under another name than theirs: `.<file>.<process>...`.
_TEMPORARY = re.compile(r"\.(SHA256SUMS|.+\.(json|jsonl|safetensors|yaml|md|html))\.\d+(_.+)?")


# The work ---------------------------------------------------------------------------------------


def units_of(questions: Sequence[Question], batch_size: int) -> tuple[range, ...]:
    """Ranges of questions that go together: about `batch_size` prompts, whole questions."""
    units, start = [], 0
    while start < len(questions):
        stop = end_of_batch(questions, start, len(questions), batch_size)
        units.append(range(start, stop))
        start = stop
    return tuple(units)


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
    """A digest of every question's id, of its prompts' token ids and of their lengths, if any."""
    state = hashlib.sha256()
    for question in questions:
        prompts = [
            (
                *(prompt.doc_id, prompt.context, prompt.options, prompt.gold, prompt.n_shared),
                *((prompt.lengths,) if prompt.lengths else ()),
            )
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

    def require_same(self, recorded: WorkFile, folder: Path) -> None:
        """Refuse to resume recorded work unless it is this.

        Raises:
            UsageError: it is other work; names what differs.
        """
        if recorded.fingerprint == self.fingerprint:
            return
        there = recorded.identity
        differing = {
            name: (self.identity.get(name), there.get(name))
            for name in sorted({*there, *self.identity})
            if self.identity.get(name) != there.get(name)
        }
        if recorded.batch_size != self.batch_size:
            differing.setdefault("batch_size", (self.batch_size, recorded.batch_size))
        raise other_settings(folder, differing)


def recorded_work(folder: Path) -> WorkFile | None:
    """The work that a checkpoint folder is of; None if it holds none.

    Raises:
        ArtifactError: the file is damaged.
    """
    if not is_unfinished(folder):
        return None
    try:
        return load(WorkFile, folder / WORK_FILE, "pass --overwrite to start over")
    except ArtifactError as error:
        raise ArtifactError(
            f"the unfinished run cannot be resumed: {error.found}",
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def is_unfinished(folder: Path) -> bool:
    """Whether a stage's checkpoint folder holds work to resume."""
    return (folder / WORK_FILE).is_file()


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
        remedy="repeat the command as it was, or pass --overwrite to start over, or another "
        "--output_path",
    )


def _difference(now: Any, there: Any) -> str:
    """Two values; of two lists only what the other does not have."""
    if isinstance(now, list) and isinstance(there, list):
        more, missing = _beyond(now, there), _beyond(there, now)
        words = [f"has {_short(more)} more than there"] if more else []
        words += [f"is missing {_short(missing)}"] if missing else []
        if words:
            return " and ".join(words)
    return f"is {_short(now)}, there {_short(there)}"


def _beyond(values: list[Any], others: list[Any]) -> list[Any]:
    texts = set(map(repr, others))  # items may be unhashable
    return [value for value in values if repr(value) not in texts]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Locks and launches -----------------------------------------------------------------------------


class RunLocks:
    """One command at a time in a run directory: the run directories that this one works in.

    A lock belongs to the process that holds it: the system frees it when that one ends.
    """

    def __init__(self) -> None:
        self._held: dict[Path, BaseFileLock] = {}

    def take(self, paths: Iterable[Path]) -> None:
        """Lock run directories, which are made if need be; those that are ours already stay so.

        Files that a killed process had half written are removed.

        Raises:
            UsageError: another process works in one, or it cannot be written.
        """
        for path in paths:
            if path.resolve() not in self._held:
                self._held[path.resolve()] = self._locked(path.resolve())

    @staticmethod
    def _locked(path: Path) -> BaseFileLock:
        lock = FileLock(path / LOCK_FILE)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            for file in path.rglob(".*"):
                if _TEMPORARY.fullmatch(file.name):
                    file.unlink()
        except Timeout as error:
            raise UsageError(
                f"another run is at work in {path}",
                expected="one at a time",
                remedy="wait for it to end, or pass another --output_path",
            ) from error
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error}",
                expected="a directory that can be written",
                remedy="pass another --output_path",
            ) from error
        return lock

    def release(self) -> None:
        """Give all of them back."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()


@dataclass(frozen=True)
class Launch:
    """How a command is carried out; none of it changes a number.

    Attributes:
        ranks: the processes.
        checkpoint_every: seconds between checkpoints.
        overwrite: whether runs that are there are replaced.
        keep: whether a finished stage of the same settings is kept rather than recomputed.
        locks: of the run directories, which the first rank holds.
        command: the command line, for `commands.jsonl`.
        announce: receives beforehand what a long stage will take; None to measure nothing.
    """

    ranks: Ranks = field(default_factory=Ranks)
    checkpoint_every: float = 60.0
    overwrite: bool = False
    keep: bool = False
    locks: RunLocks = field(default_factory=RunLocks)
    command: tuple[str, ...] = ()
    announce: Callable[[str], object] | None = None

    def resumes(self, plan: Work, folder: Path) -> bool:
        """Whether the checkpoint in a folder is of this work, and is to be completed.

        Raises:
            UsageError: it is of other work, which is not to be replaced.
        """
        recorded = None if self.overwrite else recorded_work(folder)
        if recorded is not None:
            plan.require_same(recorded, folder)
        return recorded is not None

    def recorded_batch_size(self, folder: Path) -> int | None:
        """The batch size of the work to resume in a folder; None if there is none."""

        def read() -> int | None:
            recorded = None if self.overwrite else recorded_work(folder)
            return None if recorded is None else recorded.batch_size

        return self.ranks.on_first(read)


# Sharing it -------------------------------------------------------------------------------------


class SharedWork:
    """A stage's work, some of it done.

        with work.units("identify a_task") as units:
            for unit in units:  # one of this rank's ranges of questions
                work.record(...)
        finished = work.finish()

    Args:
        plan: all that is to be done.
        folder: the stage's checkpoint; made if it does not hold this work yet.
        launch: see `Launch`.

    Raises:
        ArtifactError: the folder cannot be read or written.
        UsageError: the machines do not share a disk.
    """

    def __init__(self, plan: Work, folder: Path, launch: Launch) -> None:
        self.plan, self.folder, self.ranks = plan, folder, launch.ranks
        self.checkpoint_every = launch.checkpoint_every
        self._records: list[dict[str, Any]] = []
        finished = set(self.ranks.on_first(self._open))
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is missing on the machine of process {self.ranks.rank}",
                expected="an --output_path that all machines share",
                remedy="pass one on a shared disk",
            )
        left = [number for number in range(len(plan.units)) if number not in finished]
        if finished and self.ranks.is_first:
            logger.warning(
                "%s: resuming; %d of %d units are finished",
                folder,
                len(finished),
                len(plan.units),
            )
        self.mine = left[self.ranks.rank :: self.ranks.n_ranks]

    def _open(self) -> list[int]:
        """On the first rank: the numbers of the units that earlier launches finished."""
        path = self.folder / WORK_FILE
        if not path.is_file():
            _make_empty(self.folder)
            write_durably(path, self.plan.to_json().encode())
        return merge_parts(self.folder, self.plan.fingerprint).done

    def record(self, values: dict[str, Any]) -> None:
        """Add a record to the unit at hand."""
        self._records.append(values)

    @contextmanager
    def units(
        self, description: str, tally: Callable[[], Tally] = Tally
    ) -> Iterator[Iterator[range]]:
        """This rank's units, one by one; taking the next one says that the last is finished.

        Args:
            description: text of the progress bar, which the first rank shows.
            tally: returns the sums over all units that are finished.

        Raises:
            Interrupted: a signal came; what is finished is saved.
        """
        part = Part(self.folder, rank_part(self.ranks.rank), self.plan.fingerprint)
        if self.ranks.n_ranks > 1:
            description += f", process 1 of {self.ranks.n_ranks}"
        total = sum(len(self.plan.units[number]) for number in self.mine)
        progress = bar(total=total, desc=description, unit="question", shown=self.ranks.is_first)
        with deferred() as stop, progress:
            yield self._checkpointed(part, tally, stop, progress)
            part.save(tally())
            stop.obey(self._note)

    def _checkpointed(
        self, part: Part, tally: Callable[[], Tally], stop: Stop, progress: tqdm[Any]
    ) -> Iterator[range]:
        saved = time.monotonic()
        for number in self.mine:
            self._records = []
            yield self.plan.units[number]
            part.add(number, self._records)
            progress.update(len(self.plan.units[number]))
            if stop.signal is not None or time.monotonic() - saved >= self.checkpoint_every:
                part.save(tally())
                saved = time.monotonic()
            stop.obey(self._note)

    @property
    def _note(self) -> str:
        return f"what is finished is kept in {self.folder}; the same command resumes from there"

    def finish(self) -> Part | None:
        """Wait for all ranks; on the first, all their work as one part. None on the others.

        Raises:
            ArtifactError: something is missing.
        """
        try:
            self.ranks.wait()
        except Interrupted as error:
            error.note = self._note
            raise
        if not self.ranks.is_first:
            return None
        base = merge_parts(self.folder, self.plan.fingerprint)
        if sorted(base.done) != list(range(len(self.plan.units))):
            raise ArtifactError(
                f"{self.folder} holds {len(set(base.done))} of {len(self.plan.units)} units",
                expected="the work of every process",
                remedy="see that all processes write to the same disk, then repeat the command: it "
                "resumes",
            )
        return base


def _make_empty(folder: Path) -> None:
    """Make an empty folder; ArtifactError if a file is in its place."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArtifactError(
            f"{folder} cannot be made: {error.strerror}",
            expected="a folder, or nothing, in its place",
            remedy="move the file away",
        ) from error


def close(folder: Path) -> None:
    """Remove a checkpoint whose work is in the artifacts; it cannot be resumed any more."""
    (folder / WORK_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
