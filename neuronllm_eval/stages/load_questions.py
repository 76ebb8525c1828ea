"""A run's settings -> its tasks, and the questions that choose and that judge.

Each leaf task is loaded once; what chooses and what judges are copies of it that share its data.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import TaskError, UsageError
from neuronllm_eval.harness.aqua_conversion.convert import load_any_tasks
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tasks import (
    is_aqua,
    on_split,
    overlapping_questions,
    selection_split,
    validation_split,
)
from neuronllm_eval.harness.tokenize import PromptSettings, QuestionSet
from neuronllm_eval.runs.directory import without_secrets
from neuronllm_eval.runs.settings import QuestionSettings, RunSettings

logger = logging.getLogger(__name__)


def prompt_settings(settings: RunSettings) -> PromptSettings:
    """How prompts are built under these settings."""
    description = settings.description
    if description and not description[-1].isspace():
        description += "\n\n"
    return PromptSettings(
        num_fewshot=settings.num_fewshot,
        apply_chat_template=settings.apply_chat_template,
        system_instruction=settings.system_instruction,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        fewshot_seed=PromptSettings.fewshot_seed if settings.seed is None else settings.seed,
        description=description,
        on_bad_doc=settings.on_bad_doc or PromptSettings.on_bad_doc,
    )


def aqua_overrides(settings: QuestionSettings, num_fewshot: int | None = None) -> dict[str, Any]:
    """What goes before the settings of AQUA tasks."""
    found = {name: getattr(settings, name) for name in QuestionSettings.model_fields}
    if (num_fewshot or 0) > AquaSettings.model_fields["n_demonstrations"].default:
        # As many as are shown must have been set aside.
        found["n_demonstrations"] = num_fewshot
    return {name: value for name, value in found.items() if value is not None}


def load_run_tasks(settings: RunSettings) -> dict[str, tuple[RunSettings, ConfigurableTask]]:
    """Per leaf task that the settings name (groups expanded), its run's settings and the task.

    Raises:
        TaskError: as `convert.load_any_tasks`.
        UsageError: as there.
    """
    if not isinstance(settings.metadata.get("overrides", {}), dict):
        raise UsageError(
            f"overrides is {settings.metadata['overrides']!r:.100}",
            expected="an object of settings and values",
            remedy="check --metadata",
        )
    tasks = settings.task.split(",")
    # A task given as a file is known by its name later on, so its folder must be searched.
    folders = [str(Path(task).resolve().parent) for task in tasks if Path(task).is_file()]
    include_path = tuple(dict.fromkeys((*settings.include_path, *folders)))
    metadata = {**without_secrets(settings.model_args), **settings.metadata}
    leaves = load_any_tasks(
        tasks, include_path, metadata, aqua_overrides(settings, settings.num_fewshot)
    )
    return {
        name: (settings.model_copy(update={"task": name, "include_path": include_path}), task)
        for name, task in leaves.items()
    }


def load_run_task(settings: RunSettings) -> ConfigurableTask:
    """The one task of a run's settings.

    Raises:
        TaskError: they name none, or a group; or as `load_run_tasks`.
        UsageError: as there.
    """
    leaves = load_run_tasks(settings)
    if settings.task not in leaves:
        raise TaskError(
            f"{settings.task!r:.100} is not one task but {len(leaves)}: {', '.join(leaves):.200}",
            expected="the name of one task in a run's run.yaml",
            remedy="run identify again",
        )
    return leaves[settings.task][1]


def selection_questions(lm: HFLM, settings: RunSettings, task: ConfigurableTask) -> QuestionSet:
    """The questions that choose neurons, none of which the validation split has.

    Raises:
        TaskError: the splits overlap and the settings do not say to drop what both have.
    """
    choosing = on_split(task, selection_split(task, settings.selection_split))
    # An AQUA task has no shared questions; it has counted those it dropped.
    shared = set() if is_aqua(task) else overlapping_questions(choosing, task)
    if shared and settings.overlap == "refuse":
        raise TaskError(
            f"task {settings.task}: {len(shared)} questions of the selection split are in the "
            f"validation split too, such as {sorted(shared)[0]}",
            expected="docs that choose neurons and docs that judge them, never the same",
            remedy="pass --overlap drop to leave them out of the selection, or another "
            "--selection_split",
        )
    if shared:
        logger.warning("%s: %d questions dropped from the selection split, which the validation "
                       "split has too", settings.task, len(shared))  # fmt: skip
    seed = settings.seed or 0
    return build_questions(lm, choosing, prompt_settings(settings), settings.limit, shared, seed)


def validation_questions(lm: HFLM, settings: RunSettings, task: ConfigurableTask) -> QuestionSet:
    """The questions that judge neurons."""
    judged = on_split(task, validation_split(task))
    return build_questions(lm, judged, prompt_settings(settings), settings.limit)


def data_split(task: ConfigurableTask, split: str) -> str:
    """The name that a task's split has in its data set; AQUA tasks have their own."""
    return str(task.dataset.counts[split]["split"]) if is_aqua(task) else split


def how_asked(task: ConfigurableTask) -> dict[str, Any]:
    """The settings of an AQUA task, its defaults filled in; {} of another."""
    return task.dataset.settings.model_dump() if is_aqua(task) else {}


def doc_counts(questions: QuestionSet) -> dict[str, Any]:
    """What became of the docs behind some questions, for files and reports; {} if all are asked.

    Of an AQUA task, reading the split; of every task, encoding its prompts.
    """
    found: dict[str, Any] = {}
    if is_aqua(questions.task):
        found["data"] = questions.task.dataset.counts[questions.split]
        found["asked"] = how_asked(questions.task)
    return {**found, **({"prompts": questions.counts} if questions.counts else {})}
