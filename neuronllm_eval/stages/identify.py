"""The first stage of a run: find a task's good and bad neurons.

1. Runs of several methods share one pass over the questions; finished ones are kept.
2. The engine, the quadrature and the batch size are settled (`prepare.prepare_identification`).
3. Runs of other settings are refused; then the work is started or resumed.
4. Every question is attributed and added to the sums, with checkpoints in between.
5. `--method auto` chooses its settings (`choose`).
6. The first rank writes each method's scores, neurons, tokens and adapters.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neuronllm_eval.attribution.identify import (
    IdentificationSettings,
    Sums,
    empty_sums,
    identify,
    tally_of,
)
from neuronllm_eval.attribution.methods import Auto, Method, to_scores
from neuronllm_eval.attribution.quadrature import ONE_STEP
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.errors import DocError
from neuronllm_eval.evaluation.method_choice import MethodChoice
from neuronllm_eval.explain.token_effects import Unembedding, listed_tokens, tokens_json
from neuronllm_eval.export.ia3_adapter import write_standard_adapters
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.harness.tasks import is_aqua
from neuronllm_eval.harness.tokenize import chat_template_text
from neuronllm_eval.models.fingerprints import digest, dtype_name, tokenizer_hash, versions
from neuronllm_eval.models.hooks import computing_in
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import resolve_count, select_neurons
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.reporting.wording import large_gaps
from neuronllm_eval.runs.artifacts import load_neurons, load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, Work, close, recorded_work
from neuronllm_eval.stages.choose import choose_settings
from neuronllm_eval.stages.cost_estimate import Estimate, Stage, announce_if_long, estimate
from neuronllm_eval.stages.load import MethodRun, StageInput
from neuronllm_eval.stages.prepare import (
    prepare_identification,
    quadrature_of,
    warn_of_chance,
    warn_of_few,
)
from neuronllm_eval.stages.priors import needs_priors, shared_priors
from neuronllm_eval.stages.resume import (
    identity,
    record_excluded,
    require_same_neurons,
    without_excluded,
)

logger = logging.getLogger(__name__)
_METHODS = "methods"  # in the identity of a pass


@dataclasses.dataclass(frozen=True)
class IdentificationPlan:
    """What identifying a task will do; whatever can be refused has been.

    Attributes:
        inputs: with the settings resolved.
        unfinished: the runs whose neurons are to be found; the first has the checkpoint.
        how: settings of the pass.
        stage: its engine, batch size and sizes.
        work: the questions in units.
        resumes: whether a checkpoint of this work is completed.
    """

    inputs: StageInput
    unfinished: list[MethodRun]
    how: IdentificationSettings
    stage: Stage
    work: Work
    resumes: bool


def plan_identification(
    inputs: StageInput, runs: Sequence[MethodRun], launch: Launch
) -> IdentificationPlan:
    """Decide what is to be done, and refuse what cannot be. Writes nothing.

    Raises:
        UsageError: settings that the model cannot have, or a directory holds a run or unfinished
            work of other settings.
    """
    indices = launch.ranks.on_first(lambda: _unfinished(runs, launch.overwrite))
    unfinished = [runs[index] for index in indices]
    pending = unfinished or runs
    methods = [method_run.method for method_run in pending]
    every = [method_run.method for method_run in runs]
    recorded = launch.ranks.on_first(lambda: _recorded_nodes(runs, launch.overwrite))
    how, stage = prepare_identification(inputs, pending[0].run, methods, launch, every, recorded)
    inputs = dataclasses.replace(inputs, settings=_resolved(inputs, how))
    finished_runs = [method_run for method_run in runs if method_run not in unfinished]
    launch.ranks.on_first(lambda: require_same_neurons(finished_runs, inputs))
    values = identity(pending[0].of_method(inputs), stage.engine)
    values[_METHODS] = {run.method.name: dataclasses.asdict(run.method) for run in pending}
    work = Work.plan(values, inputs.questions.questions, stage.batch_size)
    resumes = launch.ranks.on_first(
        lambda: bool(unfinished) and launch.resumes(work, pending[0].run.identifying)
    )
    return IdentificationPlan(inputs, unfinished, how, stage, work, resumes)


def estimate_identification(
    inputs: StageInput, runs: Sequence[MethodRun], launch: Launch
) -> Estimate:
    """What identifying a task will take, after all that would refuse it; see `identify_task`."""
    with computing_in(inputs.model.lm.model, inputs.settings.attribution_dtype):
        return estimate(plan_identification(inputs, runs, launch).stage)


def identify_task(inputs: StageInput, runs: Sequence[MethodRun], launch: Launch) -> list[NeuronSet]:
    """The neurons of several methods, from one pass over the questions.

    Args:
        inputs: with the questions of the selection split; each method's own settings are its
            `MethodRun`'s.
        runs: at least one. The directory of the first unfinished one holds the checkpoint.
        launch: the processes, and what becomes of existing runs.

    Raises:
        UsageError: as `plan_identification`.
    """
    with computing_in(inputs.model.lm.model, inputs.settings.attribution_dtype):
        plan = plan_identification(inputs, runs, launch)
        inputs, unfinished, stage = plan.inputs, plan.unfinished, plan.stage
        if unfinished:
            work = _open(plan, launch)
            warn_of_chance(inputs, stage, launch)
            announce_if_long(stage, launch)
            inputs = inputs.with_priors(shared_priors(stage, plan.how.methods, work))
            questions = inputs.questions.questions
            sums = empty_sums(stage.engine, questions, plan.how.methods)
            with work.units(f"identify {inputs.settings.task}", lambda: tally_of(sums)) as units:
                for question, record in identify(stage.engine, questions, plan.how, sums, units):
                    if isinstance(record, DocError):
                        record_excluded(question, record, inputs.settings, work)
                    else:
                        work.record(dataclasses.asdict(record))
            finished = work.finish()
            choices = _choices(plan, launch, sums, finished)
            if finished is not None:
                _write(inputs, unfinished, stage, sums, finished, choices, or_none=len(runs) > 1)
            launch.ranks.wait()
        return [load_neurons(each.run, each.settings(inputs.settings)) for each in runs]


def _unfinished(runs: Sequence[MethodRun], overwrite: bool) -> list[int]:
    """Indices of the runs whose neurons are to be found; first the one with the checkpoint.

    An interrupted pass is resumed for all its methods. Finished runs are kept.
    """
    for home, holder in enumerate(runs):
        recorded = None if overwrite else recorded_work(holder.run.identifying)
        if recorded is not None:
            names = recorded.identity.get(_METHODS, {holder.method.name: {}})
            others = [
                index
                for index, other in enumerate(runs)
                if index != home and (other.method.name in names or not other.is_identified)
            ]
            return [home, *others]
    return [index for index, each in enumerate(runs) if overwrite or not each.is_identified]


def _recorded_nodes(runs: Sequence[MethodRun], overwrite: bool) -> str | None:
    """The nodes of every layer in what is finished or interrupted: a choice is made once."""
    if overwrite:
        return None
    stored = (load_settings(each.run) for each in runs if each.run.settings.exists())
    return next((settings.layer_nodes for settings in stored if settings.layer_nodes), None)


def _resolved(inputs: StageInput, how: IdentificationSettings) -> RunSettings:
    """The settings, with what the task and the model decided where the user left it open."""
    changes: dict[str, Any] = {
        "quadrature": how.quadrature.name,
        "n_steps": how.quadrature.n_steps,
        "layer_nodes": how.quadrature.layer_nodes,
        "num_fewshot": inputs.questions.num_fewshot,
        "option_scores": inputs.questions.option_scores,
    }
    if not is_aqua(inputs.questions.task):  # whose names of splits are not the data set's
        changes["selection_split"] = inputs.questions.split
    return inputs.settings.model_copy(update=changes)


def _open(plan: IdentificationPlan, launch: Launch) -> SharedWork:
    """Start the runs, or resume them. Everything that could be refused has been."""
    warn_of_few(plan.inputs.questions, "select the neurons; expect unstable scores")
    runs = plan.unfinished
    if launch.ranks.is_first and not plan.resumes:
        for method_run in runs:
            launch.locks.take([method_run.run.path])
            method_run.run.start()
    work = SharedWork(plan.work, runs[0].run.identifying, launch)
    if launch.ranks.is_first:
        for method_run in runs:
            run = method_run.run
            run.note_command("identify", launch.command, launch.ranks.n_ranks, versions())
        _write_settings(plan.inputs, runs[0])
    return work


def _choices(
    plan: IdentificationPlan, launch: Launch, sums: Sums, finished: Part | None
) -> dict[str, MethodChoice]:
    """By method that leaves settings open, what was chosen; nothing on ranks but the first."""
    choices = {}
    for method_run in plan.unfinished:
        method, top_k = method_run.method, plan.inputs.settings.top_k
        if isinstance(method, Auto):
            total = None
            if finished is not None:
                total = sums[method.name].of(finished.tally, 0.0, f"{method.name}/")
            choice = choose_settings(plan.stage, method, top_k, total, method_run.run, launch)
            if choice is not None:
                choices[method.name] = choice
    return choices


def _write(
    inputs: StageInput,
    runs: Sequence[MethodRun],
    stage: Stage,
    sums: Sums,
    finished: Part,
    choices: Mapping[str, MethodChoice],
    or_none: bool,
) -> None:
    """The files of every method's run; of the first last: it says that all are written."""
    records = list(finished.records())
    for method_run in reversed(runs):
        name, run = method_run.method.name, method_run.run
        gaps, notes = write_questions(without_excluded(records, run, "selection"), name, run)
        largest = max((gap for gap in gaps if gap is not None), default=0.0)
        total = sums[name].of(finished.tally, largest, f"{name}/")
        chosen, top_k = method_run, inputs.settings.top_k
        if name in choices:
            choice = choices[name]
            run.write(run.choice, dump_json(dataclasses.asdict(choice)), choice)
            chosen = MethodRun(Auto(choice.best.penalty), run)
            top_k = choice.best.top_k
        scores = write_scores(inputs, stage, chosen, total, notes)
        write_neurons(inputs, scores, chosen, top_k, or_none=or_none)
        _write_settings(inputs, method_run)  # from now on it is a run of its own
    close(runs[0].run.identifying)


