"""Harness tasks by name, their selection and validation splits, and copies that evaluate a split.

1. Load tasks by name, with the packaged ones known (`load_tasks`).
2. Make a copy of a task whose evaluated split is the selection split (`on_split`).

`AquaTask` is the task class of AQUA tasks (`class:` in `tasks/aqua/_aqua.yaml`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry
from lm_eval.utils import env, set_torch_seed

from neuronllm_eval.aqua.dataset import AquaSplits
from neuronllm_eval.errors import NeuronLLMError, TaskError, UsageError
from neuronllm_eval.harness import tasks_dir

logger = logging.getLogger(__name__)
# Templates of tasks run in a sandbox: they reach no attribute that leads to code. Each is compiled
# once, not for every doc as the harness does, a millisecond each.
_SANDBOX = SandboxedEnvironment(
    undefined=env.undefined, keep_trailing_newline=env.keep_trailing_newline
)
_SANDBOX.filters = env.filters
env.from_string = lru_cache(maxsize=1024)(_SANDBOX.from_string)


class AquaTask(ConfigurableTask):
    """A task whose cached requests are those of its docs.

    The harness caches built requests under a task's name (`--cache_requests`), whatever its
    metadata and data are. An AQUA task with other settings has other questions, so the name that it
    is cached under depends on them.
    """

    def __init__(self, config: dict[str, Any] | None = None, **options: Any) -> None:
        # The harness leaves the name of this class among a configuration's keys.
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config=config, **options)

    def build_all_requests(self, **options: Any) -> None:
        """As the harness does; requests are cached under a name with a digest of the docs."""
        if not options.get("cache_requests"):
            super().build_all_requests(**options)
            return
        name = self.config.task
        try:
            self.config.task = f"{name}-{self._docs_digest()}"
            super().build_all_requests(**options)
        finally:
            self.config.task = name
        for instance in self.instances:
            instance.task_name = name

    def _docs_digest(self) -> str:
        """16 hexadecimal digits of all prompts and demonstrations."""
        state = hashlib.sha256(
            json.dumps([self.config.description, self.config.doc_to_text]).encode()
        )
        demonstrations = self.fewshot_docs()
        for docs in [self.eval_docs, *([] if demonstrations is None else [demonstrations])]:
            for column in ("prompt", "answer", "letters"):
                state.update(json.dumps(list(docs[column])).encode())
        return state.hexdigest()[:16]


def load_tasks(
    names: Sequence[str],
    include_path: Sequence[str | Path] = (),
    metadata: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    only: str | None = None,
) -> dict[str, ConfigurableTask]:
    """Leaf tasks by name, groups and tags expanded; the packaged tasks are always known.

    Args:
        names: tasks, groups, tags, patterns of their names such as `arc_*`, or YAML files.
        include_path: folders of further tasks.
        metadata: what the harness adds to each task's metadata, such as the model's arguments.
        overrides: settings that take precedence in AQUA tasks (`aqua.dataset.load_aqua`).
        only: the one leaf task to load of groups.

    Raises:
        TaskError: a name is unknown, a task's configuration or data cannot be loaded, a group has
            a task twice with different settings, or overrides are given for a task that is not an
            AQUA task.
        UsageError: `include_path` is not a directory, or an AQUA setting is not acceptable.
    """
    if not names:
        raise UsageError("no task given", expected="one or more names", remedy="pass --tasks")
    for path in include_path:
        if not Path(path).is_dir():
            raise UsageError(
                f"--include_path {path} is not a directory",
                expected="a directory of task YAML files",
                remedy="check the path",
            )
    merged = dict(metadata or {})
    if overrides:
        merged["overrides"] = {**merged.get("overrides", {}), **overrides}
    manager = task_manager(names, include_path, merged)
    factory = _RecordingFactory(merged, only)
    manager._factory = factory
    loaded = _built(names, lambda: manager.load(_expanded(names, manager)))
    tasks = loaded["tasks"]
    if only is not None:
        if only not in tasks:
            raise TaskError(
                f"{', '.join(names)} has no task {only}",
                expected="the group that the run's task was in",
                remedy="restore the group, or run identify again",
            )
        tasks = {only: tasks[only]}
    checked = {name: _require_multiple_choice(name, task) for name, task in tasks.items()}
    for name, task in checked.items():
        if factory.settings.get(name) or name not in manager.task_index:
            task.settings_from = _group_of(name, loaded["groups"])
    for name, task in checked.items():
        if overrides:
            _require_aqua(name, task, overrides)
    return checked


def settings_from(task: ConfigurableTask) -> str:
    """The group that gives a task settings of its own, or defines it; empty if its YAML has all."""
    return getattr(task, "settings_from", "")


class _RecordingFactory(TaskFactory):
    """Makes tasks as the harness does, and records what groups change in them."""

    def __init__(self, metadata: dict[str, Any], only: str | None) -> None:
        super().__init__(meta=metadata)
        self.only = only
        self.settings: dict[str, dict[str, Any]] = {}

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Any:
        values = dict(overrides or {})
        name = values.pop("task", entry.name)
        if self.only not in (None, name):
            return SimpleNamespace(task_name=name)  # groups drop what is not a task
        if self.settings.setdefault(name, values) != values:
            raise TaskError(
                f"task {name} occurs twice, with different settings",
                expected="each task with one set of settings, since results go by its name",
                remedy="give one of them another name in a YAML of its own",
            )
        # Before anything of it runs: some load the model's tokenizer with its repository's code.
        config = {**(entry.cfg or {}), **values}
        output_type = config.get("output_type", "generate_until")
        is_known = entry.cfg is not None and not {"class", "include"} & config.keys()
        if is_known and output_type != "multiple_choice":
            _refuse_type(name, output_type)
        return super()._build_task(entry, overrides)


def _group_of(task: str, groups: Mapping[str, Group]) -> str:
    """The outermost of the groups that has a task."""
    inner = {name for group in groups.values() for name in group.child_names}
    outer = (
        name
        for name, group in groups.items()
        if name not in inner and any(each.task_name == task for each in group.get_all_tasks())
    )
    return next(outer, task)


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern of names, as lm_eval has them."""
    return any(character in name for character in "*?[")


