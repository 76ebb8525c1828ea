"""Whether a run's artifacts are what its model and its tasks give: part of it is recomputed.

1. What follows from other artifacts is derived again: the neurons from the scores, the accuracies
   of the result files from the docs' log-likelihoods.
2. What the run was made of is compared by its digests: weights, task, package versions.
3. A sample of questions is recomputed, under every condition, and compared to float rounding. When
   the sample is all of them, all scores are recomputed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm

from neuronllm_eval.attribution.identify import IdentificationSettings, empty_sums, identify
from neuronllm_eval.attribution.integrated_gradients import (
    Attributions,
    attribute_all,
    not_finite,
)
from neuronllm_eval.attribution.methods import Method, make_method, to_scores
from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.build import TOLERANCE, rounding_tolerance
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.doc_table import DocLine, doc_table
from neuronllm_eval.evaluation.method_choice import read_choice
from neuronllm_eval.evaluation.other_tasks import require_same_conditions
from neuronllm_eval.formats.digests import SUMS_FILE, changed_files
from neuronllm_eval.formats.typed_files import load_lines
from neuronllm_eval.harness.option_lengths import METRIC_OF
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.interventions.conditions import Scales, condition_factors
from neuronllm_eval.interventions.score_conditions import score_conditions
from neuronllm_eval.models.fingerprints import tokenizer_hash, versions
from neuronllm_eval.models.hooks import computing_in
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import select_neurons
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.artifacts import (
    VALIDATE_REMEDY,
    ValidationRecord,
    load_metrics,
    load_neurons,
    load_perplexity,
    load_questions,
    load_scores,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.process import bar
from neuronllm_eval.stages.load import (
    LoadedModel,
    StageInput,
    selection_questions,
    validation_questions,
)
from neuronllm_eval.stages.perplexity import measured_perplexity
from neuronllm_eval.stages.prepare import checked_engine, quadrature_of

# Relative to the largest score: what another batch size, thread or machine may change.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """A check, whether it passed, and figures or what differs."""

    name: str
    passed: bool
    detail: str


def check_files(run: RunDirectory) -> Check:
    """Whether every file is the one that was written, byte by byte.

    The words of the validation docs may be missing: whoever publishes a run may leave them out.
    """
    files = run.finished_files()
    problems = changed_files(run.path, files, optional=[run.validation_docs])
    detail = "; ".join(problems[:3]) or f"{len(files)} files have the digests in {SUMS_FILE}"
    others = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    where = "" if run.home is None else f"{run.path.name}: "
    return Check(f"{where}files are as they were written", not problems, detail + others)


# From the artifacts alone ------------------------------------------------------------------------


def check_artifacts(run: RunDirectory, settings: RunSettings, neurons: NeuronSet) -> list[Check]:
    """Whether a run's files agree with each other.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    scores, lines = load_scores(run, neurons), load_questions(run)
    # `auto` takes fewer neurons than the settings allow, and says so.
    top_k = read_choice(run).best.top_k if run.choice.is_file() else settings.top_k
    derived = select_neurons(scores, top_k, settings.ambiguous)
    n_prompts = sum(len(line.doc_ids) for line in lines)
    expected = (scores.provenance.n_questions, scores.provenance.n_prompts)
    checks = [
        Check(
            "neurons follow from the scores",
            derived.to_json() == neurons.to_json(),
            f"{len(neurons.good)} good, {len(neurons.bad)} bad",
        ),
        Check(
            "questions are all there",
            (len(lines), n_prompts) == expected,
            f"{len(lines)} questions, {n_prompts} prompts",
        ),
    ]
    if run.conditions.is_file():
        checks.append(_check_results(run, settings))
    return checks


def _check_results(run: RunDirectory, settings: RunSettings) -> Check:
    task, metric = settings.task, METRIC_OF[settings.option_scores]
    table = doc_table(run, task)
    written = [name for name in table.conditions if run.result(name).is_file()]
    accuracies = {name: load_metrics(run, name, task).get(metric) for name in written}
    wrong = [
        name
        for name, accuracy in accuracies.items()
        if accuracy is not None and abs(accuracy - float(table.correct[name].mean())) > 1e-9
    ]
    n_compared = sum(accuracy is not None for accuracy in accuracies.values())
    detail = f"{len(written)} of {len(table.conditions)} conditions have result files"
    if not n_compared:  # the user chose scores of options that no metric of the task is of
        detail += f", without {metric} to compare"
    return Check(
        "result files follow from the docs",
        bool(written) and not wrong,
        f"{detail}; differing: {', '.join(wrong)}" if wrong else detail,
    )


