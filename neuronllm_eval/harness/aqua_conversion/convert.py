"""Any multiple-choice task of the harness as an AQUA task: `aqua:<name>`.

1. The harness loads the source task; `read_task.HarnessSource` reads its docs.
2. The rest is as for every AQUA task (`aqua.dataset.build_splits`, `tasks/aqua/_aqua.yaml`).
3. `write_yaml` writes such a task as a YAML that the stock `lm_eval --include_path` runs.

A task that cannot be converted is refused with the reason. Nothing is cached between calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from neuronllm_eval.aqua.dataset import TASK_NAMES, AquaSplits, build_splits, filled_counts
from neuronllm_eval.aqua.metrics import METRICS
from neuronllm_eval.aqua.settings import PREFIX, split_settings, with_overrides
from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.aqua_conversion.read_task import HarnessSource
from neuronllm_eval.harness.tasks import (
    AquaTask,
    is_pattern,
    load_tasks,
    settings_from,
    task_manager,
)

SOURCE_NAMES = ("harness_task", "harness_yaml", "include_path", "selection_split")
_HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent


def load_converted(**values: Any) -> AquaSplits:
    """The splits of `aqua:<name>`, as the harness loads them (`custom_dataset`).

    Args:
        values: `harness_task`, the name of the source task; `harness_yaml`, the path of its YAML
            below the harness's tasks, to find it faster; `include_path`, folders of further
            tasks; `selection_split`; and what `aqua.dataset.load_aqua` takes as `metadata`.

    Raises:
        TaskError: the task is unknown, cannot be loaded or cannot be converted.
        UsageError: a setting is not acceptable.
        DocError: a bad doc, with `on_bad_doc: fail`.
    """
    name = str(values["harness_task"])
    path = _HARNESS_TASKS / str(values.get("harness_yaml") or "")
    folders = _folders(path, values.get("include_path") or ())
    return _converted_splits(load_tasks([name], folders)[name], values)


def _folders(path: Path | None, include_path: Sequence[str | Path]) -> list[str | Path]:
    """Where to look for a task with a YAML at `path`, instead of in thousands of other files."""
    before: list[str | Path] = [path.parent] if path is not None and path.is_file() else []
    return [*before, *include_path]


def _converted_splits(task: ConfigurableTask, values: Mapping[str, Any]) -> AquaSplits:
    merged = with_overrides(values, SOURCE_NAMES)
    settings = split_settings(merged, [*SOURCE_NAMES, *TASK_NAMES])
    splits = build_splits(HarnessSource(task, merged.get("selection_split")), settings)
    if isinstance(counts := values.get("counts"), dict):
        counts.update(filled_counts(splits))
    return splits


_adapted_splits = _converted_splits


def load_any_tasks(
    names: Sequence[str],
    include_path: Sequence[str | Path] = (),
    metadata: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    only: str | None = None,
) -> dict[str, ConfigurableTask]:
    """As `tasks.load_tasks`, with `aqua:<name>` for any multiple-choice task or group.

    Raises:
        TaskError: as there, or a task cannot be converted.
        UsageError: as there.
    """
    plain = [name for name in names if not name.startswith(PREFIX)]
    tasks = load_tasks(plain, include_path, metadata, overrides, only) if plain else {}
    for name in names:
        if name.startswith(PREFIX):
            leaf = None if only is None else only.removeprefix(PREFIX)
            sources = load_tasks([name.removeprefix(PREFIX)], include_path, metadata, only=leaf)
            tasks |= _converted(sources, include_path, metadata, overrides)
    return tasks


def _converted(
    tasks: Mapping[str, ConfigurableTask],
    include_path: Sequence[str | Path],
    metadata: Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None,
) -> dict[str, ConfigurableTask]:
    """The AQUA form of each task, by `aqua:<name>`."""
    converted: dict[str, ConfigurableTask] = {}
    for leaf, task in tasks.items():
        config: dict[str, Any] = dict(load_yaml(_template(), resolve_func=True))
        config["task"] = f"{PREFIX}{leaf}"
        config["custom_dataset"] = _loader(task)
        config["dataset_kwargs"] = {"harness_task": leaf}
        if include_path:
            config["dataset_kwargs"]["include_path"] = [str(path) for path in include_path]
        values = {**config["metadata"], "counts": {}, **(metadata or {})}
        values["overrides"] = {**values.get("overrides", {}), **(overrides or {})}
        config["metadata"] = values
        converted[config["task"]] = aqua_task = AquaTask(config=config)
        if group := settings_from(task):
            aqua_task.settings_from = f"{PREFIX}{group}"
    return converted


def _loader(task: ConfigurableTask) -> Callable[..., AquaSplits]:
    """`load_converted` for a task that is loaded already."""

    # Task hashes follow from the source of this function, so it keeps its first text.
    def load_adapted_task(**values: Any) -> AquaSplits:
        return _adapted_splits(task, values)

    return load_adapted_task


def _template() -> Path:
    return tasks_dir() / "aqua" / "_aqua.yaml"


def write_yaml(
    name: str,
    folder: Path,
    include_path: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the AQUA form of a task, or of every task of a group, for the stock `lm_eval`.

    Args:
        name: a multiple-choice task or group of the harness.
        folder: for `aqua_<name>.yaml`, and for a group also those of its tasks; made if missing.
        include_path: folders of further tasks.
        overrides: AQUA settings, which become the YAML's.

    Returns:
        The files; that of the group last.

    Raises:
        TaskError: the task is unknown, cannot be loaded or cannot be converted.
        UsageError: `folder` cannot be written to, a file would be replaced, or the package has
            a task of that name.
    """
    name = name.removeprefix(PREFIX)
    if is_pattern(name):
        raise UsageError(
            f"{name!r} is a pattern", expected="one task or group", remedy="pass its name"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder",
            expected="a folder that can be written",
            remedy="pass another --output_path",
        )
    _require_new([name], folder)
    manager = task_manager([name], include_path)
    entry = manager.task_index.get(name)
    path = entry.yaml_path if entry is not None and entry.kind is not Kind.GROUP else None
    tasks = load_tasks([name], _folders(path, include_path))
    leaves = list(tasks)
    _require_new(list(dict.fromkeys([*leaves, name])), folder)
    _converted(tasks, include_path, None, overrides)  # refused before anything is written
    for leaf, task in tasks.items():
        if settings_from(task):
            raise TaskError(
                f"task {leaf} has settings of the group {settings_from(task)}, which a YAML of its "
                "own would lack",
                expected="a task whose own YAML has all its settings",
                remedy="write a YAML for it, or use aqua:NAME, which keeps them",
            )
    texts = {leaf: _task_yaml(leaf, manager, include_path, overrides or {}) for leaf in leaves}
    if leaves != [name]:
        texts[name] = _group_yaml(name, leaves)
    return [_write(folder / f"aqua_{each}.yaml", text) for each, text in texts.items()]


