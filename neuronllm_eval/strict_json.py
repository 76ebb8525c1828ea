"""JSON artifacts: the same bytes for the same values, and no odd key accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError


def dump_json(values: dict[str, Any]) -> str:
    """JSON with sorted keys, so that equal values give equal bytes; NaN is refused."""
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"


def parse_json(text: str, path: Path) -> Any:
    """Parse JSON read from `path`; ArtifactError if it is none."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not valid JSON: {error}",
            expected="a file written by identify",
            remedy="run identify again",
        ) from error


def exact_keys(values: Any, expected: set[str], path: Path, what: str) -> dict[str, Any]:
    """`values` as a dict with exactly the expected keys; ArtifactError names what differs."""
    found = set(values) if isinstance(values, dict) else None
    if found != expected:
        detail = (
            f"missing {sorted(expected - found)}, unknown {sorted(map(str, found - expected))}"
            if found is not None
            else f"a {type(values).__name__}"
        )
        raise ArtifactError(
            f"{path}: {what} has the wrong keys: {detail}",
            expected=", ".join(sorted(expected)),
            remedy="run identify again, with the version of neuronllm_eval that reads the file",
        )
    return dict(values)


def require_schema(version: Any, expected: int, path: Path) -> None:
    """Raise ArtifactError unless the artifact has the schema version this package reads."""
    if version != expected:
        raise ArtifactError(
            f"{path} has schema version {version!r}",
            expected=str(expected),
            remedy="run identify again with this version of neuronllm_eval",
        )


def require_file(path: Path) -> None:
    """Raise ArtifactError unless `path` is a file."""
    if not path.is_file():
        raise ArtifactError(
            f"there is no {path}",
            expected="a run directory written by `neuronllm-eval identify`",
            remedy="check the path, or run identify first",
        )
