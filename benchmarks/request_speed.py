"""The time to build the requests of an AQUA task, against a plain lettered one.

    python -m benchmarks.request_speed

10,000 random questions of four options, with three prompts each and one demonstration, against a
plain task with the same prompt as a template over the same 30,000 docs. Loading is reading the
files; for the AQUA task also cleaning, splitting and shuffling.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import datasets
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.harness import tasks_dir

N_PROXIES = 3


def write_tasks(folder: Path, n_questions: int) -> None:
    """The tasks `aqua` and `plain` with their data."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(5000)]

    def question(number: int) -> dict[str, object]:
        stem = " ".join(rng.choices(words, k=15))
        choices = [f"{letter} " + " ".join(rng.choices(words, k=4)) for letter in "pqrs"]
        return {"question": f"{stem} {number}?", "choices": choices, "answer": number % 4}

    splits = {
        "train": [question(-1 - number) for number in range(100)],
        "test": [question(number) for number in range(n_questions)],
    }
    splits["copies"] = [row for row in splits["test"] for _ in range(N_PROXIES)]
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    aqua = {
        "include": str(tasks_dir() / "aqua" / "_aqua.yaml"),
        "task": "aqua",
        "dataset_kwargs": {"data_files": {name: files[name] for name in ("train", "test")}},
    }
    lines = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate("ABCD"))
    plain = {
        "task": "plain",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": files["train"], "test": files["copies"]}},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": 1,
        "fewshot_config": {"sampler": "first_n"},
        "description": load_yaml(tasks_dir() / "aqua" / "_aqua.yaml")["description"],
        "doc_to_text": "Question: {{question}}\n" + lines + "Answer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (aqua, plain):
        path = folder / f"{task['task']}.yaml"
        path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")


def measure(folder: Path, name: str) -> tuple[float, float, int]:
    """Seconds to load a task, seconds to build its requests, and their number."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    start = time.perf_counter()
    task = manager.load([name])["tasks"][name]
    loaded = time.perf_counter()
    task.build_all_requests(rank=0, world_size=1)
    return loaded - start, time.perf_counter() - loaded, len(task.instances)


def run(n_questions: int) -> dict[str, tuple[float, float, int]]:
    """`measure` of both tasks, the plain one first."""
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), n_questions)
        return {name: measure(Path(folder), name) for name in ("plain", "aqua")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=10_000)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    found = run(options.questions)
    base = sum(found["plain"][:2])
    rows = [
        [name, f"{load:.1f}", f"{build:.1f}", str(number), f"{(load + build) / base:.2f}"]
        for name, (load, build, number) in found.items()
    ]
    print(markdown_table(["task", "load s", "build s", "requests", "of the plain task"], rows))


if __name__ == "__main__":
    main()
