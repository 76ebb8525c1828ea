"""Whether a run's artifacts are what its model and its tasks give: part of it is recomputed.

1. What follows from other artifacts is derived again: the neurons from the scores, the accuracies
   of the result files from the docs' log-likelihoods.
2. What the run was made of is compared by its digests: weights, task, package versions.
3. A sample of questions is recomputed, under every condition, and compared to float rounding. When
   the sample is all of them, all scores are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuronllm_eval.attribution.identify import IdentificationSettings, empty_sums, identify
from neuronllm_eval.attribution.integrated_gradients import (
    Attributions,
    Quadrature,
    attribute_all,
    not_finite,
)
from neuronllm_eval.attribution.methods import Method, make_method, to_scores
from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.equivalence_check import rounding_tolerance
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.doc_table import DocLine, doc_table
from neuronllm_eval.formats.typed_files import load_lines
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.interventions.conditions import condition_factors
from neuronllm_eval.interventions.score_conditions import score_conditions
from neuronllm_eval.models.fingerprints import task_hash, tokenizer_hash, versions
from neuronllm_eval.models.precision import computing_in
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import select_neurons
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.artifacts import (
    VALIDATE_REMEDY,
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
from neuronllm_eval.runtime.process import bar
from neuronllm_eval.stages.load import LoadedModel, how_asked
from neuronllm_eval.stages.prepare import checked_engine

# Relative to the largest score: what another batch size, thread or machine may change.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        passed: whether it is as it should be.
        detail: figures, or what differs.
    """

    name: str
    passed: bool
    detail: str


# From the artifacts alone ------------------------------------------------------------------------


