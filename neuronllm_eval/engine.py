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
from neuronllm_eval.fan_out import ROWS_PER_PROMPT, FanOutEngine
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.replay import ReplayEngine
from neuronllm_eval.scoring import Engine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "fan_out", "replay")

# Largest difference in log-nats between the engines that float rounding explains. Wrong masks or
# positions show up as 0.01 and more in fp32.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}


def build_engine(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    name: str = "auto",
    n_nodes: int = 1,
) -> Engine:
    """The engine to use for these prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        prompts: all prompts of the run; the longest is used for the check.
        name: `auto` takes fan-out where it is exact; `fan_out` or `replay` insist.
        n_nodes: nodes of the path integrals it will compute; a pass has room for them.

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
            # A layer's nodes, alpha = 0 and the unedited copy go into one pass.
            rows = max(ROWS_PER_PROMPT, n_nodes + 2)
            fan_out = FanOutEngine(model, layers, mask_style=style, rows_per_prompt=rows)
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
    scales = _probe_scales(fan_out.layers, fan_out.rows_per_prompt)
    checked = [0, -2, -1]  # the full passes are the dear ones; one edit would do for them
    try:
        fast = fan_out.score(prompts, scales)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    slow = replay.score(prompts, scales[checked])
    gaps = [
        (one.loglikelihoods[checked] - other.loglikelihoods).abs().max()
        for one, other in zip(fast, slow, strict=True)
    ]
    gap = float(torch.stack(gaps).max())  # NaN in any of them is NaN, as max() of floats is not
    tolerance = TOLERANCE.get(next(fan_out.model.parameters()).dtype, 0.25)
    if not gap <= tolerance:  # also catches NaN
        return f"log-likelihoods differ by {gap:.3g} log-nats (tolerance {tolerance:g})"
    return None


def _probe_scales(layers: FFNLayers, n_rows: int) -> Tensor:
    """[rows, layers, neurons] int8: unedited rows, then two random masks of 0, 1 and 2.

    As many rows as the engine's largest pass has, since some models number the copies by their
    place in the pass rather than by their position ids.
    """
    generator = torch.Generator().manual_seed(0)
    scales = torch.ones(n_rows, *layers.shape, dtype=torch.int8)
    scales[-2:] = torch.randint(0, 3, (2, *layers.shape), generator=generator)
    return scales
