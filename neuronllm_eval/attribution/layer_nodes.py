"""Which nodes each layer's path integral needs, found once for a run on a few of its prompts.

1. On the probes, dF(alpha h_l)/dalpha is taken at 17 graded nodes in every layer. Layers where
   these do not add up to F(h_l) - F(0), and which miss most, get 65.
2. What any other rule would give is read off the polynomial through these values: its predicted
   completeness gap, without passes of its own.
3. Each layer gets the rule of fewest nodes whose predicted gap is within a tolerance, and is with a
   node more as well, so that it is not so by chance.
4. The tolerance is 0.5% of the layer's change, or as much more as it takes for all layers together
   to have no more nodes than the budget.

All of it is our reading: the paper has the same steps in all layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from neuronllm_eval.attribution.quadrature import (
    AUTO_QUADRATURE,
    Floats,
    LayerRule,
    Quadrature,
    gauss_lobatto,
)
from neuronllm_eval.engine.batching import compute_what_fits
from neuronllm_eval.engine.interface import Engine, PathIntegral, option_cross_entropy
from neuronllm_eval.engine.pass_size import tree_size
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.runtime.process import bar, own_rank

# Shares of a layer's change, which counts as at least that of the mean of all layers.
TOLERANCE, _LEAST_CHANGE = 0.005, 0.5
_NO_CHANGE = 1e-9  # in log-nats
_WIDER = 1.25  # times the tolerance, until the nodes are within the budget
_COARSE, _FINE = LayerRule(17, 1e-3), LayerRule(65, 0.1)
_FEWEST = 3
_COUNTS = {_COARSE: range(_FEWEST, 17), _FINE: (*range(_FEWEST, 18), 21, 25, 33, 41, 49, 65)}
_SCALES = (math.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
# Of the layers, those that get the fine rule: one in so many, and at least one.
_LAYERS_PER_FINE = 8
_N_PROBES, _N_PROBES_OF_TEXTS, _AMONG = 3, 2, 4
# The replay engine, of layers x nodes passes per prompt, has one probe in so many prompts.
_PROMPTS_PER_PROBE = 50


def choose_quadrature(
    engine: Engine,
    prompts: Sequence[Prompt],
    name: str,
    n_steps: int | None = None,
) -> Quadrature:
    """The rule of this name; for `auto` a rule for each layer that suits a few of these prompts.

    Where all probes give NaN or infinity, it is Gauss-Legendre, which needs nothing at alpha = 0.

    Args:
        engine: differentiates the prompts.
        prompts: of the run.
        name: one of `QUADRATURES`, or `auto`.
        n_steps: nodes of the rule, for `auto` how many layers may have on average; None takes the
            default.

    Raises:
        UsageError: as `Quadrature`.
    """
    quadrature = Quadrature(name, n_steps)
    if name != AUTO_QUADRATURE:
        return quadrature
    assert quadrature.n_steps is not None
    probes = probe_prompts(prompts, is_slow=engine.name == "replay")
    n_layers = engine.layers.n_layers
    slopes, changes = _profiles(engine, probes, [_COARSE] * n_layers)
    sums = slopes.sum((1, 2)) + changes.sum(1)  # NaN or infinite if anything is
    finite = np.isfinite(sums)
    if not finite.any():
        return Quadrature("gauss_legendre")
    probes = [probe for probe, usable in zip(probes, finite.tolist(), strict=True) if usable]
    slopes, changes = slopes[finite], changes[finite]
    sizes = np.abs(changes).mean(0)  # [layers]
    sizes = np.maximum(sizes, max(_LEAST_CHANGE * sizes.mean(), _NO_CHANGE))
    _, weights = _COARSE.nodes_and_weights()
    missed = np.abs(slopes @ weights - changes).mean(0)
    unresolved = [
        layer
        for layer in np.argsort(-missed, kind="stable")
        if missed[layer] > TOLERANCE * sizes[layer]
    ][: max(1, n_layers // _LAYERS_PER_FINE)]
    gaps = [_predicted_gaps(_COARSE, slopes[:, layer]) for layer in range(n_layers)]
    if unresolved:
        given = [_FINE if layer in unresolved else None for layer in range(n_layers)]
        fine, _ = _profiles(engine, probes, given)
        for layer in unresolved:
            gaps[layer] = _predicted_gaps(_FINE, fine[:, layer])
    return Quadrature(name, quadrature.n_steps, _within_budget(gaps, sizes, quadrature.n_steps))


def probe_prompts(prompts: Sequence[Prompt], *, is_slow: bool) -> list[Prompt]:
    """The prompts on which nodes are chosen, spread over those of the run.

    Args:
        prompts: of the run.
        is_slow: whether each node of each layer takes a full pass.
    """
    spread = list(prompts)[:: max(1, len(prompts) // _AMONG)][:_AMONG]
    # Large trees take longer.
    most = _N_PROBES if max(map(tree_size, spread)) == 1 else _N_PROBES_OF_TEXTS
    if is_slow:
        most = max(1, min(most, len(prompts) // _PROMPTS_PER_PROBE))
    return sorted(spread, key=tree_size)[:most]


def _profiles(
    engine: Engine, probes: Sequence[Prompt], rules: Sequence[LayerRule | None]
) -> tuple[Floats, Floats]:
    """dF(alpha h_l)/dalpha [probes, layers, nodes], and F(h_l) - F(0) [probes, layers].

    Args:
        engine: differentiates the prompts.
        probes: the prompts.
        rules: of each layer, with as many nodes each; None for a layer that is left out, whose
            values mean nothing.
    """
    some = next(rule for rule in rules if rule is not None)
    ones = np.ones(some.n_steps)
    rows = [ones if rule is None else rule.nodes_and_weights()[0] for rule in rules]
    nodes = torch.tensor(np.stack(rows), dtype=torch.float32)
    weights = torch.zeros_like(nodes)
    results: list[PathIntegral] = []

    def integrate(prompts: list[Prompt]) -> list[PathIntegral]:
        return engine.integrate(prompts, nodes, weights, option_cross_entropy)

    with bar(
        total=len(probes),
        desc="choose the nodes",
        unit="prompt",
        leave=False,
        shown=engine.name == "replay" and not own_rank(),
    ) as progress:
        for probe in probes:
            results += compute_what_fits([probe], 1, integrate)[0]
            progress.update()
    slopes = torch.stack([one.node_slopes for one in results])
    changes = torch.stack([one.target - one.node_targets[:, 0] for one in results])
    return slopes.double().cpu().numpy(), changes.double().cpu().numpy()


# What rules would give --------------------------------------------------------------------------

# Of a layer by rule: the completeness gap that is expected, in log-nats, mean over the probes.
Gaps = dict[LayerRule, float]


def _predicted_gaps(measured: LayerRule, slopes: Floats) -> Gaps:
    """Gaps of all rules that are tried in a layer, and of the rule it was measured with.

    Args:
        measured: the rule at whose nodes slopes were measured.
        slopes: [probes, nodes] dF/dalpha.
    """
    rules, sums = _rules_tried(measured)
    _, exact = measured.nodes_and_weights()
    missed = np.abs(slopes @ (sums - exact).T).mean(0)  # [rules]
    return {rule: float(gap) for rule, gap in zip(rules, missed, strict=True)} | {measured: 0.0}


@cache
def _rules_tried(measured: LayerRule) -> tuple[list[LayerRule], Floats]:
    """The rules, and [rules, nodes] what each makes of slopes at the nodes of the measured one.

    A rule's nodes lie between these, where slopes in t (as in `LayerRule`) are read off the
    polynomial through the measured ones.
    """
    t, weights = gauss_lobatto(measured.n_steps)
    # By the barycentric formula, whose weights at these nodes are the square roots of those of the
    # quadrature, with alternating signs.
    signed = np.sqrt(weights) * (-1.0) ** np.arange(measured.n_steps)
    rules, sums = [], []
    for n_steps in _COUNTS[measured]:
        for scale in _SCALES:
            rule = LayerRule(n_steps, scale)
            nodes, of_nodes = rule.nodes_and_weights()
            at = measured.t(nodes)
            away = at[:, None] - t
            meets = np.isclose(away, 0, atol=1e-12)
            terms = signed / np.where(meets, 1.0, away)
            at_node = meets.any(1, keepdims=True)
            between = np.where(at_node, meets, terms / terms.sum(1, keepdims=True))
            rules.append(rule)
            sums.append((of_nodes / measured.slope(at)) @ between * measured.slope(t))
    return rules, np.stack(sums)


def _within_budget(gaps: Sequence[Gaps], sizes: Floats, budget: int) -> tuple[LayerRule, ...]:
    """For every layer a rule within the least tolerance at which all have nodes enough.

    Args:
        gaps: of each layer.
        sizes: of each layer, the change that the tolerance is a share of.
        budget: nodes that layers may have on average, each counted by the share of the layers that
            its copy runs through: its own and the later ones. Three are the fewest even so.
    """
    tolerance = TOLERANCE
    shares = np.arange(len(gaps), 0, -1)
    most = (max(budget, _FEWEST) - 1) * shares.sum()  # alpha = 1 takes no copy
    while True:
        rules = tuple(
            _cheapest(of_layer, tolerance * size)
            for of_layer, size in zip(gaps, sizes, strict=True)
        )
        if (
            sum(share * (rule.n_steps - 1) for share, rule in zip(shares, rules, strict=True))
            <= most
        ):
            return rules
        tolerance *= _WIDER


def _cheapest(gaps: Gaps, tolerance: float) -> LayerRule:
    """The rule of fewest nodes that keeps within a tolerance, of these the one of smallest gap."""
    counts = sorted({rule.n_steps for rule in gaps})
    more = dict(zip(counts, [*counts[1:], counts[-1]], strict=True))
    for n_steps in counts:
        sturdy = [
            rule
            for rule in gaps
            if rule.n_steps == n_steps
            and gaps[rule] <= tolerance
            and gaps.get(LayerRule(more[n_steps], rule.scale), 0.0) <= tolerance
        ]
        if sturdy:
            return min(sturdy, key=gaps.__getitem__)
    raise AssertionError("the measured rule has no gap to itself")
