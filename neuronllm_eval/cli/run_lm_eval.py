"""`neuronllm-eval run`: lm_eval's own command line, with the model `neuronllm` registered.

What can be wrong in the arguments is refused first (`refuse_run`), in half a second: torch,
transformers and lm_eval's list of all tasks take many more to load.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.errors import NeuronLLMError, TaskError, UsageError
from neuronllm_eval.harness.packaged_tasks import tasks_dir
from neuronllm_eval.masked_lm.mask_options import NAMES, MaskOptions
from neuronllm_eval.models.loading import require_model_args
from neuronllm_eval.runs.directory import RunDirectory

logger = logging.getLogger(__name__)
MODEL = "neuronllm"


def refuse_run(given: Sequence[str]) -> None:
    """Refuse arguments that lm_eval would take long to stumble over. Loads nothing heavy.

    Args:
        given: what follows `neuronllm-eval run`.

    Raises:
        UsageError: an unknown flag or key of a `--config` file, a task that lm_eval does not know
            by that name, an output path that cannot be written, or arguments of the masked model
            that can mean nothing.
        ArtifactError: the neurons cannot be read.
    """
    converted = [name for word in given for name in word.split(",") if name.startswith(PREFIX)]
    if converted:
        raise UsageError(
            f"lm_eval does not know {converted[0]}",
            expected="tasks that are written down",
            remedy=f"run `neuronllm-eval tasks make {converted[0].removeprefix(PREFIX)} "
            "--output_path DIR`, and pass --include_path DIR",
        )
    options = _parsed(given)
    if output := getattr(options, "output_path", None):
        path = Path(output)  # lm_eval takes the folder of a file's name
        RunDirectory(path.parent if path.suffix == ".json" else path).require_writable()
    if options.config is not None:
        _require_config(Path(options.config))
    if options.model != MODEL or options.config is not None:  # a file may hold the rest
        return
    arguments = dict(options.model_args or {})
    if "pretrained" not in arguments:
        raise UsageError(
            "--model_args names no model",
            expected="pretrained=NAME_OR_PATH",
            remedy="add pretrained= to --model_args",
        )
    MaskOptions.read(**{name: arguments.pop(name) for name in NAMES if name in arguments})
    require_model_args(arguments)


def run_lm_eval(given: Sequence[str]) -> int:
    """lm_eval's command line, with the packaged tasks known if it is told of no others.

    Args:
        given: what follows `neuronllm-eval run`.

    Returns:
        the exit code.

    Raises:
        UsageError: as `refuse_run`, and what the masked model refuses.
        TaskError: lm_eval raised.
    """
    refuse_run(given)
    from lm_eval.__main__ import cli_evaluate

    import neuronllm_eval.masked_lm.model  # noqa: F401  # registers the model

    if not _includes_tasks(given):
        given = [*given, "--include_path", str(tasks_dir())]
    try:
        with _command_line(given):
            cli_evaluate()
    except NeuronLLMError:
        raise
    except Exception as error:  # whatever lm_eval raises: all that runs here is its own
        logger.debug("lm_eval stopped", exc_info=True)
        raise TaskError(
            f"lm_eval stopped: {type(error).__name__}: {error}",
            expected="a model that can be loaded and tasks that lm_eval knows",
            remedy="check the arguments; `lm_eval ls tasks` lists the harness's tasks, and "
            "--include_path adds a folder; of several processes, each needs a doc at least",
        ) from error
    return 0


def _includes_tasks(given: Sequence[str]) -> bool:
    """Whether the flags, or the file they name, say where further tasks are."""
    if any(word.split("=")[0] == "--include_path" for word in given):
        return True
    config = _parsed(given).config
    return config is not None and bool(_require_config(Path(config)).get("include_path"))


def _require_config(path: Path) -> Mapping[str, Any]:
    """The values of a file for lm_eval's `--config`; UsageError if lm_eval could not use it."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path} cannot be read: {' '.join(str(error).split())}",
            expected="a YAML file of lm_eval's flags and values",
            remedy="check --config",
        ) from error
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds {values!r:.100}",
            expected="flags and their values, such as `tasks: demo`",
            remedy="check --config",
        )
    known = [field.name for field in dataclasses.fields(EvaluatorConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UsageError(
                f"{path} has {key!r:.100}",
                expected=f"flags of lm_eval's own command line: {', '.join(known)}",
                remedy=f"write {near[0]}, or remove it" if near else "remove it",
            )
    return values


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """The flags as lm_eval's own parser reads them; its errors become ours."""
    from lm_eval.__main__ import HarnessCLI

    said = io.StringIO()
    try:
        with _command_line(given), contextlib.redirect_stderr(said):
            return HarnessCLI().parse_args()
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        message = said.getvalue().strip().rpartition("error: ")[2]
        raise UsageError(
            f"neuronllm-eval run: {message}",
            expected="the flags and values of lm_eval's own command line",
            remedy="see `neuronllm-eval run --help`",
        ) from stop
    except (ValueError, SyntaxError) as error:  # of values that it takes apart
        raise UsageError(
            f"neuronllm-eval run: {error}",
            expected="the flags and values of lm_eval's own command line",
            remedy="see `neuronllm-eval run --help`",
        ) from error


@contextlib.contextmanager
def _command_line(given: Sequence[str]) -> Iterator[None]:
    """Within the context, lm_eval reads these arguments."""
    before = sys.argv
    sys.argv = ["neuronllm-eval run", "run", *given]
    try:
        yield
    finally:
        sys.argv = before
