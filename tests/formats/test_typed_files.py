"""Typed files: whatever is wrong with one becomes a message that names file, line and key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.typed_files import (
    NumberOrNaN,
    PositiveCount,
    artifact,
    load,
    load_lines,
)


@dataclass(frozen=True)
class Point:
    x: int
    y: float


@artifact
@dataclass(frozen=True)
class Drawing:
    points: tuple[Point, ...]
    size: PositiveCount
    area: NumberOrNaN
    named: dict[str, float]
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        if len(self.points) > 2:
            raise ValueError(f"there are {len(self.points)} points, more than 2")
        if self.size == 7:
            raise UsageError("size is 7", expected="another", remedy="check --size")


GOOD = (
    '{"points": [{"x": 1, "y": 2}], "size": 3, "area": null, "named": {"a": 0.5}, '
    '"schema_version": 2}'
)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "drawing.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ArtifactError) as refused:
        load(Drawing, path, "draw it")
    text = str(refused.value)
    assert text.startswith(str(path))
    assert text.endswith("Remedy: draw it.")
    return text


def test_a_file_becomes_a_value(tmp_path):
    path = tmp_path / "drawing.json"
    path.write_text(GOOD)
    drawing = load(Drawing, path, "draw it")
    assert drawing.points == (Point(1, 2.0),)
    assert math.isnan(drawing.area)
    assert drawing.named == {"a": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('"x": 1', '"x": "1"', (": points.0.x is '1'", "a valid integer")),
        ('"x": 1', '"x": true', (": points.0.x is True", "a valid integer")),
        ('"x": 1', '"x": 1.0', (": points.0.x is 1.0",)),
        ('"y": 2', '"y": NaN', (": points.0.y is nan", "a finite number")),
        ('"y": 2', '"y": 1e999', (": points.0.y is inf",)),
        ('"y": 2', f'"y": 1{"0" * 400}', (": points.0.y is 1000", "a finite number")),
        ('"y": 2', f'"y": {"9" * 5000}', (" is not valid JSON", "4300 digits")),
        ('"x": 1, ', "", (": points.0.x is missing",)),
        ('"x": 1', '"x": 1, "z": 2', (": points.0.z is an unknown key",)),
        ('"x": 1', '"x": 1, "\\u001b": 2', (": points.0.'\\x1b' is an unknown key",)),
        ('"x": 1', '"x": 1, "x": 1', ("the key 'x' occurs twice",)),
        ('"size": 3', '"size": 0', (": size is 0", "greater than or equal to 1")),
        ('"size": 3', '"size": 7', (": size is 7", "Expected: another")),
        ('"area": null', '"area": "big"', (": area is 'big'",)),
        ('"area": null', '"area": NaN', (": area is nan",)),
        ('"named": {"a": 0.5}', '"named": []', (": named is []", "an object")),
        ("version\": 2", "version\": 1, \"q\": 5", (": schema_version is 1 (and 1 more", "2")),
        ('[{"x": 1, "y": 2}]', '[{"x":1,"y":2},{"x":1,"y":2},{"x":1,"y":2}]', (": there are 3",)),
        ('{"x": 1, "y": 2}', "[" * 100_000, (" is not valid JSON",)),
        ('{"x": 1, "y": 2}', "[" * 300 + "]" * 300, ("recursion limit",)),
        ('"a"', '"\\ud800"', ("JSON",)),
        (GOOD, "[]", (": the content is []", "an object")),
        (GOOD, GOOD[:-9], (" is not valid JSON",)),
        (GOOD, "", (" is not valid JSON",)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, old, new, parts):
    assert old in GOOD
    text = refusal(tmp_path, GOOD.replace(old, new, 1))
    assert len(text) < 700
    for part in parts:
        assert part in text


def test_a_file_that_is_no_text_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path, b"\xff\xfe")


@pytest.mark.parametrize("reader", [load, load_lines])
def test_a_missing_file_is_named(tmp_path, reader):
    with pytest.raises(ArtifactError, match=r"there is no .*/drawing\.json"):
        reader(Drawing, tmp_path / "drawing.json", "draw it")
    with pytest.raises(ArtifactError, match="is not a file"):
        reader(Drawing, tmp_path, "draw it")


def test_lines_are_read_and_numbered(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text('{"x":1,"y":2}\n{"x":3,"y":0.5}\n')
    assert load_lines(Point, path, "draw them") == [Point(1, 2.0), Point(3, 0.5)]
    for content, part in (
        (b'{"x":1,"y":2}\n{"x":3}\n', "line 2: y is missing"),
        (b'{"x":1,"y":2}\n{"x":3,"y":0.5}', "line 2 is cut off"),
        (b'{"x":1,"y":2}\n\n', "line 2 is not valid JSON"),
        (b'{"x":1,"y":2}\n\xff\n', "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as refused:
            load_lines(Point, path, "draw them")
        assert part in str(refused.value)
        assert str(path) in str(refused.value)
