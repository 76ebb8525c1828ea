"""What a stage is about to do: engine, batch size and sizes of its artifacts. Writes nothing.

Whatever can be refused is refused here, so that a dry run refuses what a run would.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.attribution.identify import IdentificationSettings, empty_sums, identify
from neuronllm_eval.attribution.integrated_gradients import takes_one_pass
from neuronllm_eval.attribution.layer_nodes import choose_quadrature
from neuronllm_eval.attribution.methods import Method
from neuronllm_eval.attribution.quadrature import (
    AUTO_QUADRATURE,
    ONE_STEP,
    Quadrature,
    parse_layer_rules,
)
from neuronllm_eval.engine.batching import Pass, auto_batch_size
from neuronllm_eval.engine.build import build_engine, rounding_tolerance
from neuronllm_eval.engine.interface import Engine, ranking_scores
from neuronllm_eval.engine.pass_size import tree_size
from neuronllm_eval.errors import DocError, ModelError, UsageError
from neuronllm_eval.evaluation.stats.significance import ALPHA, chance_test
from neuronllm_eval.harness.results import harness_loglikelihoods, harness_metrics
from neuronllm_eval.harness.tasks import is_aqua
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.interventions.score_conditions import score_conditions
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.prompts import ALL, Prompt
from neuronllm_eval.reporting.wording import AT_CHANCE, chance_figures
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import SelectionSettings
from neuronllm_eval.runtime.resumable_work import Launch
from neuronllm_eval.stages.cost_estimate import Stage
from neuronllm_eval.stages.load import StageInput
from neuronllm_eval.stages.perplexity import text_perplexities

logger = logging.getLogger(__name__)
# Below this many questions the log warns, in selection and in validation.
FEW_QUESTIONS = 30
# The first selection questions are compared with chance: so many, before a pass over all of them.
_CHANCE_QUESTIONS, _CHANCE_BATCH = 50, 16
_SHARES_SHOWN = 5  # of predicted options
# What a result file and the small files of a stage take, in bytes.
_RESULT_FILE = 17_000
_SMALL_FILES = 6_000
# Of every stage, prompts whose unmasked numbers are compared with lm_eval's.
_COMPARED_PROMPTS = 3
# lm_eval pads, sums and rounds in other places than an engine's equivalence check.
_SLACK = 3
_ADAPTER_TEXTS = 6_500  # an adapter's configuration, card and provenance


def quadrature_of(settings: SelectionSettings) -> Quadrature:
    """The rule of the settings, `auto` without layers where they leave these open.

    Raises:
        UsageError: a number of nodes that the rule cannot have.
    """
    layers = parse_layer_rules(settings.layer_nodes) if settings.layer_nodes else ()
    if layers and settings.quadrature != AUTO_QUADRATURE:
        raise UsageError(
            f"--layer_nodes with --quadrature {settings.quadrature}",
            expected="--quadrature auto, the only one whose layers differ",
            remedy="leave out one of them",
        )
    return Quadrature(settings.quadrature, settings.n_steps, layers)


def warn_of_few(questions: QuestionSet, what: str) -> None:
    """Log a warning that so few questions `what`."""
    if len(questions.questions) < FEW_QUESTIONS:
        task = questions.task.config.task
        logger.warning("%s: only %d questions %s", task, len(questions.questions), what)


def warn_of_chance(inputs: StageInput, stage: Stage, launch: Launch) -> None:
    """Log a warning if the unmasked model is not clearly above chance on the first questions.

    The first process scores one prompt of each, once for all methods; what the stage computes is
    the same.
    """
    if not launch.ranks.is_first:
        return
    task, engine = stage.task, stage.engine
    unmasked = np.ones((1, *engine.layers.shape), np.int8)
    prompts: list[Prompt] = []
    predicted: list[int] = []
    some = [replace(each, prompts=each.prompts[:1]) for each in stage.questions[:_CHANCE_QUESTIONS]]
    # One copy of each takes little memory; batches that do not fit are halved.
    batch_size = max(stage.batch_size, _CHANCE_BATCH)
    for question, docs in score_conditions(engine, some, unmasked, batch_size):
        if isinstance(docs, DocError):  # identification excludes it too
            continue
        (prompt,), (doc,) = question.prompts, docs
        loglikelihoods = torch.from_numpy(doc.loglikelihoods[0]).double()
        predicted.append(int(ranking_scores(loglikelihoods, prompt).argmax()))
        prompts.append(prompt)
    if not prompts:
        return
    correct = [option == prompt.gold for option, prompt in zip(predicted, prompts, strict=True)]
    test = chance_test(correct, [len(prompt.options) for prompt in prompts], len(prompts))
    if test.is_at_chance:
        logger.warning(
            "%s: the unmasked model is not clearly above chance on the first selection questions "
            "(%s, binomial test at %g; predicted: %s): %s. Consider %s.",
            task,
            chance_figures(test),
            ALPHA,
            _shares(predicted, lettered=is_aqua(inputs.questions.task)),
            AT_CHANCE,
            _above_chance(inputs),
        )


def _shares(predicted: Sequence[int], *, lettered: bool) -> str:
    """How often each option is predicted, the most frequent first."""
    return ", ".join(
        f"{LETTERS[option] if lettered else f'option {option + 1}'} {count / len(predicted):.0%}"
        for option, count in Counter(predicted).most_common(_SHARES_SHOWN)
    )


def _above_chance(inputs: StageInput) -> str:
    """What may bring a model above chance."""
    settings, questions = inputs.settings, inputs.questions
    remedies = []
    if settings.task.startswith(PREFIX):
        name = settings.task.removeprefix(PREFIX)
        remedies.append(f"scoring option texts (--tasks {name} instead of {settings.task})")
    elif is_aqua(questions.task):
        remedies.append("scoring option texts (the harness's own task on these data, if any)")
    remedies.append(f"more demonstrations (--num_fewshot, now {questions.num_fewshot})")
    if not settings.apply_chat_template and getattr(
        inputs.model.lm.tokenizer, "chat_template", None
    ):
        remedies.append("--apply_chat_template")
    return f"{', '.join(remedies[:-1])} or {remedies[-1]}" if len(remedies) > 1 else remedies[0]


def checked_engine(inputs: StageInput, positions: str, n_nodes: int = 0) -> Engine:
    """The engine for some questions, whose unmasked numbers are those of the harness's own model.

    Raises:
        ModelError: it gives other log-likelihoods than `HFLM.loglikelihood` for the same requests.
    """
    model, questions = inputs.model, inputs.questions
    engine = build_engine(
        model.lm.model, model.layers, questions.prompts, inputs.settings.engine, n_nodes, positions
    )
    prompts = questions.prompts[:_COMPARED_PROMPTS]
    scores = engine.score(prompts, torch.ones(1, *model.layers.shape, dtype=torch.int8))
    of_harness = harness_loglikelihoods(model.lm, questions, len(prompts))
    for prompt, of_engine, expected in zip(prompts, scores, of_harness, strict=True):
        gaps = np.asarray(expected) - of_engine.loglikelihoods[0].double().cpu().numpy()
        if prompt.n_shared:  # tokens that all options share may be left out
            gaps -= gaps[0]
        probes = [(prompt.context, prompt.options)]
        largest = float(np.abs(expected).max())
        tolerance = _SLACK * rounding_tolerance(engine.model, probes, largest)
        if np.abs(gaps).max() > tolerance:  # not of NaN, which is told of later
            raise ModelError(
                f"doc {prompt.doc_id} of task {inputs.settings.task} has log-likelihoods that "
                f"differ by {np.abs(gaps).max():.2g} log-nats from those of lm_eval's own model",
                expected=f"the same but for rounding, at most {tolerance:.2g}",
                remedy="leave out the arguments in --model_args that decide how lm_eval calls the "
                "model; if there are none, please report it",
            )
    return engine


# Identify ---------------------------------------------------------------------------------------


def prepare_identification(
    inputs: StageInput,
    run: RunDirectory,
    methods: Sequence[Method],
    launch: Launch,
    every: Sequence[Method],
    recorded: str | None,
) -> tuple[IdentificationSettings, Stage]:
    """How a task is identified, and with which engine.

    Args:
        inputs: with the questions of the selection split.
        run: the directory, with the work to resume if there is any.
        methods: that share the pass.
        launch: the processes, of which the first chooses an automatic batch size.
        every: these and those whose runs are finished; they have their quadrature in common.
        recorded: nodes of every layer in what is there already, which are kept.

    Raises:
        UsageError: settings that no model can make right, or not this one.
    """
    settings, layers = inputs.settings, inputs.model.layers
    prompts = inputs.questions.prompts
    n_chosen = resolve_count(settings.top_k, layers.n_layers * layers.width, "top_k")
    resolve_count(settings.top_z, layers.width, "top_z")
    if recorded and settings.quadrature == AUTO_QUADRATURE and settings.layer_nodes is None:
        settings = settings.model_copy(update={"layer_nodes": recorded})
    quadrature = quadrature_of(settings)
    engine = checked_engine(inputs, settings.positions, quadrature.n_steps or 1)
    how = IdentificationSettings(tuple(methods), top_z=settings.top_z, positions=settings.positions)
    one_pass = takes_one_pass(how.quantities)
    if (
        takes_one_pass(replace(how, methods=tuple(every)).quantities)
        and settings.quadrature == AUTO_QUADRATURE
    ):
        quadrature = ONE_STEP
    elif quadrature.layers:
        require_layers(quadrature, layers.n_layers)
    elif settings.quadrature == AUTO_QUADRATURE:
        quadrature = _chosen(engine, prompts, settings.n_steps, launch)
    passes = Pass(
        0 if one_pass else quadrature.n_copies,
        gradients=True,
        whole_prompts=one_pass and engine.name == "replay",
        tree_rows=max(map(tree_size, prompts)),
        compares_logits=all(prompt.compares_logits for prompt in prompts),
    )
    batch_size = _batch_size(inputs, passes, run.identifying, launch)
    how = replace(how, quadrature=quadrature, batch_size=batch_size)
    if settings.positions == ALL and not one_pass:
        logger.warning(
            "%s: integrating at all positions takes full passes for each of %d layers and about "
            "%d nodes of every prompt; --method gradxact takes one",
            settings.task,
            layers.n_layers,
            quadrature.mean_nodes,
        )
    return how, Stage(
        task=settings.task,
        name="identify",
        engine=engine,
        questions=inputs.questions.questions,
        batch_size=batch_size,
        passes=passes,
        run=lambda some: list(identify(engine, some, how, empty_sums(engine, some, methods))),
        finish=lambda: None,
        n_files=0,
        disk=len(methods) * _identification_bytes(inputs.questions, layers.shape, n_chosen),
        directory=run.path,
    )


def _chosen(
    engine: Engine, prompts: Sequence[Prompt], n_steps: int | None, launch: Launch
) -> Quadrature:
    """The rule that the first process chooses for all."""

    def choose() -> list[Any]:
        quadrature = choose_quadrature(engine, prompts, AUTO_QUADRATURE, n_steps)
        return [quadrature.name, quadrature.n_steps, quadrature.layer_nodes]

    name, n_steps, layer_nodes = launch.ranks.on_first(choose)
    return Quadrature(name, n_steps, parse_layer_rules(layer_nodes or ""))


def require_layers(quadrature: Quadrature, n_layers: int) -> None:
    """Refuse rules of another number of layers than the model has.

    Raises:
        UsageError: names both numbers.
    """
    if len(quadrature.layers) != n_layers:
        raise UsageError(
            f"layer_nodes of {len(quadrature.layers)} layers",
            expected=f"{n_layers}, one for each layer of the model",
            remedy="copy layer_nodes from a run of this model, or leave it out",
        )


def _identification_bytes(questions: QuestionSet, shape: tuple[int, int], n_chosen: int) -> int:
    """scores.safetensors to the byte but for its header, the others about."""
    n_letters = max(len(prompt.options) for prompt in questions.prompts)
    scores = 8 * (6 + n_letters) * shape[0] * shape[1]  # six arrays beside the letters'
    neurons = 2 * 70 * n_chosen + shape[0] * shape[1]
    lines = 80 * len(questions.questions)
    lines += sum(40 + 20 * len(prompt.options) for prompt in questions.prompts)
    # Of every condition but the unmasked one; float32, and some 100 bytes for a layer's name.
    adapters = (len(CONDITIONS) - 1) * ((4 * shape[1] + 100) * shape[0] + _ADAPTER_TEXTS)
    return scores + neurons + lines + adapters + _SMALL_FILES


# Validate ---------------------------------------------------------------------------------------


def prepare_validation(
    inputs: StageInput,
    factors: NDArray[Any],
    plan: ConditionPlan,
    run: RunDirectory,
    launch: Launch,
) -> Stage:
    """With which engine and batch size neurons are validated.

    Args:
        inputs: with the questions of the validation split.
        factors: [conditions, layers, neurons].
        plan: the conditions.
        run: the directory, with the work to resume if there is any.
        launch: the processes, of which the first chooses an automatic batch size.
    """
    settings, questions = inputs.settings, inputs.questions
    engine = checked_engine(inputs, plan.positions)
    if plan.positions == ALL:
        logger.warning(
            "%s: at all positions each of %d conditions takes a full pass of every prompt; fewer "
            "--n_random take less",
            settings.task,
            len(plan.names),
        )
    passes = Pass(
        len(plan.names), gradients=False, tree_rows=max(map(tree_size, questions.prompts))
    )
    batch_size = _batch_size(inputs, passes, run.validating, launch)
    # A name, a KL divergence with the name again, and a log-likelihood of every option.
    docs = [70 + 11 * len(prompt.options) for prompt in questions.prompts]
    invented = {p.doc_id: [(0.0, False)] * len(p.options) for p in questions.prompts}
    n_files = len(plan.with_results)
    return Stage(
        task=settings.task,
        name="validate",
        engine=engine,
        questions=questions.questions,
        batch_size=batch_size,
        passes=passes,
        run=lambda some: list(score_conditions(engine, some, factors, batch_size)),
        finish=lambda: harness_metrics(questions, invented),
        n_files=n_files,
        disk=len(plan.names) * sum(docs) + n_files * _RESULT_FILE + _SMALL_FILES,
        directory=run.path,
        text=lambda: text_perplexities(inputs.model, factors[:1]),
        n_texts=0 if run.home is not None else len(plan.with_perplexity),
    )


def _batch_size(inputs: StageInput, passes: Pass, checkpoint: Path, launch: Launch) -> int:
    """That of the work to resume, else that of the settings, which may leave it open."""
    model, prompts = inputs.model, inputs.questions.prompts
    return (
        launch.recorded_batch_size(checkpoint)
        or inputs.settings.fixed_batch_size
        or launch.ranks.on_first(
            lambda: auto_batch_size(model.lm.model, model.layers, prompts, passes)
        )
    )
