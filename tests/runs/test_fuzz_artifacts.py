"""Mutated files: the readers take them or refuse them with this package's own error.

A hundred mutations of each here; with `--hypothesis-profile fuzz` thousands, other ones every time.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from neuronllm_eval.aqua.settings import SETTING_NAMES, AquaSettings, split_settings, with_overrides
from neuronllm_eval.errors import NeuronLLMError, TaskError, UsageError
from neuronllm_eval.evaluation.condition_effects import load_summary
from neuronllm_eval.evaluation.doc_table import doc_table
from neuronllm_eval.explain.token_effects import read_tokens
from neuronllm_eval.formats.markdown import escaped
from neuronllm_eval.interventions.conditions import ConditionName, control_name
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.artifacts import (
    load_commands,
    load_metrics,
    load_questions,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory, folder_name
from neuronllm_eval.runs.settings import IdentifySettings, load_run_file
from tests.fixtures.cli import copy_of, finished_run
from tests.fixtures.damage import with_header

TASK = "demo_topic"


def fresh(run: RunDirectory) -> RunDirectory:
    """The same folder, of which nothing has been read."""
    return RunDirectory(run.path)


def read_settings(run: RunDirectory) -> object:
    return load_run_file(run.settings)


def read_conditions(run: RunDirectory) -> object:
    return doc_table(fresh(run), TASK)


READERS: dict[str, Callable[[RunDirectory], object]] = {
    "run.yaml": read_settings,
    "neurons.json": lambda run: NeuronSet.load(run.neurons),
    "scores.safetensors": lambda run: NeuronScores.load(run.path),
    "tokens.json": lambda run: read_tokens(run.tokens),
    "validation.json": lambda run: load_validation(fresh(run)),
    "conditions.jsonl": read_conditions,
    "questions.jsonl": lambda run: load_questions(fresh(run)),
    "commands.jsonl": lambda run: load_commands(fresh(run)),
    "summary.json": lambda run: load_summary(fresh(run)),
    "results/unmasked.json": lambda run: load_metrics(fresh(run), "unmasked", TASK),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """A run with few lines, whose files a test may overwrite."""
    return copy_of(finished_run(), tmp_path_factory.mktemp("fuzz") / "run")


def original(name: str) -> bytes:
    return (finished_run().path / name).read_bytes()


def read(run: RunDirectory, name: str, content: bytes) -> None:
    """Read a file of this content; any error but this package's own fails the test."""
    (run.path / name).write_bytes(content)
    with contextlib.suppress(NeuronLLMError):
        READERS[name](run)


# Bytes ------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to four places flipped, cut out, doubled, or filled with others."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content) - 1))
        part = content[start : start + draw(st.integers(1, 40))]
        other = draw(
            st.one_of(
                st.just(b""),
                st.just(part + part),
                st.binary(max_size=12),
                st.sampled_from([b"[" * 3000, b"9" * 5000, b"-1e999", b"NaN", b"&a *a", b"\xff"]),
                st.sampled_from([part[:-1] + bytes([part[-1] ^ 1 << bit]) for bit in range(8)]),
            )
        )
        content = content[:start] + other + content[start + len(part) :] or b"0"
    return content


@pytest.mark.parametrize("name", READERS)
def test_mutated_bytes(run, name):
    content = original(name)

    @given(mutated(content))
    def reads(changed: bytes) -> None:
        read(run, name, changed)

    READERS[name](finished_run())
    reads()


