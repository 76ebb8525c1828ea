"""`identify` and `validate` as functions: the command line's own code, called from Python.

1. Keyword arguments are the flags, and become the words of a command line; what is None is not
   given. So defaults, checks and messages are the parser's, and `commands.jsonl` has a command
   that does the same.
2. The command runs. Nothing goes to standard output; what is amiss is logged or raised.
3. The result is a `Run` for each directory that was written.

An example:

    from neuronllm_eval import identify, validate

    (run,) = identify(tasks="demo_topic", limit=60, batch_size=48, output_path="runs/mine")
    print(run.neurons.good[0])
    (run,) = validate(run, conditions=["suppress_good"])
    print(run.summaries["suppress_good"].accuracy.delta)
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuronllm_eval.cli import identify as identify_command
from neuronllm_eval.cli import validate as validate_command
from neuronllm_eval.cli.config_file import as_words
from neuronllm_eval.cli.identify import Listeners, Load
from neuronllm_eval.cli.main import COMMANDS
from neuronllm_eval.cli.parsers import main_parser
from neuronllm_eval.errors import UsageError
from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.reporting.wording import estimate_line
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.progress import hidden
from neuronllm_eval.stages.cost_estimate import Estimate
from neuronllm_eval.stages.load_model import wrap_model

logger = logging.getLogger(__name__)
Names = str | Sequence[str]
Paths = str | Path | Sequence[str | Path]


def identify(
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_args: str | Mapping[str, Any] | None = None,
    tasks: Names | None = None,
    include_path: Paths | None = None,
    output_path: str | Path | None = None,
    method: Names | None = None,
    method_args: str | Mapping[str, Any] | None = None,
    top_k: float | None = None,
    top_z: float | None = None,
    ambiguous: str | None = None,
    positions: str | None = None,
    quadrature: str | None = None,
    n_steps: int | None = None,
    attribution_dtype: str | None = None,
    num_fewshot: int | None = None,
    description: str | None = None,
    system_instruction: str | None = None,
    apply_chat_template: bool | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    overlap: str | None = None,
    seed: int | None = None,
    selection_split: str | None = None,
    on_bad_doc: str | None = None,
    n_proxies: int | None = None,
    orders: str | None = None,
    letter_style: str | None = None,
    n_options: int | None = None,
    distractors: str | None = None,
    limit: int | None = None,
    batch_size: int | str | None = None,
    device: str | None = None,
    engine: str | None = None,
    resume: bool | None = None,
    overwrite: bool | None = None,
    checkpoint_every: float | None = None,
    progress: bool = False,
) -> tuple[Run, ...]:
    """Find the good and bad neurons of a model at tasks, as `neuronllm-eval identify` does.

    All but the first two and `progress` are flags of that command, by the same names, with the
    same values and defaults (docs/command-line.md); None leaves a flag out. Where a flag takes
    several values, a list does too, and for `model_args`, `method_args` and `metadata` a mapping.

    Args:
        model: a model in memory, instead of one that `model_args` loads. It stays on its device,
            and is put into evaluation mode. Its name in the files is its `name_or_path`, or
            `pretrained` of `model_args`; from there a later `validate` without `model` loads it,
            and refuses other weights.
        tokenizer: of `model`; the one of its `name_or_path` if not given.
        model_args: as for `lm_eval --model hf`; `pretrained` is the model.
        tasks: multiple-choice tasks or groups of the harness, and `aqua:NAME` of any of them.
        include_path: folders of further tasks.
        output_path: a run directory per task is made in it; with several methods, per method and
            task.
        method: what scores the neurons; several share one pass.
        method_args: settings of methods.
        top_k: good and bad neurons to choose: a count, or a share of all if below 1.
        top_z: neurons per layer that a question votes for: a count or a share.
        ambiguous: `keep` or `drop` neurons that one question calls good and another bad.
        positions: `scored` or `all`: where neurons are chosen.
        quadrature: rule of the path integral.
        n_steps: its nodes.
        attribution_dtype: type of the weights while neurons are chosen.
        num_fewshot: demonstrations in each prompt.
        description: the role and rule line before everything else.
        system_instruction: text before the description.
        apply_chat_template: True, or the name of a template of the tokenizer.
        metadata: of the tasks.
        overlap: `refuse` or `drop` questions that both splits have.
        seed: of every random choice.
        selection_split: that chooses neurons.
        on_bad_doc: `skip` or `fail`.
        n_proxies: option-shuffled copies of each question.
        orders: of the options.
        letter_style: what stands before an option.
        n_options: of each question.
        distractors: wrong options where some are missing.
        limit: questions of each split.
        batch_size: prompts of a pass, or `auto`.
        device: such as `cuda:0` or `cpu`.
        engine: `auto`, `fan_out` or `replay`.
        resume: keep what is finished, and go on with the rest.
        overwrite: start anew.
        checkpoint_every: seconds between checkpoints.
        progress: whether a terminal is shown how far the work is.

    Returns:
        A run per task, and per method if there are several, in the order of the tasks.

    Raises:
        NeuronLLMError: whatever is wrong with the arguments, the tasks, the model or the folder,
            in the words of the command line. Nothing is written then.
    """
    flags = _flags(locals())
    if model is not None:
        flags["model_args"] = _described(model, model_args, device)
    options = _parsed("identify", flags)
    work = functools.partial(identify_command.identify, options)
    return _runs(work, _load(model, tokenizer), progress)


def validate(
    run_dir: str | Path | Run,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    conditions: Names | None = None,
    n_random: int | None = None,
    suppress_scale: float | None = None,
    enhance_scale: float | None = None,
    top_k: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    positions: str | None = None,
    seed: int | None = None,
    limit: int | None = None,
    batch_size: int | str | None = None,
    device: str | None = None,
    engine: str | None = None,
    trust_remote_code: bool | None = None,
    resume: bool | None = None,
    overwrite: bool | None = None,
    checkpoint_every: float | None = None,
    progress: bool = False,
) -> tuple[Run, ...]:
    """Judge the neurons of runs on their validation splits, as `neuronllm-eval validate` does.

    All but `run_dir`, the two after it and `progress` are flags of that command, by the same
    names, with the same values and defaults (docs/command-line.md); None leaves a flag out.

    Args:
        run_dir: a run, its directory, or a directory of runs.
        model: the model of the runs, in memory; loaded as their settings say if not given.
            Other weights than those of the runs are refused.
        tokenizer: of `model`; the one of its `name_or_path` if not given.
        conditions: names of `conditions.CONDITIONS`; all of them if not given.
        n_random: layer-matched random controls of each condition.
        suppress_scale: factor of suppressed neurons.
        enhance_scale: factor of enhanced neurons.
        top_k: use the first so many good and bad neurons; several numbers make a sweep.
        scale: factors of a sweep.
        positions: `scored` or `all`: where neurons are scaled; where they were chosen if not given.
        seed: of the random controls.
        limit: questions.
        batch_size: prompts of a pass, or `auto`.
        device: such as `cuda:0` or `cpu`.
        engine: `auto`, `fan_out` or `replay`.
        trust_remote_code: run code of the model's repository if the run asks for it.
        resume: keep what is finished, and go on with the rest.
        overwrite: start anew.
        checkpoint_every: seconds between checkpoints.
        progress: whether a terminal is shown how far the work is.

    Returns:
        The runs, by name.

    Raises:
        NeuronLLMError: whatever is wrong with the arguments, the runs or the model.
    """
    flags = _flags(locals())
    if model is not None:
        _require_in_place(device)
    path = str(run_dir.path if isinstance(run_dir, Run) else run_dir)
    options = _parsed("validate", flags, f"./{path}" if path.startswith("-") else path)
    work = functools.partial(validate_command.validate, options)
    return _runs(work, _load(model, tokenizer), progress)


def _flags(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a function's arguments, those that are flags."""
    own = ("model", "tokenizer", "run_dir", "progress")
    return {name: value for name, value in arguments.items() if name not in own}


