"""`neuronllm-eval explain`: what the top neurons of finished runs do.

1. Everything that is stored is read and checked, and the runs' sets are compared.
2. Of each run's model and task, which must be those it was made of: tokens, a pass over some of the
   questions that chose the neurons, and their attribution by gold letter.
3. explain.json and explain.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval import arguments
from neuronllm_eval.asked_again import Attributing, origins, sampled
from neuronllm_eval.encoding import QuestionSet
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.explanation import (
    COMPARED,
    Explanation,
    NeuronExplanation,
    SetOverlap,
    extremes,
)
from neuronllm_eval.explanation_text import overlap_table, render, summary
from neuronllm_eval.letter_bias import gold_counts, letter_profile
from neuronllm_eval.loading import LoadedModel, load_model
from neuronllm_eval.masked_lm import require_same_shape, require_same_weights
from neuronllm_eval.neuron_evidence import Evidence, gather
from neuronllm_eval.neurons import Neuron, NeuronScores, NeuronSet
from neuronllm_eval.precision import computing_in
from neuronllm_eval.prompts import Question
from neuronllm_eval.ranks import own_rank
from neuronllm_eval.run_directory import RunDirectory, find_runs, read_lines, write_whole
from neuronllm_eval.run_tasks import load_run_task, selection_questions
from neuronllm_eval.selection import layer_counts
from neuronllm_eval.set_overlap import overlap
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.stored_run import load_neurons, load_scores
from neuronllm_eval.token_effects import Promotion, Unembedding, promotions

logger = logging.getLogger(__name__)
DEFAULT_TOP_N = 10
DEFAULT_ASKED = 100  # questions
_KEPT_TOKENS = 10
_KEPT_QUESTIONS = 3


@dataclass(frozen=True)
class _Stored:
    """What a run directory holds, as far as it is needed here.

    Attributes:
        run: the directory.
        settings: of the run, with what this command's flags say of device and batches.
        neurons: good and bad.
        scores: that these were chosen by.
        lines: of `questions.jsonl`, by question.
        letter_counts: [letters] prompts by gold letter.
    """

    run: RunDirectory
    settings: RunSettings
    neurons: NeuronSet
    scores: NeuronScores
    lines: dict[str, dict[str, Any]]
    letter_counts: Any

    @classmethod
    def load(cls, run: RunDirectory, given: dict[str, Any]) -> _Stored:
        """Read a run.

        Raises:
            ArtifactError: a file is missing or damaged, or they are of different runs.
        """
        settings = RunSettings.load(run.settings)
        neurons = load_neurons(run, settings)
        scores = load_scores(run, neurons)
        lines = read_lines(run.questions)
        n_letters, n_prompts = len(scores.letter_sums), scores.provenance.n_prompts
        return cls(
            run,
            dataclasses.replace(settings, **given),
            neurons,
            scores,
            {str(line.get("question_id")): line for line in lines},
            gold_counts(lines, n_letters, n_prompts, run.questions),
        )

    @property
    def model_name(self) -> str:
        """As the settings name it."""
        return str(self.settings.model_args.get("pretrained"))

    def top(self, count: int) -> list[tuple[str, Neuron]]:
        """The first so many good neurons, then the first so many bad ones."""
        sets = {"good": self.neurons.good, "bad": self.neurons.bad}
        return [(kind, neuron) for kind, found in sets.items() for neuron in found[:count]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `explain`, beside the run directories."""
    parser.add_argument(
        "--top_n",
        type=int,
        default=DEFAULT_TOP_N,
        help="good and bad neurons of each run to explain (default: %(default)s)",
    )
    arguments.add_model_flags(
        parser,
        "questions that chose the neurons to ask again, for activations and for what was helped "
        "and hurt most (default: %(default)s)",
        DEFAULT_ASKED,
    )


