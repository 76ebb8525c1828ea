"""Choose an engine for a model, and prove on the user's own prompts that it is exact.

Fan-out is exact wherever attention follows its mask and position ids. Whether a given model does
is not guessed from its name: a few prompts of the run, the longest among them, are scored under
random edits by both engines, and fan-out is used only if they agree. Where what it saves changes
the numbers, it saves less: first copies join at their layer rather than behind it, then nothing is
saved. Where that does not help, the replay engine is used. The log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from neuronllm_eval.engine.attention_masks import mask_styles
from neuronllm_eval.engine.equivalence_check import Unlike, disagreement, unlike_plain
from neuronllm_eval.engine.fan_out import ROWS_PER_PROMPT, FanOutEngine, Savings
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.engine.shared_prefix import common_length, group_by_stem
from neuronllm_eval.errors import UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.prompts import ALL, SCORED, Prompt

logger = logging.getLogger(__name__)

ENGINES = ("auto", "fan_out", "replay")


def build_engine(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    name: str = "auto",
    n_nodes: int = 0,
    positions: str = SCORED,
) -> Engine:
    """The engine to use for these prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        prompts: all prompts of the run; up to three of them are used for the check.
        name: `auto` takes fan-out where it is exact; `fan_out` or `replay` insist.
        n_nodes: nodes of the path integrals it will compute; a pass has room for them. 0 if it
            will only score: then gradients are not checked.
        positions: that are edited, one of `positions.POSITIONS`; fan-out edits the scored one.

    Raises:
        UsageError: unknown name, or `fan_out` insisted on where it is not exact.
    """
    if name not in ENGINES:
        raise UsageError(
            f"unknown engine {name!r}", expected=" or ".join(ENGINES), remedy="check --engine"
        )
    replay = ReplayEngine(model, layers, positions=positions)
    if name == "fan_out" and positions == ALL:
        raise UsageError(
            "the fan-out engine with positions=all",
            expected="positions=scored: edits of earlier tokens change what later ones see",
            remedy="use --engine auto or replay with --positions all",
        )
    if name == "replay" or positions == ALL:
        return replay
    reasons: list[str] = []
    level = logging.INFO
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
            build = partial(
                FanOutEngine,
                model,
                layers,
                mask_style=style,
                contexts=contexts,
                rows_per_prompt=rows,
            )
            fan_out, unlike = _exact_savings(build, replay, probes, gradients=n_nodes > 0)
            if fan_out is not None:
                if reasons:
                    logger.log(level, "another mask is taken: %s", "; ".join(reasons))
                return fan_out
            assert unlike is not None
            reasons.append(f"mask style {style.value}: {unlike}")
            level = max(level, unlike.log_level)
    reason = "; ".join(reasons)
    if name == "fan_out":
        raise UsageError(
            f"the fan-out engine is not exact here: {reason}",
            expected="agreement with full forward passes",
            remedy="use --engine replay, which is slower",
        )
    logger.warning("using the slower replay engine: %s", reason)
    return replay


def _exact_savings(
    build: Callable[..., FanOutEngine],
    replay: ReplayEngine,
    probes: Sequence[Prompt],
    gradients: bool,
) -> tuple[FanOutEngine | None, Unlike | None]:
    """The engine that saves most among those that are exact on some prompts.

    Args:
        build: an engine with some `savings`.
        replay: what it is to agree with.
        probes: the prompts.
        gradients: whether it will compute path integrals.

    Returns:
        the engine and None, or None and why it is not exact even without savings.
    """
    fan_out = build(savings=Savings.LATE if gradients else Savings.STAIRCASE)
    unlike = disagreement(fan_out, replay, probes)
    if unlike is None and gradients:
        unlike = unlike_plain(fan_out, probes)
        if unlike is not None and fan_out.savings is Savings.LATE:
            late, fan_out = unlike, build(savings=Savings.STAIRCASE)
            unlike = unlike_plain(fan_out, probes)
            if unlike is None:
                logger.log(
                    late.log_level,
                    "copies join at the layer that edits them, not behind it: %s",
                    late,
                )
    if unlike is None:
        return fan_out, None
    fan_out = build(savings=Savings.NONE)
    reason = disagreement(fan_out, replay, probes)
    if reason is not None:
        return None, reason
    logger.warning("computing every token, row and logit: %s", unlike)
    return fan_out, None


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
