"""Integrated gradients of every FFN neuron, and how complete they are.

For a prompt with option target F and unedited neurons h_l of layer l (paper, ACE; Sundararajan et
al. 2017 for the integral), one layer at a time and from a zero start point:

1. attribution(l, i) = h_l,i * integral over alpha in (0, 1] of dF(alpha h_l) / dh_l,i
2. the integral is a quadrature rule over a few nodes alpha_k;
   Engines of all positions scale h_l at every position together and sum over positions;
3. completeness: sum over i of attribution(l, i) = F(h_l) - F(0), up to the rule's error. The
   completeness gap reports that error for every prompt and layer.

Gradient times activation at all positions takes one pass for all layers; there F(0), which would
take one more pass for each layer, is not computed, and the gap is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    PathIntegral,
    PathIntegrals,
    Target,
    option_cross_entropy,
)
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.prompts import ALL, Prompt


def _gauss_legendre(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1]
    return (nodes + 1) / 2, weights / 2


def _right_riemann(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, n_steps + 1) / n_steps, np.full(n_steps, 1 / n_steps)


def _gauss_lobatto(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes at both ends and at the extrema of the Legendre polynomial of degree n - 1."""
    polynomial = np.polynomial.legendre.Legendre.basis(n_steps - 1)
    nodes = np.concatenate(([-1.0], np.sort(polynomial.deriv().roots().real), [1.0]))
    weights = 2 / (n_steps * (n_steps - 1) * polynomial(nodes) ** 2)
    return (nodes + 1) / 2, weights / 2


QUADRATURES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gauss_lobatto": _gauss_lobatto,
    "gauss_legendre": _gauss_legendre,
    "right_riemann": _right_riemann,  # the paper's
}
DEFAULT_N_STEPS = {"gauss_lobatto": 5, "gauss_legendre": 4, "right_riemann": 16}
LEAST_N_STEPS = {"gauss_lobatto": 2, "gauss_legendre": 1, "right_riemann": 1}
MOST_STEPS = 1000  # the rule of so many takes a second, and is exact long before
AUTO_QUADRATURE = "auto"
# `auto` leaves Gauss-Lobatto where its gaps exceed this many times Gauss-Legendre's and this share
# of the change that attributions add up to. An unsound gradient exceeds both a hundredfold.
_MUCH_LARGER, _SHARE = 4.0, 0.01
N_PROBES = 4
# Why a doc is set aside.
NOT_FINITE = "NaN or infinite numbers"


