"""A run's settings -> its model, its task, and the questions of selection and validation.

1. The model is loaded as `lm_eval --model hf` does, or wrapped if it is in memory.
2. Each leaf task is loaded once; its selection and validation splits are copies that share data.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import ModelError, TaskError, UsageError
from neuronllm_eval.harness.aqua_conversion.convert import load_any_tasks
from neuronllm_eval.harness.leakage import doc_contents, overlapping_questions
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tasks import (
    is_aqua,
    on_split,
    selection_split,
    settings_from,
    validation_split,
)
from neuronllm_eval.harness.tokenize import PromptSettings, QuestionSet
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.models.fingerprints import digest, model_hash
from neuronllm_eval.models.loading import readable_loading
from neuronllm_eval.models.model_args import require_model_args
from neuronllm_eval.models.precision import dtype_name
from neuronllm_eval.runs.directory import without_secrets
from neuronllm_eval.runs.settings import QuestionSettings, RunSettings
from neuronllm_eval.runtime.distributed import share_docs

logger = logging.getLogger(__name__)
# How many prompts of the validation split run.yaml has digests of.
DIGESTED_PROMPTS = 8


# Model ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A harness model, its FFN layers, and a digest and the dtype of its weights as loaded."""

    lm: HFLM
    layers: FFNLayers
    hash: str
    dtype: str


