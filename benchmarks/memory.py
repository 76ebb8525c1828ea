"""Peak memory of identification, validation and evaluation, against a stock pass.

    python -m benchmarks.memory

Every action runs in a separate process, at the same batch size, on the prompts of a run
(`workload`). The peak is that of resident memory while the action runs, as Linux counts it: in
total (interpreter, libraries and weights included), and above what was resident after loading. Both
are also given as ratios to the stock pass.

The last rows are of a model with a large vocabulary, over which the stock pass takes the
log-softmax at every position.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.workload import (
    N_PROXIES,
    VOCABULARY,
    Run,
    build_model,
    make_prompts,
    masked_model,
    quiet_harness,
    random_scales,
    score,
    stock_model,
)
from neuronllm_eval.formats.markdown import markdown_table

LARGE_VOCABULARY = 128_256  # Llama 3's
STOCK = "stock pass"
ACTIONS = (
    STOCK,
    "attribution, 3 Gauss-Lobatto nodes",
    "attribution, 5 Gauss-Lobatto nodes",
    "20 conditions",
    "evaluation, positions=all",
    "evaluation, positions=scored",
)
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Case:
    """What all actions of one part of the table have in common."""

    layers: int
    tokens: int
    questions: int = 8
    batch_size: int = 12
    vocabulary: int = VOCABULARY


@dataclass(frozen=True)
class Peak:
    """MiB of resident memory: after loading, and at most while the action ran."""

    loaded: float
    total: float

    @property
    def above(self) -> float:
        """What the action took beside what was there."""
        return self.total - self.loaded


def prepare(case: Case, name: str) -> Callable[[], object]:
    """Load all that an action needs."""
    model = build_model(case.layers, case.vocabulary)
    prompts = make_prompts(case.tokens, case.questions)
    run = Run(model, prompts, case.batch_size)
    if name == STOCK:
        return partial(score, stock_model(model, case.batch_size), prompts)
    if name.startswith("attribution"):
        return partial(run.attribution, int(name.split()[1]))
    if name.endswith("conditions"):
        return partial(run.conditions, random_scales(run.layers, int(name.split()[0])))
    positions = name.rpartition("=")[2]
    return partial(score, masked_model(model, case.batch_size, positions), prompts)


def child(case: Case, name: str) -> Peak:
    """Measure one action; in a process where nothing else has run."""
    torch.set_num_threads(1)
    action = prepare(case, name)
    reset_peak()
    loaded = resident("VmRSS")
    action()
    return Peak(loaded, resident("VmHWM"))


def reset_peak() -> None:
    """Let the peak of resident memory start from what is resident."""
    (_PROCESS / "clear_refs").write_text("5")  # proc(5)


def resident(key: str) -> float:
    """MiB of this process: now (`VmRSS`), or at most (`VmHWM`)."""
    status = (_PROCESS / "status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit(f"{_PROCESS}/status has no {key}: peak memory needs a Linux kernel")
    return int(found[1]) / 1024


def measure(case: Case, names: tuple[str, ...] = ACTIONS) -> dict[str, Peak]:
    """Peaks of all actions, each in a separate process."""
    found = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name]
        command += ["--case", json.dumps(asdict(case))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = Peak(**json.loads(done.stdout.splitlines()[-1]))
    return found


def rows(case: Case, found: dict[str, Peak]) -> list[list[str]]:
    """Lines of the table."""
    stock = found[STOCK]
    return [
        [
            str(case.layers),
            str(case.tokens),
            str(case.vocabulary),
            name,
            f"{peak.total:.0f}",
            f"{peak.total / stock.total:.2f}",
            f"{peak.above:.0f}",
            f"{peak.above / stock.above:.2f}",
        ]
        for name, peak in found.items()
    ]


def main() -> None:
    """Print the table, or measure one action for the process that does."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--tokens", type=int, nargs="+", default=[150, 400])
    flags.add_argument("--layers", type=int, default=12)
    flags.add_argument("--questions", type=int, default=8)
    flags.add_argument("--batch_size", type=int, default=12, help="prompts")
    flags.add_argument("--large_vocabulary", type=int, default=LARGE_VOCABULARY)
    flags.add_argument("--child", choices=ACTIONS, help=argparse.SUPPRESS)
    flags.add_argument("--case", help=argparse.SUPPRESS)
    options = flags.parse_args()
    quiet_harness()
    if options.child:
        peak = child(Case(**json.loads(options.case)), options.child)
        print(json.dumps(asdict(peak)))
        return
    size = (options.questions, options.batch_size)
    cases = [Case(options.layers, n_tokens, *size) for n_tokens in options.tokens]
    cases.append(Case(options.layers, options.tokens[0], *size, options.large_vocabulary))
    print(f"torch {torch.__version__}, 1 thread, fp32, {options.questions} questions with "
          f"{N_PROXIES} prompts each, batch size {options.batch_size}")  # fmt: skip
    table = [row for case in cases for row in rows(case, measure(case))]
    headers = ["layers", "tokens", "vocabulary", "what", "peak MiB", "of stock's"]
    print(markdown_table([*headers, "above loading MiB", "of stock's above loading"], table))


if __name__ == "__main__":
    main()
