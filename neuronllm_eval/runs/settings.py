"""The settings of every stage, each defined once; and `run.yaml`, which keeps those of a run.

1. A field of a model here is a setting: its type, default, help, range, choices and flags
   (`formats.settings_model`). Flags, `--config` keys, keywords of `neuronllm_eval.identify` and
   `validate`, their checks and `run.yaml` follow from it.
2. `IdentifySettings` and `ValidateSettings` are what a user asks for; `RunSettings` is what one run
   of one task and method came to.

Names are lm_eval's where lm_eval has the setting. Nothing heavy is imported here, so that `--help`
is quick: names of engines, quadratures, methods and types are repeated, and a test compares them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.proxies import LETTER_STYLES
from neuronllm_eval.aqua.settings import ON_BAD_DOC, ORDER_SETTINGS
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.settings_model import (
    FilePath,
    FilePaths,
    Json,
    Names,
    Numbers,
    Pairs,
    Settings,
    changed,
    first_problem,
    setting,
)
from neuronllm_eval.formats.typed_files import STRICT, check
from neuronllm_eval.formats.yaml_files import dump_yaml, read_yaml
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    ENHANCE_SCALE,
    FEWEST_CONTROLS,
    SUPPRESS_SCALE,
)
from neuronllm_eval.neurons.neuron_set import AMBIGUOUS
from neuronllm_eval.prompts import POSITIONS, SCORED
from neuronllm_eval.runs.directory import SECRETS, without_secrets

logger = logging.getLogger(__name__)
ENGINES = ("auto", "fan_out", "replay")
QUADRATURES = ("auto", "gauss_lobatto", "gauss_legendre", "right_riemann")
ATTRIBUTION_DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = tuple(
    "ace kn qrnca tn gradxact activation contrast_activation random ace_vocabulary".split()
)
OVERLAP = ("refuse", "drop")

# Groups of flags, in the order of the help.
WHAT, PROMPTS = "what to run", "prompts"
QUESTIONS = "questions (default: what the task's YAML says)"
SELECTION, VALIDATION = "attribution and selection", "validation"
MODEL, INTERRUPTIONS = "model", "interruptions"
GROUPS = ("", WHAT, PROMPTS, QUESTIONS, SELECTION, VALIDATION, MODEL, INTERRUPTIONS)


_HOW_MANY = "prompts per pass, or auto for as many as fit into memory"


class ComputeSettings(Settings):
    """How a model is run. Of stages that read a run, what is not given is as the run has it."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = setting(
        1, _HOW_MANY, group=MODEL, flags=("-b",), expected="a whole number, 1 or more, or auto"
    )
    device: str | None = setting(
        None, "such as cuda, cuda:0, cpu", group=MODEL, unset="cuda if there is one"
    )
    engine: str = setting(
        "auto", "auto takes fan_out where it is exact", group=MODEL, choices=ENGINES
    )
    limit: int | None = setting(
        None, "questions per split", group=MODEL, flags=("-L",), unset="all", ge=1
    )

    @property
    def fixed_batch_size(self) -> int | None:
        """The batch size; None for `auto`."""
        return None if isinstance(self.batch_size, str) else self.batch_size

    def overrides(self) -> dict[str, Any]:
        """The settings of this group that were given: they go before those of a run."""
        names = self.model_fields_set & set(ComputeSettings.model_fields)
        return {name: getattr(self, name) for name in names}


class QuestionSettings(Settings):
    """How questions are asked; None leaves what the task says. Most are of AQUA tasks alone."""

    seed: int | None = setting(None, "seed of every random choice", group=QUESTIONS, ge=0)
    selection_split: str | None = setting(
        None, "split whose questions select neurons", group=QUESTIONS
    )
    on_bad_doc: str | None = setting(
        None,
        "docs that cannot be used as questions: skip and count, or fail",
        group=QUESTIONS,
        choices=ON_BAD_DOC,
    )
    n_proxies: int | None = setting(
        None, "option-shuffled copies of each question", group=QUESTIONS, ge=1
    )
    orders: str | None = setting(
        None, "orders of the options", group=QUESTIONS, choices=ORDER_SETTINGS
    )
    letter_style: str | None = setting(
        None, "what stands before an option", group=QUESTIONS, choices=tuple(LETTER_STYLES)
    )
    n_options: int | None = setting(None, "options of each question", group=QUESTIONS, ge=2, le=26)
    distractors: str | None = setting(
        None,
        "wrong options where some are missing: other answers, of any or about the same length",
        group=QUESTIONS,
        choices=DISTRACTORS,
    )