@dataclass(frozen=True)
class Quadrature:
    """A rule for the path integral: `n_steps` nodes in [0, 1] and their weights.

    A Gauss-Lobatto rule of n + 1 nodes is as exact as a Gauss-Legendre rule of n, and cheaper: its
    ends are F(0), which the completeness gap needs in any case, and the unedited prompt. It needs
    a gradient at alpha = 0, which a model that normalises the FFN's output does not have.

    Args:
        name: `gauss_lobatto`, `gauss_legendre`, or `right_riemann` as in the paper.
        n_steps: number of nodes; None takes 5, 4 and 16 respectively.

    Raises:
        UsageError: unknown rule, or a number of nodes out of range.
    """

    name: str = "gauss_legendre"
    n_steps: int | None = None

    @property
    def n_copies(self) -> int:
        """Edited copies of the scored position that a layer takes, that of alpha = 0 included."""
        nodes, _ = self.rule()
        return 1 + int(((nodes > 0) & (nodes < 1)).sum())

    def __post_init__(self) -> None:
        if self.name not in QUADRATURES:
            raise UsageError(
                f"unknown quadrature {self.name!r}",
                expected=" or ".join(QUADRATURES),
                remedy="check --quadrature",
            )
        if self.n_steps is None:
            object.__setattr__(self, "n_steps", DEFAULT_N_STEPS[self.name])
        least = LEAST_N_STEPS[self.name]
        if self.n_steps is not None and not least <= self.n_steps <= MOST_STEPS:
            raise UsageError(
                f"n_steps is {self.n_steps}",
                expected=f"{least} to {MOST_STEPS} nodes for {self.name}",
                remedy=f"check --n_steps (the default is {DEFAULT_N_STEPS[self.name]})",
            )

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes [n_steps] and weights [n_steps], float32; the weights sum to 1."""
        assert self.n_steps is not None
        nodes, weights = QUADRATURES[self.name](self.n_steps)
        return torch.tensor(nodes, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)


class Quantity(NamedTuple):
    """What is attributed.

    Attributes:
        target: whose gradients.
        path: whether they are integrated along alpha * h; else they are those at alpha = 1, and
            the attribution is gradient times activation.
    """

    target: Target
    path: bool = True


class Attribution(NamedTuple):
    """What one prompt says of every neuron.

    Attributes:
        values: [layers, neurons] float32, in units of F (log-nats of `option_cross_entropy`).
        completeness_gap: [layers] float32, |sum of values - target_change|; None if not measured.
        loglikelihoods: [options] float32 of the unedited prompt, log-nats.
        target_change: [layers] float32, F(h_l) - F(0); None if not measured.
    """

    values: Tensor
    completeness_gap: Tensor | None
    loglikelihoods: Tensor
    target_change: Tensor | None

    def gaps(self) -> tuple[Tensor, Tensor]:
        """Completeness gap and change of the target, where they are measured."""
        assert self.completeness_gap is not None
        assert self.target_change is not None
        return self.completeness_gap, self.target_change


class Attributions(NamedTuple):
    """Several quantities of one prompt, from one pass.

    Attributes:
        of: by quantity, the first of which the prompt's record is about.
        activations: [layers, neurons] float32, as `PathIntegrals`.
    """

    of: dict[Quantity, Attribution]
    activations: Tensor

    @property
    def first(self) -> Attribution:
        """Of the first quantity."""
        return next(iter(self.of.values()))

    def about(self, quantity: Quantity | None) -> Attribution:
        """Of this quantity, or of the first for what needs none."""
        return self.first if quantity is None else self.of[quantity]


# Attributes prompts by a rule.
Probe = Callable[[Sequence[Prompt], Quadrature], list[Attribution]]


def choose_quadrature(
    compute: Probe,
    prompts: Sequence[Prompt],
    name: str,
    n_steps: int | None,
    n_probes: int = N_PROBES,
) -> Quadrature:
    """The rule of this name; of `auto` the cheapest that these prompts find sound.

    That is Gauss-Lobatto, if the completeness gaps of a few prompts show that the gradient at
    alpha = 0 is to be used. Else it is Gauss-Legendre with one node less, which is as exact.

    Args:
        compute: attributes prompts by a rule, and lets numbers that are not finite pass.
        prompts: of the run.
        name: one of `QUADRATURES`, or `auto`.
        n_steps: nodes of the rule, for `auto` those of Gauss-Lobatto; None takes the default.
        n_probes: how many of the prompts decide, at most.

    Raises:
        UsageError: as `Quadrature`.
    """
    if name != AUTO_QUADRATURE:
        return Quadrature(name, n_steps)
    lobatto = Quadrature("gauss_lobatto", n_steps)
    assert lobatto.n_steps is not None
    legendre = Quadrature("gauss_legendre", lobatto.n_steps - 1)
    step = max(1, len(prompts) // n_probes)
    probes = list(prompts)[::step][:n_probes]
    pairs = list(zip(compute(probes, lobatto), compute(probes, legendre), strict=True))
    # A doc that is not finite by either rule says nothing of them.
    both = [pair for pair in pairs if is_finite(pair[0]) and is_finite(pair[1])]
    against = any(is_finite(other) and not is_finite(one) for one, other in pairs)
    if against or not both:
        return legendre
    gap, other_gap = (sum(float(pair[k].gaps()[0].sum()) for pair in both) for k in (0, 1))
    change = sum(float(other.gaps()[1].abs().sum()) for _, other in both)
    return legendre if gap > max(_MUCH_LARGER * other_gap, _SHARE * change) else lobatto


def attribute(
    engine: Engine,
    prompts: Sequence[Prompt],
    quadrature: Quadrature,
    target: Target = option_cross_entropy,
    *,
    finite: bool = True,
) -> list[Attribution]:
    """Integrated gradients of `target` for a batch of prompts.

    Args:
        engine: computes the gradients.
        prompts: attributed together as one batch.
        quadrature: rule for the path integral.
        target: what is attributed.
        finite: False leaves it to the caller to look for numbers that are not (`not_finite`).

    Raises:
        DocError: a log-likelihood or an attribution is not finite; names the doc.
    """
    found = [each.first for each in attribute_all(engine, prompts, quadrature, [Quantity(target)])]
    for prompt, attribution in zip(prompts, found, strict=True):
        error = not_finite(prompt, attribution) if finite else None
        if error is not None:
            raise error
    return found


def attribute_all(
    engine: Engine,
    prompts: Sequence[Prompt],
    quadrature: Quadrature,
    quantities: Sequence[Quantity],
) -> list[Attributions]:
    """Several quantities for a batch of prompts, in one forward pass.

    Each target has a backward pass, but for those that share one (`interface.EXPONENTIAL_OF`).

    Args:
        engine: computes the gradients.
        prompts: attributed together as one batch.
        quadrature: rule for the path integrals.
        quantities: at least one. Their numbers may be NaN or infinite.
    """
    if takes_one_pass(engine, quantities):
        nodes = torch.ones(1)
        integrands = [Integrand(each.target, nodes) for each in quantities]
        found = engine.integrate_all(prompts, nodes, integrands)
        return [_attributions(each, quantities, _without_gap) for each in found]
    nodes, weights = quadrature.rule()
    ends = torch.zeros(1), torch.ones(1)
    if nodes[0] > 0:  # a node at alpha = 0 gives F(0), which the completeness gap needs
        nodes, weights = torch.cat((ends[0], nodes)), torch.cat((ends[0], weights))
    if nodes[-1] < 1 and not all(quantity.path for quantity in quantities):
        nodes, weights = torch.cat((nodes, ends[1])), torch.cat((weights, ends[0]))
    at_one = torch.zeros_like(nodes)
    at_one[-1] = 1.0
    integrands = [Integrand(each.target, weights if each.path else at_one) for each in quantities]
    found = engine.integrate_all(prompts, nodes, integrands)
    return [_attributions(each, quantities, _with_gap) for each in found]


def takes_one_pass(engine: Engine, quantities: Sequence[Quantity]) -> bool:
    """Whether one pass serves all layers: all positions are edited, and no path is integrated."""
    return engine.positions == ALL and not any(quantity.path for quantity in quantities)


def _attributions(
    found: PathIntegrals,
    quantities: Sequence[Quantity],
    attribution: Callable[[PathIntegral], Attribution],
) -> Attributions:
    each = map(attribution, found.integrals)
    return Attributions(dict(zip(quantities, each, strict=True)), found.activations)


def _without_gap(integral: PathIntegral) -> Attribution:
    return Attribution(integral.attribution, None, integral.loglikelihoods, None)


def _with_gap(integral: PathIntegral) -> Attribution:
    change = integral.target - integral.node_targets[:, 0]
    gap = (integral.attribution.sum(-1) - change).abs()
    return Attribution(integral.attribution, gap, integral.loglikelihoods, change)


def is_finite(attribution: Attribution) -> bool:
    """Whether there is neither NaN nor infinity anywhere."""
    return all(bool(torch.isfinite(each).all()) for each in attribution if each is not None)


def not_finite(prompt: Prompt, found: Attribution | Attributions) -> DocError | None:
    """What is wrong with a doc that gives NaN or infinity anywhere; None if it does not."""
    each = [found] if isinstance(found, Attribution) else list(found.of.values())
    activations = [] if isinstance(found, Attribution) else [found.activations]
    if all(map(is_finite, each)) and all(bool(torch.isfinite(one).all()) for one in activations):
        return None
    return DocError(
        f"doc {prompt.doc_id} gives NaN or infinite log-likelihoods or gradients",
        expected="finite numbers",
        remedy="load the model in float32 or bfloat16 (--model_args dtype=float32)",
        reason=NOT_FINITE,
    )