def _parsed(command: str, flags: Mapping[str, Any], *words: str) -> argparse.Namespace:
    """What the command line makes of the same flags."""
    parser = main_parser(COMMANDS)
    written = as_words(flags, parser.commands[command], f"{command}()", "check the argument")
    line = [command, *words, *written]
    options = parser.parse_args(line)
    options.command = ("neuronllm-eval", *line)
    return options


def _runs(
    work: Callable[..., list[RunDirectory]], load: Load | None, progress: bool
) -> tuple[Run, ...]:
    listeners = Listeners(show=lambda _: None, announce=_log)
    with nullcontext() if progress else hidden():
        return tuple(Run(each.path) for each in work(listeners, load=load))


def _log(expected: Estimate) -> None:
    logger.info("%s", estimate_line(expected))


def _load(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None) -> Load | None:
    """What makes the model of a run's settings; None for loading it as they say."""
    if model is None:
        if tokenizer is not None:
            raise UsageError(
                "tokenizer without model",
                expected="both, or neither",
                remedy="pass the model too, or tokenizer=NAME_OR_PATH in model_args",
            )
        return None
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"model is a {type(model).__name__}",
            expected="a transformers.PreTrainedModel",
            remedy="pass such a model, or its name or path as pretrained in model_args",
        )
    return lambda settings: wrap_model(settings, model, tokenizer)


def _described(model: PreTrainedModel, model_args: Any, device: str | None) -> Any:
    """The arguments that would load a model that is in memory."""
    _require_in_place(device)
    if model_args is not None:
        return model_args
    name = getattr(model, "name_or_path", "")
    if not name:
        raise UsageError(
            "the model has no name_or_path",
            expected="a name for the files of the run, under which its weights can be found later",
            remedy="pass model_args={'pretrained': NAME_OR_PATH}",
        )
    return {"pretrained": name, "dtype": str(model.dtype).removeprefix("torch.")}


def _require_in_place(device: str | None) -> None:
    if device is not None:
        raise UsageError(
            f"device is {device!r:.100}, and the model is given",
            expected="one of them: a model stays on its device",
            remedy="move the model there, and leave device out",
        )
