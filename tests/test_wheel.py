"""The wheel and the source archive: they have what they need, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.cli import copy_of, finished_run
from tests.fixtures.processes import run_code

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
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder of the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist"]
    done = subprocess.run(
        [*command, "--outdir", folder, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(dist, tmp_path_factory) -> Path:
    """The wheel, installed."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    """Paths below a folder, without compiled modules."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_with_its_tasks_and_recipes(site):
    expected = files(ROOT / "neuronllm_eval") | {"run_eval.py"}
    for name in ("tasks", "recipes"):
        expected |= {f"{name}/{path}" for path in files(ROOT / name)}
    assert files(site / "neuronllm_eval") == expected
    assert {"demo/model/model.safetensors", "reporting/templates/report.html.j2"} <= expected
    others = {path.name.rpartition(".")[2] for path in site.iterdir()}
    assert others == {"neuronllm_eval", "dist-info"}  # neither tests nor training
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "neuronllm = neuronllm_eval:NeuronMaskedLM" in entry_points.read_text()


def test_the_source_archive_has_what_a_checkout_has(dist):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {path for path in listed.splitlines() if (ROOT / path).is_file()}
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {path for path in expected - names if not path.startswith((".ci/", ".github/"))}
    assert left_out == set()


def test_the_installed_wheel_finds_what_it_reads(site, tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    run.page.unlink()
    ended, out, err = run_code(SCRIPT, run.path, at=site)
    assert ended == 0, err
    code, n_models, module, tasks, model, recipe = json.loads(out.splitlines()[-1])
    assert code == 0, err
    assert run.page.is_file()
    assert n_models == 3  # of the paper's recipe
    for place in (module, tasks, model, recipe):
        assert Path(place).is_relative_to(site)
    assert (Path(tasks) / "demo" / "demo_topic.yaml").is_file()
    assert (Path(model) / "config.json").is_file()
