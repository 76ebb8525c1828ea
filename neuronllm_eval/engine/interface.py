"""What both engines share: the targets, their results, and log-likelihoods from logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.prompts import Prompt

# (option log-likelihoods [..., options] in log-nats, gold index) -> what is attributed [...].
Target = Callable[[Tensor, int], Tensor]


def option_cross_entropy(loglikelihoods: Tensor, gold: int) -> Tensor:
    """Target F: log-softmax over the options' log-likelihoods at the gold option.

    Minus the contrastive cross-entropy over the options: it compares the options with each other
    and does not move when all of them become more or less likely together (DESIGN, terms).

    Args:
        loglikelihoods: [..., options] log-nats.
        gold: index of the right option.

    Returns:
        [...] log-nats, at most 0.
    """
    return loglikelihoods.log_softmax(-1)[..., gold]


def gold_loglikelihood(loglikelihoods: Tensor, gold: int) -> Tensor:
    """log p(gold) over the whole vocabulary, log-nats; arguments as `option_cross_entropy`."""
    return loglikelihoods[..., gold]


def gold_probability(loglikelihoods: Tensor, gold: int) -> Tensor:
    """p(gold) over the whole vocabulary, 0 to 1; arguments as `option_cross_entropy`."""
    return loglikelihoods[..., gold].exp()


# Targets that are the same for logits as for log-likelihoods, so that no other token matters.
SHIFT_INVARIANT: frozenset[Target] = frozenset({option_cross_entropy})


# Targets that are e to the power of another, whose gradients so are the other's times themselves.
POWERS: Mapping[Target, Target] = {gold_probability: gold_loglikelihood}


class Integrand(NamedTuple):
    """What is summed up over the nodes of a path.

    Attributes:
        target: what is attributed.
        weights: [nodes] quadrature weights.
    """

    target: Target
    weights: Tensor

    @property
    def differentiated(self) -> Target:
        """Whose gradients are taken; one backward pass serves all integrands that share it."""
        return POWERS.get(self.target, self.target)

    def values(self, differentiated: Tensor) -> Tensor:
        """Values of the target from those of what is differentiated, of any shape."""
        return differentiated.exp() if self.target in POWERS else differentiated

    def slopes(self, differentiated: Tensor) -> Tensor:
        """What gradients are to be multiplied with; as `values`."""
        values = self.values(differentiated)
        return values if self.target in POWERS else torch.ones_like(values)


class OptionScores(NamedTuple):
    """How one prompt's options score under each edit.

    Attributes:
        loglikelihoods: [edits, options] float32, log-nats over the whole vocabulary, as lm-eval.
            Tokens that all options share count only if all positions are edited: else no edit
            changes them (`score_shared_tokens`).
        greedy: [edits, options] bool, whether the option is what greedy decoding would say.
    """

    loglikelihoods: Tensor
    greedy: Tensor


class PathIntegral(NamedTuple):
    """One prompt's integrated gradients of every neuron along alpha * h_l, one layer at a time.

    Attributes:
        attribution: [layers, neurons] float32, h * sum over nodes of weight * dF/dh(alpha h).
        node_targets: [layers, nodes] F at every node.
        target: F of the unedited prompt.
        loglikelihoods: [options] of the unedited prompt, log-nats.
    """

    attribution: Tensor
    node_targets: Tensor
    target: float
    loglikelihoods: Tensor


class PathIntegrals(NamedTuple):
    """The same of several integrands, which share the pass.

    Attributes:
        integrals: one for each integrand.
        neurons: [layers, neurons] float32 of the unedited prompt at the last context token, or
            their mean over the context if all positions are edited.
    """

    integrals: tuple[PathIntegral, ...]
    neurons: Tensor


class Engine(Protocol):
    """Many edits of one prompt at the scored or at all positions -> option log-likelihoods."""

    name: str
    positions: str
    model: nn.Module
    layers: FFNLayers

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        """Score every prompt under every condition.

        Args:
            prompts: scored together as one batch.
            scales: [conditions, layers, neurons] factors applied at the engine's positions.
        """
        ...

    def integrate_all(
        self, prompts: Sequence[Prompt], nodes: Tensor, integrands: Sequence[Integrand]
    ) -> list[PathIntegrals]:
        """Integrate gradients along alpha * h_l for every layer l.

        Args:
            prompts: attributed together as one batch.
            nodes: [nodes] values of alpha in [0, 1], ascending.
            integrands: at least one.
        """
        ...

    def integrate(
        self, prompts: Sequence[Prompt], nodes: Tensor, weights: Tensor, target: Target
    ) -> list[PathIntegral]:
        """`integrate_all` of one integrand."""
        found = self.integrate_all(prompts, nodes, [Integrand(target, weights)])
        return [each.integrals[0] for each in found]


def score_options(logits: Tensor, options: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-likelihoods and greedy flags of one-token options.

    Args:
        logits: [..., vocabulary].
        options: token ids.

    Returns:
        log-likelihoods [..., options] float32 in log-nats; greedy [..., options] bool.
    """
    logits = logits.float()
    ids = torch.as_tensor(list(options), device=logits.device)
    loglikelihoods = logits[..., ids] - logits.logsumexp(-1, keepdim=True)
    return loglikelihoods, logits.argmax(-1, keepdim=True) == ids


@torch.no_grad()
def score_shared_tokens(model: nn.Module, prompt: Prompt) -> tuple[float, bool]:
    """Log-likelihood of the options' shared leading tokens, and whether they are greedy.

    The harness counts them in every option. They come before the scored position, so no edit
    of it changes them.

    Returns:
        log-nats, and whether greedy decoding would say all of them; 0 and True without any.
    """
    if prompt.n_shared == 0:
        return 0.0, True
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    tokens = right_pad([prompt.context[:-1]], device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, -prompt.n_shared :].float()
    ids = torch.tensor(prompt.context[-prompt.n_shared :], device=logits.device)
    loglikelihoods = logits.log_softmax(-1).gather(-1, ids[:, None])
    return float(loglikelihoods.sum()), bool((logits.argmax(-1) == ids).all())


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[sequences, longest] token ids, padded with 0 on the right.

    Under a causal mask the tokens before the padding never see it, so no mask is needed. lm-eval
    pads in the same way.
    """
    longest = max(len(sequence) for sequence in sequences)
    rows = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)
