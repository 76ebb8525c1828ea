"""The stock `lm_eval` command, with a stub of the discovery of models that 0.4.13 does not have.

What reads the entry points of the group `lm_eval.models` is a few lines that run before `lm_eval`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuronllm_eval.harness import tasks_dir
from tests.fixtures.cli import call, finished_run, without_the_harness_tasks
from tests.fixtures.harness import model_dir
from tests.fixtures.processes import run_code

DISCOVERY = """
import importlib.metadata, sys
from lm_eval.api.registry import model_registry
for point in importlib.metadata.entry_points(group="lm_eval.models"):
    model_registry.register(point.name, target=point)
assert "neuronllm_eval" not in sys.modules
"""
# The harness's own tasks, which come first and take seconds to read, are left out.
RUN = """
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks._index import TaskIndex
build = TaskIndex.build
TaskIndex.build = staticmethod(lambda paths, **more: build(list(paths)[1:], **more))
cli_evaluate()
"""


def arguments(output: Path) -> list[str]:
    run = finished_run()
    mask = f"neurons={run.path},condition=suppress_good"
    model_args = f"pretrained={model_dir()},dtype=float32,{mask}"
    return [
        *("--model", "neuronllm", "--model_args", model_args, "--tasks", "demo_topic"),
        *("--limit", "4", "--batch_size", "4", "--device", "cpu", "--log_samples"),
        *("--include_path", str(tasks_dir()), "--output_path", str(output)),
    ]


def written(output: Path) -> tuple[dict, list]:
    (results,) = output.rglob("results_*.json")
    (samples,) = output.rglob("samples_demo_topic_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8")), lines


@pytest.mark.slow
def test_lm_eval_finds_the_model_as_a_plugin(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    code, _, err = run_code(f"{DISCOVERY}{RUN}", "run", *arguments(tmp_path / "stock"))
    assert code == 0, err
    results, samples = written(tmp_path / "stock")
    config = results["config"]
    assert config["model"] == "neuronllm"
    assert config["model_args"]["condition"] == "suppress_good"
    assert config["neuronllm"]["condition"] == "suppress_good"
    code, _, err = call("run", *arguments(tmp_path / "own"))
    assert code == 0, err
    own, own_samples = written(tmp_path / "own")
    assert results["results"] == own["results"]
    assert config["neuronllm"] == own["config"]["neuronllm"]
    assert [line["resps"] for line in samples] == [line["resps"] for line in own_samples]


@pytest.mark.slow
def test_lm_eval_may_keep_the_path_of_the_entry_point():
    found = "print(model_registry.get('neuronllm').__name__, model_registry.get('neuronllm'))"
    _, out, err = run_code(DISCOVERY.replace("target=point", "target=point.value") + found)
    assert out.startswith("NeuronMaskedLM <class 'neuronllm_eval.masked_lm.model"), err


@pytest.mark.slow
def test_a_name_that_another_model_has_is_still_refused():
    script = (
        "from lm_eval.api.registry import model_registry\n"
        "model_registry.register('neuronllm', target='lm_eval.models.dummy:DummyLM')\n"
        "import neuronllm_eval.masked_lm.model\n"
    )
    code, _, err = run_code(script)
    assert code == 1
    assert "already registered" in err