def _require_new(names: Sequence[str], folder: Path) -> None:
    """Refuse to write tasks that exist already, before any work."""
    ready = TaskManager(include_path=str(tasks_dir()), include_defaults=False).all_tasks
    clash = [f"aqua_{name}" for name in names if f"aqua_{name}" in ready]
    if clash:
        raise UsageError(
            f"the package has {', '.join(clash[:3])}{' and more' if clash[3:] else ''} already",
            expected="a task without a packaged AQUA form",
            remedy=f"pass --tasks {clash[0]}, to lm_eval with --include_path {tasks_dir()}",
        )
    for name in names:
        if (path := folder / f"aqua_{name}.yaml").exists():
            raise UsageError(
                f"{path} exists", expected="a new file", remedy="remove it, or pass another folder"
            )


def _task_yaml(
    leaf: str,
    manager: TaskManager,
    include_path: Sequence[str | Path],
    overrides: Mapping[str, Any],
) -> str:
    settings = dict(overrides)
    source: dict[str, Any] = {"harness_task": leaf}
    path = manager.task_index[leaf].yaml_path
    if path is not None and Path(path).is_relative_to(_HARNESS_TASKS):
        source["harness_yaml"] = Path(path).relative_to(_HARNESS_TASKS).as_posix()
    if include_path:
        source["include_path"] = [str(Path(path).resolve()) for path in include_path]
    if (selection_split := settings.pop("selection_split", None)) is not None:
        source["selection_split"] = selection_split
    head = _dumped({"task": f"aqua_{leaf}", "dataset_kwargs": source})
    text = re.sub(r"\A(?:#.*\n)+", "", _template().read_text(encoding="utf-8"))
    loader = "neuronllm_eval.task_functions.load_converted"
    text = re.sub(r"(?m)^(custom_dataset: !function ).*$", rf"\g<1>{loader}", text)
    for setting in settings:
        text = re.sub(rf"(?m)^  {setting}:.*\n", "", text)
    added = "".join(f"  {line}\n" for line in _dumped(settings).splitlines()) if settings else ""
    text = text.replace("\nmetadata:\n", f"\nmetadata:\n{added}")
    note = f"# {leaf} of lm-evaluation-harness as an AQUA task; needs neuronllm-eval installed.\n"
    return note + head + text


def _group_yaml(name: str, leaves: Sequence[str]) -> str:
    group = {
        "group": f"aqua_{name}",
        "task": [f"aqua_{leaf}" for leaf in leaves],
        "aggregate_metric_list": [{"metric": metric, "weight_by_size": True} for metric in METRICS],
        "metadata": {"version": 1.0},
    }
    return f"# The tasks of {name} of lm-evaluation-harness as AQUA tasks.\n{_dumped(group)}"


def _dumped(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error}",
            expected="a folder that can be written",
            remedy="pass another --output_path",
        ) from error
    return path
