"""What the files of a run contain, as values: each read once, and checked to belong together.

A `RunDirectory` remembers what was read from it or written to it, so that a command parses no file
twice and reads nothing back that it has just written.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.digests import SUMS_FILE
from neuronllm_eval.formats.typed_files import (
    NumberOrNaN,
    PositiveCount,
    artifact,
    load,
    load_lines,
    one_of,
)
from neuronllm_eval.harness.results import ResultFile
from neuronllm_eval.interventions.conditions import UNMASKED, Scales
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.prompts import POSITIONS
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import DocCounts, RunSettings, load_run_file

IDENTIFY_REMEDY = "run identify again"
VALIDATE_REMEDY = "run validate again"


@artifact
@dataclass(frozen=True)
class QuestionLine:
    """A line of `questions.jsonl`: the unmasked model's answers to a selection question.

    Attributes:
        question_id: the question.
        doc_ids: [proxies] the doc's index in the task.
        gold: [proxies] index of the gold option.
        loglikelihoods: [proxies][options] log-nats, of the tokens that the options do not share; of
            all if these are divided by lengths.
        right: [proxies] whether the likeliest option is the gold one.
        completeness_gap: the largest over proxies and layers, in units of its target; None where
            it is not measured.
    """

    question_id: str
    doc_ids: tuple[int, ...]
    gold: tuple[int, ...]
    loglikelihoods: tuple[tuple[float, ...], ...]
    right: tuple[bool, ...]
    completeness_gap: float | None


@artifact
@dataclass(frozen=True)
class ExcludedQuestion:
    """A line of `set_aside_<role>.jsonl`: a question that gave NaN or infinity."""

    question_id: str
    doc_ids: tuple[int, ...]
    reason: str


@artifact
@dataclass(frozen=True)
class CommandLine:
    """A line of `commands.jsonl`: one start of a stage."""

    stage: str
    command: tuple[str, ...]
    processes: int
    versions: dict[str, str]


@artifact
@dataclass(frozen=True)
class ValidationRecord:
    """The content of `validation.json`: which neurons were validated, and how.

    Attributes:
        top_k: good and bad neurons of the conditions that are not points of a sweep.
        suppress_scale: factor of suppressed neurons.
        enhance_scale: factor of enhanced neurons.
        positions: where they were applied.
        batch_size: about how many prompts went through the model together.
        docs: what became of the validation split's docs.
    """

    top_k: PositiveCount
    suppress_scale: float
    enhance_scale: float
    positions: Annotated[str, one_of(POSITIONS)]
    batch_size: PositiveCount
    docs: DocCounts

    def __post_init__(self) -> None:
        self.scales  # noqa: B018 - refuses factors that float32 cannot hold

    @property
    def scales(self) -> Scales:
        """The factors of the two operations."""
        return Scales(self.suppress_scale, self.enhance_scale)

    def validated(self, selected: NeuronSet, path: Path) -> NeuronSet:
        """The validated neurons among the selected ones.

        Raises:
            ArtifactError: there are more than were selected; names the file.
        """
        if self.top_k > selected.top_k:
            raise ArtifactError(
                f"{path}: top_k is {self.top_k}, of a set selected with top_k={selected.top_k}",
                expected=f"1 to {selected.top_k}",
                remedy=VALIDATE_REMEDY,
            )
        return selected.top(self.top_k)


@artifact
@dataclass(frozen=True)
class PerplexityRecord:
    """The content of `perplexity.json`: of the packaged plain text, all positions edited.

    Attributes:
        text_hash: digest of the text.
        n_tokens: tokens of it that were scored.
        perplexity: by condition, point and random control; NaN where it is not finite.
    """

    text_hash: str
    n_tokens: PositiveCount
    perplexity: dict[str, NumberOrNaN]

    def __post_init__(self) -> None:
        if UNMASKED not in self.perplexity:
            raise ValueError(f"there is no perplexity of {UNMASKED}")
        lowest = min(self.perplexity.values())
        if lowest < 1:
            raise ValueError(f"a perplexity is {lowest:g}, below 1")

    def to_json(self) -> str:
        """The content of the file; null stands for what is not finite."""
        values = {
            name: None if math.isnan(value) else value for name, value in self.perplexity.items()
        }
        return json.dumps({**asdict(self), "perplexity": values}, indent=1) + "\n"


def load_settings(run: RunDirectory) -> RunSettings:
    """The settings of a run (`run.yaml`), which every reader of a run reads first.

    Raises:
        ArtifactError: the file is missing or damaged, or one that figures come from is missing.
    """
    run.require_listed("identify")
    folder = (run.home or run).path
    return run.once(run.settings, lambda: load_run_file(run.settings, folder))[0]


def load_doc_counts(run: RunDirectory) -> DocCounts:
    """What became of the selection split's docs (`run.yaml`).

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    folder = (run.home or run).path
    return run.once(run.settings, lambda: load_run_file(run.settings, folder))[1]


