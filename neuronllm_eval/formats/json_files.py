"""JSON artifacts: the same bytes for the same values, and nothing odd accepted.

A file is refused, by a readable error, if it is larger than what it can sensibly hold, not text,
nested too deeply, names a key twice, or has keys other than the expected ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from neuronllm_eval.errors import ArtifactError

# A neurons.json of three million neurons; other files are far smaller.
MOST_JSON_BYTES = 256 << 20
_Made = TypeVar("_Made")


def dump_json(values: dict[str, Any]) -> str:
    """JSON with sorted keys, so that equal values give equal bytes; NaN is refused."""
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"


def parse_json(text: str, path: Path | str, remedy: str = "run identify again") -> Any:
    """Parse JSON read from `path`, which may also say from which line of it.

    Raises:
        ArtifactError: it is none, nested too deeply, or an object names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits
        raise ArtifactError(
            f"{path} is not valid JSON: {error}",
            expected="a file as this package writes it",
            remedy=remedy,
        ) from error


def read_json(path: Path, remedy: str = "run identify again") -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: it is missing, too large, not text in UTF-8, or as `parse_json`.
    """
    return parse_json(read_text(path, MOST_JSON_BYTES, remedy), path, remedy)


def read_text(path: Path, most_bytes: int, remedy: str) -> str:
    """The text of a file of at most so many bytes.

    Raises:
        ArtifactError: it is missing, larger, not text in UTF-8, or cannot be read.
    """
    require_file(path)
    require_size(path, most_bytes, remedy)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a file as this package writes it",
            remedy=remedy,
        ) from error


def require_distinct_keys(text: str) -> None:
    """Raise ValueError or RecursionError for text that is not JSON, or names a key twice."""
    json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {occurs_twice(name for name, _ in pairs)!r} occurs twice")
    return found


def occurs_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before; None if all are distinct."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def exact_keys(
    values: Any, expected: set[str], path: Path, what: str, remedy: str = "run identify again"
) -> dict[str, Any]:
    """`values` as a dict with exactly the expected keys; ArtifactError names what differs."""
    found = set(values) if isinstance(values, dict) else None
    if found != expected:
        detail = (
            f"missing {sorted(expected - found)}, unknown {sorted(map(str, found - expected))[:20]}"
            if found is not None
            else f"a {type(values).__name__}"
        )
        raise ArtifactError(
            f"{path}: {what} has the wrong keys: {detail}",
            expected=", ".join(sorted(expected)),
            remedy=f"{remedy}, with the version of neuronllm_eval that reads the file",
        )
    return dict(values)


def require_schema(version: Any, expected: int, path: Path) -> None:
    """Raise ArtifactError unless the artifact has the schema version this package reads."""
    if type(version) is not int or version != expected:
        raise ArtifactError(
            f"{path} has schema version {version!r}",
            expected=str(expected),
            remedy="run identify again with this version of neuronllm_eval",
        )


def require_file(path: Path) -> None:
    """Raise ArtifactError unless `path` is a file."""
    if not path.is_file():
        raise ArtifactError(
            f"{path} is not a file" if path.exists() else f"there is no {path}",
            expected="a run directory written by `neuronllm-eval identify`",
            remedy="check the path, or run identify first",
        )


def require_size(path: Path, most_bytes: int, remedy: str) -> None:
    """Raise ArtifactError if a file is larger than it can sensibly be, before it is read."""
    if (size := path.stat().st_size) > most_bytes:
        raise ArtifactError(
            f"{path} has {size:,} bytes",
            expected=f"at most {most_bytes:,}",
            remedy=f"it is not what this package writes; {remedy}",
        )


def naming(path: Path, make: Callable[..., _Made], *args: Any, **values: Any) -> _Made:
    """What `make` returns; its ArtifactErrors name the file."""
    try:
        return make(*args, **values)
    except ArtifactError as error:
        raise ArtifactError(
            f"{path}: {error.found}", expected=error.expected, remedy=error.remedy
        ) from error
