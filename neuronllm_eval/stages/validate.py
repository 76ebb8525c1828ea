"""The second stage of a run: what conditions on its neurons do, by the harness's metrics.

1. The neurons must be of this model; a validation of the same conditions and docs is kept.
2. The engine and the batch size are settled (`prepare.prepare_validation`).
3. The work is started or resumed.
4. Every question is scored under all conditions in one pass, with checkpoints in between.
5. The first rank writes conditions.jsonl and the harness's result files, and with `--perplexity`
   measures that of a plain text; of a validation that is kept, this alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from numpy.typing import NDArray

from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.doc_table import DocLine, DocTable, DocText
from neuronllm_eval.formats.inert_text import without_secrets
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.harness.requests import doc_lines
from neuronllm_eval.harness.results import ResultContext, harness_metrics, write_result
from neuronllm_eval.harness.tokenize import chat_template_text
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import UNMASKED, ConditionName, Scales
from neuronllm_eval.interventions.score_conditions import DocScores, answers_under, score_conditions
from neuronllm_eval.masked_lm.mask_options import MaskOptions
from neuronllm_eval.models.fingerprints import (
    require_same_shape,
    require_same_weights,
    versions,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.runs.artifacts import ValidationRecord, excluded_ids
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, Work, close
from neuronllm_eval.stages.cost_estimate import Estimate, Stage, announce_if_long, estimate
from neuronllm_eval.stages.load import StageInput, prompt_settings
from neuronllm_eval.stages.perplexity import measured_perplexity
from neuronllm_eval.stages.prepare import prepare_validation, warn_of_few
from neuronllm_eval.stages.resume import (
    keeps_validation,
    record_excluded,
    validation_identity,
    without_excluded,
)

logger = logging.getLogger(__name__)


def validate_task(
    inputs: StageInput, neurons: NeuronSet, plan: ConditionPlan, run: RunDirectory, launch: Launch
) -> None:
    """Validate neurons: conditions.jsonl, results/<condition>.json, perplexity.json.

    Args:
        inputs: with the questions of the validation split.
        neurons: what is validated.
        plan: under which conditions.
        run: where the artifacts go, the neurons' run or one of its `on_other_task`.
        launch: as in `identify_task`.

    Raises:
        UsageError: the directory holds an unfinished validation of other settings, or a finished
            one where finished ones are kept.
    """
    questions, ranks = inputs.questions, launch.ranks
    how = _how(inputs, neurons, plan)
    if _is_kept(inputs, neurons, plan, run, launch):
        if ranks.is_first and _measures_text(plan, run) and not run.perplexity.is_file():
            _write_perplexity(inputs, neurons, plan, run)
        ranks.wait()
        return
    factors = plan.factors(neurons)
    stage, work_plan, resumes = _planned(inputs, neurons, factors, plan, run, launch)
    work = _open(inputs, work_plan, resumes, run, launch)
    announce_if_long(stage, launch)
    with work.units(f"validate {inputs.settings.task}") as units:
        for question, docs in score_conditions(
            stage.engine, questions.questions, factors, stage.batch_size, units
        ):
            if isinstance(docs, DocError):
                record_excluded(question, docs, inputs.settings, work)
                continue
            for doc in docs:
                work.record(doc.to_record())
    finished = work.finish()
    if finished is not None:
        records = without_excluded(finished.records(), run, "validation")
        scores = [DocScores.from_record(record) for record in records]
        record = ValidationRecord(**how, batch_size=stage.batch_size)
        run.write(run.validation, dump_json(asdict(record)), record)
        inputs = replace(inputs, questions=questions.without(excluded_ids(run, "validation")))
        _write_docs(inputs, scores, plan, run)
        write_results(inputs, scores, neurons, plan, run)
        if _measures_text(plan, run):
            _write_perplexity(inputs, neurons, plan, run)
        close(run.validating)
    ranks.wait()


def _measures_text(plan: ConditionPlan, run: RunDirectory) -> bool:
    """Whether perplexity is measured here: it is the same beside every other task."""
    return plan.perplexity and run.home is None


def estimate_validation(
    inputs: StageInput,
    plan: ConditionPlan,
    run: RunDirectory,
    launch: Launch,
    neurons: NeuronSet | None = None,
) -> Estimate:
    """What validating neurons will take, after all that would refuse it; see `validate_task`.

    Args:
        inputs: with the questions of the validation split.
        plan: the conditions, with the points of their sweep if neurons are given.
        run: the directory.
        launch: the processes.
        neurons: what is validated; None if it is yet to be found.
    """
    if neurons is not None:
        _is_kept(inputs, neurons, plan, run, launch)
        return estimate(_planned(inputs, neurons, plan.factors(neurons), plan, run, launch)[0])
    layers = inputs.model.layers
    total = layers.n_layers * layers.width
    counts = plan.sweep.top_k or (inputs.settings.top_k,)
    plan = plan.at(sorted({resolve_count(count, total, "top_k") for count in counts}))
    # Which neurons are scaled, and how, makes no difference here.
    factors = np.ones((len(plan.names), *layers.shape), dtype=np.int8)
    return estimate(prepare_validation(inputs, factors, plan, run, launch))


def _is_kept(
    inputs: StageInput, neurons: NeuronSet, plan: ConditionPlan, run: RunDirectory, launch: Launch
) -> bool:
    """Whether there is nothing to do.

    Raises:
        ModelError: the neurons are another model's.
        UsageError: a finished validation that is to be kept is a different one.
    """
    require_same_shape(neurons, inputs.model.layers.shape, inputs.model_name)
    require_same_weights(neurons, inputs.model.weights, inputs.model_name)
    _warn_of_other_task(inputs, neurons)
    how = _how(inputs, neurons, plan)
    return launch.keep and launch.ranks.on_first(
        lambda: keeps_validation(run, plan.names, how, inputs)
    )


def _how(inputs: StageInput, neurons: NeuronSet, plan: ConditionPlan) -> dict[str, Any]:
    """The content of validation.json, but for the batch size."""
    record = conditions_record(neurons.top_k, plan.scales, plan.positions)
    return {**record, "docs": inputs.doc_counts}


def _planned(
    inputs: StageInput,
    neurons: NeuronSet,
    factors: NDArray[Any],
    plan: ConditionPlan,
    run: RunDirectory,
    launch: Launch,
) -> tuple[Stage, Work, bool]:
    """How it is done, the questions in units, and whether a checkpoint of this is completed.

    Raises:
        UsageError: the directory holds an unfinished validation of other settings.
    """
    stage = prepare_validation(inputs, factors, plan, run, launch)
    values = validation_identity(inputs, stage.engine, plan, neurons)
    work = Work.plan(values, inputs.questions.questions, stage.batch_size)
    return stage, work, launch.ranks.on_first(lambda: launch.resumes(work, run.validating))


def _open(
    inputs: StageInput, plan: Work, resumes: bool, run: RunDirectory, launch: Launch
) -> SharedWork:
    """Start the validation, or resume it. Everything that could be refused has been."""
    warn_of_few(inputs.questions, "validate the neurons; expect wide intervals")
    if launch.ranks.is_first and not resumes:
        launch.locks.take([run.path])
        if run.conditions.is_file():
            logger.warning("%s: the earlier validation is replaced", run.path)
        run.clear_validation()
    work = SharedWork(plan, run.validating, launch)
    if launch.ranks.is_first:
        if run.home is not None:
            settings, docs = inputs.settings.without_secrets(), inputs.doc_counts
            run.write(run.settings, settings.to_yaml(versions(), docs), (settings, docs))
        run.note_command("validate", launch.command, launch.ranks.n_ranks, versions())
    return work


def _warn_of_other_task(inputs: StageInput, neurons: NeuronSet) -> None:
    """Log a warning if the task is not as it was when the neurons were selected."""
    provenance, task = neurons.provenance, inputs.settings.task
    if provenance.task == task and provenance.task_hash != inputs.task_hash:
        logger.warning(
            "%s: the task is not the one the neurons were chosen on; questions that chose them may "
            "be among those that validate them",
            task,
        )


def conditions_record(top_k: int, scales: Scales, positions: str) -> dict[str, Any]:
    """Which of a run's neurons are validated, and how, as validation.json has it."""
    return {
        "top_k": top_k,
        "suppress_scale": scales.suppress,
        "enhance_scale": scales.enhance,
        "positions": positions,
    }


