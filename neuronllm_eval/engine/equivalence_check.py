"""Whether two ways to compute the same agree, within what rounding does in this model.

1. The model's own rounding is measured: the last token of a context is fed after the others, and
   together with them (`rounding_noise`). Both are ordinary uses of the model.
2. Scores of the fan-out engine are compared with those of full passes (`score_mismatch`), path
   integrals with those of a fan-out engine that saves nothing (`gradient_mismatch`).
3. What differs by no more than a few times the rounding is the same. Anything else, an error in the
   model included, is a `Mismatch`: another way is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import Engine, Integrand, option_cross_entropy
from neuronllm_eval.engine.option_logits import score_options
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers, input_device
from neuronllm_eval.prompts import Prompt

# Differences in log-nats that rounding explains at least; what it does in a given model is
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
# Late joining has to be this much closer: what a layer does with its FFN's output could change a
# little of it, and the next way is nearly as cheap.
STRICTNESS = 1 / 3
# A context, and the options behind it: of each the first token's logit is compared.
ContextOptions = tuple[Sequence[int], Sequence[Sequence[int]]]
# What a pass may raise in a model that cannot do it.
BROKEN = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Mismatch:
    """Why a way to compute is not taken.

    Attributes:
        text: what differs by how much, or the error.
        raised: whether it is an error: a possible fault, rather than a property of the model.
    """

    text: str
    raised: bool = False

    @classmethod
    def of(cls, error: Exception) -> Mismatch:
        """Type and first line of an error in `BROKEN`.

        Raises:
            ModelError: running out of memory, which says nothing about the model's attention.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise ModelError(
                f"out of memory while checking the engine on a few prompts: {error}",
                expected="room for three prompts",
                remedy="use a smaller model, dtype=bfloat16, or parallelize=True in --model_args",
            ) from error
        first_line = str(error).split("\n", 1)[0]
        return cls(f"{type(error).__name__}: {first_line}", raised=True)

    @property
    def log_level(self) -> int:
        """The level at which it is logged where the next way is nearly as good."""
        return logging.WARNING if self.raised else logging.INFO

    def __str__(self) -> str:
        return self.text


def score_mismatch(
    fan_out: FanOutEngine, replay: Engine, prompts: Sequence[Prompt]
) -> Mismatch | None:
    """Why fan-out cannot be trusted on these prompts, or None if both engines agree.

    Two comparisons, in log-nats: edited and unedited copies with full passes, and unedited copies
    at the two ends of a pass with each other.
    """
    scales = _probe_scales(fan_out.layers, fan_out.rows_per_prompt)
    checked = [0, -2, -1]  # full passes are expensive; a few edits do for them
    try:
        fast = [scores.loglikelihoods for scores in fan_out.score(prompts, scales)]
    except BROKEN as error:
        return Mismatch.of(error)
    slow = [scores.loglikelihoods for scores in replay.score(prompts, scales[checked])]
    tolerance = _tolerance(fan_out.model, prompts, slow)
    return _difference(
        "log-likelihoods differ", [scores[checked] for scores in fast], slow, tolerance
    ) or _difference(
        "copies of one pass differ",
        [scores[0] for scores in fast],
        [scores[-3] for scores in fast],
        tolerance,
    )


