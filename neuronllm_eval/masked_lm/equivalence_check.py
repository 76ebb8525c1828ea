"""Prove on a model's own prompts that scoring forks gives what scoring row by row gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from neuronllm_eval.engine.attention_masks import MaskStyle, mask_styles
from neuronllm_eval.engine.equivalence_check import BROKEN, Mismatch, rounding_tolerance
from neuronllm_eval.masked_lm.shared_context_scoring import Fork, ForkScorer, Mask

logger = logging.getLogger(__name__)
# Per fork and continuation: log-likelihood in log-nats, and whether it is greedy.
Answers = list[list[tuple[float, bool]]]


@dataclass(frozen=True)
class ForkStyle:
    """How a model scores forks exactly; see `ForkScorer`."""

    mask_style: MaskStyle
    share: bool


def exact_style(
    model: nn.Module,
    forks: Sequence[Fork],
    row_by_row: Callable[[Sequence[Fork]], Answers],
    mask: Mask | None,
    softmax_dtype: torch.dtype | None,
) -> ForkStyle | None:
    """The way in which this model scores forks as it scores rows, or None if there is none.

    Args:
        model: a Hugging Face causal LM in eval mode.
        forks: of one family, in order; a few of them are scored both ways.
        row_by_row: scores forks by plain forward passes.
        mask: what is done to the neurons.
        softmax_dtype: see `ForkScorer`.
    """
    probes = _probes(forks)
    expected = row_by_row(probes)
    largest = max(abs(value) for own in expected for value, _ in own)
    read = [(fork.context, fork.continuations) for fork in probes]
    try:
        tolerance = rounding_tolerance(model, read, largest)
    except BROKEN as error:  # such as a model that keeps no keys and values
        logger.warning("every continuation is scored by itself: %s", Mismatch.of(error))
        return None
    reasons: list[Mismatch] = []
    for style in mask_styles(model):
        for share in (True, False):
            scorer = ForkScorer(
                model, style, probes, mask=mask, share=share, softmax_dtype=softmax_dtype
            )
            try:
                gap = _gap(scorer.score(probes), expected)
            except torch.OutOfMemoryError:
                raise
            except BROKEN as error:
                reasons.append(Mismatch.of(error))
                continue
            if gap <= tolerance:  # NaN is not
                for reason in reasons[-1:]:
                    logger.log(
                        reason.log_level, "another way to score forks was passed over: %s", reason
                    )
                return ForkStyle(style, share)
            reasons.append(Mismatch(f"differs by {gap:.3g} log-nats (tolerance {tolerance:.3g})"))
    logger.log(
        max((reason.log_level for reason in reasons), default=logging.INFO),
        "every continuation is scored by itself: %s",
        "; ".join(map(str, reasons)) or "no mask fits",
    )
    return None


def _probes(forks: Sequence[Fork]) -> list[Fork]:
    """The longest fork and a neighbour of its, the one of most queries, and the shortest."""
    longest = max(range(len(forks)), key=lambda place: forks[place].n_columns)
    chosen = {longest, min(longest + 1, len(forks) - 1)}
    chosen.add(max(range(len(forks)), key=lambda place: forks[place].n_queries))
    chosen.add(min(range(len(forks)), key=lambda place: forks[place].n_columns))
    return [forks[place] for place in sorted(chosen)]


def _gap(ones: Answers, others: Answers) -> float:
    """Largest difference of log-likelihoods; NaN if any is."""
    gaps = [
        abs(one - other)
        for own, its in zip(ones, others, strict=True)
        for (one, _), (other, _) in zip(own, its, strict=True)
    ]
    return float(torch.tensor(gaps).max())
