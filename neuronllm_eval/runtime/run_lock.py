"""One command at a time in a run directory.

The lock belongs to the process that holds it: the system frees it when that one ends, however it
ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from neuronllm_eval.errors import UsageError

LOCK_FILE = ".lock"
# Files that a process was writing under another name than theirs: `.<file>.<process>...`.
_TEMPORARY = re.compile(r"\..+\.(json|jsonl|safetensors|yaml|md)\.\d+(_.+)?")


class RunLocks:
    """The run directories that this command works in."""

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