def _write_docs(
    inputs: StageInput, scores: Sequence[DocScores], plan: ConditionPlan, run: RunDirectory
) -> None:
    """conditions.jsonl and validation_docs.jsonl."""
    task = inputs.settings.task
    lengths = {prompt.doc_id: prompt.lengths for prompt in inputs.questions.prompts}
    lines = [
        _condition_line(doc, plan.names, task, inputs.split, lengths[doc.doc_id]) for doc in scores
    ]
    table = DocTable.from_lines(lines, run.conditions, task)
    run.write(run.conditions, (line.to_record() for line in lines), table)
    texts = list(doc_lines(inputs.questions))
    docs = tuple(DocText(**{**text, "options": tuple(text["options"])}) for text in texts)
    run.write(run.validation_docs, texts, docs)


def _condition_line(
    doc: DocScores, names: Sequence[str], task: str, split: str, lengths: tuple[float, ...] = ()
) -> DocLine:
    # Nine significant digits give back the same float32.
    rows = [[float(f"{value:.9g}") for value in row] for row in doc.loglikelihoods.tolist()]
    return DocLine(
        task=task,
        split=split,
        doc_id=doc.doc_id,
        question_id=doc.question_id,
        gold=doc.gold,
        loglikelihoods=dict(zip(names, rows, strict=True)),
        lengths=lengths,
        kl={
            name: float(f"{value:.5g}") for name, value in zip(names, doc.kl.tolist(), strict=True)
        },
    )