def gradient_mismatch(fan_out: FanOutEngine, prompts: Sequence[Prompt]) -> Mismatch | None:
    """Why an engine's savings change path integrals on these prompts, or None if they do not.

    Attributions, and the log-likelihoods that come with them, are compared with those of an engine
    that shares nothing, computes every row from the first layer on and every logit.
    """
    plain = FanOutEngine(
        fan_out.model,
        fan_out.layers,
        mask_style=fan_out.mask_style,
        savings=Savings.NONE,
        rows_per_prompt=fan_out.rows_per_prompt,
    )
    nodes, weights = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 1.0]) / 6  # Simpson
    integrand = Integrand(option_cross_entropy, weights)
    try:
        expected, results = (
            [integral for (integral,) in engine.integrate_all(prompts, nodes, [integrand])]
            for engine in (plain, fan_out)
        )
    except BROKEN as error:
        return Mismatch.of(error)
    share = GRADIENT_TOLERANCE.get(next(fan_out.model.parameters()).dtype, 0.3)
    if fan_out.savings is Savings.LATE:
        share *= STRICTNESS
    for one, other in zip(results, expected, strict=True):
        size = float(other.attribution.abs().max())
        gap = float((one.attribution - other.attribution).abs().max())
        if not gap <= share * size:  # also catches NaN
            return Mismatch(f"attributions differ by {gap:.3g} of {size:.3g} log-nats")
    loglikelihoods = [one.loglikelihoods for one in expected]
    tolerance = _tolerance(fan_out.model, prompts, loglikelihoods)
    return _difference(
        "log-likelihoods differ", [one.loglikelihoods for one in results], loglikelihoods, tolerance
    ) or _difference(
        "targets differ",
        [one.node_targets for one in results],
        [one.node_targets for one in expected],
        tolerance,
    )


def _difference(
    what: str, ones: Sequence[Tensor], others: Sequence[Tensor], tolerance: float
) -> Mismatch | None:
    gaps = [(one - other).abs().max() for one, other in zip(ones, others, strict=True)]
    gap = float(torch.stack(gaps).max())  # NaN if any is, unlike max() of floats
    if gap <= tolerance:
        return None
    return Mismatch(f"{what} by {gap:.3g} log-nats (tolerance {tolerance:.3g})")


def _tolerance(
    model: nn.Module, prompts: Sequence[Prompt], loglikelihoods: Sequence[Tensor]
) -> float:
    """What rounding may do to log-likelihoods of about this size, log-nats."""
    largest = max(float(values.abs().max()) for values in loglikelihoods)
    return rounding_tolerance(
        model, [(prompt.context, prompt.options) for prompt in prompts], largest
    )


def rounding_tolerance(model: nn.Module, probes: Sequence[ContextOptions], largest: float) -> float:
    """What rounding may do to log-likelihoods in this model, log-nats.

    Args:
        model: a Hugging Face causal LM in eval mode.
        probes: contexts and options on which rounding is measured.
        largest: the largest absolute log-likelihood.
    """
    dtype = next(model.parameters()).dtype
    return max(
        TOLERANCE.get(dtype, 0.1),
        NOISE_FACTOR * rounding_noise(model, probes),
        2 * torch.finfo(dtype).eps * largest,  # two units in the last place of a log-likelihood
    )


@torch.no_grad()
def rounding_noise(model: nn.Module, probes: Sequence[ContextOptions]) -> float:
    """What rounding alone does to log-likelihoods behind contexts in this model, log-nats.

    The last token is fed after the others, as in generation, and together with them. Both are
    ordinary uses of the model and equal but for rounding.
    """
    gaps = [0.0]
    for context, options in probes:
        ids = torch.tensor([context], device=input_device(model))
        if ids.shape[1] < 2:
            continue
        together = model(input_ids=ids, use_cache=False).logits[0, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        after = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        first_tokens = [option[0] for option in options]
        one, other = (score_options(logits, first_tokens)[0] for logits in (together, after))
        gaps.append(float((one - other).abs().max()))
    return max(gaps)


def _probe_scales(layers: FFNLayers, n_rows: int) -> Tensor:
    """[rows, layers, neurons] int8: unedited rows, then two masks that suppress 2% of all neurons.

    As many rows as the engine's largest pass has, since some models number the copies by their
    position in the pass rather than by their position ids. Few neurons, since edits of all of them
    would magnify rounding in 16-bit models until nothing else could be seen.
    """
    generator = torch.Generator().manual_seed(0)
    scales = torch.ones(n_rows, *layers.shape, dtype=torch.int8)
    scales[-2:] = torch.rand(2, *layers.shape, generator=generator) > 0.02
    return scales
