"""Integrated gradients of every FFN neuron, and how complete they are.

For a prompt with option target F and unedited neurons h_l of layer l (paper, ACE; Sundararajan et
al. 2017 for the integral), one layer at a time and from a zero start point:

1. attribution(l, i) = h_l,i * integral over alpha in (0, 1] of dF(alpha h_l) / dh_l,i
2. The integral is a quadrature rule over a few nodes alpha_k. Engines that edit all positions scale
   h_l at every position together and sum over positions.
3. Completeness: sum over i of attribution(l, i) = F(h_l) - F(0), up to the rule's error. The
   completeness gap reports that error for every prompt and layer.

Gradient times activation takes one pass for all layers; where nothing else is computed, F(0), which
would take more for each layer, is not, and the gap is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuronllm_eval.engine.batching import compute_what_fits
from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    Target,
    option_cross_entropy,
)
from neuronllm_eval.engine.pass_size import tree_size
from neuronllm_eval.errors import DocError, UsageError
from neuronllm_eval.prompts import NOT_FINITE, Prompt
from neuronllm_eval.runtime.process import bar, own_rank

# Quadrature rules -------------------------------------------------------------------------------


class QuadratureRule(NamedTuple):
    """A family of rules for integrals over [0, 1].

    Attributes:
        nodes_and_weights: of the rule of so many steps.
        default_n_steps: nodes unless the user asks for another number.
        least_n_steps: nodes at least.
    """

    nodes_and_weights: Callable[[int], tuple[np.ndarray, np.ndarray]]
    default_n_steps: int
    least_n_steps: int = 1


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


QUADRATURES = {
    "gauss_lobatto": QuadratureRule(_gauss_lobatto, default_n_steps=5, least_n_steps=2),
    "gauss_legendre": QuadratureRule(_gauss_legendre, default_n_steps=4),
    "right_riemann": QuadratureRule(_right_riemann, default_n_steps=16),  # the paper's
}
MOST_STEPS = 1000  # the rule of so many takes a second, and is exact long before
AUTO_QUADRATURE = "auto"


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

    def __post_init__(self) -> None:
        if self.name not in QUADRATURES:
            raise UsageError(
                f"unknown quadrature {self.name!r}",
                expected=" or ".join(QUADRATURES),
                remedy="check --quadrature",
            )
        rule = QUADRATURES[self.name]
        if self.n_steps is None:
            object.__setattr__(self, "n_steps", rule.default_n_steps)
        elif not rule.least_n_steps <= self.n_steps <= MOST_STEPS:
            raise UsageError(
                f"n_steps is {self.n_steps}",
                expected=f"{rule.least_n_steps} to {MOST_STEPS} nodes for {self.name}",
                remedy=f"check --n_steps (the default is {rule.default_n_steps})",
            )

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes [n_steps] and weights [n_steps], float32; the weights sum to 1."""
        assert self.n_steps is not None
        nodes, weights = QUADRATURES[self.name].nodes_and_weights(self.n_steps)
        return torch.tensor(nodes, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)

    @property
    def n_copies(self) -> int:
        """Edited copies of the scored position that a layer takes, that of alpha = 0 included."""
        nodes, _ = self.rule()
        return 1 + int(((nodes > 0) & (nodes < 1)).sum())


# Attributions -----------------------------------------------------------------------------------


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
    """One prompt's attributions of one quantity.

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

    @property
    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity anywhere."""
        return all(bool(torch.isfinite(part).all()) for part in self if part is not None)


class Attributions(NamedTuple):
    """One prompt's attributions of several quantities, from one pass.

    Attributes:
        by_quantity: the first is the one that the prompt's record is about.
        activations: [layers, neurons] float32, as `PathIntegral`.
    """

    by_quantity: dict[Quantity, Attribution]
    activations: Tensor

    @property
    def first(self) -> Attribution:
        """Of the first quantity."""
        return next(iter(self.by_quantity.values()))

    def about(self, quantity: Quantity | None) -> Attribution:
        """Of this quantity, or of the first for what needs none."""
        return self.first if quantity is None else self.by_quantity[quantity]


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
    results = attribute_all(engine, prompts, quadrature, [Quantity(target)])
    error = not_finite(prompts, results)
    if error is not None:
        raise error
    return [attributions.first for attributions in results]


def attribute_all(
    engine: Engine,
    prompts: Sequence[Prompt],
    quadrature: Quadrature,
    quantities: Sequence[Quantity],
) -> list[Attributions]:
    """Several quantities for a batch of prompts, in one forward pass.

    Each target has a backward pass, except those that share one (`interface.EXPONENTIAL_OF`).

    Args:
        engine: computes the gradients.
        prompts: attributed together as one batch.
        quadrature: rule for the path integrals.
        quantities: at least one. Their numbers may be NaN or infinite (`not_finite`).
    """
    one_pass = takes_one_pass(quantities)
    nodes, weights = (torch.ones(1), torch.ones(1)) if one_pass else quadrature.rule()
    zero, one = torch.zeros(1), torch.ones(1)
    if nodes[0] > 0 and not one_pass:  # a node at alpha = 0 gives F(0), for the completeness gap
        nodes, weights = torch.cat((zero, nodes)), torch.cat((zero, weights))
    if nodes[-1] < 1 and not all(quantity.path for quantity in quantities):
        nodes, weights = torch.cat((nodes, one)), torch.cat((weights, zero))
    at_one = torch.zeros_like(nodes)
    at_one[-1] = 1.0
    integrands = [
        Integrand(quantity.target, weights if quantity.path else at_one) for quantity in quantities
    ]
    results = []
    for integrals in engine.integrate_all(prompts, nodes, integrands):
        by_quantity = {}
        for quantity, integral in zip(quantities, integrals, strict=True):
            change = gap = None
            if not one_pass:
                change = integral.target - integral.node_targets[:, 0]
                gap = (integral.attribution.sum(-1) - change).abs()
            by_quantity[quantity] = Attribution(
                integral.attribution, gap, integral.loglikelihoods, change
            )
        results.append(Attributions(by_quantity, integrals[0].activations))
    return results