class SelectionSettings(QuestionSettings, ComputeSettings):
    """What decides which neurons are selected, beside the model, the task and the method."""

    num_fewshot: int | None = setting(
        None, "demonstrations", group=PROMPTS, flags=("-f",), unset="the task's", ge=0
    )
    apply_chat_template: bool | str = setting(
        False,
        "apply the tokenizer's chat template, or the one of this name",
        group=PROMPTS,
        nargs="?",
        const=True,
    )
    system_instruction: str | None = setting(
        None, "text put before the task's description", group=PROMPTS
    )
    description: str | None = setting(
        None, "role and rule line before everything else", group=PROMPTS, unset="the task's"
    )
    overlap: str = setting(
        "refuse",
        "questions that selection and validation split share",
        group=PROMPTS,
        choices=OVERLAP,
    )
    positions: str = setting(
        SCORED,
        "where neurons are selected, and with run_eval.py where they are suppressed and enhanced: "
        "at the positions whose logits are scored, or at all (slow, except for --method gradxact "
        "and tn)",
        group=SELECTION,
        choices=POSITIONS,
    )
    quadrature: str = setting(
        "auto",
        "rule for the path integral; auto takes gauss_lobatto, or gauss_legendre with one node "
        "fewer where the prompts show it to be better",
        group=SELECTION,
        choices=QUADRATURES,
    )
    n_steps: int | None = setting(
        None,
        "nodes",
        group=SELECTION,
        unset="gauss_lobatto 5, gauss_legendre 4, right_riemann 16",
    )
    top_z: float = setting(
        0.1, "neurons per layer that a question votes for: a count, or a share", group=SELECTION
    )
    ambiguous: str = setting(
        "keep",
        "neurons that some question calls good and another bad",
        group=SELECTION,
        choices=AMBIGUOUS,
    )
    attribution_dtype: str = setting(
        "auto",
        "type of the model's weights during attribution (auto: the model's own); validation uses "
        "the model as it is loaded",
        group=SELECTION,
        choices=ATTRIBUTION_DTYPES,
    )


class IdentifySettings(SelectionSettings):
    """Settings of `identify`: one run for each task and method."""

    program: ClassVar[tuple[str, ...]] = ("neuronllm-eval", "identify")

    model_args: Pairs | None = setting(
        None,
        "as for lm_eval --model hf: pretrained=NAME_OR_PATH[,dtype=...,revision=...]",
        group=WHAT,
        flags=("-a",),
        unset="the embedded demo model",
        nargs="+",
        expected="key=value,key=value with pretrained=NAME_OR_PATH",
    )
    tasks: Names = setting(
        ("demo",), "multiple-choice tasks or groups", group=WHAT, flags=("-t",), nargs="+"
    )
    include_path: FilePaths = setting((), "folders of further tasks", group=WHAT, nargs="+")
    output_path: FilePath = setting(
        Path("runs"), "a run directory per task is made in it", group=WHAT, flags=("-o",)
    )
    metadata: Json = setting(
        {},
        "as for lm_eval: JSON added to tasks' metadata",
        group=PROMPTS,
        json=True,
        expected="a JSON object, such as '{\"n_proxies\": 5}'",
    )
    method: Names = setting(
        ("ace",),
        f"what scores neurons: {', '.join(METHODS)}. Several share one pass over the questions, "
        "and each writes to its own folder: OUTPUT_PATH/METHOD/TASK",
        group=SELECTION,
        nargs="+",
    )
    method_args: Pairs = setting(
        {},
        "settings of methods, such as threshold=0.2,top_v=10 (qrnca) or seed=1 (random)",
        group=SELECTION,
        nargs="+",
        metavar="SETTING=VALUE",
        expected="setting=value,setting=value",
    )
    top_k: Numbers = setting(
        (0.02,),
        "good and bad neurons to select: a count, or a share of all; with run_eval.py also a list: "
        "the largest is selected, and each is validated",
        group=SELECTION,
        expected="numbers with commas between them, such as 10,50",
    )


