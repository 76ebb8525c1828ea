"""run.yaml: back and forth without loss, and strict."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from neuronllm_eval.attribution import methods, quadrature
from neuronllm_eval.engine import build
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.models import hooks
from neuronllm_eval.runs.settings import (
    ATTRIBUTION_DTYPES,
    AUTO_METHOD,
    ENGINES,
    METHODS,
    QUADRATURES,
    SCHEMA_VERSION,
    RunSettings,
    load_run_file,
)

FULL = RunSettings(
    model_args={"pretrained": "a/b", "dtype": "float32", "trust_remote_code": True, "n": 3},
    task="some_task",
    group="some_group",
    validation_prompts={"0": "0a", "3": "1b"},
    include_path=("/tasks/x", "/tasks/y z"),
    num_fewshot=2,
    apply_chat_template="tool_use",
    fewshot_as_multiturn=False,
    system_instruction="Antworte: ja – oder 'nein'.\nNull: ~",
    description="Rolle – und Regel.",
    metadata={"n_demonstrations": 12, "nested": {"a": [1, None]}},
    selection_split="dev",
    overlap="drop",
    limit=7,
    n_proxies=4,
    orders="swap",
    letter_style="(A)",
    n_options=5,
    distractors="length",
    on_bad_doc="fail",
    seed=11,
    batch_size=16,
    device="cpu",
    engine="replay",
    method="random",
    method_args={"seed": 4},
    positions="all",
    option_scores="per_byte",
    quadrature="right_riemann",
    n_steps=20,
    layer_nodes="3 41@0.1",
    top_z=5.0,
    top_k=0.125,
    ambiguous="drop",
    attribution_dtype="float32",
)
PLAIN = RunSettings(model_args={"pretrained": "m"}, task="t")
DOCS = {"data": {"split": "train", "docs": 9, "skipped": {"no question": 2}}}


def read(path: Path) -> RunSettings:
    return load_run_file(path)[0]


def written(tmp_path: Path, **changes) -> Path:
    """A run.yaml with top-level keys changed; None leaves a key out."""
    values = {**yaml.safe_load(PLAIN.to_yaml({"torch": "2.0"}, DOCS)), **changes}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


@pytest.mark.parametrize("settings", [FULL, PLAIN], ids=["every setting", "defaults"])
def test_round_trip(tmp_path, settings):
    path = tmp_path / "run.yaml"
    text = settings.to_yaml({"torch": "2.0", "lm_eval": "0.4"}, DOCS)
    path.write_text(text, encoding="utf-8")
    loaded = read(path)
    assert loaded == settings
    assert loaded.to_yaml({"torch": "2.0", "lm_eval": "0.4"}, DOCS) == text
    assert type(loaded.include_path) is tuple


def test_the_full_example_leaves_no_default():
    # Otherwise the round trip above would miss a field.
    for name in RunSettings.model_fields:
        if name not in ("model_args", "task", "method"):
            assert getattr(FULL, name) != getattr(PLAIN, name), name


def test_the_file_can_be_read_by_people(tmp_path):
    values = yaml.safe_load(FULL.to_yaml({"torch": "2.0"}, DOCS))
    assert list(values) == ["schema_version", "versions", "docs", "settings"]
    assert values["schema_version"] == SCHEMA_VERSION
    assert values["versions"] == {"torch": "2.0"}
    assert values["docs"] == DOCS
    assert values["settings"]["include_path"] == ["/tasks/x", "/tasks/y z"]
    assert values["settings"]["top_k"] == 0.125
    assert "–" in FULL.to_yaml({}, {})  # not an escape


def test_what_became_of_the_docs_is_read_back(tmp_path):
    assert load_run_file(written(tmp_path))[1] == DOCS
    with pytest.raises(ArtifactError, match=r"run\.yaml: docs is \[1\]\.\nExpected: a valid dict"):
        load_run_file(written(tmp_path, docs=[1]))


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        PLAIN.task = "other"


def test_an_unknown_setting(tmp_path):
    settings = {**yaml.safe_load(PLAIN.to_yaml({}, {}))["settings"], "top_q": 3}
    with pytest.raises(
        ArtifactError, match=r"(?s)run\.yaml: settings: unknown setting 'top_q'.*top_k, top_z"
    ):
        read(written(tmp_path, settings=settings))


def test_a_setting_that_an_earlier_version_did_not_write_has_its_default(tmp_path):
    settings = yaml.safe_load(PLAIN.to_yaml({}, {}))["settings"]
    del settings["seed"], settings["ambiguous"], settings["fewshot_as_multiturn"]
    assert read(written(tmp_path, settings=settings)) == PLAIN


@pytest.mark.parametrize("name", ["task", "model_args"])
def test_a_missing_setting(tmp_path, name):
    settings = yaml.safe_load(PLAIN.to_yaml({}, {}))["settings"]
    del settings[name]
    with pytest.raises(
        ArtifactError, match=rf"(?s)run\.yaml: settings: {name} is missing.*identify again"
    ):
        read(written(tmp_path, settings=settings))


@pytest.mark.parametrize("key", ["schema_version", "versions", "docs", "settings"])
def test_a_missing_section(tmp_path, key):
    with pytest.raises(ArtifactError, match=rf"run\.yaml: {key} is missing\.\nExpected: "):
        read(written(tmp_path, **{key: None}))


def test_an_unknown_section(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"run\.yaml: .*(more is an unknown key|unknown setting 'more')"
    ):
        read(written(tmp_path, more=1))


def test_another_schema(tmp_path):
    with pytest.raises(
        ArtifactError,
        match=r"run\.yaml: schema_version is 99\.\nExpected: 3\.\nRemedy: run identify",
    ):
        read(written(tmp_path, schema_version=99))


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"a: 1\n b: 2"])
def test_not_yaml(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(?s)run\.yaml cannot be read: .*identify"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the content is None"),
        ("text", "the content is 'text'"),
        ("- 1\n- 2", r"the content is \[1, 2\]"),
        ("7", "the content is 7"),
        ("1: 2\na: 3", ""),
    ],
)
def test_yaml_of_another_kind(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=rf"run\.yaml: {message}"):
        read(path)


@pytest.mark.parametrize("settings", [5, "x", [{"task": "t"}], {1: 2, "task": "t"}])
def test_settings_of_another_kind(tmp_path, settings):
    with pytest.raises(ArtifactError, match=r"run\.yaml: settings"):
        read(written(tmp_path, settings=settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("include_path", 5),
        ("include_path", "folder"),
        ("batch_size", "many"),
        ("model_args", ["pretrained=m"]),
        ("task", None),
        ("top_k", "all"),
        ("n_steps", 1.5),
        ("metadata", [1]),
        ("metadata", {1: 2}),
        ("description", 3),
        ("n_options", "4"),
    ],
)
def test_a_setting_of_another_type(tmp_path, name, value):
    settings = {**yaml.safe_load(PLAIN.to_yaml({}, {}))["settings"], name: value}
    with pytest.raises(ArtifactError, match=rf"run\.yaml: .*{name}"):
        read(written(tmp_path, settings=settings))


def test_no_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"(?s)there is no .*run\.yaml.*run identify first"):
        read(tmp_path / "run.yaml")


def test_choices_are_those_that_are_implemented():
    assert tuple(methods.METHODS) == (*METHODS, AUTO_METHOD)
    assert ("auto", *quadrature.QUADRATURES) == QUADRATURES
    assert ENGINES == build.ENGINES
    assert ATTRIBUTION_DTYPES == hooks.ATTRIBUTION_DTYPES
