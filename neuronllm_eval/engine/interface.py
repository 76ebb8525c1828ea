"""What an engine computes: targets, results, and the `Engine` protocol that both engines follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.prompts import Prompt

# (option log-likelihoods [..., options] in log-nats, gold index) -> what is attributed [...].
Target = Callable[[Tensor, int], Tensor]


def option_cross_entropy(loglikelihoods: Tensor, gold: int) -> Tensor:
    """Target F: log-softmax over the options' log-likelihoods at the gold option.

    Minus the contrastive cross-entropy over the options (paper, ACE): it compares the options with
    each other and does not change when all of them become more or less likely together. Of prompts
    with lengths it gets log-likelihoods divided by them (`target_values`).

    Args:
        loglikelihoods: [..., options] log-nats.
        gold: index of the gold option.

    Returns:
        [...] log-nats, at most 0.
    """
    return loglikelihoods.log_softmax(-1)[..., gold]


def calibrated_cross_entropy(loglikelihoods: Tensor, gold: int) -> Tensor:
    """Target F after each option's prior is taken off (`Prompt.priors`, `target_values`).

    Where a model prefers an answer whatever the question, F is steep for the questions with another
    answer and flat for those with this one; without the priors all of them count.

    Source: ours, after batch calibration (Zhou et al., ICLR 2024), which takes mean
    log-probabilities off predictions.

    Args:
        loglikelihoods: [..., options] log-nats less the priors.
        gold: index of the gold option.

    Returns:
        [...] log-nats, at most 0.
    """
    return option_cross_entropy(loglikelihoods, gold)


def gold_loglikelihood(loglikelihoods: Tensor, gold: int) -> Tensor:
    """log p(gold) over the whole vocabulary, log-nats; arguments as `option_cross_entropy`."""
    return loglikelihoods[..., gold]


def gold_probability(loglikelihoods: Tensor, gold: int) -> Tensor:
    """p(gold) over the whole vocabulary, 0 to 1; arguments as `option_cross_entropy`."""
    return loglikelihoods[..., gold].exp()


# Targets that compare options with each other. They are the same for logits as for
# log-likelihoods, so that no other token matters; of prompts with lengths they get log-likelihoods
# divided by these.
SHIFT_INVARIANT: frozenset[Target] = frozenset({option_cross_entropy, calibrated_cross_entropy})
# Targets that are the exponential of another one: d exp(T) = exp(T) dT, so both share a backward
# pass.
EXPONENTIAL_OF: Mapping[Target, Target] = {gold_probability: gold_loglikelihood}


def ranking_scores(loglikelihoods: Tensor, prompt: Prompt) -> Tensor:
    """What options are compared by: log-likelihoods, divided by the options' lengths if any.

    The likeliest option by these is the one that the harness's metric takes as the answer.

    Args:
        loglikelihoods: [..., options] log-nats, of all tokens of an option if the prompt has
            lengths.
        prompt: of the options.
    """
    if not prompt.lengths:
        return loglikelihoods
    return loglikelihoods / loglikelihoods.new_tensor(prompt.lengths)


def target_values(
    target: Target, loglikelihoods: Tensor, prompt: Prompt, shared: Tensor | float = 0.0
) -> Tensor:
    """A target of one prompt [...], which compares options by `ranking_scores` if by anything.

    Args:
        target: one of those above, or another.
        loglikelihoods: [..., options] log-nats, without the tokens that all options share.
        prompt: of the options.
        shared: [...] log-likelihood of these tokens; needed where the prompt counts them.
    """
    if target in SHIFT_INVARIANT and prompt.lengths:
        loglikelihoods = ranking_scores(_with_shared(loglikelihoods, shared), prompt)
    if target is calibrated_cross_entropy and prompt.priors:
        loglikelihoods = loglikelihoods - loglikelihoods.new_tensor(prompt.priors)
    return target(loglikelihoods, prompt.gold)


def _with_shared(loglikelihoods: Tensor, shared: Tensor | float) -> Tensor:
    return loglikelihoods + (shared[..., None] if isinstance(shared, Tensor) else shared)


class Integrand(NamedTuple):
    """A target and the quadrature weights over which its gradients are summed.

    Attributes:
        target: what is attributed.
        weights: [nodes] quadrature weights, or [layers, nodes] as the nodes.
    """

    target: Target
    weights: Tensor

    @property
    def differentiated(self) -> Target:
        """The target of the backward pass, which all integrands that have it in common share."""
        return EXPONENTIAL_OF.get(self.target, self.target)

    def values(self, differentiated: Tensor) -> Tensor:
        """Values of `target` from values of `differentiated`, of any shape."""
        return differentiated.exp() if self.target in EXPONENTIAL_OF else differentiated

    def slopes(self, differentiated: Tensor) -> Tensor:
        """d target / d differentiated, from values of `differentiated`, of any shape."""
        values = self.values(differentiated)
        return values if self.target in EXPONENTIAL_OF else torch.ones_like(values)


def by_layer(
    n_layers: int, nodes: Tensor, integrands: Sequence[Integrand]
) -> tuple[Tensor, list[Integrand]]:
    """Nodes and the integrands' weights as [layers, nodes], where all layers have the same too."""

    def rows(values: Tensor) -> Tensor:
        return values.expand(n_layers, -1) if values.dim() == 1 else values

    return rows(nodes), [one._replace(weights=rows(one.weights)) for one in integrands]


