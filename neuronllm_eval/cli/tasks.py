"""`neuronllm-eval tasks`, `tasks make` and `completion`."""

from __future__ import annotations

from collections.abc import Callable

import shtab

from neuronllm_eval.cli.commands import CompletionSettings, MakeTasksSettings, main_parser
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.aqua_conversion.convert import write_yaml
from neuronllm_eval.stages.load import aqua_overrides

Show = Callable[[object], object]


def print_folder(show: Show) -> int:
    """Print the folder of the packaged tasks."""
    show(tasks_dir())
    return 0


def make(settings: MakeTasksSettings, show: Show) -> int:
    """Write AQUA tasks, and print their paths."""
    folders = [str(path) for path in settings.include_path]
    overrides = aqua_overrides(settings)
    for path in write_yaml(settings.task, settings.output_path, folders, overrides):
        show(path)
    return 0


def complete(settings: CompletionSettings, show: Show) -> int:
    """Print the script of a shell."""
    show(shtab.complete(main_parser(), settings.shell))
    return 0