class ConditionSettings(Settings):
    """What validation compares."""

    conditions: Names = setting(
        CONDITIONS, f"of {', '.join(CONDITIONS)}", group=VALIDATION, nargs="+", shown="all"
    )
    n_random: int = setting(FEWEST_CONTROLS, "random controls per condition", group=VALIDATION)
    suppress_scale: float = setting(
        SUPPRESS_SCALE, "factor of suppressed neurons", group=VALIDATION
    )
    enhance_scale: float = setting(ENHANCE_SCALE, "factor of enhanced neurons", group=VALIDATION)
    scale: Numbers = setting(
        (),
        "factors to try besides, such as 0,0.5,1.5,2,4: those below 1 for suppress_good and "
        "suppress_bad, those above 1 for enhance_good and enhance_bad",
        group=VALIDATION,
        expected="numbers with commas between them, such as 0,0.5,2",
    )


class StoredRunSettings(Settings):
    """Which finished runs a command reads, and whether it may run code that they bring along."""

    run_dir: FilePath = setting(
        ..., "a run directory, or a folder that has runs at any depth", positional=True
    )
    trust_remote_code: bool = setting(
        False, "run code of the model's repository, if the run's run.yaml asks for that"
    )


class ValidateSettings(StoredRunSettings, ConditionSettings, ComputeSettings):
    """Settings of `validate`."""

    program: ClassVar[tuple[str, ...]] = ("neuronllm-eval", "validate")

    top_k: Numbers = setting(
        (),
        "use the first so many good and bad neurons: a count, a share of all, or a list of either, "
        "such as 10,50,100, to validate each",
        shown="all that were selected",
        expected="numbers with commas between them, such as 10,50",
    )
    positions: str | None = setting(
        None,
        "where neurons are suppressed and enhanced",
        choices=POSITIONS,
        unset="where they were selected",
    )
    seed: int | None = setting(None, "seed of the random controls", ge=0)
    limit: int | None = changed(
        ComputeSettings.model_fields["limit"], text="questions", unset="the run's own limit"
    )


class EvaluateSettings(IdentifySettings, ConditionSettings):
    """Settings of `run_eval.py`: identification, then validation."""

    program: ClassVar[tuple[str, ...]] = ("run_eval.py",)


class LaunchSettings(Settings):
    """How a command is carried out; none of it changes a number."""

    resume: bool = setting(
        False,
        "keep finished stages and complete the rest; the default, except where all runs are "
        "finished",
        group=INTERRUPTIONS,
    )
    overwrite: bool = setting(
        False, "start from scratch and replace existing runs", group=INTERRUPTIONS
    )
    checkpoint_every: float = setting(
        60.0, "time between checkpoints", group=INTERRUPTIONS, metavar="SECONDS", ge=0
    )
    dry_run: bool = setting(
        False, "print what the run would take, in time, memory and disk, and write nothing"
    )

    @model_validator(mode="after")
    def _resume_or_overwrite(self) -> Self:
        if self.resume and self.overwrite:
            raise UsageError(
                "resume and overwrite", expected="one of them, or neither",
                remedy="check --resume and --overwrite",
            )  # fmt: skip
        return self


# run.yaml ---------------------------------------------------------------------------------------

SCHEMA_VERSION = 3
_REMEDY = "run identify again with this version of neuronllm_eval"


class _RunFile(BaseModel):
    """The content of `run.yaml`."""

    model_config = STRICT

    schema_version: Literal[3]
    versions: dict[str, str]
    docs: dict[str, Any]
    settings: dict[str, Any]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only


class RunSettings(SelectionSettings):
    """Everything that decides what one run of one task and method computes, as `run.yaml` has it.

    `top_k` and `top_z` are shares below 1 and counts from 1. `positions` is where neurons are
    selected, and `method_args` are the method's settings.
    """

    model_args: dict[str, Any]
    task: str
    include_path: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    fewshot_as_multiturn: bool = True
    method: str = "ace"
    method_args: dict[str, Any] = Field(default_factory=dict)
    top_k: float = 0.02

    def without_secrets(self) -> RunSettings:
        """The same without access tokens, which no file of a run holds."""
        return self.model_copy(update={"model_args": without_secrets(self.model_args)})

    def to_yaml(self, versions: dict[str, str], docs: dict[str, Any]) -> str:
        """The content of `run.yaml`.

        Args:
            versions: of the packages, for the reader; not read back.
            docs: what became of the docs, for reports.
        """
        values = self.without_secrets().model_dump(mode="json")
        first = {name: values.pop(name) for name in ("model_args", "task")}
        header = {"schema_version": SCHEMA_VERSION, "versions": versions, "docs": docs}
        return dump_yaml({**header, "settings": {**first, **values}})

    @classmethod
    def load(cls, path: Path) -> RunSettings:
        """The settings in a `run.yaml`; see `load_run_file`."""
        return load_run_file(path, cls)[0]


