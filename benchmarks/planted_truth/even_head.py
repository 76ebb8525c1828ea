"""The outputs of planted neurons, and a balanced head that shows their effect.

A model trained on lettered answers only prefers some letters to others and gives the rest of the
vocabulary almost no probability. Raising one letter would then help or hurt depending on that
preference, and raising all letters alike would have no effect. So both are balanced in the head.
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
    """Balances the head.

    Attributes:
        state: [width] mean input of the head at the scored position, float64; a multiple of it is
            added to each letter's row.
    """

    state: Tensor

    @classmethod
    def of(cls, parts: GatedModel, prompts: Sequence[Prompt]) -> EvenHead:
        """With the mean state of these prompts."""
        return cls(_last_states(parts, prompts)[1].mean(0))

    @torch.no_grad()
    def level(self, parts: GatedModel, prompts: Sequence[Prompt]) -> None:
        """Balance the head for the current model.

        Each letter is then predicted as often as it is gold, by mean probability, and all of them
        together as often as anything else, by mean log-odds.
        """
        _, states, logits = _last_states(parts, prompts)
        letters, along = letters_of(prompts), (states @ self.state)[:, None]
        gold = torch.tensor([prompt.gold for prompt in prompts])
        gold_share = torch.bincount(gold, minlength=len(letters)) / len(prompts)
        own = logits[:, letters]
        logits[:, letters] = -torch.inf
        rates = torch.zeros(len(letters), dtype=states.dtype)
        for _ in range(_LEVELLING):
            predicted = (own + along * rates).softmax(-1).mean(0)
            rates += (gold_share / predicted).log() / along.mean()
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
    """The shortest directions with these effects on the letters' logits.

    To first order they do not change the joint logit of the rest of the vocabulary, what balancing
    adds to the letters, and the length of the residual stream, by which the final norm divides.

    Args:
        parts: of the model.
        even: its balanced head.
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