def explain(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Explain every run at `options.run_dir`; returns the exit code.

    Args:
        options: parsed flags.
        show: is told what people are to read.
    """
    if options.top_n < 1:
        raise UsageError(f"top_n is {options.top_n}", expected="1 or more", remedy="check --top_n")
    given = {
        name: value
        for name in ("batch_size", "device", "engine")
        if (value := getattr(options, name)) is not None
    }
    runs = {run.path.resolve(): run for path in options.run_dir for run in find_runs(Path(path))}
    stored = [_Stored.load(run, given) for run in runs.values()]
    for each in stored:
        arguments.require_counts(dataclasses.replace(each.settings, limit=options.limit))
        arguments.require_trust(each.settings, options.trust_remote_code)
    overlaps = _overlaps(stored)
    names = _names(stored)
    model: LoadedModel | None = None
    loaded = None
    for name, each in zip(names, stored, strict=True):
        task = load_run_task(each.settings)
        if model is None or loaded != each.settings.model_args:
            model, loaded = load_model(each.settings), each.settings.model_args
        questions = selection_questions(model.lm, each.settings, task)
        own = tuple(pair for pair in overlaps if name in pair.runs)
        explanation = explain_run(model, questions, each, own, options.top_n, options.limit)
        if not own_rank():  # every process explains for itself, and one speaks
            show(summary(explanation))
            write_whole(each.run.explanation, explanation.to_json())
            write_whole(each.run.explanation_text, render(explanation))
    if overlaps and not own_rank():
        show(f"## Overlap of sets\n\n{overlap_table(overlaps)}\n")
    if not own_rank():
        show("\n".join(f"written to {each.run.explanation_text}" for each in stored))
    return 0


def explain_run(
    model: LoadedModel,
    questions: QuestionSet,
    stored: _Stored,
    overlaps: tuple[SetOverlap, ...],
    top_n: int,
    n_asked: int,
) -> Explanation:
    """What the top neurons of a run do.

    Args:
        model: the run's.
        questions: of the selection split.
        stored: what the run directory holds.
        overlaps: of the run's sets with others'.
        top_n: good and bad neurons.
        n_asked: questions to ask again.

    Raises:
        ModelError: the model is not the one that the neurons were found in.
        ArtifactError: the tokenizer, the task or its questions are not the run's.
    """
    neurons, scores = stored.neurons, stored.scores
    _require_origin(model, questions, stored)
    chosen = _chosen(questions, stored, n_asked)
    top = stored.top(top_n)
    places = [neuron.place for _, neuron in top]
    lm = model.lm
    with computing_in(lm.model, stored.settings.attribution_dtype):
        unembedding = Unembedding.of(lm.model, model.layers, questions.prompts[0].context)
        tokens = _promotions(unembedding, places, lm.tokenizer)
        attributing = Attributing.of(model, stored.settings, questions, neurons)
        evidence = gather(attributing, chosen, places)
    return Explanation(
        task=stored.settings.task,
        model=stored.model_name,
        method=neurons.provenance.method,
        n_questions=len(chosen),
        n_chosen_on=len(stored.lines),
        letter_counts=tuple(stored.letter_counts.tolist()),
        notes=unembedding.notes,
        neurons=tuple(
            _explained(kind, neuron, number, tokens[number], evidence, questions, stored)
            for number, (kind, neuron) in enumerate(top)
        ),
        spread={
            "good": layer_counts(neurons.good, scores.shape[0]),
            "bad": layer_counts(neurons.bad, scores.shape[0]),
        },
        overlaps=overlaps,
    )


def _explained(
    kind: str,
    neuron: Neuron,
    number: int,
    tokens: Promotion,
    evidence: Evidence,
    questions: QuestionSet,
    stored: _Stored,
) -> NeuronExplanation:
    sums = stored.scores.letter_sums[:, neuron.layer, neuron.index]
    helped, hurt = extremes(evidence, number, questions.task, _KEPT_QUESTIONS)
    return NeuronExplanation(
        kind=kind,
        neuron=neuron,
        tokens=tokens,
        positive=evidence.share_positive(number),
        letters=letter_profile(sums, stored.letter_counts),
        right=evidence.mean_activation(number, right=True),
        wrong=evidence.mean_activation(number, right=False),
        helped=helped,
        hurt=hurt,
    )


def _promotions(
    unembedding: Unembedding, places: Sequence[tuple[int, int]], tokenizer: Any
) -> list[Promotion]:
    for note in unembedding.notes:
        logger.warning("tokens: %s", note)
    effects = unembedding.effects(places, len(tokenizer))
    if effects is None:
        return [Promotion()] * len(places)
    return promotions(effects, tokenizer, _KEPT_TOKENS)


def _require_origin(model: LoadedModel, questions: QuestionSet, stored: _Stored) -> None:
    """Refuse another model, tokenizer or task than those that the run was made of."""
    require_same_shape(stored.neurons, model.layers.shape, stored.model_name)
    require_same_weights(stored.neurons, model.dtype, model.hash, stored.model_name)
    for name, (here, there) in origins(model, questions, stored.neurons).items():
        if here != there:
            raise ArtifactError(
                f"{stored.run.path}: the {name} of the run had the digest {there}, and "
                f"{'have' if name == 'weights' else 'has'} {here} now",
                expected=f"the {name} that the neurons were found with",
                remedy="run identify again",
            )


def _chosen(questions: QuestionSet, stored: _Stored, n_asked: int) -> list[Question]:
    chosen, missing = sampled(questions, stored.lines, n_asked)
    if missing:
        raise ArtifactError(
            f"{stored.run.questions} is of the question {missing!r:.100}, which the task "
            f"{stored.settings.task} has not",
            expected="questions of the run's own task",
            remedy="run identify again",
        )
    return chosen


def _names(stored: Sequence[_Stored]) -> list[str]:
    """What to call each run: its directory's name, or its path where names repeat."""
    names = [each.run.path.name for each in stored]
    return names if len(set(names)) == len(names) else [str(each.run.path) for each in stored]


def _overlaps(stored: Sequence[_Stored]) -> list[SetOverlap]:
    """Of every two runs, how far their sets overlap."""
    found = []
    named = zip(_names(stored), stored, strict=True)
    for (name, one), (other, two) in itertools.combinations(named, 2):
        same = one.neurons.shape == two.neurons.shape and (
            one.neurons.provenance.model_hash == two.neurons.provenance.model_hash
        )
        for sets in COMPARED:
            first, second = getattr(one.neurons, sets[0]), getattr(two.neurons, sets[1])
            known = overlap(first, second, one.neurons.shape) if same else None
            found.append(SetOverlap((name, other), sets, known))
    return found