def _write_settings(inputs: StageInput, method_run: MethodRun) -> None:
    run, docs = method_run.run, inputs.doc_counts
    settings = method_run.settings(inputs.settings).without_secrets()
    run.write(run.settings, settings.to_yaml(versions(), docs), (settings, docs))


# Files of a method's run --------------------------------------------------------------------------


def write_questions(
    records: Sequence[dict[str, Any]], method: str, run: RunDirectory
) -> tuple[list[float | None], list[Any]]:
    """questions.jsonl; returns the completeness gaps, and the method's notes on questions."""
    gaps = [record["completeness_gap"][method] for record in records]
    notes = [record["notes"][method] for record in records if method in record["notes"]]
    lines = [{**record, "completeness_gap": gap} for record, gap in zip(records, gaps, strict=True)]
    for line in lines:
        del line["notes"]
    run.write(run.questions, lines)
    return gaps, notes


def write_scores(
    inputs: StageInput,
    stage: Stage,
    method_run: MethodRun,
    sums: ScoreSums,
    notes: Sequence[Any],
) -> NeuronScores:
    """scores.safetensors, from the sums over all questions and the notes of `write_questions`."""
    method, run = method_run.method, method_run.run
    provenance = _provenance(method_run.of_method(inputs), stage, sums, method)
    if layers := large_gaps(provenance):
        logger.warning(
            "%s: %s: attributions miss %.1f%% of the change they should add up to; %s. Raise "
            "--n_steps, or leave --quadrature to auto.",
            inputs.settings.task,
            method.name,
            100 * sums.gap_share,
            layers,
        )
    scores = to_scores(method, sums, notes, provenance)
    run.write(run.scores, scores.to_bytes(), scores)
    return scores


