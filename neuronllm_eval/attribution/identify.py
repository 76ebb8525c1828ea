"""The streaming pass over questions: attributions -> ES -> G_e, B_e -> sums of every method.

1. Questions are taken in units of whole questions (`work`), of which each process has its share.
2. Every prompt is attributed (`attribution.attribute_all`), once for all methods; what it says of
   neurons (`methods.Method.values`) is summed over the question's proxies: the example score ES_e.
3. Per layer, the `top_z` highest positive neurons of ES_e form G_e, the lowest negative B_e.
4. The ACE score of a neuron is the sum of ES_e over the questions where it is in G_e or B_e; other
   methods sum over all questions, or in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    Quadrature,
    Quantity,
    attribute_all,
    not_finite,
)
from neuronllm_eval.attribution.methods import ACE, GradXAct, Method
from neuronllm_eval.attribution.score_sums import ScoreSums
from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.prompts import ALL, SCORED, Question
from neuronllm_eval.runtime.checkpoint import Tally
from neuronllm_eval.runtime.work_units import prompts_digest

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
        positions: where neurons are attributed, one of `positions.POSITIONS`; the engine's.
    """

    methods: tuple[Method, ...] = (ACE(),)
    quadrature: Quadrature = field(default_factory=Quadrature)
    top_z: float = 0.1
    batch_size: int = 1
    positions: str = SCORED

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(
                f"batch_size is {self.batch_size}",
                expected="1 or more",
                remedy="check --batch_size",
            )

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What the methods need, each once; ACE's if activations are all they need.

        At all positions it is GradXAct's then, which takes one pass.
        """
        found = dict.fromkeys(each.quantity for each in self.methods if each.quantity is not None)
        return tuple(found) or ((GradXAct if self.positions == ALL else ACE).quantity,)


@dataclass(frozen=True)
class QuestionRecord:
    """One line of `questions.jsonl`, and what methods keep of a question besides.

    Attributes:
        question_id: the question.
        doc_ids: per proxy, the doc's index in the task.
        gold: per proxy, the index of the right option.
        loglikelihoods: per proxy and option, log-nats of the unmasked model, of the tokens that
            the options do not share.
        right: per proxy, whether the likeliest option is the gold one.
        completeness_gap: by method, the largest over proxies and layers, in units of its target;
            None where it is not measured.
        notes: by method, what it keeps (`Method.note`).
    """

    question_id: str
    doc_ids: tuple[int, ...]
    gold: tuple[int, ...]
    loglikelihoods: tuple[tuple[float, ...], ...]
    right: tuple[bool, ...]
    completeness_gap: dict[str, float | None]
    notes: dict[str, Any]


def tally_of(sums: Sums) -> Tally:
    """What is added up over processes."""
    return sum((each.tally(f"{name}/") for name, each in sums.items()), Tally())


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
    found: Sequence[Attributions],
    top_z: int,
) -> Any:
    """Add question number `index` to a method's sums.

    Args:
        sums: of the method.
        method: what is summed up.
        index: place of the question; even and odd ones are halves.
        question: its prompts.
        found: of each of them.
        top_z: neurons per layer that it votes for.

    Returns:
        what the method keeps of the question (`Method.note`).
    """
    values = [method.values(each) for each in found]
    example_score = torch.stack(values).sum(0)
    good, bad = vote(example_score, top_z)
    half = index % 2
    for prompt, each, own in zip(question.prompts, found, values, strict=True):
        fixed = sums.fixed(own)
        group = method.group(is_right(each, prompt.gold))
        sums.letter_sums[prompt.gold] += fixed
        sums.group_count[group, half] += 1
        sums.add_gaps(each.about(method.quantity))
        if not method.votes:
            sums.group_sums[group, half] += fixed
    if method.votes:
        voted = torch.where(good | bad, example_score, 0.0)
        sums.group_sums[0, half] += sums.fixed(voted)
    sums.good_count += good.cpu().numpy()
    sums.bad_count += bad.cpu().numpy()
    sums.n_questions += 1
    sums.n_prompts += len(question.prompts)
    return method.note(index, example_score)


def is_right(found: Attributions, gold: int) -> bool:
    """Whether the unedited model's likeliest option is the gold one."""
    return int(found.first.loglikelihoods.argmax()) == gold


def identify(
    engine: Engine,
    questions: Sequence[Question],
    settings: IdentificationSettings,
    record: Callable[[QuestionRecord], object],
    sums: Sums | None = None,
    units: Iterable[range] | None = None,
    set_aside: Callable[[Question, DocError], object] | None = None,
) -> Sums:
    """Attribute every question and sum up.

    Args:
        engine: attributes the prompts.
        questions: the selection split's questions.
        settings: see `IdentificationSettings`.
        record: called with each question's record, in order.
        sums: to add to (`empty_sums`); of what is done here if not given.
        units: places of the questions to do; all if not given.
        set_aside: called with each question that gives NaN or infinity, which then counts nowhere.

    Raises:
        DocError: such a question, if `set_aside` is not given.
    """
    top_z = resolve_count(settings.top_z, engine.layers.width, "top_z")
    sums = sums or empty_sums(engine, questions, settings.methods)
    for index, own in in_batches(
        questions,
        settings.batch_size,
        lambda prompts: attribute_all(engine, prompts, settings.quadrature, settings.quantities),
        units,
    ):
        question = questions[index]
        pairs = zip(question.prompts, own, strict=True)
        wrong = (not_finite(prompt, each) for prompt, each in pairs)
        error = next(filter(None, wrong), None)
        if error is not None:
            if set_aside is None:
                raise error
            set_aside(question, error)
            continue
        notes = {
            method.name: add_question(sums[method.name], method, index, question, own, top_z)
            for method in settings.methods
        }
        record(_record(question, own, settings.methods, notes))
    return sums


def empty_sums(
    engine: Engine, questions: Sequence[Question], methods: Sequence[Method] = (ACE(),)
) -> Sums:
    """Sums of nothing yet, over these questions."""
    n_letters = max(len(prompt.options) for question in questions for prompt in question.prompts)
    asked = prompts_digest(questions)
    return {
        method.name: ScoreSums.zeros(
            engine.layers.shape, n_letters, method.n_groups, method.unit, asked
        )
        for method in methods
    }


def _record(
    question: Question,
    found: Sequence[Attributions],
    methods: Sequence[Method],
    notes: dict[str, Any],
) -> QuestionRecord:
    rows = [tuple(each.first.loglikelihoods.tolist()) for each in found]
    gold = tuple(prompt.gold for prompt in question.prompts)
    gaps = {
        method.name: _largest_gap([each.about(method.quantity) for each in found])
        for method in methods
    }
    return QuestionRecord(
        question_id=question.question_id,
        doc_ids=tuple(prompt.doc_id for prompt in question.prompts),
        gold=gold,
        loglikelihoods=tuple(rows),
        right=tuple(is_right(each, answer) for each, answer in zip(found, gold, strict=True)),
        completeness_gap=gaps,
        notes={name: note for name, note in notes.items() if note is not None},
    )


def _largest_gap(found: Sequence[Attribution]) -> float | None:
    gaps = [each.completeness_gap for each in found]
    return max((float(gap.max()) for gap in gaps if gap is not None), default=None)
