"""Whether fan-out gives what full passes give, within what rounding does in a model.

Scores are compared with the replay engine's, path integrals with those of an engine that saves
nothing. What differs by no more than a few times the model's own rounding is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import option_cross_entropy, score_options
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.prompts import Prompt

# Differences in log-nats that rounding explains at the least; what it does in a given model is
# measured.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
NOISE_FACTOR = 8
# Differences of attributions relative to the largest, between ways to compute the same.
GRADIENT_TOLERANCE = {
    torch.float32: 1e-2,
    torch.float64: 1e-4,
    torch.bfloat16: 0.3,
    torch.float16: 0.1,
}
# Late joining has to be this much nearer: what a layer does with its FFN's output could change a
# little of it, and the next way is nearly as cheap.
STRICTNESS = 1 / 3
# A context, and the options behind it: of each the first token's logit is compared.
Read = tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Unlike:
    """Why a way to compute is not taken.

    Attributes:
        text: what differs by how much, or the error.
        raised: whether it is an error: then it may be a fault rather than what the model is like.
    """

    text: str
    raised: bool = False

    @property
    def log_level(self) -> int:
        """At which a way that is nearly as good is reported."""
        return logging.WARNING if self.raised else logging.INFO

    def __str__(self) -> str:
        return self.text


def disagreement(
    fan_out: FanOutEngine, replay: ReplayEngine, prompts: Sequence[Prompt]
) -> Unlike | None:
    """Why fan-out cannot be trusted on these prompts, or None if both engines agree.

    Two comparisons, in log-nats: edited and unedited copies with full passes, and unedited copies
    at the two ends of a pass with each other. What differs by no more than a few times this
    model's own rounding is the same.
    """
    scales = _probe_scales(fan_out.layers, fan_out.rows_per_prompt)
    checked = [0, -2, -1]  # the full passes are the dear ones; a few edits do for them
    try:
        with _memory_named():
            fast = fan_out.score(prompts, scales)
    except BROKEN as error:
        return Unlike(described(error), raised=True)
    slow = replay.score(prompts, scales[checked])
    tolerance = _tolerance(fan_out.model, prompts, [one.loglikelihoods for one in slow])
    gap = _largest_gap(
        [one.loglikelihoods[checked] for one in fast], [one.loglikelihoods for one in slow]
    )
    if not gap <= tolerance:  # also catches NaN
        return Unlike(f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:.3g})")
    spread = _largest_gap(
        [one.loglikelihoods[0] for one in fast], [one.loglikelihoods[-3] for one in fast]
    )
    if not spread <= tolerance:
        return Unlike(
            f"copies of one pass differ by {spread:.3g} log-nats (tolerance {tolerance:.3g})"
        )
    return None


def unlike_plain(fan_out: FanOutEngine, prompts: Sequence[Prompt]) -> Unlike | None:
    """Why an engine's savings change path integrals on these prompts, or None if they do not.

    Scores are compared elsewhere. Attributions, and the log-likelihoods that come with them, are
    compared with those of an engine that shares nothing, computes every row from the first layer
    on and every logit.
    """
    plain = FanOutEngine(
        fan_out.model,
        fan_out.layers,
        mask_style=fan_out.mask_style,
        savings=Savings.NONE,
        rows_per_prompt=fan_out.rows_per_prompt,
    )
    nodes, weights = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 1.0]) / 6  # Simpson
    try:
        with _memory_named():
            expected = plain.integrate(prompts, nodes, weights, option_cross_entropy)
            found = fan_out.integrate(prompts, nodes, weights, option_cross_entropy)
    except BROKEN as error:
        return Unlike(described(error), raised=True)
    share = GRADIENT_TOLERANCE.get(next(fan_out.model.parameters()).dtype, 0.3)
    if fan_out.savings is Savings.LATE:
        share *= STRICTNESS
    for one, other in zip(found, expected, strict=True):
        size = float(other.attribution.abs().max())
        gap = float((one.attribution - other.attribution).abs().max())
        if not gap <= share * size:  # also catches NaN
            return Unlike(f"attributions differ by {gap:.3g} of {size:.3g} log-nats")
    ones, others = ([each.loglikelihoods for each in either] for either in (found, expected))
    tolerance = _tolerance(fan_out.model, prompts, others)
    gap = _largest_gap(ones, others)
    if not gap <= tolerance:
        return Unlike(f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:.3g})")
    ones, others = ([each.node_targets for each in either] for either in (found, expected))
    gap = _largest_gap(ones, others)
    if not gap <= tolerance:
        return Unlike(f"targets differ by {gap:.3g} log-nats (tolerance {tolerance:.3g})")
    return None


# What a pass may raise in a model that cannot do it.
BROKEN = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


def described(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@contextmanager
def _memory_named() -> Iterator[None]:
    """Running out of memory says nothing of the model's attention, so it ends the check."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"out of memory while checking the fan-out engine on a few prompts: {error}",
            expected="room for three prompts",
            remedy="use a smaller model, dtype=bfloat16, or parallelize=True in --model_args",
        ) from error


def _tolerance(
    model: nn.Module, prompts: Sequence[Prompt], loglikelihoods: Sequence[Tensor]
) -> float:
    """What rounding may do to log-likelihoods of about this size, log-nats."""
    largest = max(float(each.abs().max()) for each in loglikelihoods)
    read = [(prompt.context, prompt.options) for prompt in prompts]
    return rounding_tolerance(model, read, largest)


def rounding_tolerance(model: nn.Module, read: Sequence[Read], largest: float) -> float:
    """What rounding may do to log-likelihoods in this model, log-nats.

    Args:
        model: a Hugging Face causal LM in eval mode.
        read: what is read off behind which contexts.
        largest: the largest absolute log-likelihood.
    """
    dtype = next(model.parameters()).dtype
    return max(
        TOLERANCE.get(dtype, 0.1),
        NOISE_FACTOR * rounding_noise(model, read),
        2 * torch.finfo(dtype).eps * largest,  # two units in the last place of a log-likelihood
    )


@torch.no_grad()
def rounding_noise(model: nn.Module, read: Sequence[Read]) -> float:
    """What rounding alone does to log-likelihoods behind contexts in this model, log-nats.

    The last token is fed after the others, as in generation, and together with them. Both are
    ordinary uses of the model and equal but for rounding.
    """
    gaps = [0.0]
    for context, options in read:
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        ids = torch.tensor([context], device=device)
        if ids.shape[1] < 2:
            continue
        whole = model(input_ids=ids, use_cache=False).logits[0, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        after = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        first = [option[0] for option in options]
        one, other = (score_options(logits, first)[0] for logits in (whole, after))
        gaps.append(float((one - other).abs().max()))
    return max(gaps)


def _largest_gap(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """NaN in any of them is NaN, as max() of floats is not."""
    gaps = [(one - other).abs().max() for one, other in zip(ones, others, strict=True)]
    return float(torch.stack(gaps).max())


def _probe_scales(layers: FFNLayers, n_rows: int) -> Tensor:
    """[rows, layers, neurons] int8: unedited rows, then two masks that suppress 2% of all neurons.

    As many rows as the engine's largest pass has, since some models number the copies by their
    place in the pass rather than by their position ids. Few neurons, since edits of all of them
    would magnify rounding in 16-bit models until nothing else could be seen.
    """
    generator = torch.Generator().manual_seed(0)
    scales = torch.ones(n_rows, *layers.shape, dtype=torch.int8)
    scales[-2:] = torch.rand(2, *layers.shape, generator=generator) > 0.02
    return scales
