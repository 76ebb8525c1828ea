"""The stages of a run, each writing its artifacts: identify, validate, report.

Any stage can be run alone from what the stage before left on disk.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM

from neuronllm_eval.conditions import UNMASKED, ConditionName, Scales
from neuronllm_eval.encoding import QuestionSet
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.estimate import Estimate, Stage, estimate_if_long
from neuronllm_eval.fingerprints import digest, task_hash, versions
from neuronllm_eval.harness_results import (
    ResultContext,
    harness_metrics,
    read_metrics,
    write_result,
)
from neuronllm_eval.harness_tasks import is_aqua
from neuronllm_eval.identification import ScoreSums, identify
from neuronllm_eval.loading import LoadedModel
from neuronllm_eval.masked_lm import require_same_shape, warn_of_other_weights
from neuronllm_eval.neurons import NeuronScores, NeuronSet, Provenance
from neuronllm_eval.precision import computing_in, dtype_name
from neuronllm_eval.preparation import prepare_identification, prepare_validation
from neuronllm_eval.report import TaskReport, render
from neuronllm_eval.run_directory import RunDirectory, line_writer, read_lines, write_whole
from neuronllm_eval.run_tasks import (
    data_split,
    doc_counts,
    how_asked,
    prompt_settings,
)
from neuronllm_eval.scoring import Engine
from neuronllm_eval.selection import resolve_count, select_neurons
from neuronllm_eval.settings import RunSettings, read_doc_counts
from neuronllm_eval.strict_json import dump_json, exact_keys, parse_json
from neuronllm_eval.summary import ConditionSummary, DocTable, summarise, summary_json
from neuronllm_eval.validation import ConditionPlan, DocScores, answers_under, score_conditions

logger = logging.getLogger(__name__)
# Share of |F(h) - F(0)| that the completeness gap may have before the log warns.
LARGE_GAP = 0.1
# Below this many questions the log warns, for choosing and for judging.
FEW_QUESTIONS = 30
Announce = Callable[[Estimate], object]


# Stage 1: identify ------------------------------------------------------------------------------


def identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    run: RunDirectory,
    announce: Announce | None = None,
) -> NeuronSet:
    """Find a task's neurons: run.yaml, questions.jsonl, scores.safetensors, neurons.json.

    Args:
        model: whose neurons.
        settings: of the run.
        questions: of the selection split (`run_tasks.selection_questions`).
        run: where the artifacts go.
        announce: is told beforehand what a long stage will take.
    """
    with computing_in(model.lm.model, settings.attribution_dtype):
        return _identify_task(model, settings, questions, run, announce)


def _identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    run: RunDirectory,
    announce: Announce | None,
) -> NeuronSet:
    how, stage = prepare_identification(model, settings, questions, run.path)
    engine = stage.engine
    resolved = dataclasses.replace(
        settings,
        n_steps=how.quadrature.n_steps,
        # An AQUA task's own name of the split says nothing about the data set's.
        selection_split=settings.selection_split if is_aqua(questions.task) else questions.split,
        num_fewshot=questions.num_fewshot,
    )
    _warn_of_few(questions, "choose the neurons; expect unstable scores")
    _announce_if_long(stage, announce)
    run.start()  # everything that could be refused has been
    write_whole(run.settings, resolved.to_yaml(versions(), doc_counts(questions)))
    with line_writer(run.questions) as lines:
        sums = identify(
            engine,
            questions.questions,
            how,
            lambda record: lines.write(dataclasses.asdict(record)),
            f"identify {settings.task}",
        )
    if sums.gap_share > LARGE_GAP:
        logger.warning(
            "%s: attributions miss %.0f%% of the change they should add up to. Models that "
            "normalise the FFN's output (gemma2, gemma3, olmo2) do this at any number of nodes, "
            "and their scores deserve doubt; for others raise --n_steps.",
            settings.task,
            100 * sums.gap_share,
        )
    scores = sums.to_scores(_provenance(model, resolved, questions, engine, sums))
    write_whole(run.scores, scores.to_bytes())
    neurons = select_neurons(scores, settings.top_k, settings.ambiguous)
    write_whole(run.neurons, neurons.to_json())
    return neurons


def _announce_if_long(stage: Stage, announce: Announce | None) -> None:
    if announce is not None and (expected := estimate_if_long(stage)) is not None:
        announce(expected)


def _provenance(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    engine: Engine,
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
        engine=engine.name,
        completeness_gap_max=sums.gap_max,
        completeness_gap_mean=sums.gap_mean,
        completeness_gap_share=sums.gap_share,
    )


# Stage 2: validate ------------------------------------------------------------------------------


def validate_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    neurons: NeuronSet,
    plan: ConditionPlan,
    run: RunDirectory,
    announce: Announce | None = None,
) -> None:
    """Judge the neurons: conditions.jsonl, results/<condition>.json.

    Args:
        model: whose neurons.
        settings: of the run.
        questions: of the validation split (`run_tasks.validation_questions`).
        neurons: what is judged.
        plan: under which conditions.
        run: where the artifacts go.
        announce: is told beforehand what a long stage will take.
    """
    names, factors = plan.names, plan.factors(neurons)
    require_same_shape(neurons, model.layers.shape, str(settings.model_args.get("pretrained")))
    warn_of_other_weights(neurons, model.lm.model, str(settings.model_args.get("pretrained")))
    _warn_of_other_task(questions, neurons, settings.task)
    split = data_split(questions.task, questions.split)
    stage = prepare_validation(model, settings, questions, factors, plan, run.path)
    _announce_if_long(stage, announce)
    _warn_of_few(questions, "judge the neurons; expect wide intervals")
    if run.conditions.is_file():
        logger.warning("%s: the earlier validation is replaced", run.path)
    run.clear_validation()
    counts = doc_counts(questions)
    write_whole(
        run.validation, dump_json({**judged_with(neurons.top_k, plan.scales), "docs": counts})
    )
    with line_writer(run.conditions) as lines:
        docs = score_conditions(
            stage.engine,
            questions.questions,
            factors,
            stage.batch_size,
            lambda doc: lines.write(_condition_line(doc, names, settings, split)),
            f"validate {settings.task}",
        )
    write_results(model.lm, settings, questions, docs, neurons, plan, run)


def _warn_of_other_task(questions: QuestionSet, neurons: NeuronSet, name: str) -> None:
    """Log a warning if the task is not as it was when the neurons were chosen."""
    known = neurons.provenance
    now = task_hash(questions.task.dump_config(), how_asked(questions.task))
    if known.task == name and known.task_hash != now:
        logger.warning(
            "%s: the task is not the one the neurons were chosen on; questions that chose them may "
            "be among those that judge",
            name,
        )


def judged_with(top_k: int, scales: Scales) -> dict[str, Any]:
    """Which of a run's neurons a validation judged, and how: the content of validation.json."""
    return {
        "top_k": top_k,
        "suppress_scale": scales.suppress,
        "enhance_scale": scales.enhance,
        "positions": "scored",
    }


