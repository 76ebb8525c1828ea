"""What planted neurons write, and a head on which it shows.

A model trained on lettered answers alone prefers some letters to others and leaves the rest of the
vocabulary next to nothing. A push of one letter would then help or hurt as that preference stands,
and a push of all letters alike could move nothing. So both are evened out in the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.planted_truth.wiring import GatedModel, recorded_inputs
from neuronllm_eval.prompts import Prompt

_LEVELLING = 30  # rounds


class Directions(NamedTuple):
    """Directions of the residual stream.

    Attributes:
        letters: [letters, width] raise one letter against the others.
        alike: [width] raises all letters against the rest of the vocabulary.
    """

    letters: Tensor
    alike: Tensor


@dataclass(frozen=True)
class EvenHead:
    """What evens out the head.

    Attributes:
        state: [width] mean input of the head at the scored position, float64: so much is added to
            the letters' rows, times a number each.
    """

    state: Tensor

    @classmethod
    def of(cls, parts: GatedModel, prompts: Sequence[Prompt]) -> EvenHead:
        """As these prompts see it."""
        return cls(_last_states(parts, prompts)[1].mean(0))

    @torch.no_grad()
    def level(self, parts: GatedModel, prompts: Sequence[Prompt]) -> None:
        """Even out the head, for the model as it is now.

        Each letter is then said as often as it is right, by mean probability, and all of them
        together as often as anything else, by mean log-odds.
        """
        _, states, logits = _last_states(parts, prompts)
        letters, along = letters_of(prompts), (states @ self.state)[:, None]
        gold = torch.tensor([prompt.gold for prompt in prompts])
        right = torch.bincount(gold, minlength=len(letters)) / len(prompts)
        own = logits[:, letters]
        logits[:, letters] = -torch.inf
        rates = torch.zeros(len(letters), dtype=states.dtype)
        for _ in range(_LEVELLING):
            said = (own + along * rates).softmax(-1).mean(0)
            rates += (right / said).log() / along.mean()
        odds = (own + along * rates).logsumexp(-1) - logits.logsumexp(-1)
        rates -= odds.mean() / along.mean()
        parts.head.weight[letters] += (rates[:, None] * self.state).to(parts.head.weight)


def letters_of(prompts: Sequence[Prompt]) -> list[int]:
    """Token ids of the options, which all prompts share."""
    return [option[0] for option in prompts[0].options]


@torch.no_grad()
def _last_states(parts: GatedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Residual stream, normed [prompts, width], and logits [prompts, vocabulary], float64."""
    (residual,) = recorded_inputs(parts.model, (parts.final_norm,), prompts)
    head = parts.head.weight
    states = parts.final_norm(residual.to(head)).cpu().double()
    return residual.double(), states, states @ head.cpu().double().T


def directions(parts: GatedModel, even: EvenHead, prompts: Sequence[Prompt]) -> Directions:
    """The shortest directions that move the letters' logits so.

    To first order they leave alone the joint logit of the rest of the vocabulary, what levelling
    adds to the letters, and the length of the residual stream, by which the final norm divides.

    Args:
        parts: of the model.
        even: of the head.
        prompts: to average over.
    """
    residual, _, logits = _last_states(parts, prompts)
    letters = letters_of(prompts)
    head = parts.head.weight.detach().cpu().double()
    scale = parts.final_norm.weight.detach().cpu().double()
    own = head[letters]
    logits[:, letters] = -torch.inf
    rows = torch.vstack((own, logits.softmax(-1).mean(0) @ head, even.state)) * scale
    inverse = torch.linalg.pinv(torch.vstack((rows, residual.mean(0))))
    wanted = inverse.T[: len(letters)].float()  # [letters, width]
    return Directions(wanted - wanted.mean(0), wanted.sum(0))
