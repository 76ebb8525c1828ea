"""What a run directory holds, read back: checked one by one, and checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.json_files import exact_keys, read_json
from neuronllm_eval.interventions.conditions import UNMASKED, Scales
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.prompts import POSITIONS
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings, require_doc_counts

_AGAIN = "run validate again"


@dataclass(frozen=True)
class ValidationRecord:
    """The content of `validation.json`: what was judged, and how.

    Attributes:
        top_k: good and bad neurons of the conditions that are no points.
        scales: their factors.
        positions: where they were applied.
        batch_size: about how many prompts went through the model together; what `auto` came to.
        docs: what became of the validation split's docs.
    """

    top_k: int
    scales: Scales
    positions: str
    batch_size: int
    docs: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> ValidationRecord:
        """Read a `validation.json`.

        Raises:
            ArtifactError: it is missing or damaged, or holds what validation never writes.
        """
        keys = {"top_k", "suppress_scale", "enhance_scale", "positions", "batch_size", "docs"}
        found = exact_keys(read_json(path, _AGAIN), keys, path, "the file", _AGAIN)
        number = (int, float)
        kinds = {"top_k": (int,), "suppress_scale": number, "enhance_scale": number,
                 "batch_size": (int,)}  # fmt: skip
        for name, known in kinds.items():
            if type(found[name]) not in known:
                raise ArtifactError(
                    f"{path}: {name} is {found[name]!r:.100}",
                    expected=" or ".join(kind.__name__ for kind in known),
                    remedy=_AGAIN,
                )
        if found["positions"] not in POSITIONS:
            raise ArtifactError(
                f"{path}: positions is {found['positions']!r:.100}",
                expected=" or ".join(POSITIONS),
                remedy=_AGAIN,
            )
        if found["batch_size"] < 1:
            raise ArtifactError(
                f"{path}: batch_size is {found['batch_size']}", expected="1 or more", remedy=_AGAIN
            )
        require_doc_counts(found["docs"], path, _AGAIN)
        try:
            scales = Scales(found["suppress_scale"], found["enhance_scale"])
        except UsageError as error:
            raise ArtifactError(
                f"{path}: {error.found}", expected=error.expected, remedy=_AGAIN
            ) from error
        positions, batch_size = found["positions"], found["batch_size"]
        return cls(found["top_k"], scales, positions, batch_size, found["docs"])

    def judged(self, chosen: NeuronSet, path: Path) -> NeuronSet:
        """The neurons that were judged, of those that were chosen.

        Raises:
            ArtifactError: more than were chosen; names the file.
        """
        if not 1 <= self.top_k <= chosen.top_k:
            raise ArtifactError(
                f"{path}: top_k is {self.top_k}, of a set chosen with top_k={chosen.top_k}",
                expected=f"1 to {chosen.top_k}",
                remedy=_AGAIN,
            )
        return chosen.top(self.top_k)


def load_neurons(run: RunDirectory, settings: RunSettings) -> NeuronSet:
    """The neurons of a run.

    Raises:
        ArtifactError: `neurons.json` is missing or damaged, or is of another task or
            other positions.
    """
    if run.settings.exists() and run.identifying.is_dir() and not run.neurons.exists():
        raise ArtifactError(
            f"{run.path} holds a run that is not finished",
            expected="neurons that were found",
            remedy=f"repeat the command that started it ({run.commands.name} has it): it resumes",
        )
    neurons = NeuronSet.load(run.neurons)
    if neurons.provenance.task != settings.task:
        raise ArtifactError(
            f"{run.neurons} is of task {neurons.provenance.task!r}, and {run.settings} of "
            f"{settings.task!r}",
            expected="files of one run",
            remedy="run identify again",
        )
    if neurons.provenance.positions != settings.positions:
        raise ArtifactError(
            f"{run.neurons} was chosen at positions={neurons.provenance.positions!r:.100}, and "
            f"{run.settings} says {settings.positions!r}",
            expected="files of one run",
            remedy="run identify again",
        )
    return neurons


def load_scores(run: RunDirectory, neurons: NeuronSet) -> NeuronScores:
    """The scores that a run's neurons were chosen by.

    Raises:
        ArtifactError: `scores.safetensors` is missing or damaged, or is another run's.
    """
    scores = NeuronScores.load(run.path)
    if (scores.shape, scores.provenance) != (neurons.shape, neurons.provenance):
        raise ArtifactError(
            f"{run.scores} and {run.neurons} are of different runs",
            expected="files of one run: the same model, task and settings",
            remedy="run identify again",
        )
    most = max(int(scores.good_count.max()), int(scores.bad_count.max()))
    if most > scores.provenance.n_questions:
        raise ArtifactError(
            f"{run.scores}: {most} of {scores.provenance.n_questions} questions chose a neuron",
            expected="no more than there are",
            remedy="run identify again",
        )
    return scores


def judged_limit(run: RunDirectory, settings: RunSettings) -> int | None:
    """How many questions a validation was to ask, as its result files say.

    Raises:
        ArtifactError: the result file of the unmasked run is damaged.
    """
    path = run.result(UNMASKED)
    config = read_json(path, _AGAIN).get("config") if path.exists() else None
    limit = config.get("limit") if isinstance(config, dict) else None
    return limit if type(limit) is int else settings.limit