def load_model(settings: RunSettings) -> LoadedModel:
    """Load the model as `lm_eval --model hf` does, and find its FFN layers.

    Of several processes, each loads it on its own device.

    Raises:
        ModelError: the model cannot be loaded, or has no FFN down-projections.
    """
    arguments = settings.model_args
    require_model_args(arguments, stages=True)
    device = arguments.get("device") or settings.device
    if settings.device not in (None, device):
        raise UsageError(
            f"--device is {settings.device}, and device={device} in --model_args",
            expected="one device",
            remedy="leave device out of --model_args",
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_device(str(device))
    with readable_loading(arguments.get("pretrained")):
        lm = HFLM(**{**arguments, "batch_size": settings.batch_size, "device": device})
    return _loaded(lm)


def wrap_model(
    settings: RunSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedModel:
    """As `load_model`, of a model that is in memory; it stays on its device, in evaluation mode.

    Args:
        settings: of the run, whose `pretrained` names the model.
        model: as it is.
        tokenizer: of the model, of which a copy is used; the one of its folder or repository if
            not given.

    Raises:
        UsageError: the arguments ask for another device or for what only loading can do.
        ModelError: the tokenizer cannot be loaded, or the model has no FFN down-projections.
    """
    arguments = {**settings.model_args}
    require_model_args(arguments, stages=True)
    dtype = str(arguments.get("dtype") or "auto").removeprefix("torch.")
    if dtype not in ("auto", dtype_name(model)):
        raise UsageError(
            f"dtype={dtype} in model_args, and the model in memory is {dtype_name(model)}",
            expected="the type of the model, which loading it later must give",
            remedy="convert the model, or correct dtype",
        )
    name = arguments.pop("pretrained")
    arguments["batch_size"] = settings.batch_size
    with readable_loading(name):
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **arguments)
    lm.pretrained = name  # as if loaded, for the result files
    return _loaded(lm)


def _loaded(lm: HFLM) -> LoadedModel:
    share_docs(lm)
    if lm.backend != "causal":
        raise ModelError(
            f"{type(lm.model).__name__} is not a causal language model",
            expected="a decoder-only model",
            remedy="choose another model",
        )
    return LoadedModel(lm, find_ffn_layers(lm.model), model_hash(lm.model), dtype_name(lm.model))


def _require_device(device: str) -> None:
    """Raise UsageError for a device that is not there; lm_eval would take another."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise UsageError(
            f"--device {device} is unknown",
            expected="cpu, cuda, cuda:0, mps or the like",
            remedy="check the spelling",
        ) from error
    counts = {"cpu": 1, "meta": 0, "cuda": torch.cuda.device_count()}
    if index >= counts.get(kind, index + 1):
        raise UsageError(
            f"--device {device} is not there",
            expected=f"a device of this machine, which has {counts['cuda']} CUDA devices",
            remedy="check --device, and CUDA_VISIBLE_DEVICES; cpu is always there",
        )


def require_trust(settings: RunSettings, trust: bool) -> None:
    """Raise UsageError if a run asks for a repository's code and the user does not."""
    if settings.model_args.get("trust_remote_code", False) is not False and not trust:
        raise UsageError(
            f"the run of {settings.task} asks to run code of the repository of its model, "
            f"{settings.model_args.get('pretrained')}",
            expected="your consent, since a run directory may come from somebody else",
            remedy="pass --trust_remote_code if you trust that repository",
        )


# Tasks and questions ------------------------------------------------------------------------------


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
        # The task must have reserved as many as prompts show.
        found["n_demonstrations"] = num_fewshot
    return {name: value for name, value in found.items() if value is not None}


def load_run_tasks(
    settings: RunSettings, only: str | None = None
) -> dict[str, tuple[RunSettings, ConfigurableTask]]:
    """Per leaf task that the settings name (groups expanded), its run's settings and the task.

    Args:
        settings: whose `task` may name several, with commas between them.
        only: the one leaf task to load of a group.

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
        tasks, include_path, metadata, aqua_overrides(settings, settings.num_fewshot), only
    )
    settings = settings.model_copy(update={"include_path": include_path})
    return {
        name: (settings.model_copy(update={"task": name, "group": settings_from(task)}), task)
        for name, task in leaves.items()
    }


def load_run_task(settings: RunSettings) -> ConfigurableTask:
    """The one task of a run's settings.

    Raises:
        TaskError: they name none, or a group; or as `load_run_tasks`.
        UsageError: as there.
    """
    source = settings.model_copy(update={"task": settings.group or settings.task})
    leaves = load_run_tasks(source, only=settings.task if settings.group else None)
    if settings.task not in leaves:
        raise TaskError(
            f"{settings.task!r:.100} is not one task but {len(leaves)}: {', '.join(leaves):.200}",
            expected="the name of one task in a run's run.yaml",
            remedy="run identify again",
        )
    return leaves[settings.task][1]


def selection_questions(lm: HFLM, settings: RunSettings, task: ConfigurableTask) -> QuestionSet:
    """The questions that neurons are selected on, none of which the validation split has.

    Raises:
        TaskError: the splits overlap and the settings do not say to drop what both have.
    """
    choosing = on_split(task, selection_split(task, settings.selection_split))
    # An AQUA task has no shared questions; it has counted those it dropped.
    validated = frozenset() if is_aqua(task) else frozenset(doc_contents(task))
    shared = overlapping_questions(choosing, validated) if validated else set()
    if shared and settings.overlap == "refuse":
        raise TaskError(
            f"task {settings.task}: {len(shared)} questions of the selection split are in the "
            f"validation split too, such as {sorted(shared)[0]}",
            expected="docs for selection and docs for validation, never the same",
            remedy="pass --overlap drop to leave them out of the selection, or another "
            "--selection_split",
        )
    if shared:
        logger.warning("%s: %d questions dropped from the selection split, which the validation "
                       "split has too", settings.task, len(shared))  # fmt: skip
    how, seed = prompt_settings(settings), settings.seed or 0
    return build_questions(lm, choosing, how, settings.limit, shared, seed, validated)


def validation_questions(lm: HFLM, settings: RunSettings, task: ConfigurableTask) -> QuestionSet:
    """The questions that neurons are validated on.

    Raises:
        TaskError: their prompts are not those that identify made, as the settings have them.
    """
    validating = on_split(task, validation_split(task))
    questions = build_questions(lm, validating, prompt_settings(settings), settings.limit)
    pairs = zip(settings.validation_prompts, prompt_digests(questions), strict=False)
    differing = next((number for number, (then, now) in enumerate(pairs) if then != now), None)
    if differing is not None:
        raise TaskError(
            f"task {settings.task}: the prompt of doc {questions.prompts[differing].doc_id} of the "
            "validation split is not the one that identify made",
            expected="the same task, data, tokenizer and package versions",
            remedy="restore them, or run identify again",
        )
    return questions


def prompt_digests(questions: QuestionSet) -> tuple[str, ...]:
    """Digests of the tokens and golds of the first prompts."""
    return tuple(
        digest(repr((prompt.context, prompt.options, prompt.gold)))
        for prompt in questions.prompts[:DIGESTED_PROMPTS]
    )


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
