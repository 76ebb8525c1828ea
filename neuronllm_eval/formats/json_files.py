"""JSON artifacts as text: the same bytes for the same values, and nothing odd accepted.

`typed_files` makes values of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.digests import require_unchanged

# A neurons.json of three million neurons; other files are far smaller.
MOST_JSON_BYTES = 256 << 20


def dump_json(values: dict[str, Any]) -> str:
    """JSON with sorted keys, so that equal values give equal bytes; NaN is refused."""
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_text(path: Path, most_bytes: int, remedy: str) -> str:
    """The text of a file of at most `most_bytes`.

    Raises:
        ArtifactError: it is missing, larger, not text in UTF-8, or cannot be read.
    """
    require_readable(path, most_bytes, remedy)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a file as this package writes it",
            remedy=remedy,
        ) from error


def require_distinct_keys(text: str) -> None:
    """Raise ValueError or RecursionError for text that is not JSON, or has a key twice."""
    json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"the key {repeated(name for name, _ in pairs)!r} occurs twice")
    return values


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs again; None if all are distinct."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def require_readable(path: Path, most_bytes: int, remedy: str) -> None:
    """Raise ArtifactError for what is no file, is too large, or was changed since it was written.

    The size comes first: a file is not read to the end before it is known to end.
    """
    require_file(path)
    require_size(path, most_bytes, remedy)
    require_unchanged(path, remedy)


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
