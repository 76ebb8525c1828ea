"""4-D attention masks over a cache with padding: for tokens that continue it, and for copies."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn

from neuronllm_eval.models.ffn_layers import text_config

_SUPPORTED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class MaskStyle(Enum):
    """How a model's attention takes a four-dimensional mask.

    SINGLE: one mask for all layers. If every layer has a sliding window (mistral, phi3), it
        carries the window.
    PER_TYPE: a dict from layer type to mask (models that mix full and sliding attention).
    """

    SINGLE = "single"
    PER_TYPE = "per_type"


def mask_styles(model: nn.Module) -> tuple[MaskStyle, ...]:
    """The styles worth trying for a model, the likelier first; empty if its attention takes none.

    Layers of linear, chunked or recurrent attention do not read a mask of this type.
    """
    layer_types = _layer_types(model)
    if not layer_types:
        return (MaskStyle.SINGLE,)
    if not layer_types <= _SUPPORTED_LAYER_TYPES:
        return ()
    return (MaskStyle.PER_TYPE, MaskStyle.SINGLE)


def attention_masks(
    model: nn.Module,
    style: MaskStyle,
    key_positions: Tensor,
    query_positions: Tensor,
    sees: Tensor,
) -> Tensor | dict[str, Tensor]:
    """Additive masks [batch, 1, queries, keys + queries]: 0 where a query looks, else the minimum.

    Args:
        model: a Hugging Face causal LM.
        style: one mask, or one per layer type.
        key_positions: [batch, keys] position in the prompt of each cached token, -1 for padding.
        query_positions: [batch, queries] positions of the tokens that are fed.
        sees: [queries, queries] or [batch, queries, queries] bool, which of the tokens fed together
            each of them sees: earlier ones and itself; of copies of one token, itself alone.
    """
    window = getattr(text_config(model), "sliding_window", None)
    layer_types = _layer_types(model)
    windows: dict[str, int | None]
    if style is MaskStyle.SINGLE:
        windows = {"all": None if len(layer_types) > 1 else window}
    else:
        windows = {"full_attention": None}
        if "sliding_attention" in layer_types:
            windows["sliding_attention"] = window
    batch, n_queries = query_positions.shape
    n_keys = key_positions.shape[1]
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    masks = {}
    for layer_type, width in windows.items():
        prefix = (key_positions >= 0)[:, None, :]
        fed = sees if sees.ndim == 3 else sees[None]
        if width is not None:
            # A window of w lets a token see itself and the w - 1 tokens before it.
            oldest = query_positions[:, :, None] - width
            prefix = prefix & (key_positions[:, None, :] > oldest)
            fed = fed & (query_positions[:, None, :] > oldest)
        visible = torch.cat(
            (prefix.expand(batch, n_queries, n_keys), fed.expand(batch, n_queries, n_queries)), -1
        )[:, None]
        zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        masks[layer_type] = zeros.masked_fill(~visible, torch.finfo(dtype).min)
    return masks if style is MaskStyle.PER_TYPE else masks["all"]


def _layer_types(model: nn.Module) -> set[str]:
    return set(getattr(text_config(model), "layer_types", None) or ())
