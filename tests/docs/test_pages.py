"""Pages agree with the code and the files that they describe."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

import neuronllm_eval
from neuronllm_eval.cli.commands import COMMANDS, run_eval_parser
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import QUICK, call, copy_of, finished_run, jsonl, without_the_harness_tasks

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(neuronllm_eval.__file__).parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# The command line ---------------------------------------------------------------------------------


def _generator() -> Any:
    path = ROOT / "docs" / "make_command_line.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


def test_the_page_of_the_command_line_is_up_to_date():
    assert read("docs/command-line.md") == GENERATOR.page(), (
        "then run `python docs/make_command_line.py`"
    )


def test_every_command_has_an_example():
    parts = sections(GENERATOR.page())
    assert set(parts) >= {
        f"neuronllm-eval {name}" for name in (command.name for command in COMMANDS)
    }
    assert [title for title, text in parts.items() if "```sh\n" not in text] == []


def test_the_example_of_the_script_can_be_parsed():
    words = shlex.split(GENERATOR.EXAMPLES["run_eval.py"])
    assert words[:2] == ["python", "run_eval.py"]
    run_eval_parser().parse_args(words[2:])


# The artifacts ------------------------------------------------------------------------------------


def sections(page: str) -> dict[str, str]:
    """Text by second-level heading."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def keys(value: Any, left_out: tuple[str, ...] = ()) -> set[str]:
    """All keys of a value, however deep; none of mappings by names, such as versions."""
    if isinstance(value, list):
        return set().union(*[keys(each, left_out) for each in value])
    if not isinstance(value, dict):
        return set()
    found = set(value)
    return found.union(
        *[keys(each, left_out) for key, each in value.items() if key not in left_out]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """A finished run with all files that commands add."""
    copied = copy_of(finished_run(), tmp_path_factory.mktemp("runs") / "demo_topic")
    other = copy_of(finished_run(), copied.path.parent / "other")
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for command in (
            ("validate", copied.path, *QUICK, "--perplexity", "--device", "cpu", "--resume"),
            ("explain", copied.path, other.path, "--top_n", 1, "--limit", 2),
        ):
            code, _, err = call(*command)
            assert code == 0, err
    return copied


def test_every_key_of_every_file_is_explained(run):
    page = sections(read("docs/artifacts.md"))
    by_name = ("versions", "metadata", "method_args", "model_args", "metrics", "prompts", "skipped")
    result = json.loads(run.result("suppress_good").read_text())
    ours = set(result["config"]["model_args"]) - {"pretrained"}
    with safe_open(run.scores, "np") as scores:
        tensors, header = set(scores.keys()), scores.metadata()
    found = {
        "run.yaml": keys(
            yaml.safe_load(run.settings.read_text()), (*by_name, "validation_prompts")
        ),
        "neurons.json": keys(json.loads(run.neurons.read_text()), by_name),
        "scores.safetensors": tensors | set(header) | set(json.loads(header["neuronllm_eval"])),
        "questions.jsonl": keys(jsonl(run.questions)),
        "conditions.jsonl": keys(jsonl(run.conditions), ("loglikelihoods", "kl")),
        "perplexity.json": keys(json.loads(run.perplexity.read_text()), ("perplexity",)),
        "validation_docs.jsonl": keys(jsonl(run.validation_docs)),
        "validation.json": keys(json.loads(run.validation.read_text()), ("docs",)),
        "results": ours,
        "summary.json and report.md": keys(
            json.loads(run.summary.read_text()), (*by_name, "data", "asked", "docs")
        )
        | set(json.loads(run.summary.read_text())["docs"]),
        "explain.json and explain.md": keys(json.loads(run.explanation.read_text())),
        "commands.jsonl": keys(jsonl(run.commands), by_name),
        "tokens.json": keys(json.loads(run.tokens.read_text())),
        "adapters": keys(
            json.loads((run.adapter("enhance") / "neuronllm.json").read_text()), ("provenance",)
        ),
    }
    for title, names in found.items():
        assert names, title
        missing = {name for name in names if f"`{name}`" not in page[title]}
        assert missing == set(), title


def test_every_file_of_a_run_is_explained(run):
    page = read("docs/artifacts.md")
    for path in run.path.iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}`" in page, path.name


# The method, and who is to be cited ---------------------------------------------------------------


def test_every_reading_in_the_code_is_in_the_table_of_the_method():
    listed = set(re.findall(r"`([\w/]+\.py)`", sections(read("docs/method.md"))["Our readings"]))
    marked = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "our reading" in path.read_text("utf-8")
    }
    assert marked <= listed
    assert [name for name in listed if not (PACKAGE / name).is_file()] == []


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == neuronllm_eval.__version__
    (paper,) = citation["references"]
    assert "2601.04548" in paper["url"]
    assert {"type", "title", "authors"} <= set(paper)


# Prose --------------------------------------------------------------------------------------------

PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md")
PATH = re.compile(r"`(?:\S+=)?((?:[\w-]+/)*[\w-]+\.py)(?:::\w+)?`")
# Of a user, or of lm_eval.
NOT_OURS = {"my_methods.py", "scripts/zeno_visualize.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_have_at_most_100_characters(page):
    """Rows of tables cannot be broken, and what a command printed stands as it was printed."""
    text = re.sub(
        r"^```console.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page):
    """Below the package (`aqua/proxies.py`) or the repository; of a test its name is enough."""
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    text = page.read_text("utf-8")
    folders = re.findall(r"\b(?:neuronllm_eval|benchmarks|tools|tests)/(?:[\w-]+/)*(?=[`\s])", text)
    names = set(PATH.findall(text)) - NOT_OURS - tests
    absent = {name for name in names if not any((at / name).is_file() for at in (ROOT, PACKAGE))}
    assert absent | {name for name in folders if not (ROOT / name).is_dir()} == set()


def test_every_name_in_the_architecture_stands_in_its_module():
    """``path.py`: `name``, as the tables have it."""
    text = read("docs/architecture.md")
    names = re.findall(r"`([\w/]+\.py)`: `(\w+)`", text)
    assert len(names) > 5
    for path, name in names:
        assert re.search(rf"\b(def|class) {name}\b|^{name}\b", (PACKAGE / path).read_text("utf-8"),
                         re.MULTILINE), (path, name)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    """`test_x.py::test_y`, and further names of the same file behind it."""
    defined = {
        path.name: set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    everywhere = set().union(*defined.values())
    text = page.read_text("utf-8")
    for file, name in re.findall(r"`(?:[\w-]+/)*(test_\w+\.py)::(test_\w+)`", text):
        assert name in defined.get(file, ()), f"{file}::{name}"
    assert set(re.findall(r"`(test_\w+)`", text)) <= everywhere
