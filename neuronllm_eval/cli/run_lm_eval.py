"""`neuronllm-eval run`: lm_eval's own command line, with the model `neuronllm` registered.

lm_eval checks its own flags. Checked here, within half a second, is only what it would not notice
or only after it has loaded torch, all tasks and the model (`refuse_run`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.errors import NeuronLLMError, TaskError, UsageError
from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.masked_lm.mask_options import NAMES, MaskOptions
from neuronllm_eval.models.model_args import require_model_args
from neuronllm_eval.runs.directory import RunDirectory

logger = logging.getLogger(__name__)
MODEL = "neuronllm"


def refuse_run(argv: Sequence[str]) -> None:
    """Check what lm_eval does not, without loading anything heavy.

    Args:
        argv: what follows `neuronllm-eval run`.

    Raises:
        UsageError: a task `aqua:NAME`, an output path that cannot be written, or arguments of the
            masked model that make no sense.
        ArtifactError: the neurons cannot be read.
    """
    names = (name for word in argv for name in word.removeprefix("--tasks=").split(","))
    if converted := next((name for name in names if name.startswith(PREFIX)), None):
        raise UsageError(
            f"lm_eval does not know {converted}",
            expected="tasks with a YAML file",
            remedy=f"run `neuronllm-eval tasks make {converted.removeprefix(PREFIX)} "
            "--output_path DIR`, and pass --include_path DIR",
        )
    options = _parsed(argv)
    if output := getattr(options, "output_path", None):
        path = Path(output)  # lm_eval takes the folder of a file's name
        RunDirectory(path.parent if path.suffix == ".json" else path).require_writable()
    if options.model == MODEL and options.config is None:  # a file may hold the rest
        model_args = dict(options.model_args or {})
        MaskOptions.read(**{name: model_args.pop(name) for name in NAMES if name in model_args})
        require_model_args(model_args)


def run_lm_eval(argv: Sequence[str]) -> int:
    """Run lm_eval's command line; the packaged tasks are known unless `--include_path` is given.

    Args:
        argv: what follows `neuronllm-eval run`.

    Returns:
        the exit code.

    Raises:
        UsageError: as `refuse_run`, and what the masked model refuses.
        TaskError: lm_eval raised.
    """
    refuse_run(argv)
    from lm_eval.__main__ import cli_evaluate

    import neuronllm_eval.masked_lm.model  # noqa: F401  # registers the model

    options = _parsed(argv)
    in_file = _config_values(options)
    model_args = in_file.get("model_args") or {}
    if "token" in (
        model_args if isinstance(model_args, dict) else str(model_args).replace("=", ",").split(",")
    ):
        raise UsageError(
            f"{options.config} has a token among its model_args, which lm_eval would write into "
            "its result files",
            expected="no token in files",
            remedy="remove it, and log in with `hf auth login` or set HF_TOKEN",
        )
    if not (options.include_path or in_file.get("include_path")):
        argv = [*argv, "--include_path", str(tasks_dir())]
    if isinstance(token := dict(options.model_args or {}).get("token"), str):
        # lm_eval prints model arguments, and writes them into its result files.
        os.environ["HF_TOKEN"] = token
        argv = [word for word in map(_without_token, argv) if word]
    try:
        with _command_line(argv):
            cli_evaluate()
    except NeuronLLMError:
        raise
    except Exception as error:  # whatever lm_eval raises: all that runs here is its own
        logger.debug("lm_eval stopped", exc_info=True)
        raise TaskError(
            f"lm_eval stopped: {type(error).__name__}: {error}",
            expected="a model that can be loaded and tasks that lm_eval knows",
            remedy="check the arguments; `lm_eval ls tasks` lists the harness's tasks, and "
            "--include_path adds a folder; with several processes, each needs at least one doc",
        ) from error
    return 0


def _without_token(word: str) -> str:
    """A word of the command line without `token=...` among its model arguments."""
    if word.lstrip().startswith("{"):
        try:
            values = json.loads(word)
        except ValueError:
            return word  # lm_eval says what is wrong with it
        values.pop("token", None)
        return json.dumps(values)
    flag, equals, values = word.rpartition("--model_args=")
    kept = [pair for pair in values.split(",") if not pair.strip().startswith("token=")]
    return flag + equals + ",".join(kept)


def _config_values(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the file of `--config`; {} where lm_eval will say what is wrong with it."""
    if options.config is None:
        return {}
    try:
        values = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The flags as lm_eval's own parser reads them; it exits with 2 where it cannot."""
    from lm_eval.__main__ import HarnessCLI

    try:
        with _command_line(argv):
            return HarnessCLI().parse_args()
    except (ValueError, SyntaxError) as error:  # of values that it takes apart
        raise UsageError(
            f"neuronllm-eval run: {error}",
            expected="the flags and values of lm_eval's own command line",
            remedy="see `neuronllm-eval run --help`",
        ) from error


@contextlib.contextmanager
def _command_line(argv: Sequence[str]) -> Iterator[None]:
    """Within the context, lm_eval reads these arguments."""
    before = sys.argv
    sys.argv = ["neuronllm-eval run", "run", *argv]
    try:
        yield
    finally:
        sys.argv = before
