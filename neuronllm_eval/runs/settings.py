"""The settings of a run, as `run.yaml` keeps them. Frozen, and strict about keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neuronllm_eval.attribution.integrated_gradients import AUTO_QUADRATURE, QUADRATURES
from neuronllm_eval.attribution.methods import METHODS, make_method
from neuronllm_eval.engine.build import ENGINES
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.json_files import exact_keys, require_schema
from neuronllm_eval.formats.yaml_files import dump_yaml, read_yaml
from neuronllm_eval.neurons.neuron_set import AMBIGUOUS
from neuronllm_eval.prompts import POSITIONS, SCORED
from neuronllm_eval.runs.directory import without_secrets

SCHEMA_VERSION = 3
OVERLAP = ("refuse", "drop")
_CHOICES: dict[str, tuple[str, ...]] = {
    "overlap": OVERLAP,
    "engine": tuple(ENGINES),
    "quadrature": (AUTO_QUADRATURE, *QUADRATURES),
    "ambiguous": AMBIGUOUS,
    "positions": POSITIONS,
}


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes.

    The names are those of the command line, which are lm_eval's where lm_eval has them.
    `top_k` and `top_z` are shares below 1 and counts from 1. Of prompts and AQUA settings, None
    leaves what the task's YAML says. `method_args` are the method's settings (`methods`), and
    `positions` is where neurons are chosen.
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
    method_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    positions: str = SCORED
    quadrature: str = "auto"
    n_steps: int | None = None
    top_z: float = 0.1
    top_k: float = 0.02
    ambiguous: str = "keep"
    attribution_dtype: str = "auto"

    def batch_size_or(self, auto: Callable[[], int]) -> int:
        """Prompts of a batch: the number that is set, or what `auto` comes to."""
        return auto() if isinstance(self.batch_size, str) else self.batch_size

    def to_yaml(self, versions: dict[str, str], docs: dict[str, Any]) -> str:
        """The content of `run.yaml`.

        Args:
            versions: of the packages, for the reader; not read back.
            docs: what became of the docs, for reports.
        """
        values = dataclasses.asdict(self)
        values["include_path"] = list(self.include_path)
        values["model_args"] = without_secrets(self.model_args)
        header = {"schema_version": SCHEMA_VERSION, "versions": versions, "docs": docs}
        return dump_yaml({**header, "settings": values})

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
                    f"{path}: settings.{name} is {value!r:.100}",
                    expected=str(hints[name]).replace("<class ", "").replace(">", ""),
                    remedy="run identify again",
                )
            if value not in _choices().get(name, (value,)):
                own = ", or of a method of your own call its script (docs/extending.md)"
                raise ArtifactError(
                    f"{path}: settings.{name} is {value!r:.100}",
                    expected=" or ".join(_choices()[name]),
                    remedy=f"run identify again{own if name == 'method' else ''}",
                )
        try:
            make_method(settings["method"], settings["method_args"])
        except UsageError as error:
            raise ArtifactError(
                f"{path}: settings.method_args: {error.found}",
                expected=error.expected,
                remedy="run identify again",
            ) from error
        if set(settings["task"]) & set("/\\") or Path(settings["task"]).is_file():
            raise ArtifactError(
                f"{path}: settings.task is the path {settings['task']!r:.100}",
                expected="the name of a task, as identify writes it",
                remedy="run identify again",
            )
        for folder in settings["include_path"]:
            # What a run directory brings along must not become code that is run.
            inside = Path(folder).resolve().is_relative_to(path.parent.resolve())
            if inside or not Path(folder).is_absolute():
                raise ArtifactError(
                    f"{path}: settings.include_path has {folder!r:.100}",
                    expected="absolute paths outside the run directory, as identify writes them",
                    remedy="run identify again, with --include_path",
                )
        return cls(**{**settings, "include_path": tuple(settings["include_path"])})


def _choices() -> dict[str, tuple[str, ...]]:
    """What settings may be, methods of the user's own among them."""
    return {**_CHOICES, "method": tuple(METHODS)}


def read_doc_counts(path: Path) -> dict[str, Any]:
    """What `run.yaml` says became of the selection split's docs.

    Raises:
        ArtifactError: as `RunSettings.load`.
    """
    docs = _read(path)["docs"]
    require_doc_counts(docs, path, "run identify again")
    return dict(docs)


def require_doc_counts(docs: Any, path: Path, remedy: str) -> None:
    """Raise ArtifactError unless `docs`, read from `path`, is what `run_tasks.doc_counts` makes."""
    known = {"data", "asked", "prompts"}
    wrong = f"docs is {docs!r:.100}" if not isinstance(docs, dict) else ""
    for name, counts in docs.items() if isinstance(docs, dict) else ():
        numbers = {} if name == "asked" else counts
        if name not in known or not isinstance(counts, dict) or not _are_counts(numbers):
            wrong = f"docs has {name!r:.100}: {counts!r:.100}"
    if wrong:
        raise ArtifactError(
            f"{path}: {wrong}",
            expected="a mapping of data, asked and prompts to numbers of docs",
            remedy=remedy,
        )


def _are_counts(values: Mapping[Any, Any]) -> bool:
    """Whether all values are numbers of docs, but for a split's name and counts by reason."""
    for name, value in values.items():
        if name == "split":
            is_known = isinstance(value, str)
        elif name == "skipped":
            is_known = isinstance(value, dict) and _are_counts(value)
        else:
            is_known = type(value) is int and value >= 0
        if not (is_known and isinstance(name, str)):
            return False
    return True


def _read(path: Path) -> dict[str, Any]:
    keys = {"schema_version", "versions", "docs", "settings"}
    values = exact_keys(read_yaml(path), keys, path, "the file")
    require_schema(values["schema_version"], SCHEMA_VERSION, path)
    if not isinstance(values["versions"], dict):
        raise ArtifactError(
            f"{path}: versions is {values['versions']!r:.100}",
            expected="a mapping from packages to versions",
            remedy="run identify again",
        )
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML is of the type a field has."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) < 1e308  # and no NaN
    kind = get_origin(hint)
    if kind is Literal:
        return value in get_args(hint)
    if kind is tuple:  # YAML has lists only
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return type(value) is hint
