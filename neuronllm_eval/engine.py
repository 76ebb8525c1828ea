"""Choose an engine for a model, and prove on the user's own prompts that it is exact.

Fan-out is exact wherever attention follows its mask and position ids. Whether a given model does
is not guessed from its name: a few prompts of the run, the longest among them, are scored under
random edits by both engines, and fan-out is used only if they agree. Where what it saves changes
the numbers, it saves nothing; where that does not help, the replay engine is used. The log says
why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neuronllm_eval.architectures import FFNLayers
from neuronllm_eval.attention_masks import mask_styles
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.fan_out import ROWS_PER_PROMPT, FanOutEngine
from neuronllm_eval.prefix import common_length, group_by_stem
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.replay import ReplayEngine
from neuronllm_eval.scoring import Engine, option_cross_entropy, score_options

logger = logging.getLogger(__name__)

ENGINES = ("auto", "fan_out", "replay")

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


def build_engine(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    name: str = "auto",
    n_nodes: int = 0,
) -> Engine:
    """The engine to use for these prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        prompts: all prompts of the run; up to three of them are used for the check.
        name: `auto` takes fan-out where it is exact; `fan_out` or `replay` insist.
        n_nodes: nodes of the path integrals it will compute; a pass has room for them. 0 if it
            will only score: then gradients are not checked.

    Raises:
        UsageError: unknown name, or `fan_out` insisted on where it is not exact.
    """
    if name not in ENGINES:
        raise UsageError(
            f"unknown engine {name!r}", expected=" or ".join(ENGINES), remedy="check --engine"
        )
    replay = ReplayEngine(model, layers)
    if name == "replay":
        return replay
    reasons: list[str] = []
    several = sum(not prompt.one_token_options for prompt in prompts)
    if several:
        reasons.append(f"{several} of {len(prompts)} prompts have options of several tokens")
    else:
        probes = _probe_prompts(prompts)
        styles = mask_styles(model.config)
        if not styles:
            reasons.append("the model mixes in attention layers that take no ordinary mask")
        for style in styles:
            # A layer's nodes, alpha = 0 and the unedited copy go into one pass.
            rows = max(ROWS_PER_PROMPT, n_nodes + 2)
            contexts = [prompt.context for prompt in prompts]
            unlike: str | None = None
            for savings in (True, False):
                fan_out = FanOutEngine(
                    model,
                    layers,
                    mask_style=style,
                    contexts=contexts,
                    savings=savings,
                    rows_per_prompt=rows,
                )
                reason = disagreement(fan_out, replay, probes)
                if reason is None and savings and n_nodes > 0:
                    reason = _unlike_plain(fan_out, probes)
                if reason is None:
                    if not savings:
                        logger.warning("computing every token, row and logit: %s", unlike)
                    return fan_out
                unlike = reason
            reasons.append(f"mask style {style.value}: {reason}")
    reason = "; ".join(reasons)
    if name == "fan_out":
        raise UsageError(
            f"the fan-out engine is not exact here: {reason}",
            expected="agreement with full forward passes",
            remedy="use --engine replay, which is slower",
        )
    logger.warning("using the slower replay engine: %s", reason)
    return replay


def disagreement(
    fan_out: FanOutEngine, replay: ReplayEngine, prompts: Sequence[Prompt]
) -> str | None:
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
        return described(error)
    slow = replay.score(prompts, scales[checked])
    tolerance = _tolerance(fan_out.model, prompts, [one.loglikelihoods for one in slow])
    gap = _largest_gap(
        [one.loglikelihoods[checked] for one in fast], [one.loglikelihoods for one in slow]
    )
    if not gap <= tolerance:  # also catches NaN
        return f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:.3g})"
    spread = _largest_gap(
        [one.loglikelihoods[0] for one in fast], [one.loglikelihoods[-3] for one in fast]
    )
    if not spread <= tolerance:
        return f"copies of one pass differ by {spread:.3g} log-nats (tolerance {tolerance:.3g})"
    return None


def _unlike_plain(fan_out: FanOutEngine, prompts: Sequence[Prompt]) -> str | None:
    """Why an engine's savings change path integrals on these prompts, or None if they do not.

    Scores are compared elsewhere. Attributions, and the log-likelihoods that come with them, are
    compared with those of an engine that shares nothing, computes every row from the first layer
    on and every logit.
    """
    plain = FanOutEngine(
        fan_out.model,
        fan_out.layers,
        mask_style=fan_out.mask_style,
        savings=False,
        rows_per_prompt=fan_out.rows_per_prompt,
    )
    nodes, weights = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.5, 0.5])
    try:
        with _memory_named():
            expected = plain.integrate(prompts, nodes, weights, option_cross_entropy)
            found = fan_out.integrate(prompts, nodes, weights, option_cross_entropy)
    except BROKEN as error:
        return described(error)
    dtype = next(fan_out.model.parameters()).dtype
    for one, other in zip(found, expected, strict=True):
        size = float(other.attribution.abs().max())
        gap = float((one.attribution - other.attribution).abs().max())
        if not gap <= GRADIENT_TOLERANCE.get(dtype, 0.3) * size:  # also catches NaN
            return f"attributions differ by {gap:.3g} of {size:.3g} log-nats"
    ones, others = ([each.loglikelihoods for each in either] for either in (found, expected))
    tolerance = _tolerance(fan_out.model, prompts, others)
    gap = _largest_gap(ones, others)
    if not gap <= tolerance:
        return f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:.3g})"
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
    read = [(prompt.context, [option[0] for option in prompt.options]) for prompt in prompts]
    return rounding_tolerance(model, read, largest)


def rounding_tolerance(
    model: nn.Module, read: Sequence[tuple[Sequence[int], Sequence[int]]], largest: float
) -> float:
    """What rounding may do to log-likelihoods in this model, log-nats.

    Args:
        model: a Hugging Face causal LM in eval mode.
        read: contexts, and the tokens that are read off behind each.
        largest: the largest absolute log-likelihood.
    """
    dtype = next(model.parameters()).dtype
    return max(
        TOLERANCE.get(dtype, 0.1),
        NOISE_FACTOR * rounding_noise(model, read),
        2 * torch.finfo(dtype).eps * largest,  # two units in the last place of a log-likelihood
    )


@torch.no_grad()
def rounding_noise(model: nn.Module, read: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """What rounding alone does to log-likelihoods behind contexts in this model, log-nats.

    The last token is fed after the others, as in generation, and together with them. Both are
    ordinary uses of the model and equal but for rounding.
    """
    gaps = [0.0]
    for context, tokens in read:
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        ids = torch.tensor([context], device=device)
        if ids.shape[1] < 2:
            continue
        whole = model(input_ids=ids, use_cache=False).logits[0, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        after = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        one, other = (score_options(logits, tokens)[0] for logits in (whole, after))
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


def _probe_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The longest prompt, a neighbour that shares a stem with it if there is one, the shortest.

    So padding is met, and every kind of beginning that is prefilled once.
    """
    place = max(range(len(prompts)), key=lambda number: prompts[number].n_tokens)
    longest = prompts[place]
    shortest = min(prompts, key=lambda prompt: prompt.n_tokens)
    n_shared = common_length([prompt.context for prompt in prompts])
    for near in (*prompts[max(0, place - 1) : place], *prompts[place + 1 : place + 2]):
        if len(group_by_stem([longest.context, near.context], n_shared)) == 1:
            return [longest, near, shortest]
    return [longest, shortest]
