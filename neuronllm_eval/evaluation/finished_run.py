"""A run directory as values: the neurons that `identify` found, and what `validate` measured.

Every file is read, with all its checks, when a value of it is first requested.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise
from neuronllm_eval.evaluation.doc_table import DocTable, doc_table, without_controls
from neuronllm_eval.evaluation.edit_cost import recorded_perplexity
from neuronllm_eval.evaluation.other_tasks import read_other_tasks
from neuronllm_eval.evaluation.stats.significance import SplitHalf, stability_of
from neuronllm_eval.formats.plain_files import MOST_JSON_BYTES, read_text
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.artifacts import (
    QuestionLine,
    ValidationRecord,
    load_metrics,
    load_neurons,
    load_questions,
    load_scores,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings


@dataclass(frozen=True)
class Run:
    """A finished run of one task and method.

    Every property raises ArtifactError where its file is missing, damaged or another run's.

    Attributes:
        path: the run directory.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @cached_property
    def directory(self) -> RunDirectory:
        """Where each of its files is."""
        return RunDirectory(self.path)

    @property
    def settings(self) -> RunSettings:
        """The resolved settings (`run.yaml`)."""
        return load_settings(self.directory)

    @property
    def task(self) -> str:
        """The harness's name of the task."""
        return self.settings.task

    @property
    def method(self) -> str:
        """The method that scored the neurons."""
        return self.settings.method

    @property
    def neurons(self) -> NeuronSet:
        """The good and bad neurons, with their provenance (`neurons.json`)."""
        return load_neurons(self.directory, self.settings)

    @property
    def scores(self) -> NeuronScores:
        """The scores of all neurons, [layers, neurons] (`scores.safetensors`)."""
        return load_scores(self.directory, self.neurons)

    @cached_property
    def split_half(self) -> SplitHalf:
        """How far two halves of the selection questions agree on the neurons."""
        return stability_of(self.scores.half_sums, self.neurons.top_k)

    @property
    def questions(self) -> list[QuestionLine]:
        """The selection questions, with the unmasked model's answers (`questions.jsonl`)."""
        return load_questions(self.directory)

    @property
    def is_validated(self) -> bool:
        """Whether the neurons have been validated."""
        return self.directory.conditions.is_file()

    @property
    def validation(self) -> ValidationRecord:
        """Which neurons were validated, how and where (`validation.json`)."""
        self._require_validated()
        return load_validation(self.directory)

    @property
    def docs(self) -> DocTable:
        """Prediction and confidence of every validation doc under every condition.

        Random controls are among the conditions (`conditions.jsonl`).
        """
        self._require_validated()
        return doc_table(self.directory, self.task)

    @cached_property
    def summaries(self) -> dict[str, ConditionSummary]:
        """What each condition and point did to the benchmark, by name: figures of the report."""
        record = self.validation
        neurons = record.validated(self.neurons, self.directory.validation)
        perplexity = recorded_perplexity(self.directory, self.docs)
        summaries = summarise(self.docs, neurons, record.scales, perplexity=perplexity)
        return {summary.name: summary for summary in summaries}

    @cached_property
    def other_tasks(self) -> dict[str, dict[str, ConditionSummary]]:
        """By other task, the same (`also/<task>/`); empty where none was validated."""
        record = self.validation
        neurons = record.validated(self.neurons, self.directory.validation)
        others = read_other_tasks(self.directory, neurons, record)
        return {other.task: other.by_name for other in others}

    def metrics(self, condition: str) -> dict[str, float]:
        """The harness's metrics under a condition (`results/<condition>.json`)."""
        self._require_validated()
        if not self.directory.result(condition).is_file():
            raise ArtifactError(
                f"{self.path} has no result of the condition {condition!r:.100}",
                expected="one of the run's conditions: "
                + ", ".join(without_controls(self.docs.conditions)),
                remedy="pass one of them, or validate the run under it too",
            )
        return load_metrics(self.directory, condition, self.task)

    def _require_validated(self) -> None:
        if not self.is_validated:
            raise ArtifactError(
                f"{self.path} is not validated",
                expected="a run whose neurons have been validated",
                remedy="call validate with it, or `neuronllm-eval validate`",
            )

    @property
    def report(self) -> str:
        """The report as Markdown (`report.md`)."""
        return read_text(self.directory.report, MOST_JSON_BYTES, "run `neuronllm-eval report`")
