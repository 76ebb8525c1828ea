"""A run directory as values: what `identify` found in it, and what `validate` made of that.

Everything is read from the files, with all their checks, when it is first asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.stats.split_half import SplitHalf, stability_of
from neuronllm_eval.formats.json_files import require_file
from neuronllm_eval.harness.results import read_metrics
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory, read_lines
from neuronllm_eval.runs.reader import ValidationRecord, load_neurons, load_scores
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

    @property
    def directory(self) -> RunDirectory:
        """Where each of its files lies."""
        return RunDirectory(self.path)

    @cached_property
    def settings(self) -> RunSettings:
        """The resolved settings (`run.yaml`)."""
        return RunSettings.load(self.directory.settings)

    @property
    def task(self) -> str:
        """The harness's name of the task."""
        return self.settings.task

    @property
    def method(self) -> str:
        """The method that scored the neurons."""
        return self.settings.method

    @cached_property
    def neurons(self) -> NeuronSet:
        """The good and bad neurons that were chosen, with their provenance (`neurons.json`)."""
        return load_neurons(self.directory, self.settings)

    @cached_property
    def scores(self) -> NeuronScores:
        """The scores of all neurons, [layers, neurons] (`scores.safetensors`)."""
        return load_scores(self.directory, self.neurons)

    @cached_property
    def split_half(self) -> SplitHalf:
        """How far two halves of the selection questions agree on the neurons that were chosen."""
        return stability_of(self.scores.half_sums, self.neurons.top_k)

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """One record for each question that chose (`questions.jsonl`)."""
        return read_lines(self.directory.questions)

    @property
    def is_validated(self) -> bool:
        """Whether the neurons have been judged."""
        return self.directory.conditions.is_file()

    @cached_property
    def validation(self) -> ValidationRecord:
        """Which neurons were judged, how and where (`validation.json`)."""
        self._require_validated()
        return ValidationRecord.load(self.directory.validation)

    @cached_property
    def docs(self) -> DocTable:
        """Right or wrong, and confidence, of every validation doc under every condition.

        Random controls are among the conditions (`conditions.jsonl`).
        """
        self._require_validated()
        path = self.directory.conditions
        return DocTable.load(path, self.task)

    @cached_property
    def summaries(self) -> dict[str, ConditionSummary]:
        """What each condition and point did to the benchmark, by name: figures of the report."""
        record = self.validation
        judged = record.judged(self.neurons, self.directory.validation)
        found = summarise(self.docs, judged, record.scales)
        return {each.name: each for each in found}

    def metrics(self, condition: str) -> dict[str, float]:
        """The harness's metrics under a condition (`results/<condition>.json`)."""
        self._require_validated()
        if not self.directory.result(condition).is_file():
            judged = [name for name in self.docs.conditions if ".random_" not in name]
            raise ArtifactError(
                f"{self.path} has no result of the condition {condition!r:.100}",
                expected=f"one of those that were judged: {', '.join(judged)}",
                remedy="pass one of them, or validate the run under it too",
            )
        return read_metrics(self.directory.result(condition), self.task)

    def _require_validated(self) -> None:
        if not self.is_validated:
            raise ArtifactError(
                f"{self.path} is not validated",
                expected="a run whose neurons have been judged",
                remedy="call validate with it, or `neuronllm-eval validate`",
            )

    @property
    def report(self) -> str:
        """The report as Markdown (`report.md`)."""
        require_file(self.directory.report)
        return self.directory.report.read_text(encoding="utf-8")