# With the model ---------------------------------------------------------------------------------


def check_origin(inputs: StageInput, neurons: NeuronSet) -> list[Check]:
    """Whether the run was made of this model and task, by these packages."""
    provenance, now = neurons.provenance, versions()
    checks = [
        Check(f"{name} are the run's" if name == "weights" else f"{name} is the run's",
              here == there, here if here == there else f"{here} here, {there} there")
        for name, (here, there) in origins(inputs, neurons).items()
    ]  # fmt: skip
    recorded = {
        "neuronllm-eval": provenance.tool_version,
        "lm_eval": provenance.lm_eval_version,
        "transformers": provenance.transformers_version,
        "torch": provenance.torch_version,
    }
    differing = [
        f"{name} {now[name]}, {version} there"
        for name, version in recorded.items()
        if now[name] != version
    ]
    # Another version is worth knowing, but what it computes is what counts.
    return [*checks, Check("versions", True, "; ".join(differing) or "the same")]


def check_questions(
    inputs: StageInput, neurons: NeuronSet, run: RunDirectory, sample: int
) -> list[Check]:
    """Attribute a sample of the selection questions again, and compare with `questions.jsonl`.

    Args:
        inputs: of the selection split, the model in the type that neurons were attributed in.
        neurons: of the run.
        run: the run.
        sample: how many questions; all of them if there are no more.
    """
    lines = {line.question_id: line for line in load_questions(run)}
    questions, missing = sampled(inputs.questions, lines, sample)
    if missing:
        return [Check("questions are those of the task", False, f"not in the task: {missing}")]
    attributing = Attributing.of(inputs, neurons)
    name, differences = attributing.method.name, [0.0]
    sums = empty_sums(attributing.engine, questions, attributing.how.methods)
    with _bar("verify the selection", questions) as progress:
        for _, record in identify(attributing.engine, questions, attributing.how, sums):
            if isinstance(record, DocError):
                raise record
            line = lines[record.question_id]
            for values, stored in zip(record.loglikelihoods, line.loglikelihoods, strict=True):
                differences.append(_difference(values, stored))
            gaps = (record.completeness_gap[name], line.completeness_gap)
            differences.append(_difference(*([] if gap is None else [gap] for gap in gaps)))
            progress.update()
    checks = [_within("selection questions recomputed", questions, differences, attributing.engine)]
    if len(questions) == len(lines):
        checks.append(_check_scores(attributing, inputs.questions, load_scores(run, neurons)))
    return checks


def _check_scores(attributing: Attributing, questions: QuestionSet, stored: NeuronScores) -> Check:
    method = attributing.method
    notes: list[Any] = []
    sums = empty_sums(attributing.engine, questions.questions, attributing.how.methods)
    with _bar("verify the scores", questions.questions) as progress:
        for _, record in identify(attributing.engine, questions.questions, attributing.how, sums):
            if not isinstance(record, DocError):  # those that were excluded count nowhere
                notes.extend(record.notes.values())
            progress.update()
    scores = to_scores(method, sums[method.name], notes, stored.provenance)
    largest = float(np.abs(stored.score).max()) or 1.0
    difference = float(np.abs(scores.score - stored.score).max()) / largest
    same = scores.to_bytes() == stored.to_bytes()
    detail = "to the bit" if same else f"largest difference {difference:.1e} of the largest score"
    return Check("scores recomputed", difference <= SCORE_TOLERANCE, detail)


