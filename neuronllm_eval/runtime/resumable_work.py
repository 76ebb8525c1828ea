"""One stage's work, shared among the ranks and kept in checkpoints.

1. The first rank merges what earlier launches left, and tells all ranks which units are done.
2. Of the others, in order, rank r of N takes number r, r + N, ...
3. Each rank saves its part from time to time, when it is asked to stop, and at its end.
4. When all have ended, the first merges the parts and checks that nothing is missing.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from tqdm import tqdm

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.runtime.checkpoint import Part, Tally, merge_parts, rank_part, write_durably
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.process import Interrupted, Stop, deferred
from neuronllm_eval.runtime.progress import bar
from neuronllm_eval.runtime.work_units import WORK_FILE, Work, recorded_batch_size

logger = logging.getLogger(__name__)


LOCK_FILE = ".lock"
# Files that a process was writing under another name than theirs: `.<file>.<process>...`.
_TEMPORARY = re.compile(r"\..+\.(json|jsonl|safetensors|yaml|md)\.\d+(_.+)?")


class RunLocks:
    """One command at a time in a run directory: the run directories that this one works in.

    A lock belongs to the process that holds it: the system frees it when that one ends.
    """

    def __init__(self) -> None:
        self._held: dict[Path, BaseFileLock] = {}

    def take(self, path: Path) -> None:
        """Lock a run directory, which is made if need be; nothing happens if it is ours already.

        Files that a killed process had half written are removed.

        Raises:
            UsageError: another process works in it, or it cannot be written.
        """
        path = path.resolve()
        if path in self._held:
            return
        lock = FileLock(path / LOCK_FILE)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            for left in path.rglob(".*"):
                if _TEMPORARY.fullmatch(left.name):
                    left.unlink()
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
        self._held[path] = lock

    def take_all(self, paths: Iterable[Path]) -> None:
        """`take` each of them."""
        for path in paths:
            self.take(path)

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
    """

    ranks: Ranks = field(default_factory=Ranks)
    checkpoint_every: float = 60.0
    overwrite: bool = False
    keep: bool = False
    locks: RunLocks = field(default_factory=RunLocks)
    command: tuple[str, ...] = ()

    def resumes(self, plan: Work, folder: Path) -> bool:
        """Whether the checkpoint in a folder is of this work, and is to be completed.

        Raises:
            UsageError: it is of other work, which is not to be replaced.
        """
        if self.overwrite or not is_unfinished(folder):
            return False
        plan.require_same(folder / WORK_FILE)
        return True

    def recorded_batch_size(self, folder: Path) -> int | None:
        """The batch size of the work to resume in a folder; None if there is none."""
        if self.overwrite:
            return None
        return self.ranks.on_first(lambda: recorded_batch_size(folder / WORK_FILE))


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


def is_unfinished(folder: Path) -> bool:
    """Whether a stage's checkpoint folder holds work to resume."""
    return (folder / WORK_FILE).is_file()


def close(folder: Path) -> None:
    """Remove a checkpoint whose work is in the artifacts; it cannot be resumed any more."""
    (folder / WORK_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