def write_neurons(
    inputs: StageInput, scores: NeuronScores, method_run: MethodRun, top_k: float, *, or_none: bool
) -> None:
    """adapters/, tokens.json and neurons.json, of the sets that scores give.

    Args:
        inputs: of the stage.
        scores: of all neurons.
        method_run: the method, and where its files go.
        top_k: good and bad neurons, a count or a share.
        or_none: that a method finds none is no reason to lose others' neurons.
    """
    settings, model, run = inputs.settings, inputs.model, method_run.run
    neurons = select_neurons(scores, top_k, settings.ambiguous, or_none=or_none)
    if not (neurons.good or neurons.bad):
        logger.warning("%s: method %s finds no neurons", settings.task, method_run.method.name)
    # Before neurons.json, whose presence says that nothing is missing.
    write_standard_adapters(run, neurons, model.lm.model, model.layers, settings.model_args)
    _write_tokens(inputs, neurons, run)
    run.write(run.neurons, neurons.to_json(), neurons)


def _write_tokens(inputs: StageInput, neurons: NeuronSet, run: RunDirectory) -> None:
    """tokens.json, if it can be computed.

    A full disk or memory ends the command, as everywhere, which then resumes from its checkpoint;
    nothing else does, after hours of work that does not need the tokens.
    """
    model = inputs.model
    context = inputs.questions.prompts[0].context  # any, to find the norms by
    try:
        unembedding = Unembedding.of(model.lm.model, model.layers, context)
        tokens = listed_tokens(unembedding, neurons, model.lm.tokenizer)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - of the model's or the tokenizer's own code
        logger.warning("there is no %s: %s: %s", run.tokens.name, type(error).__name__, error)
        return
    if tokens:
        values = {neuron.key: neuron.listed() for neuron in tokens}
        run.write(run.tokens, tokens_json(tokens), values)
    for note in unembedding.notes:
        logger.info("there is no %s: %s", run.tokens.name, note)