def _write_perplexity(
    inputs: StageInput, neurons: NeuronSet, plan: ConditionPlan, run: RunDirectory
) -> None:
    """perplexity.json."""
    record = measured_perplexity(inputs.model, neurons, plan.with_perplexity, plan.scales)
    run.write(run.perplexity, record.to_json(), record)


def write_results(
    inputs: StageInput,
    scores: Sequence[DocScores],
    neurons: NeuronSet,
    plan: ConditionPlan,
    run: RunDirectory,
) -> None:
    """One result file for each of `plan.with_results`, with the harness's metrics."""
    lm, settings, questions = inputs.model.lm, inputs.settings, inputs.questions
    context = ResultContext.gather(
        lm,
        config={
            **lm.get_model_info(),
            # As lm_eval.simple_evaluate writes them.
            "batch_size": settings.batch_size,
            "batch_sizes": list(lm.batch_sizes.values()),
            "device": settings.device,
            "use_cache": None,
            "limit": settings.limit,
            "bootstrap_iters": 100000,
            "gen_kwargs": None,
            "random_seed": DEFAULT_RANDOM_SEED,
            "numpy_seed": DEFAULT_OTHER_SEED,
            "torch_seed": DEFAULT_OTHER_SEED,
            "fewshot_seed": prompt_settings(settings).fewshot_seed,
        },
        model_args=without_secrets(settings.model_args),
        system_instruction=settings.system_instruction,
        chat_template=chat_template_text(lm, settings.apply_chat_template),
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
    )
    written = set(plan.with_results)
    for index, name in enumerate(plan.names):
        if name not in written:
            continue
        metrics = harness_metrics(questions, answers_under(scores, index))
        metrics["configs"][settings.task].setdefault("metadata", {})["docs"] = inputs.doc_counts
        mask: dict[str, Any] = {"condition": name}
        masked = None
        if name != UNMASKED:
            condition = ConditionName.parse(name)
            top_k, scales = condition.top_k or neurons.top_k, condition.scales(plan.scales)
            mask |= conditions_record(top_k, scales, plan.positions)
            masked = neurons
        # As the masked model reads these arguments, so that its result files say the same.
        section = MaskOptions.read(masked, **mask).section()
        source = (run.home or run).path
        arguments = mask if masked is None else {**mask, "neurons": str(source)}
        result, digest = write_result(run.result(name), metrics, context, arguments, section)
        run.written(run.result(name), digest, result)
