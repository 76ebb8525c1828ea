"""README.md: a page, with the numbers and the figure of the demo's run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import call, without_the_harness_tasks

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURE = ROOT / "docs" / "figures" / "demo_topic.svg"


def test_it_is_a_page():
    lines = README.splitlines()
    assert len(lines) <= 180
    assert [line for line in lines if len(line) > 120] == []
    assert "```python" in lines[:60]
    assert f"]({FIGURE.relative_to(ROOT)})" in README


def rows(text: str) -> list[dict[str, str]]:
    """Of the first table that begins with a condition, the cells by the heads of their columns."""
    table = text[re.search(r"^\| *condition *\|", text, re.MULTILINE).start() :]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.split("\n\n")[0].splitlines()
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """What `make demo` does for demo_topic."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        flags = ["--tasks", "demo_topic", "--limit", 120, "--batch_size", 48]
        code, _, err = call(*flags, "--output_path", output, entry=cli.run_eval_main)
    assert code == 0, err
    return RunDirectory(output / "demo_topic")


@pytest.mark.slow  # a run of 120 questions
def test_the_table_is_that_of_the_report(run):
    report = rows(run.report.read_text(encoding="utf-8"))
    assert len(report) == 8  # chance, unmasked, six conditions
    shown = rows(README)
    assert shown == [{head: row[head] for head in shown[0]} for row in report]


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_summary(run):
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    assert _script("make_figure").figure(summary) == FIGURE.read_text(encoding="utf-8")


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
