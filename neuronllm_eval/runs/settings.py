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
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.proxies import LETTER_STYLES
from neuronllm_eval.aqua.settings import (
    N_PROXIES_EXPECTED,
    ON_BAD_DOC,
    ORDER_SETTINGS,
    NProxies,
)
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.inert_text import SECRETS, without_secrets
from neuronllm_eval.formats.plain_files import dump_yaml, read_yaml
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
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    CONTROLS_WITH_PERPLEXITY,
    FEWEST_CONTROLS,
    LAYER,
    MATCHES,
    ConditionName,
    Scales,
)
from neuronllm_eval.neurons.neuron_set import AMBIGUOUS
from neuronllm_eval.prompts import OPTION_SCORES, POSITIONS, SCORED, SUM

logger = logging.getLogger(__name__)
ENGINES = ("auto", "fan_out", "replay")
QUADRATURES = ("auto", "gauss_lobatto", "gauss_legendre", "right_riemann")
ATTRIBUTION_DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = tuple(
    "ace ace_balanced kn qrnca tn gradxact activation contrast_activation random "
    "ace_vocabulary".split()
)
OVERLAP = ("refuse", "drop")
AUTO_METHOD = "auto"  # chooses settings and the number of neurons itself

# Groups of flags, in the order of the help.
WHAT, PROMPTS = "what to run", "prompts"
QUESTIONS = "questions (default: what the task's YAML says)"
SELECTION, VALIDATION = "attribution and selection", "validation"
MODEL, INTERRUPTIONS = "model", "interruptions"
GROUPS = ("", WHAT, PROMPTS, QUESTIONS, SELECTION, VALIDATION, MODEL, INTERRUPTIONS)
_task = partial(setting, group=WHAT)
_prompt = partial(setting, group=PROMPTS)
_question = partial(setting, group=QUESTIONS)
_selection = partial(setting, group=SELECTION)
_validation = partial(setting, group=VALIDATION)
_model = partial(setting, group=MODEL)
_launch = partial(setting, group=INTERRUPTIONS)
_one_of_two = partial(_launch, exclusive=True)

_NUMBERS = "numbers with commas between them, such as 10,50"


