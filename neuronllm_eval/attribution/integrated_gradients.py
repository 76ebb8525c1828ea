"""Integrated gradients of every FFN neuron, and how complete they are.

For a prompt with option target F and unedited neurons h_l of layer l (paper, ACE; Sundararajan et
al. 2017 for the integral), one layer at a time and from a zero start point:

1. attribution(l, i) = h_l,i * integral over alpha in (0, 1] of dF(alpha h_l) / dh_l,i
2. The integral is a quadrature rule over a few nodes alpha_k (`quadrature`), in each layer its own.
   Engines that edit all positions scale h_l at every position together and sum over positions.
3. Completeness: sum over i of attribution(l, i) = F(h_l) - F(0), up to the rule's error. The
   completeness gap reports that error for every prompt and layer.

Gradient times activation takes one pass for all layers; where nothing else is computed, F(0), which
would take more for each layer, is not, and the gap is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.interface import (
    Engine,
    Integrand,
    Target,
    option_cross_entropy,
)
from neuronllm_eval.errors import DocError
from neuronllm_eval.prompts import NOT_FINITE, Prompt

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
        completeness_gap: [layers] float32, |sum of values - target_change|; None if not measured,
            as of gradient times activation, which does not add up to the change.
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

    def gaps(self, quantity: Quantity | None) -> tuple[Tensor, Tensor] | None:
        """[layers] completeness gaps and changes of the target; None where they are not measured.

        Args:
            quantity: whose; None for what needs no attribution, and so has no gap.
        """
        if quantity is None:
            return None
        attribution = self.by_quantity[quantity]
        if attribution.completeness_gap is None or attribution.target_change is None:
            return None
        return attribution.completeness_gap, attribution.target_change


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
    if nodes.dim() == 1:  # where layers have their own, both ends are among them
        zero, one = torch.zeros(1), torch.ones(1)
        if nodes[0] > 0 and not one_pass:  # a node at alpha = 0 gives F(0), for the gap
            nodes, weights = torch.cat((zero, nodes)), torch.cat((zero, weights))
        if nodes[-1] < 1 and not all(quantity.path for quantity in quantities):
            nodes, weights = torch.cat((nodes, one)), torch.cat((weights, zero))
    at_one = torch.zeros_like(nodes)
    at_one[..., -1] = 1.0
    integrands = [
        Integrand(quantity.target, weights if quantity.path else at_one) for quantity in quantities
    ]
    results = []
    for integrals in engine.integrate_all(prompts, nodes, integrands):
        by_quantity = {}
        for quantity, integral in zip(quantities, integrals, strict=True):
            change = gap = None
            if quantity.path:
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
