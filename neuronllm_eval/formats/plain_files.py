"""JSON and YAML files of plain values: the same bytes for the same values, nothing odd accepted.

`typed_files` makes values of the JSON. Of YAML, PyYAML's safe loader makes no objects, but takes
aliases, whose copies a short file can multiply without end, keys that occur twice, and nesting
until Python's stack ends: all of these are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.digests import require_unchanged

# A neurons.json of three million neurons; other files are far smaller.
MOST_JSON_BYTES = 256 << 20
MOST_YAML_BYTES = 4 << 20
MOST_LEVELS = 50
_MOST_SPARSE = 1 << 30  # bytes
_BLOCK = 512  # bytes that `st_blocks` counts
# Besides errors of YAML, odd scalars raise whatever their conversion does: `!!int abc`, the date
# 2024-13-45, `!!timestamp now`.
_ODD = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
_NO_RUN = "check the path, or run identify first"


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
            remedy=_NO_RUN,
        )


def require_size(path: Path, most_bytes: int, remedy: str) -> None:
    """Raise ArtifactError if a file is larger than it can sensibly be, before it is read.

    Or if a large one mostly has no content: a sparse file of gigabytes is kilobytes on the disk.
    """
    status = path.stat()
    on_disk = status.st_blocks * _BLOCK  # 0 where the file system does not say
    is_sparse = status.st_size > _MOST_SPARSE and 0 < on_disk < status.st_size // 2
    if status.st_size > most_bytes or is_sparse:
        raise ArtifactError(
            f"{path} has {status.st_size:,} bytes"
            + (f", of which {on_disk:,} are on the disk" if is_sparse else ""),
            expected=f"at most {most_bytes:,}, all of them written",
            remedy=f"it is not what this package writes; {remedy}",
        )


# YAML -------------------------------------------------------------------------------------------


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `read_yaml` reads: the keys in their order, and no aliases."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        ArtifactError: it is missing, too large, not YAML, or holds what this package never writes.
    """
    try:
        text = read_text(path, MOST_YAML_BYTES, _NO_RUN)
        _require_plain(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _ODD as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a run directory written by `neuronllm-eval identify`",
            remedy=_NO_RUN,
        ) from error


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which writes equal parts out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses keys that occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Keys that are no scalars are refused as unhashable by the safe loader itself.
        scalars = (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if (twice := repeated(scalars)) is not None:
            raise ValueError(f"the key {twice!r} occurs twice")
        return super().construct_mapping(node, deep)


def _require_plain(text: str) -> None:
    """Raise ValueError for aliases and for deep nesting, before anything is built of them."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"the alias *{event.anchor} stands for another part of the file")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            level += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            level -= 1
        if level > MOST_LEVELS:
            raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
