"""Choose an engine for a model, and prove on the user's own prompts that it is exact.

Fan-out is exact wherever attention follows its mask and position ids. Whether a given model's does
is not guessed from its name: a few prompts of the run, the longest among them, are scored under
random edits by both engines, and fan-out is used only if they agree. Where what it saves changes
the numbers, it saves less: first copies join at their layer rather than behind it, then nothing is
saved. Where that does not help, the replay engine is used. The log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from neuronllm_eval.engine.attention_masks import mask_styles
from neuronllm_eval.engine.equivalence_check import Mismatch, gradient_mismatch, score_mismatch
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
        positions: which positions are edited, one of `prompts.POSITIONS`; fan-out edits the scored
            one.

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
    fan_out, reason = _exact_fan_out(model, layers, prompts, replay, n_nodes)
    if fan_out is not None:
        return fan_out
    if name == "fan_out":
        raise UsageError(
            f"the fan-out engine is not exact here: {reason}",
            expected="agreement with full forward passes",
            remedy="use --engine replay, which is slower",
        )
    logger.warning("using the slower replay engine: %s", reason)
    return replay


def _exact_fan_out(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    replay: ReplayEngine,
    n_nodes: int,
) -> tuple[FanOutEngine | None, str]:
    """The fan-out engine that saves most among those that are exact; or None, and why."""
    several = sum(not prompt.one_token_options for prompt in prompts)
    if several:
        return None, f"{several} of {len(prompts)} prompts have options of several tokens"
    styles = mask_styles(model)
    if not styles:
        return None, "the model mixes in attention layers that take no ordinary mask"
    probes = _probe_prompts(prompts)
    contexts = [prompt.context for prompt in prompts]
    rows = max(ROWS_PER_PROMPT, n_nodes + 2)  # a layer's nodes, alpha = 0 and the unedited copy
    of_styles: list[Mismatch] = []
    for style in styles:
        mismatch = Mismatch("")
        for savings in Savings:
            fan_out = FanOutEngine(
                model,
                layers,
                mask_style=style,
                contexts=contexts,
                savings=savings,
                rows_per_prompt=rows,
            )
            if fan_out.savings is not savings or (savings is Savings.LATE and not n_nodes):
                continue  # the next one is the same
            reason = score_mismatch(fan_out, replay, probes)
            if reason is None and n_nodes and savings is not Savings.NONE:
                reason = gradient_mismatch(fan_out, probes)
            if reason is None:
                _log_choice(savings, mismatch, of_styles)
                return fan_out, ""
            mismatch = reason
        of_styles.append(Mismatch(f"mask style {style.value}: {mismatch}", mismatch.raised))
    return None, "; ".join(map(str, of_styles))


def _log_choice(savings: Savings, mismatch: Mismatch, of_styles: Sequence[Mismatch]) -> None:
    """Why nothing more is saved, and why other mask styles were not taken."""
    if savings is Savings.NONE:
        logger.warning("computing every token, row and logit: %s", mismatch)
    elif mismatch.text:
        message = "copies join at the layer that edits them, not behind it: %s"
        logger.log(mismatch.log_level, message, mismatch)
    if of_styles:
        level = max(reason.log_level for reason in of_styles)
        logger.log(level, "another mask is taken: %s", "; ".join(map(str, of_styles)))


def _probe_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The longest prompt, a neighbour that shares a stem with it if there is one, the shortest.

    So the check meets padding, and every part of a prompt that is prefilled once.
    """
    index = max(range(len(prompts)), key=lambda number: prompts[number].n_tokens)
    longest = prompts[index]
    shortest = min(prompts, key=lambda prompt: prompt.n_tokens)
    n_shared = common_length([prompt.context for prompt in prompts])
    for near in (*prompts[max(0, index - 1) : index], *prompts[index + 1 : index + 2]):
        if len(group_by_stem([longest.context, near.context], n_shared)) == 1:
            return [longest, near, shortest]
    return [longest, shortest]