def check_conditions(
    model: LoadedModel,
    settings: RunSettings,
    task: ConfigurableTask,
    neurons: NeuronSet,
    record: ValidationRecord,
    run: RunDirectory,
    sample: int,
) -> list[Check]:
    """Score a sample of the validation docs again, and compare with `conditions.jsonl`.

    Args:
        model: the run's.
        settings: of the run.
        task: of the run.
        neurons: what was validated.
        record: how it was validated.
        run: the run.
        sample: how many questions; all of them if there are no more.
    """
    lines: dict[str, dict[int, DocLine]] = {}
    names: list[str] = []
    for line in load_lines(DocLine, run.conditions, VALIDATE_REMEDY):
        lines.setdefault(line.question_id, {})[line.doc_id] = line
        names = list(line.loglikelihoods)
    whole_split = settings.model_copy(update={"limit": None})
    validated = validation_questions(model.lm, whole_split, task, only=lines)
    questions, missing = sampled(validated, lines, sample)
    if missing:
        return [Check("validation docs are those of the task", False, f"not there: {missing}")]
    engine = checked_engine(StageInput(model, settings, validated), record.positions)
    factors = condition_factors(names, neurons, record.scales)
    batch_size = settings.fixed_batch_size or record.batch_size
    prompts = [prompt for question in questions for prompt in question.prompts]
    same_lengths = all(
        prompt.lengths == lines[question.question_id][prompt.doc_id].lengths
        for question in questions
        for prompt in question.prompts
    )
    differences = [0.0 if same_lengths else float("inf")]
    with _bar("verify the conditions", prompts, "doc") as progress:
        for _, docs in score_conditions(engine, questions, factors, batch_size):
            if isinstance(docs, DocError):
                raise docs
            for doc in docs:
                line = lines[doc.question_id][doc.doc_id]
                differences += [
                    _difference(row, line.loglikelihoods[name])
                    for name, row in zip(names, doc.loglikelihoods.tolist(), strict=True)
                ]
                if line.kl:  # files of earlier versions have none
                    differences.append(_difference(doc.kl.tolist(), list(line.kl.values())))
                progress.update()
    name = f"validation docs recomputed under {len(names)} conditions"
    return [_within(name, questions, differences, engine)]


def check_perplexity(
    model: LoadedModel, neurons: NeuronSet, scales: Scales, run: RunDirectory
) -> list[Check]:
    """Measure the perplexity of the plain text again; nothing of a run without it.

    Args:
        model: the run's.
        neurons: what was validated.
        scales: of the validation.
        run: the run.
    """
    stored = load_perplexity(run)
    if stored is None:
        return []
    names = list(stored.perplexity)
    measured = measured_perplexity(model, neurons, names, scales)
    name = f"perplexity recomputed under {len(names)} conditions"
    if stored.text_hash != measured.text_hash:
        return [Check(name, True, "of another version's text, so not compared")]
    pairs = [(measured.perplexity[name], stored.perplexity[name]) for name in names]
    finite = [pair for pair in pairs if not any(map(math.isnan, pair))]
    same = all(math.isnan(one) == math.isnan(other) for one, other in pairs)
    largest = max((abs(math.log(one / other)) for one, other in finite), default=0.0)
    tolerance = TOLERANCE.get(model.lm.model.dtype, 0.1)
    detail = (
        f"largest difference {largest:.1e} log-nats a token (rounding explains {tolerance:.1e})"
    )
    return [Check(name, same and largest <= tolerance, detail)]


def _bar(text: str, items: Sequence[object], unit: str = "question") -> tqdm[Any]:
    return bar(total=len(items), desc=text, unit=unit, leave=False)


def _difference(values: Sequence[float], stored: Sequence[float]) -> float:
    """The largest; infinite where there are other numbers of values."""
    if len(values) != len(stored):
        return float("inf")
    return float(np.abs(np.asarray(values) - np.asarray(stored)).max(initial=0.0))


def _within(
    name: str, questions: Sequence[Question], differences: Sequence[float], engine: Engine
) -> Check:
    prompts = [question.prompts[0] for question in questions[:3]]
    with torch.no_grad():
        tolerance = rounding_tolerance(
            engine.model, [(prompt.context, prompt.options) for prompt in prompts], largest=20.0
        )
    largest = max(differences)
    detail = (
        f"{len(questions)} questions: largest difference {largest:.1e} log-nats "
        f"(rounding explains {tolerance:.1e})"
    )
    return Check(name, largest <= tolerance, detail)


