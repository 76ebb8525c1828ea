"""The pass over questions: attributions -> ES -> G_e, B_e -> the sums of every method.

1. Questions are taken in units of whole questions (`resumable_work`), of which each process has its
   share.
2. Every prompt is attributed (`attribute_all`), once for all methods. What it says about neurons
   (`Method.values`) is summed over the question's proxies: the example score ES_e.
3. Per layer, the `top_z` highest positive neurons of ES_e form G_e, the lowest negative B_e.
4. The ACE score of a neuron is the sum of ES_e over the questions where it is in G_e or B_e; other
   methods sum over all questions, or in ways of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuronllm_eval.attribution.integrated_gradients import (
    Attributions,
    Quantity,
    attribute_all,
    not_finite,
)
from neuronllm_eval.attribution.methods import ACE, GradXAct, Method
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.attribution.score_sums import EXTRA_POINT, ScoreSums
from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine, ranking_scores
from neuronllm_eval.errors import DocError
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.prompts import ALL, SCORED, Prompt, Question
from neuronllm_eval.runtime.checkpoint import Tally
from neuronllm_eval.runtime.resumable_work import prompts_digest

# By method, the sums over questions.
Sums = dict[str, ScoreSums]


@dataclass(frozen=True)
class IdentificationSettings:
    """What is attributed and how questions vote.

    Attributes:
        methods: that score neurons, in one pass; questions' records are about the first.
        quadrature: rule for the path integral.
        top_z: neurons per layer in G_e and in B_e, a count or a share of the layer (our reading).
        batch_size: prompts per pass; a batch holds whole questions, so at least one question's.
        positions: where neurons are attributed, one of `prompts.POSITIONS`; the engine's.
    """

    methods: tuple[Method, ...] = (ACE(),)
    quadrature: Quadrature = field(default_factory=Quadrature)
    top_z: float = 0.1
    batch_size: int = 1
    positions: str = SCORED

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What the methods need, each once; ACE's if activations are all they need.

        At all positions it is GradXAct's then, which takes one pass.
        """
        needed = [quantity for method in self.methods for quantity in method.quantities]
        default = GradXAct.quantity if self.positions == ALL else ACE.quantity
        return tuple(dict.fromkeys(needed or [default]))


@dataclass(frozen=True)
class QuestionRecord:
    """One line of `questions.jsonl`, and the methods' notes on the question.

    Attributes:
        question_id: the question.
        doc_ids: per proxy, the doc's index in the task.
        gold: per proxy, the index of the gold option.
        loglikelihoods: per proxy and option, log-nats of the unmasked model, of the tokens that
            the options do not share; of all if these are divided by lengths.
        right: per proxy, whether the likeliest option is the gold one.
        completeness_gap: by method, the largest over proxies and layers, in units of its target;
            None where it is not measured.
        notes: by method that has any (`Method.note`).
    """

    question_id: str
    doc_ids: tuple[int, ...]
    gold: tuple[int, ...]
    loglikelihoods: tuple[tuple[float, ...], ...]
    right: tuple[bool, ...]
    completeness_gap: dict[str, float | None]
    notes: dict[str, Any]


def identify(
    engine: Engine,
    questions: Sequence[Question],
    settings: IdentificationSettings,
    sums: Sums,
    units: Iterable[range] | None = None,
) -> Iterator[tuple[Question, QuestionRecord | DocError]]:
    """Attribute every question and add it to the sums, one by one as they are taken.

    Args:
        engine: attributes the prompts.
        questions: the selection split's questions.
        settings: see `IdentificationSettings`.
        sums: of every method; see `empty_sums`.
        units: indices of the questions to do; all if not given.

    Yields:
        each question with its record, in order; or with a DocError if it gives NaN or infinity,
        and so is not in the sums.
    """
    top_z = resolve_count(settings.top_z, engine.layers.width, "top_z")
    attribute = partial(
        attribute_all, engine, quadrature=settings.quadrature, quantities=settings.quantities
    )
    for index, attributions in in_batches(questions, settings.batch_size, attribute, units):
        question = questions[index]
        error = not_finite(question.prompts, attributions)
        if error is not None:
            yield question, error
            continue
        notes = {
            method.name: add_question(
                sums[method.name], method, index, question, attributions, top_z
            )
            for method in settings.methods
        }
        yield question, _record(question, attributions, settings.methods, notes)


