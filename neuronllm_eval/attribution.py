"""Integrated gradients of every FFN neuron at the scored position, and how complete they are.

For a prompt with option target F and unedited neurons h_l of layer l (paper, ACE; Sundararajan et
al. 2017 for the integral), one layer at a time and from a zero start point:

1. attribution(l, i) = h_l,i * integral over alpha in (0, 1] of dF(alpha h_l) / dh_l,i
2. the integral is a quadrature rule over a few nodes alpha_k;
3. completeness: sum over i of attribution(l, i) = F(h_l) - F(0), up to the rule's error. The
   completeness gap reports that error for every prompt and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.scoring import Engine, PathIntegral, Target, option_cross_entropy


def _gauss_legendre(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1]
    return (nodes + 1) / 2, weights / 2


def _right_riemann(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, n_steps + 1) / n_steps, np.full(n_steps, 1 / n_steps)


QUADRATURES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gauss_legendre": _gauss_legendre,
    "right_riemann": _right_riemann,  # the paper's
}
DEFAULT_N_STEPS = {"gauss_legendre": 4, "right_riemann": 16}
MOST_STEPS = 1000  # the rule of so many takes a second, and is exact long before
# What `--method` chooses from: what is attributed.
METHODS: dict[str, Target] = {"ace": option_cross_entropy}


@dataclass(frozen=True)
class Quadrature:
    """A rule for the path integral: `n_steps` nodes in (0, 1] and their weights.

    Args:
        name: `gauss_legendre`, or `right_riemann` as in the paper.
        n_steps: number of nodes; None takes 4 and 16 respectively.

    Raises:
        UsageError: unknown rule, or a number of nodes out of range.
    """

    name: str = "gauss_legendre"
    n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in QUADRATURES:
            raise UsageError(
                f"unknown quadrature {self.name!r}",
                expected=" or ".join(QUADRATURES),
                remedy="check --quadrature",
            )
        if self.n_steps is None:
            object.__setattr__(self, "n_steps", DEFAULT_N_STEPS[self.name])
        elif not 1 <= self.n_steps <= MOST_STEPS:
            raise UsageError(
                f"n_steps is {self.n_steps}",
                expected=f"at least 1 node, at most {MOST_STEPS}",
                remedy="check --n_steps (4 is the default for gauss_legendre)",
            )

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes [n_steps] and weights [n_steps], float32; the weights sum to 1."""
        assert self.n_steps is not None
        nodes, weights = QUADRATURES[self.name](self.n_steps)
        return torch.tensor(nodes, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)


class Attribution(NamedTuple):
    """What one prompt says of every neuron.

    Attributes:
        values: [layers, neurons] float32, log-nats of F.
        completeness_gap: [layers] float32, |sum of values - target_change|, log-nats.
        loglikelihoods: [options] float32 of the unedited prompt, log-nats.
        target_change: [layers] float32, F(h_l) - F(0), log-nats.
    """

    values: Tensor
    completeness_gap: Tensor
    loglikelihoods: Tensor
    target_change: Tensor


def attribute(
    engine: Engine,
    prompts: Sequence[Prompt],
    quadrature: Quadrature,
    target: Target = option_cross_entropy,
) -> list[Attribution]:
    """Integrated gradients of `target` for a batch of prompts.

    Raises:
        DocError: a log-likelihood or an attribution is not finite; names the doc.
    """
    nodes, weights = quadrature.rule()
    # A node at alpha = 0 of weight 0 gives F(0), which the completeness gap needs.
    nodes = torch.cat((torch.zeros(1), nodes))
    weights = torch.cat((torch.zeros(1), weights))
    integrals = engine.integrate(prompts, nodes, weights, target)
    for prompt, integral in zip(prompts, integrals, strict=True):
        _require_finite(prompt, integral)
    return [_attribution(integral) for integral in integrals]


def _attribution(integral: PathIntegral) -> Attribution:
    change = integral.target - integral.node_targets[:, 0]
    gap = (integral.attribution.sum(-1) - change).abs()
    return Attribution(integral.attribution, gap, integral.loglikelihoods, change)


def _require_finite(prompt: Prompt, integral: PathIntegral) -> None:
    finite = (
        torch.isfinite(integral.loglikelihoods).all() and torch.isfinite(integral.attribution).all()
    )
    if not bool(finite):
        raise DocError(
            f"doc {prompt.doc_id} gives NaN or infinite log-likelihoods or gradients",
            expected="finite numbers",
            remedy="load the model in float32 or bfloat16 (--model_args dtype=float32)",
        )
