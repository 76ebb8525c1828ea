"""docs/tasks.md: questions of your own as an AQUA task, from a file and a few lines of YAML."""

from __future__ import annotations

import json
import random
from pathlib import Path

from neuronllm_eval import identify, validate
from neuronllm_eval.harness import tasks_dir

CITIES = "Paris Rome Oslo Cairo Lima Bern Kyiv Doha Baku Riga Quito Seoul Hanoi Minsk Sofia".split()
draw = random.Random(0)
docs = []
for number in range(60):
    options = draw.sample(CITIES, 4)
    question = f"Which of these four cities comes first in the alphabet? (Riddle {number}.)"
    docs.append({"question": question, "options": options, "answer": min(options)})

folder = Path("my_tasks")
folder.mkdir(exist_ok=True)
for name, part in (("train", docs[:40]), ("test", docs[40:])):
    lines = "".join(json.dumps(doc) + "\n" for doc in part)
    (folder / f"first_{name}.jsonl").write_text(lines)
(folder / "aqua_first.yaml").write_text(f"""
include: {tasks_dir()}/aqua/_aqua.yaml
task: aqua_first
dataset_kwargs:
  data_files: {{train: first_train.jsonl, test: first_test.jsonl}}
  question: "{{{{ question }}}}"
  choices: options
  answer: answer
  selection_split: train
  validation_split: test
""")

(run,) = identify(
    tasks="aqua_first", include_path=folder, limit=10, batch_size=48, output_path="runs/own",
    overwrite=True,
)  # fmt: skip
(run,) = validate(run, conditions="degrade", n_random=2, limit=10)
print(
    f"{run.task}: {len(run.questions)} questions chose, accuracy {run.metrics('unmasked')['acc']}"
)
assert run.neurons.provenance.n_proxies == 3
