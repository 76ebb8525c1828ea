"""Spellings of release 0.1: task YAML files that hold them still load in stock lm_eval."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from neuronllm_eval import task_functions
from neuronllm_eval.aqua.dataset import AquaSplits
from tests.fixtures.harness import include_paths
from tests.fixtures.processes import run_code

TEMPLATE = Path(__file__).resolve().parents[1] / "tasks" / "aqua" / "_aqua.yaml"
OLD_METRICS = ("acc_consistent", "acc_majority", "fortuity", "position_bias")
NEW = "neuronllm_eval.task_functions."


@pytest.fixture(autouse=True)
def not_imported(monkeypatch):
    """Old modules warn when they are first imported."""
    for name in ("adapter", "aqua_harness", "aqua_metrics", "aqua_task"):
        monkeypatch.delitem(sys.modules, f"neuronllm_eval.{name}", raising=False)


def old_spelling(template: str) -> str:
    """The template of AQUA tasks as release 0.1 wrote it."""
    for new, old in (("load_aqua", "aqua_task"), ("AquaTask", "aqua_harness")):
        template = template.replace(f"{NEW}{new}", f"neuronllm_eval.{old}.{new}")
    return template.replace(NEW, "neuronllm_eval.aqua_metrics.")


def loaded(folder: Path, name: str, text: str):
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    paths = [*include_paths(), str(folder)]
    return TaskManager(include_path=paths, include_defaults=False).load([name])["tasks"][name]


def test_a_task_of_release_0_1_loads_and_warns(tmp_path):
    template = old_spelling(TEMPLATE.read_text(encoding="utf-8"))
    assert NEW not in template
    rows = [
        f'{{"question": "Which is {number}?", "choices": ["{number}", "x", "y"], "answer": 0}}'
        for number in range(6)
    ]
    for split in ("train", "test"):
        lines = "\n".join(row.replace("Which", f"Which of {split}") for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    files = f"  data_files: {{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}\n"
    with pytest.warns(FutureWarning, match="old name"):
        task = loaded(tmp_path, "mine", f"task: mine\ndataset_kwargs:\n{files}{template}")
    assert isinstance(task, task_functions.AquaTask)
    assert isinstance(task.dataset, AquaSplits)
    assert set(OLD_METRICS) <= set(task.aggregation())


def test_a_converted_task_of_release_0_1_loads_and_warns(tmp_path):
    template = old_spelling(TEMPLATE.read_text(encoding="utf-8"))
    template = template.replace(
        "neuronllm_eval.aqua_task.load_aqua", "neuronllm_eval.adapter.load_adapted"
    )
    head = (
        f"task: aqua_mine\ndataset_kwargs:\n  harness_task: plain\n  include_path: [{tmp_path}]\n"
    )
    (tmp_path / "data.jsonl").write_text(
        "\n".join(
            f'{{"question": "Which is {number}?", "choices": ["{number}", "x", "y"], "gold": 0}}'
            for number in range(60)
        ),
        encoding="utf-8",
    )
    (tmp_path / "plain.yaml").write_text(
        "task: plain\ndataset_path: json\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n',
        encoding="utf-8",
    )
    with pytest.warns(FutureWarning, match="old name") as warned:
        task = loaded(tmp_path, "aqua_mine", head + template)
    assert any("neuronllm_eval.adapter is called" in str(each.message) for each in warned)
    assert isinstance(task.dataset, AquaSplits)


@pytest.mark.parametrize("name", ["adapter", "aqua_harness", "aqua_metrics", "aqua_task"])
def test_old_modules_hold_the_functions(name):
    with pytest.warns(FutureWarning, match="will go with the next release"):
        module = importlib.import_module(f"neuronllm_eval.{name}")
    assert module.acc_consistent is task_functions.acc_consistent
    assert module.load_adapted is task_functions.load_converted


def test_the_masked_model_is_at_its_old_name_and_loads_late():
    code = (
        "import sys, neuronllm_eval.masked_lm as package\n"
        "assert not hasattr(package, 'nothing')\n"
        "assert not {'torch', 'neuronllm_eval.masked_lm.model'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys\n"
        "from neuronllm_eval.masked_lm import NeuronMaskedLM\n"
        "assert NeuronMaskedLM is sys.modules['neuronllm_eval.masked_lm.model'].NeuronMaskedLM\n"
    )
    ended, _, err = run_code(code)
    assert ended == 0, err


def test_the_functions_that_task_hashes_follow_from_have_their_first_text():
    """The harness dumps their source; other text, and finished runs seem to be of another task."""
    names = sorted({*task_functions.__all__} - {"AquaTask", "load_converted"})
    text = "".join(inspect.getsource(getattr(task_functions, name)) for name in names)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3331bc0a953eee1d"
