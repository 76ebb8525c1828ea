"""The first stage of a run: find a task's neurons, and write what they were found by."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable

from neuronllm_eval.adapter_files import write_standard_adapters
from neuronllm_eval.encoding import QuestionSet
from neuronllm_eval.estimate import Estimate, Stage, estimate_if_long
from neuronllm_eval.fingerprints import digest, task_hash, tokenizer_hash, versions
from neuronllm_eval.harness_tasks import is_aqua
from neuronllm_eval.identification import ScoreSums, empty_sums, identify
from neuronllm_eval.loading import LoadedModel
from neuronllm_eval.neurons import NeuronSet, Provenance
from neuronllm_eval.precision import computing_in, dtype_name
from neuronllm_eval.preparation import prepare_identification
from neuronllm_eval.resuming import identity, keeps_neurons
from neuronllm_eval.run_directory import RunDirectory, line_writer, write_whole
from neuronllm_eval.run_tasks import data_split, doc_counts, how_asked
from neuronllm_eval.selection import resolve_count, select_neurons
from neuronllm_eval.set_aside import setting_aside, without_set_aside
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.shared_work import Launch, SharedWork, batch_size_of, close
from neuronllm_eval.work import Work

logger = logging.getLogger(__name__)
# Share of |F(h) - F(0)| that the completeness gap may have before the log warns.
LARGE_GAP = 0.1
# Below this many questions the log warns, for choosing and for judging.
FEW_QUESTIONS = 30
# Is told beforehand what a long stage will take.
Announce = Callable[[Estimate], object]


def identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    run: RunDirectory,
    launch: Launch | None = None,
    announce: Announce | None = None,
) -> NeuronSet:
    """Find a task's neurons: run.yaml, questions.jsonl, scores.safetensors, neurons.json.

    Args:
        model: whose neurons.
        settings: of the run.
        questions: of the selection split (`run_tasks.selection_questions`).
        run: where the artifacts go.
        launch: the processes, and what becomes of what is there; one process that goes on with
            unfinished work if not given.
        announce: is told beforehand what a long stage will take.

    Raises:
        UsageError: the directory holds unfinished work of other settings.
    """
    with computing_in(model.lm.model, settings.attribution_dtype):
        return _identify_task(model, settings, questions, run, launch or Launch(), announce)


def _identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    run: RunDirectory,
    launch: Launch,
    announce: Announce | None,
) -> NeuronSet:
    ranks = launch.ranks
    how, stage = prepare_identification(
        model,
        settings,
        questions,
        run.path,
        lambda choose: batch_size_of(run.identifying, launch, choose),
    )
    engine, quadrature = stage.engine, how.quadrature
    resolved = dataclasses.replace(
        settings,
        quadrature=quadrature.name,
        n_steps=quadrature.n_steps,
        # An AQUA task's own name of the split says nothing about the data set's.
        selection_split=settings.selection_split if is_aqua(questions.task) else questions.split,
        num_fewshot=questions.num_fewshot,
    )
    if not launch.overwrite and ranks.on_first(
        lambda: keeps_neurons(run, resolved, model, questions)
    ):
        return NeuronSet.load(run.neurons)
    warn_of_few(questions, "choose the neurons; expect unstable scores")
    made_of = identity(model, resolved, questions, engine)
    work = Work.plan(made_of, questions.questions, how.batch_size)

    def begin() -> None:  # everything that could be refused has been
        launch.locks.take(run.path)
        run.start()

    shared = SharedWork(work, run.identifying, launch, begin)
    if ranks.is_first:
        run.note_command("identify", launch.command, ranks.n_ranks, versions())
    announce_if_long(stage, announce, launch)
    if ranks.is_first:
        write_whole(run.settings, resolved.to_yaml(versions(), doc_counts(questions)))
    sums = empty_sums(engine, questions.questions)
    shared.run(
        f"identify {settings.task}",
        lambda units: identify(
            engine,
            questions.questions,
            how,
            lambda record: shared.record(dataclasses.asdict(record)),
            sums,
            units,
            setting_aside(settings, shared),
        ),
        sums.tally,
    )
    whole = shared.finish()
    if whole is not None:
        records = without_set_aside(whole.records(), run, "selection")
        gap_max = 0.0
        with line_writer(run.questions) as lines:
            for record in records:
                lines.write(record)
                gap_max = max(gap_max, record["completeness_gap"])
        added = ScoreSums.of(whole.tally, sums, gap_max)
        _write_neurons(model, resolved, questions, stage, added, run)
        close(run.identifying)
    ranks.wait()
    return NeuronSet.load(run.neurons)


def _write_neurons(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    stage: Stage,
    sums: ScoreSums,
    run: RunDirectory,
) -> None:
    """scores.safetensors and neurons.json, from the sums over all questions."""
    if sums.gap_share > LARGE_GAP:
        logger.warning(
            "%s: attributions miss %.0f%% of the change they should add up to. Models that "
            "normalise the FFN's output (gemma2, gemma3, olmo2) do this at any number of nodes, "
            "and their scores deserve doubt; for others raise --n_steps.",
            settings.task,
            100 * sums.gap_share,
        )
    scores = sums.to_scores(_provenance(model, settings, questions, stage, sums))
    write_whole(run.scores, scores.to_bytes())
    neurons = select_neurons(scores, settings.top_k, settings.ambiguous)
    # Before neurons.json, whose presence says that nothing is missing.
    write_standard_adapters(run, neurons, model.lm.model, model.layers, settings.model_args)
    write_whole(run.neurons, neurons.to_json())


def announce_if_long(stage: Stage, announce: Announce | None, launch: Launch) -> None:
    """Tell what a stage will take, if it takes long; the first process does for all."""
    if announce is None or not launch.ranks.is_first:
        return
    if (expected := estimate_if_long(stage)) is not None:
        announce(expected)


def warn_of_few(questions: QuestionSet, what: str) -> None:
    """Log a warning that so few questions `what`."""
    if len(questions.questions) < FEW_QUESTIONS:
        logger.warning(
            "%s: only %d questions %s",
            questions.task.config.task,
            len(questions.questions),
            what,
        )


def _provenance(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    stage: Stage,
    sums: ScoreSums,
) -> Provenance:
    known = versions()
    template = model.lm.tokenizer.chat_template if settings.apply_chat_template else ""
    asked = how_asked(questions.task)
    proxies = {len(question.prompts) for question in questions.questions}
    assert settings.n_steps is not None
    return Provenance(
        tool_version=known["neuronllm-eval"],
        lm_eval_version=known["lm_eval"],
        transformers_version=known["transformers"],
        torch_version=known["torch"],
        model=str(settings.model_args.get("pretrained", "")),
        model_revision=str(settings.model_args.get("revision", "main")),
        model_hash=model.hash,
        tokenizer_hash=tokenizer_hash(model.lm.tokenizer),
        dtype=model.dtype,
        attribution_dtype=dtype_name(model.lm.model),
        device=str(model.lm.device.type),
        task=settings.task,
        task_hash=task_hash(questions.task.dump_config(), asked),
        split=data_split(questions.task, questions.split),
        n_questions=sums.n_questions,
        n_prompts=sums.n_prompts,
        n_proxies=max(proxies),
        num_fewshot=questions.num_fewshot,
        chat_template_hash=digest(str(template)),
        system_instruction=settings.system_instruction or "",
        method=settings.method,
        quadrature=settings.quadrature,
        n_steps=settings.n_steps,
        top_z=resolve_count(settings.top_z, model.layers.width, "top_z"),
        seed=int(asked.get("seed", settings.seed or 0)),
        asked=json.dumps(asked, sort_keys=True),
        engine=stage.engine.name,
        batch_size=stage.batch_size,
        completeness_gap_max=sums.gap_max,
        completeness_gap_mean=sums.gap_mean,
        completeness_gap_share=sums.gap_share,
    )
