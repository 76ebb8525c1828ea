"""docs/aqua-conversion.md: a plain multiple-choice task of the harness, as an AQUA task.

The task is written here to need no download; `aqua:NAME` takes any task that the harness knows.
"""

from __future__ import annotations

from pathlib import Path

from neuronllm_eval import identify
from neuronllm_eval.cli import main as cli

folder = Path("plain_tasks")
folder.mkdir(exist_ok=True)
(folder / "sums_data.py").write_text("""
import datasets

def load(**_):
    def docs(numbers):
        return datasets.Dataset.from_list([
            {"text": f"What is {n} plus {n + 1}?", "sums": [str(2 * n + k) for k in (0, 1, 2, 3)]}
            for n in numbers
        ])
    return datasets.DatasetDict({"train": docs(range(20, 60)), "test": docs(range(60, 80))})
""")
(folder / "sums.yaml").write_text("""
task: sums
custom_dataset: !function sums_data.load
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{ text }}\\nAnswer:"
doc_to_choice: sums
doc_to_target: 1
metric_list: [{metric: acc}]
""")

(run,) = identify(
    tasks="aqua:sums", include_path=folder, limit=8, batch_size=48, output_path="runs/any",
    overwrite=True,
)  # fmt: skip
orders = {question.gold for question in run.questions}
print(f"{run.task}: the gold option has the indices {sorted(orders)}")
assert len(orders) > 1  # it always stood second in the data

# The same as a YAML for stock lm_eval:
Path("made_tasks").mkdir(exist_ok=True)
Path("made_tasks/aqua_sums.yaml").unlink(missing_ok=True)
assert cli.main(["tasks", "make", "sums", "--include_path", "plain_tasks",
                 "--output_path", "made_tasks"]) == 0  # fmt: skip
