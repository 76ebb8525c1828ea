"""The wheel, as it is installed: it has all that the package reads beside its modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.cli import copy_of, finished_run

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, sys
import neuronllm_eval
from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.cli import commands
from neuronllm_eval.cli.flags import config_path
from neuronllm_eval.harness import tasks_dir
code = cli.main(["report", sys.argv[1]])
given = ["compare-methods", "--config", "recipes/paper.yaml"]
models = len(commands.parsed(commands.main_parser(), given)[1][0].models)
recipe = str(config_path("paper"))
print(json.dumps([code, models, neuronllm_eval.__file__, str(tasks_dir()), str(MODEL_DIR), recipe]))
"""


@pytest.mark.slow
def test_the_wheel_has_what_the_package_reads(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    run = copy_of(finished_run(), tmp_path / "run")
    run.page.unlink()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, run.path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, n_models, module, tasks, model, recipe = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert run.page.is_file()
    assert n_models == 3  # of the paper's recipe
    for place in (module, tasks, model, recipe):
        assert Path(place).is_relative_to(site)
    assert (Path(tasks) / "demo" / "demo_topic.yaml").is_file()
    assert (Path(model) / "config.json").is_file()
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "neuronllm = neuronllm_eval.masked_lm.model:NeuronMaskedLM" in entry_points.read_text()