def verify(
    model: LoadedModel,
    settings: RunSettings,
    task: ConfigurableTask,
    run: RunDirectory,
    sample: int,
) -> list[Check]:
    """All checks of one run, in order.

    Args:
        model: the run's.
        settings: of the run, resolved.
        task: of the run.
        run: what is checked.
        sample: how many questions of each split are recomputed.

    Raises:
        ArtifactError: an artifact cannot be read.
    """
    neurons = load_neurons(run, settings)
    selection = StageInput(model, settings, selection_questions(model.lm, settings, task))
    selection = selection.with_priors(neurons.provenance.priors)
    checks = [*check_artifacts(run, settings, neurons), *check_origin(selection, neurons)]
    with computing_in(model.lm.model, settings.attribution_dtype):
        checks += check_questions(selection, neurons, run, sample)
    if run.conditions.is_file():
        record = load_validation(run)
        validated = record.validated(neurons, run.validation)
        checks += check_conditions(model, settings, task, validated, record, run, sample)
        checks += check_perplexity(model, validated, record.scales, run)
    return checks


def verify_other(
    model: LoadedModel,
    settings: RunSettings,
    task: ConfigurableTask,
    other: RunDirectory,
    neurons: NeuronSet,
    sample: int,
) -> list[Check]:
    """The checks of a run's neurons on another task, each named after it.

    Args:
        model: the run's.
        settings: of the other task.
        task: the other task.
        other: the validation on it.
        neurons: of the run.
        sample: how many questions are recomputed.

    Raises:
        ArtifactError: an artifact cannot be read, or is of another validation than the run's own.
    """
    assert other.home is not None
    record = require_same_conditions(other, load_validation(other.home))
    validated = record.validated(neurons, other.validation)
    checks = [
        _check_results(other, settings),
        *check_conditions(model, settings, task, validated, record, other, sample),
    ]
    return [replace(check, name=f"{settings.task}: {check.name}") for check in checks]


# Questions of a finished run, recomputed as the run computed them ---------------------------------


def origins(inputs: StageInput, neurons: NeuronSet) -> dict[str, tuple[str, str]]:
    """Digests of weights, tokenizer and task: as they are now, and as the neurons' run had them."""
    model, provenance = inputs.model, neurons.provenance
    return {
        "weights": (model.weights.hash, provenance.model_hash),
        "tokenizer": (tokenizer_hash(model.lm.tokenizer), provenance.tokenizer_hash),
        "task": (inputs.task_hash, provenance.task_hash),
    }


def sampled(
    questions: QuestionSet, lines: Mapping[str, Any], sample: int
) -> tuple[list[Question], str]:
    """Some of a file's questions, and the first of them that the task does not have.

    Args:
        questions: of the task.
        lines: the file's, by question.
        sample: how many; all of them if there are no more.

    Returns:
        the questions in the file's order, none if one is missing from the task; that one's id, or
        an empty text.
    """
    by_id = {question.question_id: question for question in questions.questions}
    missing = next((name for name in lines if name not in by_id), "")
    if missing:
        return [], missing
    order = np.random.default_rng(0).permutation(len(lines))[:sample]
    names = list(lines)
    return [by_id[names[index]] for index in sorted(order.tolist())], ""


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
    def of(cls, inputs: StageInput, neurons: NeuronSet) -> Attributing:
        """How this run does.

        Args:
            inputs: with the run's own settings and all questions of its selection split, on which
                the engine is checked; the model in the type that neurons were attributed in.
            neurons: of the run.
        """
        settings = inputs.settings
        rule = quadrature_of(settings)
        engine = checked_engine(inputs, settings.positions, rule.n_steps or 1)
        provenance = neurons.provenance  # of `auto` it has the settings that were chosen
        method = make_method(provenance.method, json.loads(provenance.method_args))
        batch_size = settings.fixed_batch_size or neurons.provenance.batch_size
        how = IdentificationSettings(
            (method,), rule, settings.top_z, batch_size, settings.positions
        )
        return cls(engine, how)

    def recomputed(self, questions: Sequence[Question]) -> Iterator[tuple[int, list[Attributions]]]:
        """Each question's index, and the attributions of its prompts, in order.

        Raises:
            DocError: a number is not finite.
        """

        def attribute(prompts: Sequence[Prompt]) -> list[Attributions]:
            how = self.how
            attributions = attribute_all(self.engine, prompts, how.quadrature, how.quantities)
            if (error := not_finite(prompts, attributions)) is not None:
                raise error
            return attributions

        return in_batches(questions, self.how.batch_size, attribute)