def load_run_file(
    path: Path, model: type[RunSettings] | None = None
) -> tuple[RunSettings, dict[str, Any]]:
    """Read a `run.yaml`: the settings, and what became of the selection split's docs.

    Raises:
        ArtifactError: the file is missing, not YAML, of another schema, or has unknown keys or
            values that `identify` never writes.
    """
    content = check(_RunFile, read_yaml(path), str(path), _REMEDY)
    values = content.settings
    model = model or RunSettings
    if missing := sorted(model.model_fields.keys() - values):
        raise ArtifactError(
            f"{path}: settings are missing: {', '.join(missing)}",
            expected="every setting, as identify writes them",
            remedy=_REMEDY,
        )
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        _, found, expected = first_problem(model, values, error)
        raise ArtifactError(
            f"{path}: settings: {found}", expected=expected, remedy=_REMEDY
        ) from error
    if secrets := settings.model_args.keys() & set(SECRETS):
        logger.warning(
            "%s holds %s, as version 0.1.0 wrote it: take it out before you share the directory",
            path,
            ", ".join(sorted(secrets)),
        )
    _require_method(settings, path)
    _require_names_and_places(settings, path)
    require_doc_counts(content.docs, path, _REMEDY)
    return settings, content.docs


def _require_method(settings: RunSettings, path: Path) -> None:
    from neuronllm_eval.attribution.methods import make_method

    try:
        make_method(settings.method, settings.method_args)
    except UsageError as error:
        raise ArtifactError(
            f"{path}: settings.method: {error.found}",
            expected=error.expected,
            remedy="run identify again, or with a method of your own call its script "
            "(docs/extending.md)",
        ) from error


def _require_names_and_places(settings: RunSettings, path: Path) -> None:
    """What a run directory brings along must not become code that is run."""
    if set(settings.task) & set("/\\") or Path(settings.task).is_file():
        raise ArtifactError(
            f"{path}: settings.task is the path {settings.task!r:.100}",
            expected="the name of a task, as identify writes it",
            remedy=_REMEDY,
        )
    for folder in settings.include_path:
        inside = Path(folder).resolve().is_relative_to(path.parent.resolve())
        if inside or not Path(folder).is_absolute():
            raise ArtifactError(
                f"{path}: settings.include_path has {folder!r:.100}",
                expected="absolute paths outside the run directory, as identify writes them",
                remedy="run identify again, with --include_path",
            )


def require_doc_counts(docs: Any, path: Path, remedy: str) -> None:
    """Raise ArtifactError unless `docs`, read from `path`, is what `run_tasks.doc_counts` makes."""
    known = {"data", "asked", "prompts"}
    wrong = f"docs is {docs!r:.100}" if not isinstance(docs, dict) else ""
    for name, counts in docs.items() if isinstance(docs, dict) else ():
        numbers = {} if name == "asked" else counts
        if name not in known or not isinstance(counts, dict) or not _are_counts(numbers):
            wrong = f"docs has {name!r:.100}: {counts!r:.100}"
    if wrong:
        raise ArtifactError(
            f"{path}: {wrong}",
            expected="a mapping of data, asked and prompts to numbers of docs",
            remedy=remedy,
        )


def _are_counts(values: Mapping[Any, Any]) -> bool:
    """Whether all values are numbers of docs, but for a split's name and counts by reason."""
    for name, value in values.items():
        if name == "split":
            is_known = isinstance(value, str)
        elif name == "skipped":
            is_known = isinstance(value, dict) and _are_counts(value)
        else:
            is_known = type(value) is int and value >= 0
        if not (is_known and isinstance(name, str)):
            return False
    return True
