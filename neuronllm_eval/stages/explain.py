"""What the top neurons of a run do, from its files, its model and its task.

1. What is stored is read and checked (`StoredRun`).
2. Model, tokenizer and task must be those that the run was made of.
3. Tokens come from the weights, activations and single-neuron effects from a second pass over some
   of the selection questions, attributions by gold letter from the scores.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from neuronllm_eval.attribution.identify import is_correct
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.evidence import Evidence, Location, single_neuron_effects
from neuronllm_eval.explain.explanation import (
    Explanation,
    NeuronExplanation,
    SetOverlap,
    extremes,
    letter_profile,
)
from neuronllm_eval.explain.token_effects import (
    Promotion,
    SetName,
    Unembedding,
    promotions,
    top_neurons,
)
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.models.fingerprints import require_same_shape, require_same_weights
from neuronllm_eval.models.hooks import computing_in
from neuronllm_eval.neurons.label_parts import gold_counts
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet, layer_counts
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.prompts import Question
from neuronllm_eval.runs.artifacts import (
    QuestionLine,
    load_neurons,
    load_questions,
    load_scores,
    load_settings,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.process import bar
from neuronllm_eval.stages.load import StageInput
from neuronllm_eval.stages.verify import Attributing, origins, sampled

logger = logging.getLogger(__name__)
_TOKENS_SHOWN = 10
_QUESTIONS_SHOWN = 3


def gather(
    attributing: Attributing, questions: Sequence[Question], locations: Sequence[Location]
) -> Evidence:
    """Recompute the questions, and keep what the neurons at `locations` do.

    Raises:
        DocError: a number is not finite.
    """
    layers, indices = (list(numbers) for numbers in zip(*locations, strict=True))
    sums = np.zeros((len(questions), len(locations)))
    activations, correct, question_of = [], [], []
    with bar(total=len(questions), desc="explain", unit="question", leave=False) as progress:
        for index, attributions in attributing.recomputed(questions):
            for prompt, of_prompt in zip(questions[index].prompts, attributions, strict=True):
                values = attributing.method.values(of_prompt)[layers, indices]
                sums[index] += values.double().cpu().numpy()
                activations.append(of_prompt.activations[layers, indices].double().cpu().numpy())
                correct.append(is_correct(of_prompt, prompt))
                question_of.append(index)
            progress.update()
    with bar(total=len(questions), desc="each alone", unit="question", leave=False) as progress:
        single_effects = single_neuron_effects(
            attributing.engine, questions, locations, attributing.how.batch_size, progress.update
        )
    return Evidence(
        tuple(questions),
        sums,
        np.stack(activations),
        single_effects,
        np.array(correct, dtype=bool),
        np.array(question_of, dtype=np.int64),
    )


@dataclass(frozen=True)
class StoredRun:
    """What a run directory holds, as far as it is needed here.

    Attributes:
        run: the directory.
        settings: of the run, with what this command's flags say of device and batches.
        neurons: good and bad.
        scores: by which these were selected.
        lines: of `questions.jsonl`, by question.
        letter_counts: [letters] prompts by gold letter.
    """

    run: RunDirectory
    settings: RunSettings
    neurons: NeuronSet
    scores: NeuronScores
    lines: dict[str, QuestionLine]
    letter_counts: NDArray[np.int64]

    @classmethod
    def load(cls, run: RunDirectory, overrides: dict[str, Any]) -> StoredRun:
        """Read a run; `overrides` are the settings of this command's flags.

        Raises:
            ArtifactError: a file is missing or damaged, or they are of different runs, or there
                is no neuron.
        """
        settings = load_settings(run)
        neurons = load_neurons(run, settings)
        if not neurons.good + neurons.bad:
            raise ArtifactError(
                f"{run.neurons} has neither good nor bad neurons",
                expected="neurons to explain",
                remedy="run identify again",
            )
        scores = load_scores(run, neurons)
        lines = {line.question_id: line for line in load_questions(run)}
        letters = (letter for line in lines.values() for letter in line.gold)
        n_letters, n_prompts = len(scores.letter_sums), scores.provenance.n_prompts
        letter_counts = gold_counts(letters, n_letters, n_prompts, run.questions)
        settings = settings.model_copy(update=overrides)
        return cls(run, settings, neurons, scores, lines, letter_counts)


def explain_run(
    inputs: StageInput,
    stored: StoredRun,
    overlaps: tuple[SetOverlap, ...],
    top_n: int,
    sample: int,
) -> Explanation:
    """What the top neurons of a run do.

    Args:
        inputs: with the questions of the selection split.
        stored: what the run directory holds.
        overlaps: of the run's sets with others'.
        top_n: good and bad neurons.
        sample: questions to recompute.

    Raises:
        ModelError: the model is not the one that the neurons were found in.
        ArtifactError: the tokenizer, the task or its questions are not the run's.
    """
    neurons, scores, lm = stored.neurons, stored.scores, inputs.model.lm
    _require_origin(inputs, stored)
    inputs = inputs.with_priors(neurons.provenance.priors)
    questions = _sampled(inputs, stored, sample)
    top = top_neurons(neurons, top_n)
    locations = [neuron.location for _, neuron in top]
    with computing_in(lm.model, stored.settings.attribution_dtype):
        context = inputs.questions.prompts[0].context
        unembedding = Unembedding.of(lm.model, inputs.model.layers, context)
        tokens = _promotions(unembedding, locations, lm.tokenizer)
        attributing = Attributing.of(inputs, neurons)
        evidence = gather(attributing, questions, locations)
    return Explanation(
        task=stored.settings.task,
        model=inputs.model_name,
        method=neurons.provenance.method,
        measures=attributing.method.measures,
        n_questions=len(questions),
        n_chosen_on=len(stored.lines),
        letter_counts=tuple(stored.letter_counts.tolist()),
        notes=unembedding.notes,
        neurons=tuple(
            _explained(kind, neuron, number, tokens[number], evidence, inputs.questions, stored)
            for number, (kind, neuron) in enumerate(top)
        ),
        spread={
            "good": layer_counts(neurons.good, scores.shape[0]),
            "bad": layer_counts(neurons.bad, scores.shape[0]),
        },
        overlaps=overlaps,
    )


def _explained(
    kind: SetName,
    neuron: Neuron,
    number: int,
    tokens: Promotion,
    evidence: Evidence,
    questions: QuestionSet,
    stored: StoredRun,
) -> NeuronExplanation:
    sums = stored.scores.letter_sums[:, neuron.layer, neuron.index]
    helped, hurt = extremes(evidence, number, questions.task, _QUESTIONS_SHOWN)
    return NeuronExplanation(
        kind=kind,
        neuron=neuron,
        tokens=tokens,
        positive=evidence.share_positive(number),
        letters=letter_profile(sums, stored.letter_counts),
        right=evidence.mean_activation(number, correct=True),
        wrong=evidence.mean_activation(number, correct=False),
        value=evidence.value(number),
        knockout=evidence.knockout(number),
        doubling=evidence.doubling(number),
        helped=helped,
        hurt=hurt,
    )


def _promotions(
    unembedding: Unembedding,
    locations: Sequence[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Promotion]:
    for note in unembedding.notes:
        logger.warning("tokens: %s", note)
    effects = unembedding.effects(locations, len(tokenizer))
    if effects is None:
        return [Promotion()] * len(locations)
    return promotions(effects, tokenizer, _TOKENS_SHOWN)


def _require_origin(inputs: StageInput, stored: StoredRun) -> None:
    """Refuse another model, tokenizer or task than those that the run was made of."""
    model, neurons = inputs.model, stored.neurons
    require_same_shape(neurons, model.layers.shape, inputs.model_name)
    require_same_weights(neurons, model.weights, inputs.model_name)
    for name, (here, there) in origins(inputs, neurons).items():
        if here != there:
            raise ArtifactError(
                f"{stored.run.path}: the {name} of the run had the digest {there}, and "
                f"{'have' if name == 'weights' else 'has'} {here} now",
                expected=f"the {name} that the neurons were found with",
                remedy="run identify again",
            )


def _sampled(inputs: StageInput, stored: StoredRun, sample: int) -> list[Question]:
    questions, missing = sampled(inputs.questions, stored.lines, sample)
    if missing:
        raise ArtifactError(
            f"{stored.run.questions} is of the question {missing!r:.100}, which the task "
            f"{stored.settings.task} does not have",
            expected="questions of the run's own task",
            remedy="run identify again",
        )
    return questions
