"""Choose an engine for a model, and prove on the user's own prompts that it is exact.

Fan-out is exact wherever attention follows its mask and position ids. Whether a given model does
is not guessed from its name: the longest prompt of the run is scored under random edits by both
engines, and fan-out is used only if they agree. Otherwise the replay engine is used, and the log
says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuronllm_eval.architectures import FFNLayers
from neuronllm_eval.attention_masks import mask_styles
from neuronllm_eval.errors import UsageError
from neuronllm_eval.fan_out import FanOutEngine
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.replay import ReplayEngine
from neuronllm_eval.scoring import Engine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "fan_out", "replay")

# Largest difference in log-nats between the engines that float rounding explains. Wrong masks or
# positions show up as 0.01 and more in fp32.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6, torch.bfloat16: 0.25, torch.float16: 0.05}


def build_engine(
    model: nn.Module, layers: FFNLayers, prompts: Sequence[Prompt], name: str = "auto"
) -> Engine:
    """The engine to use for these prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        prompts: all prompts of the run; the longest is used for the check.
        name: `auto` takes fan-out where it is exact; `fan_out` or `replay` insist.

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
        longest = max(prompts, key=lambda prompt: prompt.n_tokens)
        shortest = min(prompts, key=lambda prompt: prompt.n_tokens)
        styles = mask_styles(model.config)
        if not styles:
            reasons.append("the model mixes in attention layers that take no ordinary mask")
        for style in styles:
            fan_out = FanOutEngine(model, layers, mask_style=style)
            reason = disagreement(fan_out, replay, [longest, shortest])
            if reason is None:
                return fan_out
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
    """Why fan-out cannot be trusted on these prompts, or None if both engines agree."""
    scales = _probe_scales(fan_out.layers)
    checked = [0, -2, -1]  # the full passes are the dear ones; one edit would do for them
    try:
        fast = fan_out.score(prompts, scales)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    slow = replay.score(prompts, scales[checked])
    gap = max(
        float((one.loglikelihoods[checked] - other.loglikelihoods).abs().max())
        for one, other in zip(fast, slow, strict=True)
    )
    tolerance = TOLERANCE.get(next(fan_out.model.parameters()).dtype, 0.25)
    if not gap <= tolerance:  # also catches NaN
        return f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:g})"
    return None


def _probe_scales(layers: FFNLayers) -> Tensor:
    """[rows, layers, neurons]: unedited rows, then two random masks of 0, 1 and 2.

    As many rows as an attribution pass has, since some models number the copies by their place in
    the pass rather than by their position ids.
    """
    n_rows = min(256, 5 * layers.n_layers + 1)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(2, *layers.shape, generator=generator).mul(2).round()
    return torch.cat((torch.ones(n_rows - 2, *layers.shape), random))
