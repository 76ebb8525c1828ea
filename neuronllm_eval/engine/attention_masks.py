"""Attention masks over a cache with padding: of tokens that go on, and of copies of one token."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor


class MaskStyle(Enum):
    """How a model's attention takes a four-dimensional mask.

    SINGLE: one mask for all layers. If every layer has a sliding window (mistral, phi3), it
        carries the window.
    PER_TYPE: a dict from layer type to mask (models that mix full and sliding attention).
    """

    SINGLE = "single"
    PER_TYPE = "per_type"


SUPPORTED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def mask_styles(config: Any) -> tuple[MaskStyle, ...]:
    """The styles worth trying for a model, the likelier first; empty if its attention is neither.

    Layers of linear, chunked or recurrent attention do not read a mask of this kind.
    """
    layer_types = set(getattr(_text_config(config), "layer_types", None) or ())
    if not layer_types:
        return (MaskStyle.SINGLE,)
    if not layer_types <= SUPPORTED_LAYER_TYPES:
        return ()
    return (MaskStyle.PER_TYPE, MaskStyle.SINGLE)


def attention_masks(
    config: Any,
    style: MaskStyle,
    key_positions: Tensor,
    query_positions: Tensor,
    own: Tensor,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """Additive masks [batch, 1, queries, keys + queries]: 0 where a query looks, else the minimum.

    Args:
        config: the model's configuration.
        style: one mask or one per layer type.
        key_positions: [batch, keys] places in the prompt of what is in the cache, -1 for padding.
        query_positions: [batch, queries] places of the tokens that are fed.
        own: [queries, queries] bool, or the same for each of a batch, which of the tokens fed
            with it each of them sees: earlier ones and itself, or for copies of one token itself
            alone.
        dtype: the model's dtype.
    """
    config = _text_config(config)
    full = _additive(_visible(key_positions, query_positions, own, window=None), dtype)
    window = getattr(config, "sliding_window", None)
    if style is MaskStyle.SINGLE:
        if window is None or _is_mixed(config):
            return full
        return _additive(_visible(key_positions, query_positions, own, window), dtype)
    masks = {"full_attention": full}
    if "sliding_attention" in config.layer_types:
        sliding = _visible(key_positions, query_positions, own, window)
        masks["sliding_attention"] = _additive(sliding, dtype)
    return masks


def fan_out_masks(
    config: Any,
    style: MaskStyle,
    key_positions: Tensor,
    lengths: Tensor,
    n_rows: int,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """`attention_masks` of `n_rows` copies of the last token, all at place `lengths` [batch]."""
    itself = torch.eye(n_rows, dtype=torch.bool, device=lengths.device)
    queries = lengths[:, None].expand(-1, n_rows)
    return attention_masks(config, style, key_positions, queries, itself, dtype)


def _visible(
    key_positions: Tensor, query_positions: Tensor, own: Tensor, window: int | None
) -> Tensor:
    """[batch, 1, queries, keys + queries] bool."""
    prefix = (key_positions >= 0)[:, None, :]
    fed = own if own.ndim == 3 else own[None]
    if window is not None:
        # A window of w lets a token see itself and the w - 1 tokens before it.
        oldest = query_positions[:, :, None] - window
        prefix = prefix & (key_positions[:, None, :] > oldest)
        fed = fed & (query_positions[:, None, :] > oldest)
    batch, n_queries = query_positions.shape
    visible = torch.cat(
        (
            prefix.expand(batch, n_queries, key_positions.shape[1]),
            fed.expand(batch, n_queries, n_queries),
        ),
        dim=-1,
    )
    return visible[:, None]


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)


def _is_mixed(config: Any) -> bool:
    return len(set(getattr(config, "layer_types", None) or ())) > 1


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
