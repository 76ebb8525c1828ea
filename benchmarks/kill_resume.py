"""Runs killed with SIGKILL at random moments and resumed by another number of processes.

    python -m benchmarks.kill_resume

Each run identifies and validates on the embedded model with 1 or 2 processes, is killed up to three
times, and ends with 2 or 1. No question may be lost or counted twice, and every artifact must have
the bytes of an uninterrupted run (result files: except for times and the run's path).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.launched import Launched
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.neurons.scores import NeuronScores

TASK = "demo_topic"
SAME_BYTES = (
    "scores.safetensors", "neurons.json", "questions.jsonl", "conditions.jsonl", "run.yaml",
    "validation.json", "validation_docs.jsonl", "summary.json", "report.md", "report.html",
)  # fmt: skip
# What may differ between result files of the same run.
_TIMES = re.compile(r'^ *"(date|start_time|end_time|total_evaluation_time_seconds|neurons)": .*\n',
                    re.MULTILINE)  # fmt: skip
# The run's commands in its report and model cards: where it lies, and whether it was resumed.
_COMMANDS = re.compile(rb"(?:(?:run_eval\.py|neuronllm-eval) [^\n<`]*\n?)+")


def without_commands(text: bytes) -> bytes:
    """A report or a model card, but for the commands that made the run."""
    return _COMMANDS.sub(b"", text)


def arguments(output: Path, limit: int) -> list[object]:
    """Of the command that is killed and repeated."""
    return [
        "--tasks", TASK, "--limit", limit, "--batch_size", 6, "--n_random", 1, "--conditions",
        "suppress_good", "--device", "cpu", "--checkpoint_every", 0.05, "--output_path", output,
        "--resume",
    ]  # fmt: skip


def command(output: Path, limit: int, n_ranks: int) -> Launched:
    """The command, started."""
    log = output.with_name(f"{output.name}.log")
    return Launched(n_ranks, arguments(output, limit), log, "run_eval_main")


def content(run: Path) -> dict[str, bytes]:
    """A run's artifacts as they are compared."""
    found = {name: (run / name).read_bytes() for name in SAME_BYTES}
    for path in sorted((run / "adapters").glob("*/*")):
        found[path.relative_to(run).as_posix()] = path.read_bytes()
    for path in sorted((run / "results").iterdir()):
        text = path.read_text(encoding="utf-8")
        found[f"results/{path.name}"] = _TIMES.sub("", text).encode()
    for name in found:
        if name.endswith((".md", ".html")):
            found[name] = without_commands(found[name])
    return found


def questions_wrong(run: Path, limit: int) -> tuple[int, int]:
    """Questions lost and counted twice, in the records and in the sums."""
    lines = (run / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    times = Counter(json.loads(line)["question_id"] for line in lines)
    summed = NeuronScores.load(run).provenance.n_questions
    lost = limit - min(len(times), summed)
    return lost, max(sum(times.values()), summed) - limit + lost


def stage_of(run: Path) -> str:
    """The stage at which a run was killed, from the files in its directory."""
    for stage in ("identify", "validate"):
        if (run / "checkpoint" / stage / "work.json").exists():
            return stage
    return "after identify" if (run / "neurons.json").exists() else "before"


def killed_run(
    output: Path, limit: int, counts: tuple[int, int], span: float, rng: random.Random
) -> list[str]:
    """Kill a run one to three times and resume it; returns the stages at which it was killed.

    Raises:
        RuntimeError: it did not end well.
    """
    kills: list[str] = []
    ranks = itertools.cycle(counts)
    for n_ranks in itertools.islice(ranks, rng.randint(1, 3)):
        launched = command(output, limit, n_ranks)
        end = time.monotonic() + rng.uniform(0, span)
        while time.monotonic() < end and any(each.is_alive() for each in launched.processes):
            time.sleep(0.01)
        launched.send(signal.SIGKILL)
        codes = set(launched.wait())
        if codes == {0}:  # done before it could be killed
            break
        if codes != {-signal.SIGKILL}:
            raise RuntimeError(launched.output())
        kills.append(stage_of(output / TASK))
    last = command(output, limit, next(ranks))
    if set(last.wait(300)) != {0}:
        raise RuntimeError(last.output())
    return kills


def run(n_runs: int, limit: int, seed: int = 0) -> list[dict[str, Any]]:
    """What came of so many killed runs; one that ended before it could be killed is made again."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("warm", "reference"):
            start = time.monotonic()
            reference = command(Path(folder) / name, limit, 1)
            if reference.wait(300) != [0]:
                raise RuntimeError(reference.output())
            span = time.monotonic() - start
        expected = content(Path(folder) / "reference" / TASK)
        for attempt in itertools.count():
            if len(found) == n_runs:
                break
            counts = ((1, 2), (2, 1))[len(found) % 2]
            output = Path(folder) / f"run_{attempt}"
            kills = killed_run(output, limit, counts, span, rng)
            if not kills:
                continue
            lost, twice = questions_wrong(output / TASK, limit)
            same = content(output / TASK) == expected
            found.append({"counts": counts, "kills": kills, "lost": lost, "twice": twice,
                          "same": same})  # fmt: skip
    return found


def main() -> int:
    """Print the table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.runs, options.questions, options.seed)
    rows = [
        [
            " then ".join(map(str, each["counts"])),
            ", ".join(each["kills"]),
            str(each["lost"]),
            str(each["twice"]),
            "yes" if each["same"] else "NO",
        ]
        for each in found
    ]
    print(markdown_table(["processes", "killed in", "lost", "twice", "same bytes"], rows))
    wrong = sum(bool(each["lost"] or each["twice"]) or not each["same"] for each in found)
    kills = sum(len(each["kills"]) for each in found)
    print(f"{len(found)} runs, {kills} kills, {wrong} of them wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