# Values -----------------------------------------------------------------------------------------


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "0",
         "../../x", "/etc/passwd", "\x00", "\ud800", "<b>|`", [], {}, [None], {"": 0}, nested(60)]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested lists and dicts."""
    if not isinstance(value, (dict, list)):
        return [path]
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


@st.composite
def altered(draw: st.DrawFn, values: Any) -> Any:
    """The values with up to three things replaced, taken out or put in."""
    values = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(values)))
        if not place:
            return copy.deepcopy(draw(ODD))
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        change = draw(st.sampled_from(["replace", "remove", "add", "rename"]))
        if change == "replace":
            inner[place[-1]] = copy.deepcopy(draw(ODD))
        elif change == "remove":
            del inner[place[-1]]
        elif isinstance(inner, list):
            inner.insert(place[-1], copy.deepcopy(draw(ODD)))
        elif change == "add":
            inner[draw(st.text(max_size=4))] = copy.deepcopy(draw(ODD))
        else:
            inner[draw(st.text(max_size=4))] = inner.pop(place[-1])
        if not isinstance(values, (dict, list)):
            break
    return values


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass")


@pytest.mark.parametrize(
    "name", ["neurons.json", "validation.json", "results/unmasked.json", "summary.json"]
)
def test_altered_json(run, name):
    @given(altered(json.loads(original(name))))
    def reads(values: Any) -> None:
        read(run, name, as_json(values))

    reads()


def test_altered_settings(run):
    @given(altered(yaml.safe_load(original("run.yaml"))))
    def reads(values: Any) -> None:
        read(run, "run.yaml", as_yaml(values))

    reads()


def test_altered_lines(run):
    lines = [json.loads(line) for line in original("conditions.jsonl").splitlines()]

    @given(altered(lines[:3]))
    def reads(values: Any) -> None:
        found = values if isinstance(values, list) else [values]
        read(run, "conditions.jsonl", b"".join(as_json(line) + b"\n" for line in found))

    reads()


def test_altered_header_of_the_scores(run):
    content = original("scores.safetensors")
    headers: list[dict[str, Any]] = []
    with_header(content, lambda found: headers.append(dict(found)))
    inner = json.loads(headers[0]["__metadata__"]["neuronllm_eval"])

    @given(altered(headers[0]), altered(inner))
    def reads(outside: Any, inside: Any) -> None:
        if isinstance(outside, dict):
            changed = with_header(content, lambda found: (found.clear(), found.update(outside)))
            read(run, "scores.safetensors", changed)
        metadata = {"neuronllm_eval": json.dumps(inside)}
        changed = with_header(content, lambda found: found.update(__metadata__=metadata))
        read(run, "scores.safetensors", changed)

    reads()


def test_reports_of_runs_with_one_altered_file(run):
    """All readers together, and what is made of values that they let pass."""
    good = {name: original(name) for name in READERS}
    changes = {
        "run.yaml": altered(yaml.safe_load(good["run.yaml"])).map(as_yaml),
        "neurons.json": altered(json.loads(good["neurons.json"])).map(as_json),
        "tokens.json": altered(json.loads(good["tokens.json"])).map(as_json),
        "validation.json": altered(json.loads(good["validation.json"])).map(as_json),
    }

    @given(st.sampled_from(sorted(changes)).flatmap(lambda n: st.tuples(st.just(n), changes[n])))
    def reports(changed: tuple[str, bytes]) -> None:
        for name, content in {**good, changed[0]: changed[1]}.items():
            (run.path / name).write_bytes(content)
        with contextlib.suppress(NeuronLLMError):
            assert report_task(fresh(run)).startswith("## ")

    (run.path / "conditions.jsonl").unlink()
    del good["conditions.jsonl"]  # their figures take long, and are fuzzed above
    reports()


# Task YAML, names and arguments -----------------------------------------------------------------

_NAMES = st.one_of(st.sampled_from([*SETTING_NAMES, "overrides", "n_optons"]), st.text(max_size=9))


@example({"letter_style": {}})  # was looked up in a dict
@given(st.dictionaries(_NAMES, st.one_of(ODD, st.dictionaries(_NAMES, ODD, max_size=3))))
def test_metadata_of_tasks(values):
    with contextlib.suppress(NeuronLLMError):
        settings = split_settings(with_overrides(values, ["question"]), ["question"])
        assert AquaSettings(**settings.model_dump()) == settings


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"(degrade|enhance_good)(\.k\d+)?(\.x[-+.0-9e]+)?(\.random_\d+)?"),
        st.integers(0, 10**17).map(lambda seed: control_name("suppress_bad.k3.x0", seed)),
    )
)
def test_names_of_conditions(name):
    """A name that is taken is the one way to write that condition, and that of one file."""
    try:
        assert str(ConditionName.parse(name)) == name
    except UsageError:
        return
    assert RunDirectory(Path("run")).result(name).resolve().parent == Path("run/results").resolve()


@given(st.one_of(st.text(), st.sampled_from(["..", "a/b", "a:b", "/x", "aqua:mmlu", "c:\\x"])))
def test_folders_of_tasks(name):
    base = Path("/somewhere/runs")
    with contextlib.suppress(TaskError):
        folder = base / folder_name(name)
        assert folder.resolve().parent == base
        assert len(folder_name(name).encode()) < 255


@given(st.lists(st.one_of(st.text(), st.from_regex(r"[a-z]+=[^,]*(,[a-z]+=[^,]*)*")), max_size=3))
def test_model_args(given_args):
    with contextlib.suppress(NeuronLLMError):
        assert IdentifySettings.read({"model_args": given_args}).model_args is not None


@given(st.one_of(ODD, st.text()))
def test_escaped_text_is_one_line_that_can_be_written(value):
    line = escaped(value)
    assert line.isprintable()
    line.encode()
    assert len(line) <= 700  # of 300 signs, each of which may get a backslash
