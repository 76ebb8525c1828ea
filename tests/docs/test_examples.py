"""Every page has something that runs: its example script, or what `examples/README.md` names."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from neuronllm_eval.attribution.methods import METHODS
from tests.fixtures.cli import call, without_the_harness_tasks

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# A module for a flag, and a script that downloads weights.
NOT_ALONE = ("own_method", "real_model")
TABLE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
@pytest.mark.parametrize(
    "script", [each for each in SCRIPTS if each.stem not in NOT_ALONE], ids=lambda path: path.stem
)
def test_the_example_runs(script, tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")


def test_the_own_method_runs(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    flags = ["--tasks", "demo_topic", "--limit", 4, "--output_path", tmp_path]
    flags += ["--method", "activation_share", "--method_args", "power=2"]
    try:
        runpy.run_path(str(ROOT / "examples" / "own_method.py"))
        code, _, err = call("identify", *flags)
    finally:
        METHODS.pop("activation_share", None)
    assert code == 0, err


def test_the_page_shows_the_method_that_runs():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n# my_methods.py\n(.*?)```", page, re.DOTALL)[1]
    assert (ROOT / "examples" / "own_method.py").read_text("utf-8").endswith(shown)


def test_every_page_names_what_runs():
    listed = dict(re.findall(r"^\| `docs/([\w-]+\.md)` \| (.+?) \|$", TABLE, re.MULTILINE))
    assert set(listed) == {path.name for path in (ROOT / "docs").glob("*.md")}
    named = {name for cell in listed.values() for name in re.findall(r"`(\w+\.py)`", cell)}
    assert {path.name for path in SCRIPTS} <= named
    folders = [ROOT / name for name in ("examples", "tests", "docs")]
    for name in named:
        assert any(list(folder.rglob(name)) for folder in folders), name