def _expanded(names: Sequence[str], manager: TaskManager) -> list[str]:
    """Names, with patterns replaced by what they match."""
    return [
        match
        for name in names
        for match in (manager.match_tasks([name]) if is_pattern(name) else [name])
    ]


def task_manager(
    names: Sequence[str],
    include_path: Sequence[str | Path] = (),
    metadata: Mapping[str, Any] | None = None,
) -> TaskManager:
    """The harness's index of tasks, in which all of `names` are found.

    Raises:
        TaskError: a name is unknown; names those close to it.
    """
    paths = [tasks_dir(), *include_path]
    values = dict(metadata or {})
    # Reading the harness's thousands of YAML files takes seconds; do it only when needed.
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=values)
    if not all(name in manager.all_tasks for name in names):
        manager = TaskManager(include_path=paths, metadata=values)
    for name in names:
        known = manager.match_tasks([name]) if is_pattern(name) else name in manager.all_tasks
        if not known and not Path(name).is_file():
            inside = [other for other in manager.all_tasks if name.lower() in other.lower()]
            alike = difflib.get_close_matches(name, manager.all_tasks)
            close = list(dict.fromkeys((*alike, *inside)))[:5]
            raise TaskError(
                f"unknown task {name!r}",
                expected="the name of a task or group"
                + (f"; close to it: {', '.join(close)}" if close else ""),
                remedy=_where_named(name, include_path)
                or "see `lm_eval ls tasks`, or pass --include_path",
            )
    return manager


