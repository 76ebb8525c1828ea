"""`run.yaml` and nothing odder: plain values, every key once, no aliases, bounded size and depth.

PyYAML's safe loader makes no objects, but takes aliases, whose copies a short file can multiply
without end, keys that occur twice, and nesting until Python's stack ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.json_files import read_text, repeated

MOST_YAML_BYTES = 4 << 20
MOST_LEVELS = 50
# Besides errors of YAML, odd scalars raise whatever their conversion does: `!!int abc`, the date
# 2024-13-45, `!!timestamp now`.
_ODD = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
_REMEDY = "check the path, or run identify first"


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `read_yaml` reads: the keys in their order, and no aliases."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        ArtifactError: it is missing, too large, not YAML, or holds what this package never writes.
    """
    try:
        text = read_text(path, MOST_YAML_BYTES, _REMEDY)
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
            remedy=_REMEDY,
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
