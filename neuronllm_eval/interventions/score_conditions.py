"""All conditions over a task's validation split, scored together and judged by the harness.

1. Conditions, the points of a sweep over them (`sweep`) and their random controls become factors
   on every neuron (`conditions`).
2. The engine scores every prompt under all of them: at the scored position in one pass, at all
   positions by a full pass each.
3. Per doc and condition, the option log-likelihoods go to `conditions.jsonl`.
4. The harness turns them into its own metrics and result files (`harness_results`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.interface import Engine, OptionScores
from neuronllm_eval.engine.option_logits import score_shared_tokens
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.harness.results import Answers
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    FEWEST_CONTROLS,
    UNMASKED,
    ConditionName,
    Scales,
    control_name,
    require_condition,
    stack_factors,
)
from neuronllm_eval.interventions.dose_response import Sweep
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.prompts import NOT_FINITE, SCORED, Prompt, Question

MOST_RANDOM = 1000  # controls of each condition, each a mask over all neurons


@dataclass(frozen=True)
class ConditionPlan:
    """Which conditions are scored, and with which random controls.

    Attributes:
        conditions: names, `unmasked` among them always.
        n_random: layer-matched random controls of each condition.
        seed: the first control's seed; the others follow.
        scales: factors of suppressing and enhancing.
        sweep: the numbers of neurons and the factors to try besides.
        points: names of the sweep's points, each with as many random controls; see `over`.
        positions: where they act, one of `positions.POSITIONS`.
    """

    conditions: tuple[str, ...] = CONDITIONS
    n_random: int = FEWEST_CONTROLS
    seed: int = 0
    scales: Scales = field(default_factory=Scales)
    sweep: Sweep = field(default_factory=Sweep)
    points: tuple[str, ...] = ()
    positions: str = SCORED

    def __post_init__(self) -> None:
        for condition in self.conditions:
            require_condition(condition)
        if not 0 <= self.n_random <= MOST_RANDOM:
            raise UsageError(
                f"n_random is {self.n_random}",
                expected=f"0 to {MOST_RANDOM}",
                remedy="check --n_random",
            )
        self.sweep.require_use(self.conditions)

    def over(self, neurons: NeuronSet) -> tuple[NeuronSet, ConditionPlan]:
        """The neurons that the conditions judge, and the plan with the sweep's points over them.

        The largest number of neurons of the sweep is that of the conditions themselves.

        Raises:
            UsageError: the sweep asks for more neurons than were chosen.
        """
        counts = self.sweep.counts(neurons)
        return neurons.top(max(counts)), self.at(counts)

    def at(self, counts: Sequence[int]) -> ConditionPlan:
        """The plan with the sweep's points at these numbers of neurons."""
        return replace(self, points=self.sweep.points(self.conditions, self.scales, counts))

    @property
    def names(self) -> tuple[str, ...]:
        """All that is scored: unmasked first, each condition, each point, then the controls."""
        conditions = [name for name in self.conditions if name != UNMASKED]
        chosen = [UNMASKED, *conditions, *self.points]
        controls = [name for condition in chosen for name in self.controls(condition)]
        return tuple(dict.fromkeys((*chosen, *controls)))

    def controls(self, condition: str) -> tuple[str, ...]:
        """The random controls of a condition; none of `unmasked` and of controls."""
        if condition == UNMASKED or ConditionName.parse(condition).seed is not None:
            return ()
        seeds = range(self.seed, self.seed + self.n_random)
        return tuple(control_name(condition, seed) for seed in seeds)

    @property
    def with_results(self) -> tuple[str, ...]:
        """Names that get a result file: all but the random controls of a sweep's points.

        These are most of a sweep, the harness takes longer to judge them than the model to score
        them, and summaries read `conditions.jsonl`.
        """
        of_points = {control for point in self.points for control in self.controls(point)}
        unwritten = of_points.difference(self.conditions)
        return tuple(name for name in self.names if name not in unwritten)

    def factors(self, neurons: NeuronSet) -> NDArray[Any]:
        """[conditions, layers, neurons] in the order of `names`; see `stack_factors`.

        Raises:
            ArtifactError: a condition asks for more neurons than there are.
        """
        return condition_factors(self.names, neurons, self.scales)


