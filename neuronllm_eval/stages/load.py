"""A run's settings -> its model, its task, and the questions of selection and validation.

1. The model is loaded as `lm_eval --model hf` does, or wrapped if it is in memory.
2. Each leaf task is loaded once; its selection and validation splits are copies that share data.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.attribution.methods import Method
from neuronllm_eval.errors import ModelError, TaskError, UsageError
from neuronllm_eval.formats.inert_text import without_secrets
from neuronllm_eval.harness.aqua_conversion.convert import load_any_tasks
from neuronllm_eval.harness.leakage import doc_contents, overlapping_questions
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tasks import (
    is_aqua,
    on_split,
    question_ids,
    selection_split,
    settings_from,
    validation_split,
)
from neuronllm_eval.harness.tokenize import PromptSettings, QuestionSet
from neuronllm_eval.harness.varied_prompts import N_PROXIES, VariedPrompts, with_varied_prompts
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.models.fingerprints import Weights, digest, dtype_name, task_hash
from neuronllm_eval.models.forward_check import require_plain_forward
from neuronllm_eval.models.loading import readable_loading
from neuronllm_eval.models.model_args import require_model_args
from neuronllm_eval.prompts import with_priors
from neuronllm_eval.runs.directory import RunDirectory, folder_name
from neuronllm_eval.runs.settings import DocCounts, QuestionSettings, RunSettings
from neuronllm_eval.runtime.distributed import share_docs

logger = logging.getLogger(__name__)
# How many prompts of the validation split run.yaml has digests of.
DIGESTED_PROMPTS = 8
# What a run.yaml asks for by these settings, of the model and of an AQUA task, needs consent.
_NEEDS_CONSENT = {
    "trust_remote_code": "run code of the repository of its model",
    "allow_all_kernels": "run code of the repository of its model",
    "load": "call a function",
    "harness_yaml": "read task files",
    "include_path": "read task files",
    "offload_folder": "write files of its model elsewhere",
    "cache_dir": "write files of its model elsewhere",
}


# Model ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A harness model, its FFN layers, and the identity of its weights as loaded."""

    lm: HFLM
    layers: FFNLayers
    weights: Weights


Load = Callable[[RunSettings], LoadedModel]


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


def loaded_once(load: Load = load_model) -> Load:
    """As `load`, but runs in a row with the same model arguments share one model."""
    last: list[tuple[dict[str, Any], LoadedModel]] = []

    def shared(settings: RunSettings) -> LoadedModel:
        if not last or last[0][0] != settings.model_args:
            last[:] = [(settings.model_args, load(settings))]
        return last[0][1]

    return shared


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
    layers = find_ffn_layers(lm.model)
    require_plain_forward(lm.model, layers)
    return LoadedModel(lm, layers, Weights.of(lm.model))


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
    """Raise UsageError if a run asks for what needs consent and the user does not give it."""
    asked = _asked([settings.model_args, settings.metadata])
    if asked is not None and not trust:
        name, value = asked
        raise UsageError(
            f"the run of {settings.task} with the model {settings.model_args.get('pretrained')} "
            f"asks to {_NEEDS_CONSENT[name]}: {name} is {value!r:.100}",
            expected="your consent, since a run directory may come from somebody else",
            remedy="pass --trust_remote_code if you trust it",
        )


def _asked(value: Any) -> tuple[str, Any] | None:
    """The first setting, at any depth, that needs consent, and its value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _NEEDS_CONSENT and inner is not False:
                return name, inner
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return next(filter(None, map(_asked, inside)), None)


# What a stage works on --------------------------------------------------------------------------


@dataclass(frozen=True)
class StageInput:
    """What a stage works on: a model, a run's settings, and the questions of one split.

    The questions are tokenised for the model (`selection_questions`, `validation_questions`).
    """

    model: LoadedModel
    settings: RunSettings
    questions: QuestionSet

    def expecting(self, validation: QuestionSet) -> StageInput:
        """The same, with settings that hold digests of the prompts that are to validate."""
        digests = {"validation_prompts": prompt_digests(validation)}
        return dataclasses.replace(self, settings=self.settings.model_copy(update=digests))

    def with_priors(self, priors: Sequence[float]) -> StageInput:
        """The same, with options' priors in the prompts (`stages.priors`)."""
        questions = with_priors(self.questions.questions, priors)
        return dataclasses.replace(
            self, questions=dataclasses.replace(self.questions, questions=questions)
        )

    @property
    def model_name(self) -> str:
        """As the settings name it."""
        names = (self.settings.model_args.get(name) for name in ("pretrained", "gguf_file"))
        return "/".join(str(name) for name in names if name)

    @property
    def split(self) -> str:
        """The split's name in the data set; AQUA tasks have names of their own for splits."""
        task, split = self.questions.task, self.questions.split
        return str(task.dataset.counts[split]["split"]) if is_aqua(task) else split

    @property
    def question_settings(self) -> dict[str, Any]:
        """The settings of an AQUA task, its defaults filled in; of another if it has proxies."""
        task = self.questions.task
        if isinstance(task, VariedPrompts):
            return {N_PROXIES: task.n_varied_prompts}
        return task.dataset.settings.model_dump() if is_aqua(task) else {}

    @property
    def task_hash(self) -> str:
        """A digest of the task and its settings."""
        return task_hash(self.questions.task.dump_config(), self.question_settings)

    @property
    def doc_counts(self) -> DocCounts:
        """What became of the split's docs, for files and reports; {} if all are questions."""
        counts: DocCounts = {}
        if is_aqua(self.questions.task):
            counts["data"] = self.questions.task.dataset.counts[self.questions.split]
        if asked := self.question_settings:
            counts["asked"] = asked
        return {**counts, "prompts": self.questions.counts} if self.questions.counts else counts


