"""What finished runs of several tasks came to, one by one and together.

1. `run.yaml` and `summary.json` of a run, and right or wrong of every doc from `conditions.jsonl`.
2. Together: the mean over the docs of all tasks, with interval and p by question (`statistics`),
   and the same of the random controls: the first of every task is one, the second, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import EXPECTED_SIGN
from neuronllm_eval.evaluation.doc_table import DocTable, numbered
from neuronllm_eval.evaluation.stats.paired_delta import PairedDelta, paired_delta, points_between
from neuronllm_eval.evaluation.stats.significance import ControlRank, random_control_rank
from neuronllm_eval.evaluation.summary_file import StoredSummary
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, ConditionName, factor_text
from neuronllm_eval.runs.directory import RunDirectory, read_lines
from neuronllm_eval.runs.reader import ValidationRecord
from neuronllm_eval.runs.settings import RunSettings

_TOLERANCE = 1e-6  # percent, between summary.json and the docs


@dataclass(frozen=True)
class Effect:
    """What a condition did to accuracy, beside its random controls.

    Attributes:
        accuracy: paired, percent and percentage points.
        controls: their deltas; None for the unmasked run.
        n_beyond: controls that moved less in the expected direction.
    """

    accuracy: PairedDelta
    controls: ControlRank | None = None
    n_beyond: int = 0

    @property
    def n_controls(self) -> int:
        """Random controls that there were."""
        return 0 if self.controls is None else self.controls.n_controls


@dataclass(frozen=True)
class Answers:
    """Right or wrong of a run's docs.

    Attributes:
        question_ids: [docs].
        correct: by condition and random control, [docs] float64, 0 or 1.
    """

    question_ids: tuple[str, ...]
    correct: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TaskResult:
    """What a run came to.

    Attributes:
        task: its name.
        folder: of the run, below that of the page.
        effects: by condition that edits something, in order, and of the unmasked run; empty before
            validation.
        answers: that they were made of; None before validation.
        unedited: by condition that edits nothing, why.
        model: name or path, and revision.
        method: with its settings, if it has any.
        top_k: good and bad neurons that were judged; None before validation.
        factors: of suppressing and enhancing; empty before validation.
        positions: that were edited; empty before validation.
    """

    task: str
    folder: str
    effects: Mapping[str, Effect]
    answers: Answers | None = None
    unedited: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    method: str = ""
    top_k: int | None = None
    factors: str = ""
    positions: str = ""

    @property
    def terms(self) -> dict[str, str]:
        """What must be the same in runs for a mean over them, by name."""
        count = "" if self.top_k is None else str(self.top_k)
        return {
            "model": self.model,
            "method": self.method,
            "neurons of a kind": count,
            "factors": self.factors,
            "positions": self.positions,
        }


def read_result(run: RunDirectory) -> TaskResult:
    """What a run came to.

    Raises:
        ArtifactError: `run.yaml`, `validation.json`, `summary.json` or `conditions.jsonl` is
            damaged, or the last two are of different docs.
    """
    settings = RunSettings.load(run.settings)
    task, model, method = settings.task, _model(settings), _method(settings)
    if not run.summary.is_file():
        return TaskResult(task, run.path.name, {}, model=model, method=method)
    stored = StoredSummary.load(run.summary).conditions
    known = {each.name: each for each in stored}
    found = {name: known[name] for name in CONDITIONS if name in known}
    wrong = [name for name, each in found.items() if not 0 <= each.accuracy.condition <= 100]
    if UNMASKED not in found or wrong:
        raise _refusal(run, f"has {'accuracies beyond 100%' if wrong else 'no unmasked run'}")
    answers = _answers(run, task)
    for name, each in found.items():
        said = answers.correct.get(name, np.zeros(0))
        share = 100 * float(said.mean()) if said.size == each.accuracy.n_docs else -1.0
        if abs(share - each.accuracy.condition) > _TOLERANCE:
            raise _refusal(run, f"is of other docs than {run.conditions.name}")
    top_k = next((each.top_k for each in found.values() if each.top_k), None)
    effects = {
        name: Effect(each.accuracy, each.controls, each.n_beyond)
        for name, each in found.items()
        if each.is_evaluated or name == UNMASKED
    }
    unedited = {
        name: each.edited.note
        for name, each in found.items()
        if name not in effects and each.edited is not None
    }
    record = ValidationRecord.load(run.validation)
    return TaskResult(
        task=task,
        folder=run.path.name,
        effects=effects,
        answers=answers,
        unedited=unedited,
        model=model,
        method=method,
        top_k=top_k,
        factors=f"{factor_text(record.scales.suppress)}, {factor_text(record.scales.enhance)}",
        positions=record.positions,
    )


def _answers(run: RunDirectory, task: str) -> Answers:
    table = DocTable.from_lines(read_lines(run.conditions), run.conditions, task)
    kept = {
        name: values
        for name, values in table.correct.items()
        if not (parts := ConditionName.parse(name)).top_k and parts.scale is None  # no points
    }
    return Answers(table.question_ids, kept)


def _refusal(run: RunDirectory, what: str) -> ArtifactError:
    return ArtifactError(
        f"{run.summary} {what}",
        expected="a file as this package writes it",
        remedy="run `neuronllm-eval report` on it",
    )


def _model(settings: RunSettings) -> str:
    known = settings.model_args
    parts = [str(known.get("pretrained", ""))]
    parts += [f"{name}={known[name]}" for name in ("revision", "peft", "delta") if known.get(name)]
    return ", ".join(parts)


def _method(settings: RunSettings) -> str:
    given = (f"{name}={value}" for name, value in settings.method_args.items())
    return ", ".join([settings.method, *given])


# Together ---------------------------------------------------------------------------------------


def differing(results: Sequence[TaskResult]) -> list[str]:
    """The names of the terms that runs do not share; what is not known yet is left aside."""
    return [
        name
        for name in results[0].terms
        if len({each.terms[name] for each in results if each.terms[name]}) > 1
    ]


def shared_conditions(judged: Sequence[TaskResult]) -> list[str]:
    """The conditions that all of them were judged under, but for the unmasked run."""
    return [
        name
        for name in CONDITIONS
        if name != UNMASKED and judged and all(name in each.effects for each in judged)
    ]


def pooled(judged: Sequence[TaskResult], condition: str, n_resamples: int = 10_000) -> Effect:
    """What a condition did over the docs of all tasks.

    A question is one to the bootstrap also where several runs of a task ask it. The random controls
    are as many as all runs have, in the order of their seeds, which differ with the run's.

    Args:
        judged: of one model, method and number of neurons; all under `condition`.
        condition: one of `conditions.CONDITIONS`.
        n_resamples: draws of the bootstrap and of the permutation test.
    """
    # In whatever order runs are given, the same draws.
    judged = sorted(judged, key=lambda each: (each.task, each.folder))
    found = [each.answers for each in judged if each.answers is not None]
    questions = numbered(
        [
            repr((each.task, question))
            for each in judged
            if each.answers is not None
            for question in each.answers.question_ids
        ]
    )

    def values(name: str) -> NDArray[np.float64]:
        return np.concatenate([each.correct[name] for each in found])

    before = values(UNMASKED)
    accuracy = paired_delta(before, values(condition), questions, n_resamples=n_resamples)
    drawn = zip(*(_controls(each, condition) for each in found), strict=False)
    controls = [points_between(before, np.concatenate(rows)) for rows in drawn]
    sign = EXPECTED_SIGN[condition]
    return Effect(
        accuracy,
        random_control_rank(accuracy.delta, controls, sign),
        sum(sign * accuracy.delta > sign * control for control in controls),
    )


def _controls(answers: Answers, condition: str) -> list[NDArray[np.float64]]:
    """[docs] right or wrong under each random control of a condition, by their seeds."""
    seeds = {
        parts.seed: values
        for name, values in answers.correct.items()
        if (parts := ConditionName.parse(name)).seed is not None and parts.condition == condition
    }
    return [seeds[seed] for seed in sorted(seeds)]
