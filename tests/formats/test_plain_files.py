"""YAML of plain values: written without aliases, read without surprises."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import (
    MOST_LEVELS,
    MOST_YAML_BYTES,
    _Loader,
    dump_yaml,
    read_yaml,
    require_distinct_keys,
)
from tests.fixtures.damage import laughs


def test_parts_that_are_equal_are_written_out_and_come_back(tmp_path):
    part = {"a": [1, "zwei – 2"], "null": None}
    text = dump_yaml({"z": part, "b": part, "c": [part, part]})
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert "&" not in text
    assert list(read_yaml(tmp_path / "x.yaml")) == ["z", "b", "c"]  # in their order
    assert read_yaml(tmp_path / "x.yaml") == {"z": part, "b": part, "c": [part, part]}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "the key 'c' occurs twice"),
        (nested(MOST_LEVELS + 1), f"nested more than {MOST_LEVELS} levels deep"),
        (nested(100_000), f"nested more than {MOST_LEVELS} levels deep"),
        (laughs(), "the alias *n0 stands for another part"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "the alias *a stands"),
        ("? [1]\n: 2\n", "unhashable key"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: 2024-02-30\n", "day"),
    ],
)
def test_what_is_refused(tmp_path, text, found):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ArtifactError) as refusal:
        read_yaml(tmp_path / "x.yaml")
    assert refusal.value.found.startswith(f"{tmp_path / 'x.yaml'} cannot be read: ")
    assert found in refusal.value.found
    assert refusal.value.expected
    assert refusal.value.remedy


def test_the_bound_on_depth_is_no_tighter_than_it_says(tmp_path):
    (tmp_path / "x.yaml").write_text(nested(MOST_LEVELS))
    assert isinstance(read_yaml(tmp_path / "x.yaml"), list)


def test_the_bound_on_size_comes_before_reading(tmp_path, monkeypatch):
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate(MOST_YAML_BYTES + 1)
    monkeypatch.setattr("pathlib.Path.read_text", None)  # calling it would be a TypeError
    with pytest.raises(ArtifactError, match="has 4,194,305 bytes"):
        read_yaml(tmp_path / "x.yaml")


def test_keys_are_compared_in_time_that_grows_as_their_number(tmp_path):
    # Each against all others took half a minute and more.
    names = [f"k{number}" for number in range(60_000)]
    members = ", ".join(f"{json.dumps(name)}: 1" for name in [*names, names[-1]])
    one = yaml.ScalarNode("tag:yaml.org,2002:int", "1")
    keys = [yaml.ScalarNode("tag:yaml.org,2002:str", name) for name in names]
    node = yaml.MappingNode("tag:yaml.org,2002:map", [(key, one) for key in keys])
    start = time.process_time()
    with pytest.raises(ValueError, match="'k59999' occurs twice"):
        require_distinct_keys(f"{{{members}}}")
    json_took = time.process_time() - start
    assert len(_Loader("").construct_mapping(node)) == len(names)
    assert max(json_took, time.process_time() - start - json_took) < 8
