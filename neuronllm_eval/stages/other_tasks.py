"""Other tasks on which a run's neurons are validated too: `validate --also`.

1. Each name, or task of a group, is a task with the run's settings for prompts and computation; how
   its questions are made is what its YAML says, and options are compared as its metrics do.
2. Its validation is a directory of its own (`RunDirectory.on_other_task`), which `validate_task`
   fills as it does the run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.option_lengths import AUTO
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import QuestionSettings, RunSettings
from neuronllm_eval.stages.load import StageInput, load_run_tasks

# Of the settings of questions, those that are not of one task's options.
_OF_EVERY_TASK = ("seed", "on_bad_doc")


def other_tasks(
    run: RunDirectory, settings: RunSettings, names: Sequence[str], include_path: Sequence[Path]
) -> list[tuple[RunDirectory, RunSettings, ConfigurableTask]]:
    """The directory, settings and task of every other task; the run's own is left out.

    Args:
        run: the run.
        settings: its own, as it is validated.
        names: of tasks and groups.
        include_path: folders of tasks beside those of the run.

    Raises:
        TaskError: a task is unknown or cannot be used.
        UsageError: a folder does not exist.
    """
    if not names:
        return []
    folders = tuple(str(path.resolve()) for path in include_path)
    of_task = {name: None for name in QuestionSettings.model_fields if name not in _OF_EVERY_TASK}
    shared = settings.model_copy(
        update={
            **of_task,
            "task": ",".join(names),
            "group": "",
            "include_path": tuple(dict.fromkeys((*folders, *settings.include_path))),
            "metadata": {},
            "option_scores": AUTO,
            "validation_prompts": {},
        }
    )
    leaves = load_run_tasks(shared)
    leaves.pop(settings.task, None)
    return [(run.on_other_task(name), own, task) for name, (own, task) in leaves.items()]


def require_others(names: Sequence[str], directories: Sequence[RunDirectory]) -> None:
    """Refuse other tasks that are the runs' own.

    Args:
        names: of tasks and groups.
        directories: of all validations.

    Raises:
        UsageError: none is of another task than its run.
    """
    if names and all(directory.home is None for directory in directories):
        raise UsageError(
            f"also is {','.join(names)!r:.100}, which the neurons were selected on",
            expected="other tasks than the runs' own",
            remedy="check --also",
        )


def as_found(inputs: StageInput) -> StageInput:
    """The same, with settings that hold what the task decided, and digests of its prompts."""
    questions = inputs.questions
    changes = {"num_fewshot": questions.num_fewshot, "option_scores": questions.option_scores}
    settings = inputs.settings.model_copy(update=changes)
    return replace(inputs, settings=settings).expecting(questions)
