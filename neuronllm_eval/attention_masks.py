"""Attention masks under which copies of the last token see the prefix and themselves only."""

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


def fan_out_masks(
    config: Any,
    style: MaskStyle,
    lengths: Tensor,
    n_columns: int,
    n_rows: int,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """Additive masks [batch, 1, rows, columns + rows]: 0 where a copy looks, else the minimum.

    Args:
        config: the model's configuration.
        style: one mask or one per layer type.
        lengths: [batch] prefix tokens of each prompt; cache columns beyond are padding.
        n_columns: columns in the cache.
        n_rows: copies of the last token.
        dtype: the model's dtype.
    """
    config = _text_config(config)
    full = _additive(_visible(lengths, n_columns, n_rows, window=None), dtype)
    window = getattr(config, "sliding_window", None)
    if style is MaskStyle.SINGLE:
        if window is None or _is_mixed(config):
            return full
        return _additive(_visible(lengths, n_columns, n_rows, window), dtype)
    masks = {"full_attention": full}
    if "sliding_attention" in config.layer_types:
        masks["sliding_attention"] = _additive(_visible(lengths, n_columns, n_rows, window), dtype)
    return masks


def _visible(lengths: Tensor, n_columns: int, n_rows: int, window: int | None) -> Tensor:
    """[batch, 1, rows, columns + rows] bool: the prefix (within the window) and the copy itself."""
    columns = torch.arange(n_columns, device=lengths.device)
    prefix = columns < lengths[:, None]  # [batch, columns]
    if window is not None:
        # A window of w lets a token see itself and the w - 1 tokens before it.
        prefix &= columns > lengths[:, None] - window
    itself = torch.eye(n_rows, dtype=torch.bool, device=lengths.device)
    batch = len(lengths)
    return torch.cat(
        (
            prefix[:, None, None].expand(batch, 1, n_rows, n_columns),
            itself.expand(batch, 1, n_rows, n_rows),
        ),
        dim=-1,
    )


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)


def _is_mixed(config: Any) -> bool:
    return len(set(getattr(config, "layer_types", None) or ())) > 1


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