def condition_factors(names: Sequence[str], neurons: NeuronSet, scales: Scales) -> NDArray[Any]:
    """[conditions, layers, neurons] factors of conditions, points and controls by their names.

    Raises:
        ArtifactError: a condition asks for more neurons than there are.
    """
    drawn: dict[tuple[int | None, int | None], NeuronSet] = {}
    edits = []
    for name in map(ConditionName.parse, names):
        which = (name.top_k, name.seed)  # one draw serves all conditions and factors
        if which not in drawn:
            drawn[which] = name.neurons(neurons)
        edits.append(name.edits(drawn[which], scales))
    return stack_factors(neurons.shape, edits)


@dataclass(frozen=True)
class DocScores:
    """One doc (proxy) under every condition: a line of `conditions.jsonl`.

    Attributes:
        question_id: its question.
        doc_id: its index in the task.
        gold: index of the right option.
        loglikelihoods: [conditions, options] float32, log-nats of all of an option's tokens.
        greedy: [conditions, options] bool.
    """

    question_id: str
    doc_id: int
    gold: int
    loglikelihoods: NDArray[np.float32]
    greedy: NDArray[np.bool_]

    def to_record(self) -> dict[str, Any]:
        """JSON values that hold it exactly."""
        arrays = {"loglikelihoods": self.loglikelihoods, "greedy": self.greedy}
        lists = {name: array.tolist() for name, array in arrays.items()}
        return {"question_id": self.question_id, "doc_id": self.doc_id, "gold": self.gold, **lists}

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> DocScores:
        """What `to_record` held."""
        arrays = {
            "loglikelihoods": np.asarray(values["loglikelihoods"], np.float32),
            "greedy": np.asarray(values["greedy"], np.bool_),
        }
        return cls(**{**values, **arrays})


def score_conditions(
    engine: Engine,
    questions: Sequence[Question],
    factors: NDArray[Any],
    batch_size: int,
    units: Iterable[range] | None = None,
) -> Iterator[tuple[Question, list[DocScores] | DocError]]:
    """Score every question's prompts under every condition, one by one as they are taken.

    Args:
        engine: scores the prompts.
        questions: the validation split's questions.
        factors: [conditions, layers, neurons], of any type that holds them exactly.
        batch_size: prompts per pass; whole questions, so at least one question's.
        units: indices of the questions to do; all if not given.

    Yields:
        each question with its docs' scores, in order; or with a DocError if it gives NaN or
        infinity under some condition.
    """
    scales = torch.from_numpy(factors)

    def score(prompts: Sequence[Prompt]) -> list[OptionScores]:
        return engine.score(prompts, scales)

    for index, results in in_batches(questions, batch_size, score, units):
        question = questions[index]
        try:
            docs = [
                _doc_scores(question.question_id, prompt, result, engine)
                for prompt, result in zip(question.prompts, results, strict=True)
            ]
        except DocError as error:
            yield question, error
        else:
            yield question, docs


def _doc_scores(
    question_id: str, prompt: Prompt, result: OptionScores, engine: Engine
) -> DocScores:
    shared, shared_greedy = 0.0, True  # are in the engine's answers
    if engine.positions == SCORED:
        shared, shared_greedy = score_shared_tokens(engine.model, prompt)
    loglikelihoods = result.loglikelihoods.numpy() + np.float32(shared)
    greedy = result.greedy.numpy() & shared_greedy
    if not np.isfinite(loglikelihoods).all():
        raise DocError(
            f"doc {prompt.doc_id} has NaN or infinite log-likelihoods under some condition",
            expected="finite numbers",
            remedy="load the model in float32 or bfloat16, or use smaller scales",
            reason=NOT_FINITE,
        )
    return DocScores(question_id, prompt.doc_id, prompt.gold, loglikelihoods, greedy)


def answers_under(docs: Sequence[DocScores], condition: int) -> Answers:
    """What the harness would have heard from the model under condition number `condition`."""
    return {
        doc.doc_id: list(
            zip(doc.loglikelihoods[condition].tolist(), doc.greedy[condition].tolist(), strict=True)
        )
        for doc in docs
    }
