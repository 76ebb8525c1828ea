"""docs/reliability.md: an interrupted run, resumed, ends with the same bytes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from neuronllm_eval import Run, identify

SETTINGS = {"tasks": "demo_topic", "limit": 20, "batch_size": 3}


def files(run: Run) -> dict[str, bytes]:
    names = ("neurons.json", "scores.safetensors", "questions.jsonl", "run.yaml")
    return {name: (run.path / name).read_bytes() for name in names}


def ctrl_c_once_it_works(checkpoint: Path) -> None:
    while not (checkpoint / "rank-0.jsonl").is_file():  # the first questions are attributed
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


(whole,) = identify(**SETTINGS, output_path="runs/whole", overwrite=True)

checkpoint = Path("runs/broken/demo_topic/checkpoint/identify")
threading.Thread(target=ctrl_c_once_it_works, args=[checkpoint], daemon=True).start()
try:
    identify(**SETTINGS, output_path="runs/broken", overwrite=True)
except KeyboardInterrupt as error:
    message = str(error)
print("interrupted:", message)
assert str(checkpoint) in message
assert checkpoint.is_dir()

(resumed,) = identify(**SETTINGS, output_path="runs/broken")  # the same call again
assert files(resumed) == files(whole)
assert not checkpoint.exists()
print("the same bytes")