def takes_one_pass(quantities: Sequence[Quantity]) -> bool:
    """Whether one pass serves all layers: no path is integrated."""
    return not any(quantity.path for quantity in quantities)


def not_finite(prompts: Sequence[Prompt], attributions: Sequence[Attributions]) -> DocError | None:
    """What is wrong with the first doc that gives NaN or infinity anywhere; None if none does."""
    for prompt, of_prompt in zip(prompts, attributions, strict=True):
        finite = all(attribution.is_finite for attribution in of_prompt.by_quantity.values())
        if not (finite and bool(torch.isfinite(of_prompt.activations).all())):
            return DocError(
                f"doc {prompt.doc_id} gives NaN or infinite log-likelihoods or gradients",
                expected="finite numbers",
                remedy="load the model in float32 or bfloat16 (--model_args dtype=float32)",
                reason=NOT_FINITE,
            )
    return None


# Choosing a rule --------------------------------------------------------------------------------

# `auto` leaves Gauss-Lobatto where its gaps exceed this many times Gauss-Legendre's and this share
# of the change that attributions add up to. A gradient that is wrong at alpha = 0 exceeds both a
# hundredfold.
_MUCH_LARGER, _SHARE = 4.0, 0.01
_N_PROBES, _N_PROBES_OF_TEXTS = 4, 2
# The replay engine, of layers x nodes passes per prompt, tries rules on one prompt of so many.
_PROMPTS_PER_PROBE = 50


def choose_quadrature(
    engine: Engine,
    prompts: Sequence[Prompt],
    name: str,
    n_steps: int | None = None,
) -> Quadrature:
    """The rule of this name; for `auto` the cheapest that is exact on a few of these prompts.

    That is Gauss-Lobatto, if the completeness gaps show that the gradient at alpha = 0 can be used.
    Otherwise it is Gauss-Legendre with one node less, which is as exact.

    Args:
        engine: attributes the prompts.
        prompts: of the run.
        name: one of `QUADRATURES`, or `auto`.
        n_steps: nodes of the rule, for `auto` those of Gauss-Lobatto; None takes the default.

    Raises:
        UsageError: as `Quadrature`.
    """
    if name != AUTO_QUADRATURE:
        return Quadrature(name, n_steps)
    lobatto = Quadrature("gauss_lobatto", n_steps)
    assert lobatto.n_steps is not None
    legendre = Quadrature("gauss_legendre", lobatto.n_steps - 1)
    is_slow = engine.name == "replay"
    n_probes = max(1, min(_N_PROBES, len(prompts) // _PROMPTS_PER_PROBE)) if is_slow else _N_PROBES
    probes = list(prompts)[:: max(1, len(prompts) // n_probes)][:n_probes]
    if max(map(tree_size, probes)) > 1:  # their passes take longer than those of letters
        probes = sorted(probes, key=tree_size)[:_N_PROBES_OF_TEXTS]
    results: dict[Quadrature, list[Attribution]] = {lobatto: [], legendre: []}
    with bar(
        total=2 * len(probes),
        desc="choose the quadrature",
        unit="prompt",
        leave=False,
        shown=is_slow and not own_rank(),
    ) as progress:
        for rule, attributions in results.items():
            attribute_by_rule = partial(
                attribute_all,
                engine,
                quadrature=rule,
                quantities=[Quantity(option_cross_entropy)],
            )
            for probe in probes:
                (of_probe,), _ = compute_what_fits([probe], 1, attribute_by_rule)
                attributions.append(of_probe.first)
                progress.update()
    return lobatto if is_exact_at_zero(results[lobatto], results[legendre]) else legendre


def is_exact_at_zero(lobatto: Sequence[Attribution], legendre: Sequence[Attribution]) -> bool:
    """Whether Gauss-Lobatto, with its node at alpha = 0, is as complete as Gauss-Legendre.

    A prompt that is not finite by either rule says nothing about them.
    """
    pairs = [pair for pair in zip(lobatto, legendre, strict=True) if pair[1].is_finite]
    if not pairs or not all(at_zero.is_finite for at_zero, _ in pairs):
        return False
    gap, legendre_gap = (
        sum(_total(pair[rule].completeness_gap) for pair in pairs) for rule in (0, 1)
    )
    change = sum(_total(inner.target_change) for _, inner in pairs)
    return gap <= max(_MUCH_LARGER * legendre_gap, _SHARE * change)


def _total(values: Tensor | None) -> float:
    assert values is not None  # paths are integrated, so gaps are measured
    return float(values.abs().sum())