@dataclass(frozen=True)
class MethodRun:
    """A method, and where its neurons go.

    Attributes:
        method: that scores them.
        run: the directory.
    """

    method: Method
    run: RunDirectory

    @property
    def is_identified(self) -> bool:
        """Whether the run has its neurons."""
        return self.run.neurons.is_file()

    def settings(self, shared: RunSettings) -> RunSettings:
        """Settings that methods share, with this method's."""
        method_args = dataclasses.asdict(self.method)
        return shared.model_copy(update={"method": self.method.name, "method_args": method_args})

    def of_method(self, inputs: StageInput) -> StageInput:
        """What a stage works on, with this method's settings."""
        return dataclasses.replace(inputs, settings=self.settings(inputs.settings))


def method_runs(output: Path, methods: Sequence[Method], task: str) -> list[MethodRun]:
    """Where each method's neurons of a task go: a folder per task; of several methods, one each."""
    folder = folder_name(task)
    several = len(methods) > 1
    return [
        MethodRun(method, RunDirectory((output / method.name if several else output) / folder))
        for method in methods
    ]


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
        option_scores=settings.option_scores,
    )


def aqua_overrides(settings: QuestionSettings, num_fewshot: int | None = None) -> dict[str, Any]:
    """What goes before the settings of AQUA tasks."""
    overrides = {name: getattr(settings, name) for name in QuestionSettings.model_fields}
    if (num_fewshot or 0) > AquaSettings.model_fields["n_demonstrations"].default:
        # The task must have reserved as many as prompts show.
        overrides["n_demonstrations"] = num_fewshot
    return {name: value for name, value in overrides.items() if value is not None}


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
    # It ends up in result files, with the task's configuration.
    metadata = without_secrets({**settings.model_args, **settings.metadata})
    leaves = load_any_tasks(
        tasks, include_path, metadata, aqua_overrides(settings, settings.num_fewshot), only
    )
    settings = settings.model_copy(update={"include_path": include_path})
    return {
        name: (
            settings.model_copy(update={"task": name, "group": settings_from(task)}),
            _with_proxies(task, settings.n_proxies),
        )
        for name, task in leaves.items()
    }


def _with_proxies(task: ConfigurableTask, n_proxies: int | str | None) -> ConfigurableTask:
    """The task with as many prompts of each question as the settings, or else its YAML, say."""
    number = n_proxies or (task.config.metadata or {}).get(N_PROXIES, 1)
    return task if is_aqua(task) or number == 1 else with_varied_prompts(task, number)


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
    selection = on_split(task, selection_split(task, settings.selection_split))
    # An AQUA task has no shared questions; it has counted those it dropped.
    validated = frozenset() if is_aqua(task) else frozenset(doc_contents(task))
    shared = overlapping_questions(selection, validated) if validated else set()
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
    prompts, seed = prompt_settings(settings), settings.seed or 0
    return build_questions(lm, selection, prompts, settings.limit, shared, seed, validated)


def validation_questions(
    lm: HFLM, settings: RunSettings, task: ConfigurableTask, only: Iterable[str] | None = None
) -> QuestionSet:
    """The questions that neurons are validated on; `only` some of them, by their ids.

    Raises:
        TaskError: their prompts are not those that identify made, as the settings have them.
    """
    validation = on_split(task, validation_split(task))
    excluded: set[str] = set()
    later: set[str] = set()
    if only is not None:
        # Demonstrations are drawn doc by doc, so the docs before the last of these are built too.
        names = list(question_ids(validation))
        excluded = set(names).difference(only)
        last = max((index for index, name in enumerate(names) if name not in excluded), default=-1)
        later = excluded.difference(names[: last + 1])
    questions = build_questions(lm, validation, prompt_settings(settings), settings.limit, later)
    questions = questions.without(excluded)
    expected, prompts = settings.validation_prompts, prompt_digests(questions)
    for doc_id in sorted(expected.keys() & prompts):
        if prompts[doc_id] != expected[doc_id]:
            raise TaskError(
                f"task {settings.task}: the prompt of doc {doc_id} of the validation split is not "
                "the one that identify made",
                expected="the same task, data, tokenizer and package versions, and a chat template "
                "that does not write today's date",
                remedy="restore them, or give the template the date of the run, such as "
                '--model_args \'{"chat_template_args": {"date_string": ...}}\', and run identify '
                "again",
            )
    return questions


def prompt_digests(questions: QuestionSet) -> dict[str, str]:
    """Digests of the tokens and golds of the first prompts, by doc."""
    return {
        str(prompt.doc_id): digest(repr((prompt.context, prompt.options, prompt.gold)))
        for prompt in questions.prompts[:DIGESTED_PROMPTS]
    }