def _warn_of_few(questions: QuestionSet, what: str) -> None:
    if len(questions.questions) < FEW_QUESTIONS:
        logger.warning(
            "%s: only %d questions %s",
            questions.task.config.task,
            len(questions.questions),
            what,
        )


def _condition_line(
    doc: DocScores, names: Sequence[str], settings: RunSettings, split: str
) -> dict[str, Any]:
    # Nine significant digits give back the same float32.
    rows = [[float(f"{value:.9g}") for value in row] for row in doc.loglikelihoods.tolist()]
    return {
        "task": settings.task,
        "split": split,
        "doc_id": doc.doc_id,
        "question_id": doc.question_id,
        "gold": doc.gold,
        "loglikelihoods": dict(zip(names, rows, strict=True)),
    }


def write_results(
    lm: HFLM,
    settings: RunSettings,
    questions: QuestionSet,
    docs: Sequence[DocScores],
    neurons: NeuronSet,
    plan: ConditionPlan,
    run: RunDirectory,
) -> None:
    """One result file for each of `plan.with_results`, with the harness's metrics."""
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
        model_args=settings.model_args,
        system_instruction=settings.system_instruction,
        chat_template=lm.chat_template(settings.apply_chat_template)
        if settings.apply_chat_template
        else None,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
    )
    written = set(plan.with_results)
    for index, name in enumerate(plan.names):
        if name not in written:
            continue
        metrics = harness_metrics(questions, answers_under(docs, index))
        metrics["configs"][settings.task].setdefault("metadata", {})["docs"] = doc_counts(questions)
        mask: dict[str, Any] = {"condition": name}
        if name != UNMASKED:
            parts = ConditionName.parse(name)
            judged = judged_with(parts.top_k or neurons.top_k, parts.scales(plan.scales))
            mask |= {"neurons": str(run.path), **judged}
        write_result(run.result(name), metrics, context, mask)


# Stage 3: report --------------------------------------------------------------------------------


def report_task(run: RunDirectory) -> str:
    """summary.json and report.md from the artifacts; returns the report's text."""
    neurons, scores = NeuronSet.load(run.neurons), NeuronScores.load(run.path)
    task, split = RunSettings.load(run.settings).task, ""
    docs = {"selection": read_doc_counts(run.settings)}
    scales = Scales()
    if run.validation.is_file():
        validation = _read_validation(run.validation)
        neurons = neurons.top(validation["top_k"])
        docs["validation"] = validation["docs"]
        scales = Scales(validation["suppress_scale"], validation["enhance_scale"])
    summaries: list[ConditionSummary] = []
    metrics: dict[str, dict[str, float]] = {}
    if run.conditions.is_file():
        lines = read_lines(run.conditions)
        summaries = summarise(DocTable.from_lines(lines, run.conditions), neurons.top_k, scales)
        split = str(lines[0].get("split", ""))
        metrics = {
            each.name: read_metrics(run.result(each.name), task)
            for each in summaries
            if run.result(each.name).is_file()
        }
        write_whole(run.summary, summary_json(task, split, summaries, docs, metrics))
    text = render(TaskReport(task, split, neurons, scores, tuple(summaries), docs, metrics))
    write_whole(run.report, text)
    return text


def _read_validation(path: Path) -> dict[str, Any]:
    values = parse_json(path.read_text(encoding="utf-8", errors="replace"), path)
    keys = {"top_k", "suppress_scale", "enhance_scale", "positions", "docs"}
    found = exact_keys(values, keys, path, "the file")
    number = (int, float)
    kinds = {"top_k": (int,), "docs": (dict,), "suppress_scale": number, "enhance_scale": number}
    for name, known in kinds.items():
        if type(found[name]) not in known:
            raise ArtifactError(
                f"{path}: {name} is {found[name]!r}",
                expected=" or ".join(kind.__name__ for kind in known),
                remedy="run validate again",
            )
    return found
