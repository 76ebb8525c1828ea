"""Digests of what a refactoring must not change: the demo, a comparison of methods, an adapter.

    python -m tools.frozen_numbers make RUNS     # runs the three commands below RUNS
    python -m tools.frozen_numbers write RUNS    # writes tools/frozen_numbers.json
    python -m tools.frozen_numbers check RUNS    # exits with 1 if a digest differs

Digests hold on one processor type with the versions of constraints.txt: floating-point sums may
differ in the last bits elsewhere. Numbers of JSON files are rounded to nine significant digits.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

FROZEN = Path(__file__).with_suffix(".json")
COMMANDS = {
    "demo": ["run_eval.py"],
    "methods": [
        "-m", "neuronllm_eval", "compare-methods", "--tasks", "demo_topic", "--top_k", "10,41",
        "--limit", "40", "--batch_size", "48", "--n_random", "5",
    ],
    "adapter": ["-m", "neuronllm_eval", "export", "demo/demo_topic", "--condition", "enhance"],
}  # fmt: skip


def make(runs: Path) -> None:
    """Run the three commands; the demo writes to runs/demo below `runs`."""
    runs.mkdir(parents=True, exist_ok=True)
    root = FROZEN.resolve().parents[1]
    for name, words in COMMANDS.items():
        paths = [str(runs / word) if word.startswith("demo/") else word for word in words]
        paths[0] = str(root / paths[0]) if name == "demo" else paths[0]
        more = [] if name == "demo" else ["--output_path", str(runs / name)]
        where = runs.parent if name == "demo" else root
        subprocess.run([sys.executable, *paths, *more], check=True, cwd=where)


def digests(runs: Path) -> dict[str, str]:
    """Digest of every frozen part by its name."""
    found = dict(_of_adapter(runs / "adapter"))
    for scores in sorted(runs.glob("**/scores.safetensors")):
        run = scores.parent
        name = run.relative_to(runs).as_posix()
        found |= {f"{name}/{part}": digest for part, digest in _of_run(run)}
    return found


def _of_run(run: Path) -> Iterator[tuple[str, str]]:
    yield "scores", _digest(_tensors(run / "scores.safetensors"))
    neurons = json.loads((run / "neurons.json").read_text())
    sides = [[[n["layer"], n["index"], n["score"]] for n in neurons[s]] for s in ("good", "bad")]
    yield "neurons", _digest(sides)
    lines = [json.loads(line) for line in (run / "conditions.jsonl").read_text().splitlines()]
    asked = [[line["doc_id"], line["gold"], line["loglikelihoods"]] for line in lines]
    yield "conditions", _digest(asked)
    results = {}
    for path in sorted(run.glob("results/*.json")):
        (metrics,) = json.loads(path.read_text())["results"].values()
        results[path.stem] = {k: v for k, v in metrics.items() if isinstance(v, float)}
    yield "results", _digest(results)
    summary = json.loads((run / "summary.json").read_text())
    kept = ("accuracy", "confidence", "rac", "rcc", "controls", "mcnemar", "metrics")
    rows = {each["name"]: [_floats(each[key]) for key in kept] for each in summary["conditions"]}
    yield "summary", _digest(rows)


def _tensors(path: Path) -> list[list[Any]]:
    tensors = sorted(load_file(path).items())
    return [[name, str(t.dtype), list(t.shape), t.tobytes().hex()] for name, t in tensors]


def _of_adapter(folder: Path) -> Iterator[tuple[str, str]]:
    yield "adapter", _digest(_tensors(folder / "adapter_model.safetensors"))


def _floats(value: Any) -> list[float]:
    """The floats in a JSON value, smallest first: keys may be renamed."""
    if isinstance(value, dict):
        return sorted(number for each in value.values() for number in _floats(each))
    return [value] if isinstance(value, float) else []


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return f"{value:.9g}" if isinstance(value, float) else value


def _digest(value: Any) -> str:
    text = json.dumps(_rounded(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(action: str, folder: str) -> int:
    """Entry point; returns the exit code."""
    runs = Path(folder).resolve()
    if action == "make":
        make(runs)
        return 0
    found = digests(runs)
    if action == "write":
        FROZEN.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    frozen = json.loads(FROZEN.read_text())
    wrong = sorted(
        name for name in frozen.keys() | found.keys() if frozen.get(name) != found.get(name)
    )
    print("\n".join(wrong[:40]) or f"all {len(frozen)} digests are the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
