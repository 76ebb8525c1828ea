"""`identify` and `validate` as functions: the settings of the command line as keywords.

1. Keywords become settings (`runs.settings`), with the command line's checks and defaults.
2. The stages run (`stages.evaluate`). Nothing goes to standard output; warnings are logged.
3. The result is a `Run` for each directory that was written.

An example:

    from neuronllm_eval import identify, validate

    (run,) = identify(tasks="demo_topic", limit=60, batch_size=48, output_path="runs/mine")
    print(run.neurons.good[0])
    (run,) = validate(run, conditions=["suppress_good"])
    print(run.summaries["suppress_good"].accuracy.delta)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.formats.settings_model import Settings, shown_default
from neuronllm_eval.runs.settings import IdentifySettings, LaunchSettings, ValidateSettings
from neuronllm_eval.runtime.process import without_bars
from neuronllm_eval.stages.evaluate import identify_runs, validate_runs
from neuronllm_eval.stages.load import Load, load_model, wrap_model

logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
# Settings that are no keywords: `run_dir` is a parameter, and there is no one to show a dry run to.
_NOT_KEYWORDS = ("run_dir", "dry_run")


def _takes(*models: type[Settings]) -> Callable[[Function], Function]:
    """Give a function the settings of these models as keywords: in its signature and docstring."""

    def add(function: Function) -> Function:
        fields = {
            name: field
            for model in models
            for name, field in model.model_fields.items()
            if name not in _NOT_KEYWORDS
        }
        signature = inspect.signature(function)
        first = [value for value in signature.parameters.values() if value.name != "settings"]
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in fields
        ]
        lines = "\n        ".join(
            f"{name}: {field.description}{shown_default(field)}." for name, field in fields.items()
        )
        function.__doc__ = (function.__doc__ or "").replace("**settings: as above.", lines)
        new = signature.replace(parameters=[*first, *keywords])
        function.__signature__ = new  # type: ignore[attr-defined]
        return function

    return add


@_takes(IdentifySettings, LaunchSettings)
def identify(
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = False,
    **settings: Any,
) -> tuple[Run, ...]:
    """Find the good and bad neurons of a model at tasks, as `neuronllm-eval identify` does.

    All but the first three are the flags of that command, with the same values and defaults; None
    leaves a setting at its default. Several values may be a list, `name=value` pairs a mapping.

    Args:
        model: a model in memory, instead of one that `model_args` loads. It stays on its device,
            and is put into evaluation mode. Its name in the files is its `name_or_path`, or
            `pretrained` of `model_args`; from there a later `validate` without `model` loads it,
            and refuses other weights.
        tokenizer: of `model`; the one of its `name_or_path` if not given.
        progress: whether to show progress bars on a terminal.
        **settings: as above.

    Returns:
        A run per task, and per method if there are several, in the order of the tasks.

    Raises:
        NeuronLLMError: a setting, a task, the model or the folder cannot be used. Nothing is
            written then.
        TypeError: an unknown keyword.
    """
    if model is not None:
        settings["model_args"] = _described(model, settings)
    request, launch_settings = _read(identify, settings, IdentifySettings, LaunchSettings)
    load = _load(model, tokenizer)
    with nullcontext() if progress else without_bars():
        runs = identify_runs(request, launch_settings, _show_nothing, logger.info, load=load)
    return tuple(Run(run.path) for run in runs)


@_takes(ValidateSettings, LaunchSettings)
def validate(
    run_dir: str | Path | Run,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = False,
    **settings: Any,
) -> tuple[Run, ...]:
    """Measure what the neurons of runs do on validation splits, as `neuronllm-eval validate` does.

    All but the first four are the flags of that command, with the same values and defaults; None
    leaves a setting at its default.

    Args:
        run_dir: a run, its directory, or a directory of runs.
        model: the model of the runs, in memory; loaded as their settings say if not given.
            Other weights than those of the runs are refused.
        tokenizer: of `model`; the one of its `name_or_path` if not given.
        progress: whether to show progress bars on a terminal.
        **settings: as above.

    Returns:
        The runs, by name.

    Raises:
        NeuronLLMError: a setting, a run or the model cannot be used.
        TypeError: an unknown keyword.
    """
    if model is not None:
        _require_in_place(settings)
    settings["run_dir"] = Path(run_dir.path if isinstance(run_dir, Run) else run_dir)
    request, launch_settings = _read(validate, settings, ValidateSettings, LaunchSettings)
    load = _load(model, tokenizer)
    with nullcontext() if progress else without_bars():
        runs = validate_runs(request, launch_settings, _show_nothing, logger.info, load=load)
    return tuple(Run(run.path) for run in runs)


def _read(
    function: Callable[..., Any], settings: Mapping[str, Any], *models: type[Settings]
) -> list[Any]:
    """The settings of each model, from keywords."""
    keywords = {name for model in models for name in model.model_fields} - {"dry_run"}
    if unknown := [name for name in settings if name not in keywords]:
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}")
    return [
        model.read({name: settings[name] for name in model.model_fields if name in settings})
        for model in models
    ]


def _show_nothing(_: str) -> None:
    """Reports are for the command line; the caller has the runs."""


def _load(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None) -> Load:
    """What makes the model of a run's settings."""
    if model is None:
        if tokenizer is not None:
            raise UsageError(
                "tokenizer without model",
                expected="both, or neither",
                remedy="pass the model too, or tokenizer=NAME_OR_PATH in model_args",
            )
        return load_model
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"model is a {type(model).__name__}",
            expected="a transformers.PreTrainedModel",
            remedy="pass such a model, or its name or path as pretrained in model_args",
        )
    return lambda settings: wrap_model(settings, model, tokenizer)


def _described(model: PreTrainedModel, settings: Mapping[str, Any]) -> Any:
    """The arguments that would load a model that is in memory."""
    _require_in_place(settings)
    if settings.get("model_args") is not None:
        return settings["model_args"]
    name = getattr(model, "name_or_path", "")
    if not name:
        raise UsageError(
            "the model has no name_or_path",
            expected="a name for the files of the run, under which its weights can be found later",
            remedy="pass model_args={'pretrained': NAME_OR_PATH}",
        )
    return {"pretrained": name, "dtype": str(model.dtype).removeprefix("torch.")}


def _require_in_place(settings: Mapping[str, Any]) -> None:
    if settings.get("device") is not None:
        raise UsageError(
            f"device is {settings['device']!r:.100}, and the model is given",
            expected="one of them: a model stays on its device",
            remedy="move the model there, and leave device out",
        )
