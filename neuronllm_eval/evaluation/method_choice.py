"""Which settings of a method serve the task best: candidates, and the choice among them. Pure.

Candidates are compared by what their neurons do on questions that did not select them: the
calibrated confidence under `enhance` minus that under `degrade`, where calibrated confidence is
the softmax over the options at the gold one after batch calibration. A
candidate whose `enhance` breaks the model is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import answers_of
from neuronllm_eval.evaluation.robust_effects import COLLAPSED
from neuronllm_eval.formats.typed_files import PositiveCount, artifact, load
from neuronllm_eval.runs.directory import RunDirectory

# `enhance` may not leave less of the options' total probability, nor give so many one answer.
LEAST_MASS = 0.8  # of the unmasked model's
MOST_SAME_ANSWER = COLLAPSED / 100  # unless the unmasked model does


@dataclass(frozen=True)
class Scored:
    """A doc under the unmasked model and under the conditions of some candidates.

    Attributes:
        gold: index of the gold option.
        loglikelihoods: [conditions, options] log-nats.
        lengths: [options] by which these are divided before options are compared; () for none.
    """

    gold: int
    loglikelihoods: NDArray[np.floating[Any]]
    lengths: tuple[float, ...] = ()


@artifact
@dataclass(frozen=True)
class Candidate:
    """A candidate, and what its neurons do on questions that did not select them.

    Attributes:
        penalty: setting of the method.
        top_k: good and bad neurons.
        difference: calibrated confidence under enhance minus that under degrade, percentage points.
        error: its standard error over docs.
        gain: calibrated confidence under enhance minus the unmasked model's, percentage points.
        option_mass: total probability of the options under enhance, as a share of the unmasked
            model's.
        top_answer: percent of the docs with the most frequent answer under enhance.
        is_sound: whether enhance leaves the model whole.
    """

    penalty: Annotated[float, Field(ge=0)]
    top_k: PositiveCount
    difference: float
    error: float
    gain: float
    option_mass: float
    top_answer: float
    is_sound: bool


@artifact
@dataclass(frozen=True)
class MethodChoice:
    """The content of `method_choice.json`.

    Attributes:
        candidates: all that were tried.
        chosen: index of the one that was taken.
        n_docs: docs that they were compared on.
    """

    candidates: tuple[Candidate, ...]
    chosen: Annotated[int, Field(ge=0)]
    n_docs: PositiveCount

    def __post_init__(self) -> None:
        if self.chosen >= len(self.candidates):
            raise ValueError(f"chosen is {self.chosen} of {len(self.candidates)} candidates")

    @property
    def best(self) -> Candidate:
        """The candidate that was taken."""
        return self.candidates[self.chosen]

    @classmethod
    def load(cls, path: Path) -> MethodChoice:
        """Read a `method_choice.json`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return load(cls, path, "run identify again")


def read_choice(run: RunDirectory) -> MethodChoice:
    """The `method_choice.json` of a run that has one.

    Raises:
        ArtifactError: it is damaged.
    """
    return run.once(run.choice, lambda: MethodChoice.load(run.choice))


def choose(
    settings: Sequence[tuple[float, int]], halves: Sequence[Sequence[Scored]]
) -> MethodChoice:
    """The best of some candidates, the one of fewest neurons among equals.

    Args:
        settings: (penalty, neurons) of each.
        halves: per half of the questions the docs under the unmasked model, then under enhance and
            degrade of each candidate, whose neurons the other half selected.

    Raises:
        ArtifactError: there are no docs.
    """
    parts = [
        answers_of(
            [doc.loglikelihoods for doc in docs],
            [doc.lengths for doc in docs],
            np.array([doc.gold for doc in docs]),
        )
        for docs in halves
        if docs
    ]
    if not parts:
        raise ArtifactError(
            "no selection question has finite log-likelihoods under the candidates' conditions",
            expected="questions to choose the method by",
            remedy="name a method, such as --method ace_balanced",
        )
    confidence = np.concatenate([part.calibrated_confidence for part in parts])
    mass = np.concatenate([part.option_mass for part in parts]).mean(0)
    # Each half has neurons of its own, which may prefer another answer.
    top_answer = np.average(
        [[np.bincount(each).max() / len(each) for each in part.predicted.T] for part in parts],
        axis=0,
        weights=[len(part.predicted) for part in parts],
    )
    candidates = []
    for number, (penalty, top_k) in enumerate(settings):
        enhance, degrade = 1 + 2 * number, 2 + 2 * number
        differences = 100 * (confidence[:, enhance] - confidence[:, degrade])
        share = float(mass[enhance] / mass[0])
        same, unmasked = top_answer[[enhance, 0]]
        collapses = same >= MOST_SAME_ANSWER and same > unmasked
        candidates.append(
            Candidate(
                penalty=penalty,
                top_k=top_k,
                difference=float(differences.mean()),
                error=float(differences.std() / np.sqrt(len(differences))),
                gain=float(100 * (confidence[:, enhance] - confidence[:, 0]).mean()),
                option_mass=share,
                top_answer=float(100 * same),
                is_sound=bool(share >= LEAST_MASS and not collapses),
            )
        )
    order = sorted(
        range(len(candidates)),
        key=lambda index: (
            not candidates[index].is_sound,
            -candidates[index].difference,
            candidates[index].top_k,
        ),
    )
    return MethodChoice(tuple(candidates), order[0], len(confidence))
