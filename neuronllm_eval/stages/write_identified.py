"""The end of identification: the run directory of a method, and the files written there."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuronllm_eval.attribution.methods import Method, to_scores
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.explain.token_effects import Unembedding, listed_tokens, tokens_json
from neuronllm_eval.export.ia3_adapter import write_standard_adapters
from neuronllm_eval.formats.atomic import write_lines, write_whole
from neuronllm_eval.harness.tokenize import QuestionSet, chat_template_text
from neuronllm_eval.models.fingerprints import digest, task_hash, tokenizer_hash, versions
from neuronllm_eval.models.precision import dtype_name
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.neurons.selection import resolve_count, select_neurons
from neuronllm_eval.runs.directory import RunDirectory, folder_name
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.cost_estimate import Stage
from neuronllm_eval.stages.load import LoadedModel, data_split, how_asked

logger = logging.getLogger(__name__)
# Share of |F(h) - F(0)| that the completeness gap may have before the log warns.
LARGE_GAP = 0.1


@dataclass(frozen=True)
class MethodRun:
    """A method, and where its neurons go.

    Attributes:
        method: that scores them.
        run: the directory.
    """

    method: Method
    run: RunDirectory

    def settings(self, of_all: RunSettings) -> RunSettings:
        """The settings of a run, with this method's."""
        method_args = dataclasses.asdict(self.method)
        return of_all.model_copy(update={"method": self.method.name, "method_args": method_args})


def method_runs(output: Path, methods: Sequence[Method], task: str) -> list[MethodRun]:
    """Where each method's neurons of a task go: a folder per task; of several methods, one each."""
    folder = folder_name(task)
    several = len(methods) > 1
    return [
        MethodRun(each, RunDirectory(output / each.name / folder if several else output / folder))
        for each in methods
    ]


def write_questions(
    records: Sequence[dict[str, Any]], method: str, run: RunDirectory
) -> tuple[list[float | None], list[Any]]:
    """questions.jsonl; returns the completeness gaps, and what the method kept of questions."""
    gaps = [record["completeness_gap"][method] for record in records]
    notes = [record["notes"][method] for record in records if method in record["notes"]]
    lines = ({**record, "completeness_gap": gap} for record, gap in zip(records, gaps, strict=True))
    write_lines(
        run.questions,
        ({name: value for name, value in line.items() if name != "notes"} for line in lines),
    )
    return gaps, notes


def write_scores(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    stage: Stage,
    which: MethodRun,
    sums: ScoreSums,
    notes: Sequence[Any],
) -> NeuronScores:
    """scores.safetensors, from the sums over all questions and the notes of `write_questions`."""
    method, run = which.method, which.run
    integrates = method.quantity is not None and method.quantity.path
    if integrates and sums.gap_share > LARGE_GAP:
        logger.warning(
            "%s: attributions miss %.0f%% of the change they should add up to. Raise --n_steps; "
            "but models that normalise the FFN's output (gemma2, gemma3, olmo2) do this at any "
            "number of nodes, and rank neurons as --method gradxact does.",
            settings.task,
            100 * sums.gap_share,
        )
    provenance = _provenance(model, which.settings(settings), questions, stage, sums)
    scores = to_scores(method, sums, notes, provenance)
    write_whole(run.scores, scores.to_bytes())
    run.keep(run.scores, scores)
    return scores


def write_neurons(
    model: LoadedModel,
    scores: NeuronScores,
    settings: RunSettings,
    which: MethodRun,
    *,
    context: Sequence[int],
    or_none: bool,
) -> None:
    """adapters/, tokens.json and neurons.json, of the sets that scores give.

    Args:
        model: whose neurons.
        scores: of all neurons.
        settings: of the run.
        which: the method, and where its files go.
        context: tokens of a prompt, to find the norms by.
        or_none: that a method finds none is no reason to lose others' neurons.
    """
    neurons = select_neurons(scores, settings.top_k, settings.ambiguous, or_none=or_none)
    if not (neurons.good or neurons.bad):
        logger.warning("%s: method %s finds no neurons", settings.task, which.method.name)
    # Before neurons.json, whose presence says that nothing is missing.
    write_standard_adapters(which.run, neurons, model.lm.model, model.layers, settings.model_args)
    _write_tokens(model, neurons, which.run, context)
    write_whole(which.run.neurons, neurons.to_json())
    which.run.keep(which.run.neurons, neurons)


def _write_tokens(
    model: LoadedModel, neurons: NeuronSet, run: RunDirectory, context: Sequence[int]
) -> None:
    """tokens.json, if it can be computed.

    A full disk or memory ends the command, as everywhere, which then resumes from its checkpoint;
    nothing else does, after hours of work that does not need the tokens.
    """
    try:
        unembedding = Unembedding.of(model.lm.model, model.layers, context)
        tokens = listed_tokens(unembedding, neurons, model.lm.tokenizer)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - of the model's or the tokenizer's own code
        logger.warning("there is no %s: %s: %s", run.tokens.name, type(error).__name__, error)
        return
    if tokens:
        write_whole(run.tokens, tokens_json(tokens))
        run.keep(run.tokens, {each.key: each.listed() for each in tokens})
    for note in unembedding.notes:
        logger.info("there is no %s: %s", run.tokens.name, note)


def _provenance(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    stage: Stage,
    sums: ScoreSums,
) -> Provenance:
    known = versions()
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
        chat_template_hash=digest(chat_template_text(model.lm, settings.apply_chat_template) or ""),
        system_instruction=settings.system_instruction or "",
        method=settings.method,
        method_args=json.dumps(settings.method_args, sort_keys=True),
        quadrature=settings.quadrature,
        n_steps=settings.n_steps,
        top_z=resolve_count(settings.top_z, model.layers.width, "top_z"),
        positions=settings.positions,
        seed=int(asked.get("seed", settings.seed or 0)),
        asked=json.dumps(asked, sort_keys=True),
        engine=stage.engine.name,
        batch_size=stage.batch_size,
        completeness_gap_max=sums.gap_max if sums.n_gaps else None,
        completeness_gap_mean=sums.gap_mean if sums.n_gaps else None,
        completeness_gap_share=sums.gap_share if sums.n_gaps else None,
    )
