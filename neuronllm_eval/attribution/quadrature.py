"""Rules for the path integral: which values of alpha, with which weights.

Two ways to set them:

1. A rule by name, the same in every layer.
2. Gauss-Lobatto with a number of nodes and a grading of its own in each layer (`LayerRule`), as
   `layer_nodes` finds them. Where F changes within a small part of the path, next to alpha = 0, the
   rule is applied in another variable t: alpha = s * sinh(t * arsinh(1 / s)). For alpha far below
   the scale s, t is proportional to alpha, and far above it to the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronllm_eval.errors import UsageError

Floats = NDArray[np.float64]


class QuadratureRule(NamedTuple):
    """A family of rules for integrals over [0, 1].

    Attributes:
        nodes_and_weights: of the rule of so many steps.
        default_n_steps: nodes unless the user asks for another number.
        least_n_steps: nodes at least.
    """

    nodes_and_weights: Callable[[int], tuple[Floats, Floats]]
    default_n_steps: int
    least_n_steps: int = 1


def _gauss_legendre(n_steps: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1]
    return (nodes + 1) / 2, weights / 2


def _right_riemann(n_steps: int) -> tuple[Floats, Floats]:
    return np.arange(1, n_steps + 1) / n_steps, np.full(n_steps, 1 / n_steps)


@cache
def gauss_lobatto(n_steps: int) -> tuple[Floats, Floats]:
    """Nodes at both ends and at the extrema of the Legendre polynomial of degree n - 1."""
    polynomial = np.polynomial.legendre.Legendre.basis(n_steps - 1)
    nodes = np.concatenate(([-1.0], np.sort(polynomial.deriv().roots().real), [1.0]))
    weights = 2 / (n_steps * (n_steps - 1) * polynomial(nodes) ** 2)
    return (nodes + 1) / 2, weights / 2


QUADRATURES = {
    "gauss_lobatto": QuadratureRule(gauss_lobatto, default_n_steps=5, least_n_steps=2),
    "gauss_legendre": QuadratureRule(_gauss_legendre, default_n_steps=4),
    "right_riemann": QuadratureRule(_right_riemann, default_n_steps=16),  # the paper's
}
MOST_STEPS = 1000  # the rule of so many takes a second, and is exact long before
AUTO_QUADRATURE = "auto"
# Of `auto`: how many nodes layers may have on average, unless the user says.
DEFAULT_BUDGET = 8


class LayerRule(NamedTuple):
    """Gauss-Lobatto in one layer, written `7`, or `7@0.003` where it is graded.

    Attributes:
        n_steps: number of nodes, of which those at alpha = 0 and 1 are two.
        scale: of the grading; infinite for none.
    """

    n_steps: int
    scale: float = math.inf

    @classmethod
    def parse(cls, text: str) -> LayerRule:
        """The rule as written.

        Raises:
            ValueError: it is not one.
        """
        n_steps, _, scale = text.partition("@")
        rule = cls(int(n_steps), float(scale) if scale else math.inf)
        if not (2 <= rule.n_steps <= MOST_STEPS and rule.scale > 0):
            raise ValueError(text)
        return rule

    def __str__(self) -> str:
        scale = "" if math.isinf(self.scale) else f"@{self.scale:g}"
        return f"{self.n_steps}{scale}"

    def alpha(self, t: Floats) -> Floats:
        """Alpha at values of t, both from 0 to 1."""
        if math.isinf(self.scale):
            return t
        values = self.scale * np.sinh(t * np.arcsinh(1 / self.scale))
        return np.where(t == 1, 1.0, values)

    def t(self, alpha: Floats) -> Floats:
        """Inverse of `alpha`."""
        if math.isinf(self.scale):
            return alpha
        return np.asarray(np.arcsinh(alpha / self.scale) / np.arcsinh(1 / self.scale))

    def slope(self, t: Floats) -> Floats:
        """d alpha / dt."""
        if math.isinf(self.scale):
            return np.ones_like(t)
        length = np.arcsinh(1 / self.scale)
        return np.asarray(self.scale * length * np.cosh(t * length))

    def nodes_and_weights(self) -> tuple[Floats, Floats]:
        """[n_steps] values of alpha and [n_steps] weights of the gradients there."""
        t, weights = gauss_lobatto(self.n_steps)
        return self.alpha(t), weights * self.slope(t)


def parse_layer_rules(text: str) -> tuple[LayerRule, ...]:
    """Rules of all layers in order, with spaces between them.

    Raises:
        UsageError: one of them is none.
    """
    try:
        return tuple(map(LayerRule.parse, text.split()))
    except ValueError as error:
        raise UsageError(
            f"layer_nodes is {text!r}",
            expected=f"for each layer 2 to {MOST_STEPS} nodes and, after @, the scale of their "
            "grading, if any, such as '7@0.003 3 3'",
            remedy="copy layer_nodes from a run.yaml, or leave it out",
        ) from error


@dataclass(frozen=True)
class Quadrature:
    """A rule for the path integral: `n_steps` nodes in [0, 1] and their weights.

    A Gauss-Lobatto rule of n + 1 nodes is as exact as a Gauss-Legendre rule of n, and cheaper: its
    ends are F(0), which the completeness gap needs in any case, and the unedited prompt. Where the
    FFN's output is normalised, the gradient at alpha = 0 is so large that it needs a grading.

    Args:
        name: `gauss_lobatto`, `gauss_legendre`, or `right_riemann` as in the paper; `auto` if every
            layer has a rule of its own.
        n_steps: number of nodes; None takes 5, 4 and 16 respectively. For `auto` how many layers
            may have on average; None takes 8.
        layers: of `auto`, the rule of each layer.

    Raises:
        UsageError: unknown rule, or a number of nodes out of range.
    """

    name: str = "gauss_legendre"
    n_steps: int | None = None
    layers: tuple[LayerRule, ...] = ()

    def __post_init__(self) -> None:
        if self.name == AUTO_QUADRATURE:
            rule = QUADRATURES["gauss_lobatto"]._replace(default_n_steps=DEFAULT_BUDGET)
        elif self.name in QUADRATURES:
            rule = QUADRATURES[self.name]
        else:
            raise UsageError(
                f"unknown quadrature {self.name!r}",
                expected=" or ".join(QUADRATURES),
                remedy="check --quadrature",
            )
        if self.n_steps is None:
            object.__setattr__(self, "n_steps", rule.default_n_steps)
        elif not rule.least_n_steps <= self.n_steps <= MOST_STEPS:
            raise UsageError(
                f"n_steps is {self.n_steps}",
                expected=f"{rule.least_n_steps} to {MOST_STEPS} nodes for {self.name}",
                remedy=f"check --n_steps (the default is {rule.default_n_steps})",
            )

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights, float32: [n_steps], or [layers, nodes] if layers have their own.

        Rows of layers with fewer nodes are filled up with ones, of weight 0.
        """
        assert self.n_steps is not None
        if self.layers:
            rules = [rule.nodes_and_weights() for rule in self.layers]
            most = max(len(nodes) for nodes, _ in rules)
            return _padded([nodes for nodes, _ in rules], most, 1.0), _padded(
                [weights for _, weights in rules], most, 0.0
            )
        nodes, weights = QUADRATURES[self.name].nodes_and_weights(self.n_steps)
        return torch.tensor(nodes, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)

    @property
    def n_copies(self) -> int:
        """Edited copies of the scored position that a layer takes, that of alpha = 0 included.

        Of layers with rules of their own, the mean, rounded up.
        """
        if self.layers:
            return math.ceil(sum(rule.n_steps - 1 for rule in self.layers) / len(self.layers))
        nodes, _ = self.rule()
        return 1 + int(((nodes > 0) & (nodes < 1)).sum())

    @property
    def mean_nodes(self) -> int:
        """Nodes of a layer; the mean, rounded up, if layers have their own."""
        assert self.n_steps is not None
        if not self.layers:
            return self.n_steps
        return math.ceil(sum(rule.n_steps for rule in self.layers) / len(self.layers))

    @property
    def layer_nodes(self) -> str | None:
        """The layers' rules as written; None if all have the same."""
        return " ".join(map(str, self.layers)) or None


ONE_STEP = Quadrature("right_riemann", 1)  # its only node is at alpha = 1


def _padded(rows: Sequence[Floats], most: int, value: float) -> Tensor:
    padded = [np.pad(row, (0, most - len(row)), constant_values=value) for row in rows]
    return torch.tensor(np.stack(padded), dtype=torch.float32)
