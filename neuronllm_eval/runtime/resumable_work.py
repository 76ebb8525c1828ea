"""One stage's work, shared among the ranks and kept in checkpoints.

1. The first rank merges what earlier launches left, and tells all ranks which units are done.
2. Of the others, in order, rank r of N takes number r, r + N, ...
3. Each rank saves its part from time to time, when it is asked to stop, and at its end.
4. When all have ended, the first merges the parts and checks that nothing is missing.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.runtime.checkpoint import Part, Tally, merge_parts, rank_part, write_durably
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.process import Interrupted, Stop, deferred
from neuronllm_eval.runtime.progress import bar
from neuronllm_eval.runtime.run_lock import RunLocks
from neuronllm_eval.runtime.work_units import WORK_FILE, Work, recorded_batch_size

logger = logging.getLogger(__name__)
CHECKPOINT_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Launch:
    """How a command is carried out; none of it changes a number.

    Attributes:
        ranks: the processes.
        checkpoint_every: seconds between checkpoints.
        overwrite: whether runs that are there are replaced.
        keep: whether a finished stage of the same settings is kept rather than done again.
        locks: of the run directories, which the first rank holds.
        command: the command line, for `commands.jsonl`.
    """

    ranks: Ranks = field(default_factory=Ranks)
    checkpoint_every: float = CHECKPOINT_EVERY
    overwrite: bool = False
    keep: bool = False
    locks: RunLocks = field(default_factory=RunLocks)
    command: tuple[str, ...] = ()


class SharedWork:
    """A stage's work, some of it done.

    Args:
        work: all that is to be done.
        folder: of the stage's checkpoint.
        launch: see `Launch`.
        begin: called on the first rank before new work starts, but not to go on.

    Raises:
        UsageError: the folder holds unfinished work of other settings.
        ArtifactError: it cannot be read or written.
    """

    def __init__(
        self, work: Work, folder: Path, launch: Launch, begin: Callable[[], object]
    ) -> None:
        self.work, self.folder, self.ranks = work, folder, launch.ranks
        self.checkpoint_every = launch.checkpoint_every
        self._records: list[dict[str, Any]] = []

        def open_on_first() -> list[int]:
            path = folder / WORK_FILE
            if path.is_file() and not launch.overwrite:
                work.require_same(path)
            else:
                begin()
                _make_anew(folder)
                write_durably(path, work.to_json().encode())
            return merge_parts(folder, work.fingerprint).done

        done = set(self.ranks.on_first(open_on_first))
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not there on the machine of process {self.ranks.rank}",
                expected="an --output_path that all machines share",
                remedy="pass one on a shared disk",
            )
        waiting = [number for number in range(len(work.units)) if number not in done]
        self.n_done = len(done)
        if done and self.ranks.is_first:
            logger.warning(
                "%s: going on; %d of %d units are done", folder, len(done), len(work.units)
            )
        self.mine = waiting[self.ranks.rank :: self.ranks.n_ranks]

    def record(self, values: dict[str, Any]) -> None:
        """Keep a record of the unit at hand."""
        self._records.append(values)

    def run(
        self,
        description: str,
        compute: Callable[[Iterable[range]], object],
        tally: Callable[[], Tally] = Tally,
    ) -> None:
        """Do this rank's units.

        Args:
            description: text of the progress bar, which the first rank shows.
            compute: does the units it is given, one after the other, and calls `record`; taking the
                next one says that the one before is finished.
            tally: the sums over all units that it has finished.

        Raises:
            Interrupted: a signal came; what is finished is saved.
        """
        part = Part(self.folder, rank_part(self.ranks.rank), self.work.fingerprint)
        if self.ranks.n_ranks > 1:
            description += f", process 1 of {self.ranks.n_ranks}"
        with (
            deferred() as stop,
            bar(
                total=sum(len(self.work.units[number]) for number in self.mine),
                desc=description,
                unit="question",
                shown=self.ranks.is_first,
            ) as progress,
        ):
            compute(self._units(part, tally, stop, progress))
            part.save(tally())
            self._obey(stop)

    def _units(
        self, part: Part, tally: Callable[[], Tally], stop: Stop, progress: tqdm[Any]
    ) -> Iterator[range]:
        saved = time.monotonic()
        for number in self.mine:
            self._records = []
            yield self.work.units[number]
            part.add(number, self._records)
            progress.update(len(self.work.units[number]))
            if stop.signal is not None or time.monotonic() - saved >= self.checkpoint_every:
                part.save(tally())
                saved = time.monotonic()
            self._obey(stop)

    def _obey(self, stop: Stop) -> None:
        stop.obey(self._note)

    @property
    def _note(self) -> str:
        return f"what is finished is kept in {self.folder}; the same command goes on from there"

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
        base = merge_parts(self.folder, self.work.fingerprint)
        if sorted(base.done) != list(range(len(self.work.units))):
            raise ArtifactError(
                f"{self.folder} holds {len(set(base.done))} of {len(self.work.units)} units",
                expected="the work of every process",
                remedy="see that all processes write to the same disk, then repeat the command: it "
                "goes on",
            )
        return base


def _make_anew(folder: Path) -> None:
    """Make a folder, without what was in it; ArtifactError if a file is in its place."""
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
    """Whether a stage's checkpoint folder holds work to go on with."""
    return (folder / WORK_FILE).is_file()


def close(folder: Path) -> None:
    """Remove a checkpoint whose work is in the artifacts; it cannot be gone on with any more."""
    (folder / WORK_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def batch_size_of(folder: Path, launch: Launch, choose: Callable[[], int]) -> int:
    """The batch size of the unfinished work in a folder, or what the first rank chooses."""

    def recorded_or_chosen() -> int:
        known = None if launch.overwrite else recorded_batch_size(folder / WORK_FILE)
        return choose() if known is None else known

    return launch.ranks.on_first(recorded_or_chosen)