def _priors(prompts: Sequence[Prompt]) -> tuple[float, ...]:
    """Those of the prompt with most options, of which others have the first."""
    return max((prompt.priors for prompt in prompts), key=len)


def _provenance(inputs: StageInput, stage: Stage, sums: ScoreSums, method: Method) -> Provenance:
    model, settings, questions = inputs.model, inputs.settings, inputs.questions
    integrates = method.quantity is not None and method.quantity.path
    # A method that shares the pass of others may need nothing but its node at alpha = 1.
    quadrature = quadrature_of(settings) if integrates else ONE_STEP
    packages, question_settings = versions(), inputs.question_settings
    template = chat_template_text(model.lm, settings.apply_chat_template) or ""
    return Provenance(
        tool_version=packages["neuronllm-eval"],
        lm_eval_version=packages["lm_eval"],
        transformers_version=packages["transformers"],
        torch_version=packages["torch"],
        model=str(settings.model_args.get("pretrained", "")),
        model_revision=str(settings.model_args.get("revision", "main")),
        model_hash=model.weights.hash,
        tokenizer_hash=tokenizer_hash(model.lm.tokenizer),
        dtype=model.weights.dtype,
        attribution_dtype=dtype_name(model.lm.model),
        device=str(model.lm.device.type),
        task=settings.task,
        task_hash=inputs.task_hash,
        split=inputs.split,
        n_questions=sums.n_questions,
        n_prompts=sums.n_prompts,
        n_proxies=max(len(question.prompts) for question in questions.questions),
        num_fewshot=questions.num_fewshot,
        chat_template_hash=digest(template),
        system_instruction=settings.system_instruction or "",
        method=settings.method,
        method_args=json.dumps(settings.method_args, sort_keys=True),
        quadrature=quadrature.name,
        n_steps=quadrature.mean_nodes,
        top_z=resolve_count(settings.top_z, model.layers.width, "top_z"),
        positions=settings.positions,
        option_scores=settings.option_scores,
        seed=int(question_settings.get("seed", settings.seed or 0)),
        asked=json.dumps(question_settings, sort_keys=True),
        engine=stage.engine.name,
        batch_size=stage.batch_size,
        completeness_gap_max=sums.gap_max if sums.n_gaps else None,
        completeness_gap_mean=sums.gap_mean if sums.n_gaps else None,
        completeness_gap_share=sums.gap_share if sums.n_gaps else None,
        completeness_gap_layers=sums.layer_gap_shares if sums.n_gaps else (),
        layer_nodes=quadrature.layer_nodes or "",
        weights_sample=model.weights.sample,
        gguf_file=str(settings.model_args.get("gguf_file") or ""),
        priors=_priors(questions.prompts) if needs_priors([method]) else (),
    )