def _where_named(name: str, include_path: Sequence[str | Path]) -> str:
    """A hint at a YAML that names a task which the harness could not read; empty without one."""
    for folder in include_path:
        for path in sorted(Path(folder).rglob("*.yaml")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if re.search(rf"^task:\s*['\"]?{re.escape(name)}['\"]?\s*$", text, re.MULTILINE):
                return f"{path} names it, but the harness cannot read that file; check its include"
    return ""


def _built(names: Sequence[str], build: Any) -> dict[str, Any]:
    """What `build` gives, seeded as the harness does; its failures as TaskError."""
    try:
        seed_as_lm_eval()
        return dict(build())
    except NeuronLLMError:
        raise
    except (Exception, SystemExit) as error:  # whatever a YAML, its functions or the data set raise
        raise TaskError(
            f"tasks {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}",
            expected="a valid task configuration whose data set is reachable",
            remedy="try `lm_eval validate --tasks ...`",
        ) from error


def _refuse_type(name: str, output_type: object, contexts: str = "") -> NoReturn:
    raise TaskError(
        f"task {name} has output_type {output_type}{contexts}",
        expected="output_type multiple_choice: one context, several options",
        remedy="choose a multiple-choice task",
    )


def _require_multiple_choice(name: str, task: Any) -> ConfigurableTask:
    output_type = getattr(task, "OUTPUT_TYPE", None)
    if output_type != "multiple_choice" or getattr(task, "multiple_input", 0):
        several = getattr(task, "multiple_input", 0)
        _refuse_type(name, output_type, " with one context per choice" if several else "")
    return task


def _require_aqua(name: str, task: ConfigurableTask, overrides: Mapping[str, Any]) -> None:
    """Refuse AQUA settings for a task that cannot use them."""
    # These have a meaning for every task; what n_proxies is for others says `varied_prompts`.
    general = {"seed", "on_bad_doc", "selection_split", "n_demonstrations", "n_proxies"}
    given = [
        f"--{setting} {value}" for setting, value in overrides.items() if setting not in general
    ]
    if given and not is_aqua(task):
        raise TaskError(
            f"task {name} is not an AQUA task, so {' and '.join(given)} cannot apply",
            expected=f"an AQUA task, such as aqua:{name}, which is made of it",
            remedy=f"pass --tasks aqua:{name}, or leave the setting out",
        )


def validation_split(task: ConfigurableTask) -> str:
    """The split the harness evaluates: test, or validation if there is none."""
    config = task.config
    split = config.test_split or config.validation_split
    assert split is not None  # ConfigurableTask refuses tasks with neither
    return split


def selection_split(task: ConfigurableTask, override: str | None = None) -> str:
    """The split that neurons are selected on: training, or validation where a test split exists.

    An AQUA task separated its splits when it was read, and took an override into account.

    Raises:
        TaskError: there is no such split, or it is the validation split.
    """
    config = task.config
    validation = validation_split(task)
    if is_aqua(task):
        override = None
    fallback = config.validation_split if config.test_split else None
    split = override or config.training_split or fallback
    known = ", ".join(task.dataset) if hasattr(task.dataset, "keys") else "unknown"
    if split is None or (override and override not in task.dataset):
        raise TaskError(
            f"task {config.task} has no split {override!r}"
            if override
            else f"task {config.task} names no training or validation split",
            expected=f"a split to select neurons on; the data set has: {known}",
            remedy="pass --selection_split",
        )
    if split == validation:
        raise TaskError(
            f"task {config.task}: the selection split {split!r} is also the validation split",
            expected="different docs to select neurons on and to validate them",
            remedy=f"pass another --selection_split; the data set has: {known}",
        )
    return split


def on_split(task: ConfigurableTask, split: str) -> ConfigurableTask:
    """A copy of a task that evaluates `split`.

    Raises:
        TaskError: the task cannot be made on that split.
    """
    try:
        return remade(task, type(task), test_split=split)
    except Exception as error:  # whatever the data of that split make the task raise
        raise TaskError(
            f"task {task.config.task} cannot be read on the split {split!r}: "
            f"{type(error).__name__}: {error}",
            expected="docs of the same form as in the split the task evaluates",
            remedy="pass another --selection_split, or fix the data",
        ) from error


def remade(
    task: ConfigurableTask, kind: type[ConfigurableTask], **changes: Any
) -> ConfigurableTask:
    """A copy of a task, of a class of this `kind`, with changes of its configuration."""
    # Not config.to_dict(), which would convert values that are dataclasses to dicts.
    config = {item.name: getattr(task.config, item.name) for item in fields(task.config)}
    config.update(changes)
    config["custom_dataset"] = lambda **_: task.dataset  # not read again
    seed_as_lm_eval()
    copy = kind(config=config)
    copy.config.custom_dataset = task.config.custom_dataset
    return copy


def seed_as_lm_eval() -> None:
    """Some tasks shuffle options when they are read; `lm_eval` seeds before, with these seeds."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


def is_aqua(task: ConfigurableTask) -> bool:
    """Whether the task prompts each question under several orders of its options."""
    return isinstance(task.dataset, AquaSplits)


def question_ids(task: ConfigurableTask) -> list[str]:
    """The question of each doc: AQUA's id, or one made from the task and the index of its data."""
    docs = task.eval_docs
    if is_aqua(task):
        return [str(identity) for identity in docs["question_id"][:]]
    n_proxies = getattr(task, "n_varied_prompts", 1)  # of harness.varied_prompts
    return [f"{task.config.task}-{doc_id // n_proxies}" for doc_id in range(len(docs))]
