"""Throughput of two processes of one thread each against one, of the loop that does the work.

    python -m benchmarks.process_speed

Questions a second of the slowest process, between the first unit and the last: what hours of
a real run consist of. Loading, and building the requests, every process does for itself.
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
from neuronllm_eval.report import markdown_table


def timed(folder: Path, rank: int) -> None:
    """Have the process note in a folder how many questions it did, and in how many seconds."""
    import torch

    from neuronllm_eval.shared_work import SharedWork

    torch.set_num_threads(1)
    real = SharedWork._units

    def units(self: SharedWork, *arguments: Any) -> Iterator[range]:
        self.ranks.wait()  # both are at work at the same time
        start, n_questions = time.perf_counter(), 0
        for unit in real(self, *arguments):
            yield unit
            n_questions += len(unit)
        seconds = time.perf_counter() - start
        path = folder / f"{self.folder.name}_{rank}.json"
        path.write_text(json.dumps([n_questions, seconds]), encoding="utf-8")

    SharedWork._units = units  # type: ignore[method-assign]


def speeds(n_ranks: int, limit: int) -> dict[str, float]:
    """Per stage, questions a second of all processes together."""
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
            raise RuntimeError(launched.said())
        found = {}
        for stage in ("identify", "validate"):
            parts = [
                json.loads((path / f"{stage}_{rank}.json").read_text()) for rank in range(n_ranks)
            ]
            found[stage] = sum(part[0] for part in parts) / max(part[1] for part in parts)
        return found


def measure(limit: int, repeats: int) -> list[list[str]]:
    """Table rows: stage, questions a second of one process and of two, and the ratio of the two.

    One and two processes take turns; the figures are medians.
    """
    runs = [(speeds(1, limit), speeds(2, limit)) for _ in range(repeats)]
    rows = []
    for stage in ("identify", "validate"):
        one, two = (statistics.median(run[which][stage] for run in runs) for which in (0, 1))
        ratio = statistics.median(run[1][stage] / run[0][stage] for run in runs)
        rows.append([stage, f"{one:.1f}", f"{two:.1f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    head = ["stage", "1 process, questions/s", "2 processes", "ratio"]
    print(markdown_table(head, measure(options.questions, options.repeats)))


if __name__ == "__main__":
    main()