class ComputeSettings(Settings):
    """How a model is run. Of stages that read a run, what is not given is as the run has it."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = _model(
        1,
        "prompts per pass, or auto for as many as fit into memory",
        flags=("-b",),
        expected="a whole number, 1 or more, or auto",
    )
    device: str | None = _model(None, "such as cuda, cuda:0, cpu", unset="cuda if there is one")
    engine: str = _model("auto", "auto takes fan_out where it is exact", choices=ENGINES)
    limit: int | None = _model(
        None,
        "questions per split",
        flags=("-L",),
        unset="all",
        ge=1,
        expected="a whole number, 1 or more; shares of the docs are not supported",
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

    seed: int | None = _question(None, "seed of every random choice", ge=0)
    selection_split: str | None = _question(None, "split whose questions select neurons")
    on_bad_doc: str | None = _question(
        None, "docs that cannot be used as questions: skip and count, or fail", choices=ON_BAD_DOC
    )
    n_proxies: NProxies | None = _question(
        None,
        "prompts of each question: in AQUA tasks with its options shuffled, in others with other "
        "demonstrations or wordings; all, in AQUA tasks, for as many as it has options, with the "
        "gold option under each letter once",
        expected=N_PROXIES_EXPECTED,
    )
    orders: str | None = _question(None, "orders of the options", choices=ORDER_SETTINGS)
    letter_style: str | None = _question(
        None, "what stands before an option", choices=tuple(LETTER_STYLES)
    )
    n_options: int | None = _question(None, "options of each question", ge=2, le=26)
    distractors: str | None = _question(
        None,
        "wrong options where some are missing: other answers, of any or about the same length",
        choices=DISTRACTORS,
    )


class SelectionSettings(QuestionSettings, ComputeSettings):
    """What decides which neurons are selected, beside the model, the task and the method."""

    num_fewshot: int | None = _prompt(
        None, "demonstrations", flags=("-f",), unset="the task's", ge=0
    )
    apply_chat_template: bool | str = _prompt(
        False, "apply the tokenizer's chat template, or the one of this name", nargs="?", const=True
    )
    system_instruction: str | None = _prompt(None, "text put before the task's description")
    description: str | None = _prompt(
        None, "role and rule line before everything else", unset="the task's"
    )
    overlap: str = _prompt(
        "refuse", "questions that selection and validation split share", choices=OVERLAP
    )
    positions: str = _selection(
        SCORED,
        "where neurons are selected, and with run_eval.py where they are suppressed and enhanced: "
        "at the positions whose logits are scored, or at all (slow, except for --method gradxact "
        "and tn)",
        choices=POSITIONS,
    )
    option_scores: str = _selection(
        "auto",
        "what options are compared by, in attribution and in reports: their log-likelihood (sum), "
        "or that divided by the length of their text, as in acc_norm (per_character) or acc_bytes "
        "(per_byte); auto is what the first of acc, acc_norm and acc_bytes in the task's metric "
        "list does",
        choices=("auto", *OPTION_SCORES),
    )
    quadrature: str = _selection(
        "auto",
        "rule for the path integral; auto gives each layer as many graded gauss_lobatto nodes as "
        "a few of the prompts show it to need",
        choices=QUADRATURES,
    )
    n_steps: int | None = _selection(
        None,
        "nodes; of auto, how many layers may have on average",
        unset="auto 8, gauss_lobatto 5, gauss_legendre 4, right_riemann 16",
    )
    layer_nodes: str | None = _selection(
        None,
        "nodes of every layer, in quotes, as in layer_nodes of a run.yaml (--quadrature auto)",
        unset="chosen on the prompts",
    )
    top_z: float = _selection(
        0.1, "neurons per layer that a question votes for: a count, or a share"
    )
    ambiguous: str = _selection(
        "keep", "neurons that some question calls good and another bad", choices=AMBIGUOUS
    )
    attribution_dtype: str = _selection(
        "auto",
        "type of the model's weights during attribution (auto: the model's own); validation uses "
        "the model as it is loaded",
        choices=ATTRIBUTION_DTYPES,
    )


class IdentifySettings(SelectionSettings):
    """Settings of `identify`: one run for each task and method."""

    program: ClassVar[tuple[str, ...]] = ("neuronllm-eval", "identify")

    model_args: Pairs | None = _task(
        None,
        "as for lm_eval --model hf: pretrained=NAME_OR_PATH[,dtype=...,revision=...]",
        flags=("-a",),
        unset="the embedded demo model",
        nargs="+",
        expected="key=value,key=value with pretrained=NAME_OR_PATH",
    )
    tasks: Names = _task(("demo",), "multiple-choice tasks or groups", flags=("-t",), nargs="+")
    include_path: FilePaths = _task((), "folders of further tasks", nargs="+")
    output_path: FilePath = _task(
        Path("runs"), "a run directory per task is made in it", flags=("-o",)
    )
    metadata: Json = _prompt(
        {},
        "as for lm_eval: JSON added to tasks' metadata",
        json=True,
        expected="a JSON object, such as '{\"n_proxies\": 5}'",
    )
    method: Names = _selection(
        ("ace",),
        f"what scores neurons: {', '.join(METHODS)}; or auto, which is ace_balanced with its "
        "setting, and the number of neurons up to --top_k, chosen on the selection split. Several "
        "share one pass over the questions, and each writes to its own folder: "
        "OUTPUT_PATH/METHOD/TASK",
        nargs="+",
    )
    method_args: Pairs = _selection(
        {},
        "settings of methods, such as penalty=1 (ace_balanced), threshold=0.2,top_v=10 "
        "(qrnca) or seed=1 (random)",
        nargs="+",
        metavar="SETTING=VALUE",
        expected="setting=value,setting=value",
    )
    top_k: Numbers = _selection(
        (0.02,),
        "good and bad neurons to select: a count, or a share of all; with run_eval.py also a list: "
        "the largest is selected, and each is validated",
        expected=_NUMBERS,
    )


class ConditionSettings(Settings):
    """What validation compares."""

    conditions: Names = _validation(
        CONDITIONS, f"of {', '.join(CONDITIONS)}", nargs="+", shown="all"
    )
    n_random: int = _validation(FEWEST_CONTROLS, "random controls per condition")
    match_controls: str = _validation(
        LAYER,
        "what random controls have in common with the neurons: the layer, or also about the same "
        "mean size of activation",
        choices=MATCHES,
    )
    suppress_scale: float = _validation(Scales().suppress, "factor of suppressed neurons")
    enhance_scale: float = _validation(Scales().enhance, "factor of enhanced neurons")
    scale: Numbers = _validation(
        (),
        "factors to try besides, such as 0,0.5,1.5,2,4: those below 1 for suppress_good and "
        "suppress_bad, those above 1 for enhance_good and enhance_bad",
        expected="numbers with commas between them, such as 0,0.5,2",
    )
    perplexity: bool = _validation(
        False,
        "measure the perplexity of a short plain text too, its neurons edited at all positions, "
        f"under each condition and {CONTROLS_WITH_PERPLEXITY} of its random controls",
    )

    @field_validator("conditions")
    @classmethod
    def _known_conditions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            ConditionName.parse(name)
        return names


class StoredRunSettings(Settings):
    """Which finished runs a command reads, and whether it may run code that they bring along."""

    run_dir: FilePath = setting(
        ..., "a run directory, or a folder that has runs at any depth", positional=True
    )
    trust_remote_code: bool = setting(
        False, "run code that the run's run.yaml asks for, such as that of the model's repository"
    )


class ValidateSettings(StoredRunSettings, ConditionSettings, ComputeSettings):
    """Settings of `validate`."""

    program: ClassVar[tuple[str, ...]] = ("neuronllm-eval", "validate")

    top_k: Numbers = setting(
        (),
        "use the first so many good and bad neurons: a count, a share of all, or a list of either, "
        "such as 10,50,100, to validate each",
        shown="all that were selected",
        expected=_NUMBERS,
    )
    positions: str | None = setting(
        None,
        "where neurons are suppressed and enhanced",
        choices=POSITIONS,
        unset="where they were selected",
    )
    seed: int | None = setting(None, "seed of the random controls", ge=0)
    also: Names = setting(
        (),
        "further tasks or groups, to see what else the conditions change: the same conditions and "
        "controls on their validation questions, under RUN/also/TASK",
        metavar="TASKS",
        nargs="+",
        shown="none",
    )
    include_path: FilePaths = changed(
        IdentifySettings.model_fields["include_path"],
        text="folders of the tasks of --also, beside those of the run",
        group="",
    )
    limit: int | None = changed(
        ComputeSettings.model_fields["limit"], text="questions", unset="the run's own limit"
    )


class EvaluateSettings(IdentifySettings, ConditionSettings):
    """Settings of `run_eval.py`: identification, then validation."""

    program: ClassVar[tuple[str, ...]] = ("run_eval.py",)


class LaunchSettings(Settings):
    """How a command is carried out; none of it changes a number."""

    resume: bool = _one_of_two(
        False,
        "keep finished stages and complete the rest; the default, except where all runs are "
        "finished",
    )
    overwrite: bool = _one_of_two(False, "start from scratch and replace existing runs")
    checkpoint_every: float = _launch(60.0, "time between checkpoints", metavar="SECONDS", ge=0)
    dry_run: bool = setting(
        False, "print what the run would take, in time, memory and disk, and write nothing"
    )

    @model_validator(mode="after")
    def _resume_or_overwrite(self) -> Self:
        if self.resume and self.overwrite:
            raise UsageError(
                "resume and overwrite",
                expected="one of them, or neither",
                remedy="check --resume and --overwrite",
            )
        return self


# run.yaml ---------------------------------------------------------------------------------------

SchemaVersion = Literal[3]
(SCHEMA_VERSION,) = get_args(SchemaVersion)
_REMEDY = "run identify again with this version of neuronllm_eval"


def _numbers_of_docs(docs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name in docs.keys() - {"asked"}:
        counts = {"skipped": {}, **docs[name]}
        split, skipped = counts.pop("split", ""), counts.pop("skipped")
        numbers = [*counts.values(), *(skipped.values() if isinstance(skipped, dict) else [-1])]
        if type(split) is not str or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name} has {docs[name]!r:.100}, which are not numbers of docs")
    return docs


# What became of the docs of a split: of an AQUA task, reading them (`data`, with the name of the
# split, and skipped docs by reason) and its settings (`asked`); of all, encoding the `prompts`.
DocCounts = Annotated[
    dict[Literal["data", "asked", "prompts"], dict[str, Any]], AfterValidator(_numbers_of_docs)
]


class _RunFile(BaseModel):
    """The content of `run.yaml`."""

    model_config = STRICT

    schema_version: SchemaVersion
    versions: dict[str, str]
    docs: DocCounts
    settings: dict[str, Any]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only


class RunSettings(SelectionSettings):
    """Everything that decides what one run of one task and method computes, as `run.yaml` has it.

    `top_k` and `top_z` are shares below 1 and counts from 1. `positions` is where neurons are
    selected, and `method_args` are the method's settings. `group` is the group of tasks that gives
    the task settings of its own. `validation_prompts` are digests of the first prompts of the
    validation split as identify makes them, by doc.
    """

    model_args: dict[str, Any]
    task: str
    group: str = ""
    include_path: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    fewshot_as_multiturn: bool = True
    method: str = "ace"
    method_args: dict[str, Any] = Field(default_factory=dict)
    top_k: float = 0.02
    # What a run.yaml means that does not have it.
    option_scores: str = changed(SelectionSettings.model_fields["option_scores"], default=SUM)
    validation_prompts: dict[str, str] = Field(default_factory=dict)

    def without_secrets(self) -> RunSettings:
        """The same without access tokens, which no file of a run holds."""
        cleaned = {
            name: without_secrets(getattr(self, name)) for name in ("model_args", "metadata")
        }
        return self.model_copy(update=cleaned)

    def to_yaml(self, versions: dict[str, str], docs: DocCounts) -> str:
        """The content of `run.yaml`.

        Args:
            versions: of the packages, for the reader; not read back.
            docs: what became of the docs, for reports.
        """
        values = self.without_secrets().model_dump(mode="json")
        first = {name: values.pop(name) for name in ("model_args", "task")}
        header = {"schema_version": SCHEMA_VERSION, "versions": versions, "docs": docs}
        return dump_yaml({**header, "settings": {**first, **values}})


def load_run_file(path: Path, folder: Path | None = None) -> tuple[RunSettings, DocCounts]:
    """Read a `run.yaml`: the settings, and what became of the docs of the stage that wrote it.

    A setting that an earlier version did not write has its default.

    Args:
        path: the file.
        folder: of the run, if the file does not lie in it directly: what is in there is not run.

    Raises:
        ArtifactError: the file is missing, not YAML, of another schema, or has unknown keys or
            values that `identify` never writes.
    """
    content = check(_RunFile, read_yaml(path), str(path), _REMEDY)
    try:
        settings = RunSettings.model_validate(content.settings)
    except ValidationError as error:
        _, found, expected = first_problem(RunSettings, content.settings, error)
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
    _require_names_and_places(settings, path, folder or path.parent)
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


def _require_names_and_places(settings: RunSettings, path: Path, run: Path) -> None:
    """What a run directory brings along must not become code that is run."""
    for name in (settings.task, settings.group):
        if not (set(name) & set("/\\") or Path(name).is_file()):
            continue
        raise ArtifactError(
            f"{path}: settings.task is the path {name!r:.100}",
            expected="the name of a task, as identify writes it",
            remedy=_REMEDY,
        )
    for folder in settings.include_path:
        # Without links: /proc/self/cwd would be where the user happens to be.
        real = Path(folder).resolve()
        if real != Path(folder) or real.is_relative_to(run.resolve()):
            raise ArtifactError(
                f"{path}: settings.include_path has {folder!r:.100}",
                expected="absolute paths without links, outside the run directory",
                remedy="run identify again, with --include_path",
            )