def empty_sums(
    engine: Engine, questions: Sequence[Question], methods: Sequence[Method] = (ACE(),)
) -> Sums:
    """Sums over these questions before any of them is added."""
    n_letters = max(len(prompt.options) for question in questions for prompt in question.prompts)
    digest = prompts_digest(questions)
    return {
        method.name: ScoreSums.zeros(
            engine.layers.shape,
            n_letters,
            method.n_groups(n_letters),
            method.unit,
            digest,
            method.n_extras,
        )
        for method in methods
    }


def tally_of(sums: Sums) -> Tally:
    """What is added up over processes."""
    return sum((of_method.tally(f"{name}/") for name, of_method in sums.items()), Tally())


def vote(example_score: Tensor, top_z: int) -> tuple[Tensor, Tensor]:
    """Members of G_e and B_e.

    Args:
        example_score: [layers, neurons] ES_e.
        top_z: most neurons per layer in each.

    Returns:
        two [layers, neurons] bool: among the `top_z` highest and positive, lowest and negative.
    """
    good = torch.zeros_like(example_score, dtype=torch.bool)
    bad = torch.zeros_like(good)
    good.scatter_(-1, example_score.topk(top_z, -1).indices, True)
    bad.scatter_(-1, example_score.topk(top_z, -1, largest=False).indices, True)
    return good & (example_score > 0), bad & (example_score < 0)


def add_question(
    sums: ScoreSums,
    method: Method,
    index: int,
    question: Question,
    attributions: Sequence[Attributions],
    top_z: int,
) -> Any:
    """Add question number `index` to a method's sums.

    Args:
        sums: of the method.
        method: what is summed up.
        index: of the question; even and odd ones are halves.
        question: its prompts.
        attributions: of each of them.
        top_z: neurons per layer that it votes for.

    Returns:
        the method's note on the question (`Method.note`).
    """
    values = [method.values(of_prompt) for of_prompt in attributions]
    example_score = torch.stack(values).sum(0)
    good, bad = vote(example_score, top_z)
    half = index % 2
    for prompt, of_prompt, neurons in zip(question.prompts, attributions, values, strict=True):
        fixed = sums.fixed(neurons)
        group = method.group(prompt.gold, is_correct(of_prompt, prompt))
        sums.letter_sums[prompt.gold] += fixed
        sums.group_count[group, half] += 1
        sums.add_activations(of_prompt.activations)
        if (gaps := of_prompt.gaps(method.quantity)) is not None:
            sums.add_gaps(*gaps)
        if not method.votes:
            sums.group_sums[group, half] += fixed
        for number, extra in enumerate(method.extras(of_prompt)):
            sums.extra_sums[number, group, half] += sums.fixed(extra, EXTRA_POINT)
    if method.votes:
        voted = torch.where(good | bad, example_score, 0.0)
        sums.group_sums[0, half] += sums.fixed(voted)
    sums.good_count += good.cpu().numpy()
    sums.bad_count += bad.cpu().numpy()
    sums.n_questions += 1
    sums.n_prompts += len(question.prompts)
    return method.note(index, example_score)


def is_correct(attributions: Attributions, prompt: Prompt) -> bool:
    """Whether the unedited model's likeliest option, by `ranking_scores`, is the gold one."""
    loglikelihoods = attributions.first.loglikelihoods.double()  # as the harness divides them
    return int(ranking_scores(loglikelihoods, prompt).argmax()) == prompt.gold


def _record(
    question: Question,
    attributions: Sequence[Attributions],
    methods: Sequence[Method],
    notes: dict[str, Any],
) -> QuestionRecord:
    gold = tuple(prompt.gold for prompt in question.prompts)
    gaps = {}
    for method in methods:
        measured = [of_prompt.gaps(method.quantity) for of_prompt in attributions]
        largest = [float(one[0].max()) for one in measured if one is not None]
        gaps[method.name] = max(largest, default=None)
    return QuestionRecord(
        question_id=question.question_id,
        doc_ids=tuple(prompt.doc_id for prompt in question.prompts),
        gold=gold,
        loglikelihoods=tuple(
            tuple(of_prompt.first.loglikelihoods.tolist()) for of_prompt in attributions
        ),
        right=tuple(map(is_correct, attributions, question.prompts)),
        completeness_gap=gaps,
        notes={name: note for name, note in notes.items() if note is not None},
    )