class OptionScores(NamedTuple):
    """One prompt's options under each edit.

    Attributes:
        loglikelihoods: [edits, options] float32, log-nats over the whole vocabulary, as lm-eval.
            Tokens that all options share are included only if all positions are edited: otherwise
            no edit changes them (`score_shared_tokens`).
        greedy: [edits, options] bool, whether greedy decoding would produce the option.
        kl: [edits] float32, how far each edit moves the distribution of the token behind the
            context: KL(p || q), nats, p under the first edit and q under each one.
    """

    loglikelihoods: Tensor
    greedy: Tensor
    kl: Tensor

    @classmethod
    def joined(cls, chunks: Sequence[tuple[Tensor, Tensor, Tensor]]) -> OptionScores:
        """The same of several chunks of edits, on the CPU."""
        return cls(*(torch.cat(parts).cpu() for parts in zip(*chunks, strict=True)))


class PathIntegral(NamedTuple):
    """One prompt's integrated gradients of every neuron along alpha * h_l, one layer at a time.

    Attributes:
        attribution: [layers, neurons] float32, h * sum over nodes of weight * dF/dh(alpha h).
        node_targets: [layers, nodes] F at every node.
        node_slopes: [layers, nodes] float32, dF(alpha h_l)/dalpha at every node.
        target: F of the unedited prompt.
        loglikelihoods: [options] of the unedited prompt, log-nats, without the tokens that all
            options share; with them if the prompt counts them.
        activations: [layers, neurons] float32 of the unedited prompt at the last context token, or
            their mean over the context if all positions are edited.
    """

    attribution: Tensor
    node_targets: Tensor
    node_slopes: Tensor
    target: float
    loglikelihoods: Tensor
    activations: Tensor


def path_integrals(
    prompt: Prompt,
    integrands: Sequence[Integrand],
    attribution: Tensor,
    node_targets: Tensor,
    node_slopes: Tensor,
    loglikelihoods: Tensor,
    activations: Tensor,
    shared: Tensor | float = 0.0,
) -> tuple[PathIntegral, ...]:
    """One prompt's integrals; of the first three arguments after `integrands` one for each.

    `loglikelihoods` and `shared` are as in `target_values`.
    """
    return tuple(
        PathIntegral(
            attribution[index],
            node_targets[index],
            node_slopes[index],
            float(target_values(integrand.target, loglikelihoods, prompt, shared)),
            _with_shared(loglikelihoods, shared),
            activations,
        )
        for index, integrand in enumerate(integrands)
    )


def target_gradients(
    integrands: Sequence[Integrand],
    scores: Sequence[Tensor],
    prompts: Sequence[Prompt],
    leaves: Sequence[Tensor],
    shared: Sequence[Tensor | float],
) -> Iterator[tuple[list[int], Tensor, Sequence[Tensor]]]:
    """Values and gradients, from one backward pass for all integrands that can share it.

    Args:
        integrands: whose targets are differentiated.
        scores: per prompt [..., options] log-likelihoods; see `target_values`.
        prompts: of the scores.
        leaves: what gradients are taken of.
        shared: per prompt [...] what the tokens that all options share add to its scores.

    Yields:
        indices of the integrands; [prompts, ...] values of what they differentiate; the gradients
        of their sum by leaf.
    """
    targets = list(dict.fromkeys(integrand.differentiated for integrand in integrands))
    for target in targets:
        values = torch.stack(
            [
                target_values(target, of_prompt, prompt, of_shared)
                for of_prompt, prompt, of_shared in zip(scores, prompts, shared, strict=True)
            ]
        )
        gradients = torch.autograd.grad(
            values.sum(), list(leaves), retain_graph=target is not targets[-1]
        )
        sharing = [
            i for i, integrand in enumerate(integrands) if integrand.differentiated is target
        ]
        yield sharing, values.detach(), gradients


class Engine(Protocol):
    """Scores and differentiates prompts under many edits of their neurons.

    Attributes:
        name: `fan_out` or `replay`.
        positions: which positions are edited, one of `prompts.POSITIONS`.
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
    """

    name: str
    positions: str
    model: nn.Module
    layers: FFNLayers

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """Score every prompt under every edit.

        Args:
            prompts: scored together as one batch.
            scales: [edits, layers, neurons] factors applied at the engine's positions.
        """
        ...

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[tuple[PathIntegral, ...]]:
        """Integrate gradients along alpha * h_l for every layer l.

        Args:
            prompts: attributed together as one batch.
            nodes: [nodes] values of alpha in [0, 1], ascending, for all layers alike; or [layers,
                nodes] for each. Further nodes at alpha = 1 fill up the rows of layers with fewer;
                they cost nothing.
            integrands: at least one, whose weights have the shape of the nodes or are the same in
                all layers.

        Returns:
            per prompt the integral of each integrand.
        """
        ...

    def integrate(
        self, prompts: Sequence[Prompt], nodes: Tensor, weights: Tensor, target: Target
    ) -> list[PathIntegral]:
        """`integrate_all` of one integrand."""
        return [
            first for (first,) in self.integrate_all(prompts, nodes, [Integrand(target, weights)])
        ]