def check_artifacts(run: RunDirectory) -> list[Check]:
    """What a run's files say of each other.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    settings = load_settings(run)
    neurons = load_neurons(run, settings)
    scores = load_scores(run, neurons)
    derived = select_neurons(scores, settings.top_k, settings.ambiguous)
    found = [
        Check(
            "neurons follow from the scores",
            derived.to_json() == neurons.to_json(),
            f"{len(neurons.good)} good, {len(neurons.bad)} bad",
        )
    ]
    lines = load_questions(run)
    known = scores.provenance
    asked = (len(lines), sum(len(line.doc_ids) for line in lines))
    found.append(
        Check(
            "questions are all there",
            asked == (known.n_questions, known.n_prompts),
            f"{asked[0]} questions, {asked[1]} prompts",
        )
    )
    if run.conditions.is_file():
        found.append(_check_results(run, settings.task))
    return found


def _check_results(run: RunDirectory, task: str) -> Check:
    table = doc_table(run, task)
    compared, wrong = 0, []
    for name in table.conditions:
        if not run.result(name).is_file():
            continue
        said = load_metrics(run, name, task).get("acc")
        if said is None:
            continue
        compared += 1
        if abs(said - float(table.correct[name].mean())) > 1e-9:
            wrong.append(name)
    detail = f"{compared} of {len(table.conditions)} conditions have result files"
    return Check(
        "result files follow from the docs",
        compared > 0 and not wrong,
        f"{detail}; differing: {', '.join(wrong)}" if wrong else detail,
    )


# With the model ---------------------------------------------------------------------------------


def check_origin(model: LoadedModel, questions: QuestionSet, neurons: NeuronSet) -> list[Check]:
    """Whether the run was made of this model and task, by these packages."""
    known = neurons.provenance
    found = [
        Check(f"{name} are the run's" if name == "weights" else f"{name} is the run's",
              now == there, now if now == there else f"{now} here, {there} there")
        for name, (now, there) in origins(model, questions, neurons).items()
    ]  # fmt: skip
    now = versions()
    there = {
        "neuronllm-eval": known.tool_version,
        "lm_eval": known.lm_eval_version,
        "transformers": known.transformers_version,
        "torch": known.torch_version,
    }
    differing = [f"{name} {now[name]}, {there[name]} there" for name in there
                 if now[name] != there[name]]  # fmt: skip
    # Another version is worth knowing, but what it computes is what counts.
    return [*found, Check("versions", True, "; ".join(differing) or "the same")]


def check_questions(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    neurons: NeuronSet,
    run: RunDirectory,
    sample: int,
    seed: int = 0,
) -> list[Check]:
    """Attribute a sample of the selection questions again.

    Args:
        model: the run's, in the type that neurons were attributed in (`precision.computing_in`).
        settings: of the run, resolved.
        questions: of the selection split.
        neurons: of the run.
        run: whose `questions.jsonl` is compared.
        sample: how many; all of them if there are no more.
        seed: which.
    """
    lines = {line.question_id: line for line in load_questions(run)}
    chosen, missing = sampled(questions, lines, sample, seed)
    if missing:
        return [Check("questions are those of the task", False, f"not in the task: {missing}")]
    attributing = Attributing.of(model, settings, questions, neurons)
    gaps = [0.0]

    sums = empty_sums(attributing.engine, chosen, attributing.how.methods)
    with _bar("verify the selection", chosen) as progress:
        for _, record in identify(attributing.engine, chosen, attributing.how, sums):
            if isinstance(record, DocError):
                raise record
            line = lines[record.question_id]
            for one, there in zip(record.loglikelihoods, line.loglikelihoods, strict=True):
                gaps.append(_difference(one, there))
            gap = record.completeness_gap[attributing.method.name]
            gaps.append(_gap_difference(gap, line.completeness_gap))
            progress.update()
    checks = [_within("selection questions recomputed", chosen, gaps, attributing.engine)]
    if len(chosen) == len(lines):
        checks.append(_check_scores(attributing, questions, neurons, run))
    return checks


def _check_scores(
    attributing: Attributing, questions: QuestionSet, neurons: NeuronSet, run: RunDirectory
) -> Check:
    known = load_scores(run, neurons)
    notes: list[Any] = []
    sums = empty_sums(attributing.engine, questions.questions, attributing.how.methods)
    with _bar("verify the scores", questions.questions) as progress:
        for _, record in identify(attributing.engine, questions.questions, attributing.how, sums):
            if not isinstance(record, DocError):  # those that were excluded count nowhere
                notes.extend(record.notes.values())
            progress.update()
    found = to_scores(attributing.method, sums[attributing.method.name], notes, known.provenance)
    largest = float(np.abs(known.score).max()) or 1.0
    gap = float(np.abs(found.score - known.score).max()) / largest
    same = found.to_bytes() == known.to_bytes()
    detail = "to the bit" if same else f"largest difference {gap:.1e} of the largest score"
    return Check("scores recomputed", gap <= SCORE_TOLERANCE, detail)


def check_conditions(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    neurons: NeuronSet,
    record: ValidationRecord,
    run: RunDirectory,
    sample: int,
    seed: int = 0,
) -> list[Check]:
    """Score a sample of the validation docs again, under every condition of the run.

    Args:
        model: the run's.
        settings: of the run.
        questions: of the whole validation split.
        neurons: what was validated.
        record: how it was validated.
        run: whose `conditions.jsonl` is compared.
        sample: how many questions; all of them if there are no more.
        seed: which.
    """
    lines: dict[str, dict[int, DocLine]] = {}
    for line in load_lines(DocLine, run.conditions, VALIDATE_REMEDY):
        lines.setdefault(line.question_id, {})[line.doc_id] = line
    chosen, missing = sampled(questions, lines, sample, seed)
    if missing:
        return [Check("validation docs are those of the task", False, f"not there: {missing}")]
    some = next(iter(next(iter(lines.values())).values()))
    names = list(some.loglikelihoods)
    engine = checked_engine(model, settings, questions, record.positions)
    factors = condition_factors(names, neurons, record.scales)
    batch_size = settings.fixed_batch_size or record.batch_size
    prompts = [prompt for question in chosen for prompt in question.prompts]
    gaps = [0.0]
    with _bar("verify the conditions", prompts, "doc") as progress:
        for _, docs in score_conditions(engine, chosen, factors, batch_size):
            if isinstance(docs, DocError):
                raise docs
            for doc in docs:
                there = lines[doc.question_id][doc.doc_id].loglikelihoods
                gaps += [
                    _difference(row, there[name])
                    for name, row in zip(names, doc.loglikelihoods.tolist(), strict=True)
                ]
                progress.update()
    return [
        _within(f"validation docs recomputed under {len(names)} conditions", chosen, gaps, engine)
    ]


def _bar(what: str, items: Sequence[object], unit: str = "question") -> tqdm[Any]:
    return bar(total=len(items), desc=what, unit=unit, leave=False)


def _difference(ones: Sequence[float], others: Sequence[float]) -> float:
    """The largest; infinite where the numbers of options differ."""
    if len(ones) != len(others):
        return float("inf")
    return float(np.abs(np.asarray(ones) - np.asarray(others)).max())


def _gap_difference(one: float | None, other: float | None) -> float:
    """Of two completeness gaps; infinite where only one is measured."""
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    return abs(one - float(other))


def _within(name: str, chosen: Sequence[Question], gaps: Sequence[float], engine: Engine) -> Check:
    prompts = [question.prompts[0] for question in chosen[:3]]
    read = [(prompt.context, prompt.options) for prompt in prompts]
    with torch.no_grad():
        tolerance = rounding_tolerance(engine.model, read, largest=20.0)
    largest = max(gaps)
    detail = (
        f"{len(chosen)} questions: largest difference {largest:.1e} log-nats "
        f"(rounding explains {tolerance:.1e})"
    )
    return Check(name, largest <= tolerance, detail)


def verify(
    model: LoadedModel,
    settings: RunSettings,
    selection: QuestionSet,
    validation: QuestionSet,
    run: RunDirectory,
    sample: int,
) -> list[Check]:
    """All checks of one run, in order.

    Args:
        model: the run's.
        settings: of the run, resolved.
        selection: questions of the selection split.
        validation: questions of the whole validation split.
        run: what is checked.
        sample: how many questions of each split are recomputed.

    Raises:
        ArtifactError: an artifact cannot be read.
    """
    neurons = load_neurons(run, settings)
    found = [*check_artifacts(run), *check_origin(model, selection, neurons)]
    with computing_in(model.lm.model, settings.attribution_dtype):
        found += check_questions(model, settings, selection, neurons, run, sample)
    if run.conditions.is_file():
        record = load_validation(run)
        validated = record.validated(neurons, run.validation)
        found += check_conditions(model, settings, validation, validated, record, run, sample)
    return found


# Questions of a finished run, recomputed as the run computed them ---------------------------------


def origins(
    model: LoadedModel, questions: QuestionSet, neurons: NeuronSet
) -> dict[str, tuple[str, str]]:
    """Of weights, tokenizer and task the digests: of what is at hand, and of what neurons are of.

    Args:
        model: as it is loaded now.
        questions: of the task as it is now.
        neurons: of a run.
    """
    known = neurons.provenance
    task = task_hash(questions.task.dump_config(), how_asked(questions.task))
    return {
        "weights": (model.hash, known.model_hash),
        "tokenizer": (tokenizer_hash(model.lm.tokenizer), known.tokenizer_hash),
        "task": (task, known.task_hash),
    }


def sampled(
    questions: QuestionSet, lines: Mapping[str, Any], sample: int, seed: int = 0
) -> tuple[list[Question], str]:
    """Some of the questions that a file tells of, and the first that the task has not.

    Args:
        questions: of the task.
        lines: what the file says, by question.
        sample: how many; all of them if there are no more.
        seed: which.

    Returns:
        the questions in the file's order, none if one is missing from the task; that one's id, or
        an empty text.
    """
    known = {question.question_id: question for question in questions.questions}
    missing = next((name for name in lines if name not in known), "")
    if missing:
        return [], missing
    order = np.random.default_rng(seed).permutation(len(lines))[:sample]
    names = list(lines)
    return [known[names[index]] for index in sorted(order.tolist())], ""


@dataclass(frozen=True)
class Attributing:
    """How a run attributes its prompts.

    Attributes:
        engine: what computes.
        how: what is attributed, by which rule, and how many prompts go together.
    """

    engine: Engine
    how: IdentificationSettings

    @property
    def method(self) -> Method:
        """The run's method."""
        return self.how.methods[0]

    @classmethod
    def of(
        cls, model: LoadedModel, settings: RunSettings, questions: QuestionSet, neurons: NeuronSet
    ) -> Attributing:
        """How this run does.

        Args:
            model: the run's, in the type that neurons were attributed in (`computing_in`).
            settings: of the run, resolved.
            questions: all of the selection split, on which the engine is checked.
            neurons: of the run.
        """
        rule = Quadrature(settings.quadrature, settings.n_steps)
        engine = checked_engine(model, settings, questions, settings.positions, rule.n_steps or 1)
        method = make_method(settings.method, settings.method_args)
        batch_size = settings.fixed_batch_size or neurons.provenance.batch_size
        how = IdentificationSettings(
            (method,), rule, settings.top_z, batch_size, settings.positions
        )
        return cls(engine, how)

    def recomputed(self, chosen: Sequence[Question]) -> Iterator[tuple[int, list[Attributions]]]:
        """Each question's index, and the attributions of its prompts, in order.

        Raises:
            DocError: a number is not finite.
        """
        how = self.how

        def attributed(prompts: Sequence[Prompt]) -> list[Attributions]:
            found = attribute_all(self.engine, prompts, how.quadrature, how.quantities)
            if (error := not_finite(prompts, found)) is not None:
                raise error
            return found

        return in_batches(chosen, how.batch_size, attributed)
