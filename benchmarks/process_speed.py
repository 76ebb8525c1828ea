"""Throughput of two processes of one thread each against one, without start and loading.

    python -m benchmarks.process_speed

Questions a second of the slowest process, between the first unit and the last. Loading and building
the requests are repeated in every process. On a machine with other load, wall-clock time says
little; the last column is the ratio by processor time, which two processes would reach on idle
cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.launched import Launched
from neuronllm_eval.formats.markdown import markdown_table


def timed(folder: Path, rank: int) -> None:
    """Have the process note in a folder how many questions it did, and in how many seconds."""
    import torch

    from neuronllm_eval.runtime.resumable_work import SharedWork

    torch.set_num_threads(1)
    real = SharedWork._checkpointed

    def units(self: SharedWork, *arguments: Any) -> Iterator[range]:
        self.ranks.wait()  # both are at work at the same time
        start, busy, n_questions = time.perf_counter(), time.process_time(), 0
        for unit in real(self, *arguments):
            yield unit
            n_questions += len(unit)
        seconds = [time.perf_counter() - start, time.process_time() - busy]
        path = folder / f"{self.folder.name}_{rank}.json"
        path.write_text(json.dumps([n_questions, *seconds]), encoding="utf-8")

    SharedWork._checkpointed = units  # type: ignore[method-assign]


def speeds(n_ranks: int, limit: int) -> dict[str, tuple[float, float]]:
    """Per stage, questions of all processes a second, and a second of the busiest's processor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        given = [
            "--tasks", "demo_knowledge", "--limit", limit, "--batch_size", 12, "--device", "cpu",
            "--output_path", path / "runs", "--n_random", 2,
        ]  # fmt: skip
        launched = Launched(
            n_ranks, given, path / "log", "run_eval_main", functools.partial(timed, path)
        )
        if launched.wait(600) != [0] * n_ranks:
            raise RuntimeError(launched.output())
        found = {}
        for stage in ("identify", "validate"):
            parts = [
                json.loads((path / f"{stage}_{rank}.json").read_text()) for rank in range(n_ranks)
            ]
            done, wall, busy = zip(*parts, strict=True)
            found[stage] = sum(done) / max(wall), sum(done) / max(busy)
        return found


def measure(limit: int, repeats: int) -> list[list[str]]:
    """Table rows: stage, questions a second of one process and of two, and ratios of the two.

    One and two processes take turns; the figures are medians.
    """
    runs = [(speeds(1, limit), speeds(2, limit)) for _ in range(repeats)]
    rows = []
    for stage in ("identify", "validate"):
        one, two = (statistics.median(run[which][stage][0] for run in runs) for which in (0, 1))
        wall, busy = (
            statistics.median(run[1][stage][by] / run[0][stage][by] for run in runs)
            for by in (0, 1)
        )
        rows.append([stage, f"{one:.1f}", f"{two:.1f}", f"{wall:.2f}", f"{busy:.2f}"])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    head = ["stage", "1 process, questions/s", "2 processes", "ratio", "by processor time"]
    print(markdown_table(head, measure(options.questions, options.repeats)))


if __name__ == "__main__":
    main()