def load_neurons(run: RunDirectory, settings: RunSettings) -> NeuronSet:
    """The neurons of a run.

    Raises:
        ArtifactError: `neurons.json` is missing or damaged, or is of another task, other positions
            or other scores of options.
    """
    if run.settings.exists() and run.identifying.is_dir() and not run.neurons.exists():
        raise ArtifactError(
            f"{run.path} holds an unfinished run",
            expected="identified neurons",
            remedy=f"repeat the command that started it (see {run.commands.name}): it resumes",
        )
    neurons = run.once(run.neurons, lambda: NeuronSet.load(run.neurons))
    pairs = {
        "task": (neurons.provenance.task, settings.task),
        "positions": (neurons.provenance.positions, settings.positions),
        "option_scores": (neurons.provenance.option_scores, settings.option_scores),
    }
    for name, (identified, expected) in pairs.items():
        if expected not in (identified, "auto"):  # which a command leaves to the run
            raise ArtifactError(
                f"{run.neurons} has {name} {identified!r:.100}, and {run.settings} {expected!r}",
                expected="files of one run",
                remedy=IDENTIFY_REMEDY,
            )
    return neurons


def load_scores(run: RunDirectory, neurons: NeuronSet) -> NeuronScores:
    """The scores that a run's neurons were selected by.

    Raises:
        ArtifactError: `scores.safetensors` is missing or damaged, or is another run's.
    """
    scores = run.once(run.scores, lambda: NeuronScores.load(run.path, neurons.shape))
    if (scores.shape, scores.provenance) != (neurons.shape, neurons.provenance):
        raise ArtifactError(
            f"{run.scores} and {run.neurons} are of different runs",
            expected="files of one run: the same model, task and settings",
            remedy=IDENTIFY_REMEDY,
        )
    most = max(int(scores.good_count.max()), int(scores.bad_count.max()))
    if most > scores.provenance.n_questions:
        raise ArtifactError(
            f"{run.scores}: {most} of {scores.provenance.n_questions} questions voted for a neuron",
            expected="at most one vote of each question",
            remedy=IDENTIFY_REMEDY,
        )
    return scores


def load_questions(run: RunDirectory) -> list[QuestionLine]:
    """The selection questions that were counted (`questions.jsonl`).

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return run.once(run.questions, lambda: load_lines(QuestionLine, run.questions, IDENTIFY_REMEDY))


def load_validation(run: RunDirectory) -> ValidationRecord:
    """What was validated and how (`validation.json`).

    Raises:
        ArtifactError: the file is missing or damaged, or one that figures come from is missing.
    """
    path = run.validation
    run.require_listed("validate")
    return run.once(path, lambda: load(ValidationRecord, path, VALIDATE_REMEDY))


def load_perplexity(run: RunDirectory) -> PerplexityRecord | None:
    """The perplexity of a plain text under the conditions (`perplexity.json`), if measured.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = run.perplexity
    if not path.exists():
        return None
    return run.once(path, lambda: load(PerplexityRecord, path, VALIDATE_REMEDY))


def load_commands(run: RunDirectory) -> list[CommandLine]:
    """Every start of a stage (`commands.jsonl`), in order; none where there is no file.

    Raises:
        ArtifactError: the file is damaged.
    """
    remedy = f"remove it and its line in {SUMS_FILE}: reports do without it"
    if not run.commands.exists():
        return []
    return run.once(run.commands, lambda: load_lines(CommandLine, run.commands, remedy))


def load_excluded(run: RunDirectory, role: str) -> list[ExcludedQuestion]:
    """The questions of a split that were excluded for NaN or infinity.

    Args:
        run: the run.
        role: `selection` or `validation`.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = run.set_aside(role)
    if not path.is_file():
        return []
    return run.once(path, lambda: load_lines(ExcludedQuestion, path, VALIDATE_REMEDY))


def load_result(run: RunDirectory, condition: str) -> ResultFile:
    """lm_eval's results under a condition (`results/<condition>.json`).

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    path = run.result(condition)
    return run.once(path, lambda: load(ResultFile, path, VALIDATE_REMEDY))


def load_metrics(run: RunDirectory, condition: str, task: str) -> dict[str, float]:
    """The harness's metrics of a task under a condition, without their standard errors.

    Raises:
        ArtifactError: the result file is missing, damaged or of another task.
    """
    return load_result(run, condition).metrics(task, run.result(condition))


def excluded_ids(run: RunDirectory, role: str) -> set[str]:
    """The questions of `load_excluded`."""
    return {question.question_id for question in load_excluded(run, role)}


def validation_limit(run: RunDirectory, settings: RunSettings) -> int | None:
    """The question limit of a validation, from its result files; else that of the settings.

    Raises:
        ArtifactError: the result file of the unmasked run is damaged.
    """
    if not run.result(UNMASKED).exists():
        return settings.limit
    limit = load_result(run, UNMASKED).config.get("limit")
    return limit if type(limit) is int else settings.limit
