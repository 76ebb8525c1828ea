"""The settings of a run, as `run.yaml` keeps them. Frozen, and strict about keys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.strict_json import exact_keys, require_schema

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes.

    The names are those of the command line, which are lm_eval's where lm_eval has them.
    `top_k` and `top_z` are shares below 1 and counts from 1. Of prompts and AQUA settings, None
    leaves what the task's YAML says.
    """

    model_args: dict[str, Any]
    task: str
    include_path: tuple[str, ...] = ()
    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    description: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    selection_split: str | None = None
    overlap: str = "refuse"
    limit: int | None = None
    n_proxies: int | None = None
    orders: str | None = None
    letter_style: str | None = None
    n_options: int | None = None
    distractors: str | None = None
    on_bad_doc: str | None = None
    seed: int | None = None
    batch_size: int | Literal["auto"] = 1
    device: str | None = None
    engine: str = "auto"
    method: str = "ace"
    quadrature: str = "gauss_legendre"
    n_steps: int | None = None
    top_z: float = 0.1
    top_k: float = 0.02
    ambiguous: str = "keep"
    attribution_dtype: str = "auto"

    def to_yaml(self, versions: dict[str, str], docs: dict[str, Any]) -> str:
        """The content of `run.yaml`.

        Args:
            versions: of the packages, for the reader; not read back.
            docs: what became of the docs, for reports.
        """
        values = dataclasses.asdict(self)
        values["include_path"] = list(self.include_path)
        header = {"schema_version": SCHEMA_VERSION, "versions": versions, "docs": docs}
        return yaml.safe_dump({**header, "settings": values}, sort_keys=False, allow_unicode=True)

    @classmethod
    def load(cls, path: Path) -> RunSettings:
        """Read a `run.yaml`.

        Raises:
            ArtifactError: the file is missing, not YAML, of another schema, or has unknown keys.
        """
        values = _read(path)
        known = {field.name for field in dataclasses.fields(cls)}
        settings = exact_keys(values["settings"], known, path, "settings")
        hints = get_type_hints(cls)
        for name, value in settings.items():
            if not _fits(value, hints[name]):
                raise ArtifactError(
                    f"{path}: settings.{name} is {value!r}",
                    expected=str(hints[name]).replace("<class ", "").replace(">", ""),
                    remedy="run identify again",
                )
        return cls(**{**settings, "include_path": tuple(settings["include_path"])})


def read_doc_counts(path: Path) -> dict[str, Any]:
    """What `run.yaml` says became of the selection split's docs.

    Raises:
        ArtifactError: as `RunSettings.load`.
    """
    docs = _read(path)["docs"]
    if not isinstance(docs, dict):
        raise ArtifactError(
            f"{path}: docs is {docs!r}", expected="a mapping", remedy="run identify again"
        )
    return docs


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a run directory written by `neuronllm-eval identify`",
            remedy="check the path, or run identify first",
        ) from error
    keys = {"schema_version", "versions", "docs", "settings"}
    values = exact_keys(values, keys, path, "the file")
    require_schema(values["schema_version"], SCHEMA_VERSION, path)
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML is of the type a field has."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    kind = get_origin(hint)
    if kind is Literal:
        return value in get_args(hint)
    if kind is tuple:  # YAML has lists only
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return type(value) is hint
