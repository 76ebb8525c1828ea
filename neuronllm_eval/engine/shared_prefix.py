"""Keys and values of what comes before the scored position, each token computed once.

Prompts of a task begin alike (role line, demonstrations), and a question's proxies are alike up to
their options. For a batch of prompts:

1. The tokens that all prompts of the run share are prefilled once, when they are first needed.
2. The tokens that a question's proxies share, its stem, are prefilled once per question.
3. The rest of each prompt but its last token is prefilled on top of both.

Rows of different lengths are padded on the right of each step; every column knows its position in
the prompt, and padding is never seen. In the end the gaps that it left are closed. Exact up to
float rounding, in models whose attention takes the 4-D masks that say so (`attention_masks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.models.ffn_layers import input_device, text_config

# Per layer (keys, values), each [batch, heads, columns, dim].
KeysValues = tuple[tuple[Tensor, Tensor], ...]
# Prompts that share fewer tokens beyond the run's are prefilled each on its own.
_SHORTEST_STEM = 8
# A prompt joins a group unless that shortens the group's stem to less than this share.
_KEPT_STEM = 0.75
_SUPPORTED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


# Masks ------------------------------------------------------------------------------------------


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
    layer_types = set(getattr(text_config(model), "layer_types", None) or ())
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
    config = text_config(model)
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ()
    windows: dict[str, int | None]
    if style is MaskStyle.SINGLE:
        windows = {"all": None if len(set(layer_types)) > 1 else window}
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


# Cached tokens ----------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Cached tokens of a batch.

    Attributes:
        keys_values: per layer ([batch, heads, columns, dim], the same); empty without a token.
        positions: [batch, columns] position of each column's token in its prompt, -1 for padding.
    """

    keys_values: KeysValues
    positions: Tensor

    def rows(self, indices: Tensor) -> Columns:
        """The columns of these rows, which may be repeated."""
        keys_values = _changed(
            self.keys_values, lambda tensor: tensor.index_select(0, indices.to(tensor.device))
        )
        return Columns(keys_values, self.positions[indices])

    def without_gaps(self, width: int) -> Columns:
        """Every row's tokens in the leading columns, and no more than `width` columns."""
        if self.positions.shape[1] == width:
            return self
        order = (self.positions < 0).byte().argsort(dim=1, stable=True)[:, :width]
        index = order[:, None, :, None]  # [batch, 1, width, 1]
        keys_values = _changed(
            self.keys_values, lambda tensor: tensor.take_along_dim(index.to(tensor.device), 2)
        )
        return Columns(keys_values, self.positions.gather(1, order))


def _changed(keys_values: KeysValues, change: Callable[[Tensor], Tensor]) -> KeysValues:
    return tuple((change(keys), change(values)) for keys, values in keys_values)


class Prefix(NamedTuple):
    """A batch of prompts without their last tokens.

    Attributes:
        keys_values: as `Columns`.
        positions: as `Columns`.
        lengths: [batch] prefix lengths, which are the first scored positions.
    """

    keys_values: KeysValues
    positions: Tensor
    lengths: Tensor

    def cache(self) -> DynamicCache:
        """A new cache over the same tensors: a pass extends it, never the prefix.

        It has no config, by which sliding layers would trim it.
        """
        return DynamicCache(self.keys_values or None)

    def of_prompts(self, indices: Sequence[int]) -> Prefix:
        """The prefixes of these prompts, in this order."""
        if list(indices) == list(range(len(self.lengths))):
            return self
        chosen = torch.tensor(indices, device=self.lengths.device)
        columns = Columns(self.keys_values, self.positions).rows(chosen)
        return Prefix(*columns, self.lengths[chosen])


class Rows(NamedTuple):
    """Tokens that are read together behind the prefixes of a batch.

    Attributes:
        tokens: [batch, rows] ids.
        positions: [batch, rows] their positions in the prompt; several may be at one.
        sees: [rows, rows] or [batch, rows, rows] bool, which of these rows each of them sees.
    """

    tokens: Tensor
    positions: Tensor
    sees: Tensor


# Passes that compute keys and values, and no more -----------------------------------------------


class _AllWritten(Exception):
    """All layers have written their keys and values."""


class _WatchedCache(DynamicCache):
    """Records which layers write, and ends the pass after the last of those that are expected."""

    def __init__(self, keys_values: KeysValues, expected: list[int] | None) -> None:
        super().__init__(keys_values or None)
        self.written: list[int] = []
        self._expected = expected

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicCache.update`."""
        updated = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.written.append(layer_idx)
        if self.written == self._expected:
            raise _AllWritten
        return updated


class PrefillPasses:
    """Computes keys and values with a model's decoder.

    The first pass runs to its end and shows in which order layers write to the cache. Later ones
    end after the last write: the last layer's FFN would be computed for nothing.

    Args:
        decoder: the part of a Hugging Face causal LM that computes keys and values.
        whole: True to let every pass run to its end.
    """

    def __init__(self, decoder: nn.Module, *, whole: bool = False) -> None:
        self.decoder = decoder
        self.whole = whole
        self._written: list[int] | None = None

    def run(self, keys_values: KeysValues, **inputs: Any) -> KeysValues:
        """Keys and values of earlier tokens and of those in `inputs`, the decoder's arguments."""
        # A pass that is cut short would leave out what must follow a module's own pass.
        has_hooks_behind = any(
            hasattr(module, "_hf_hook")
            or module._forward_hooks.keys() - module._forward_hooks_always_called.keys()
            for module in self.decoder.modules()
        )
        ends_early = not self.whole and not has_hooks_behind
        cache = _WatchedCache(keys_values, self._written if ends_early else None)
        try:
            self.decoder(past_key_values=cache, use_cache=True, **inputs)
        except _AllWritten:
            pass
        else:
            self._written = cache.written
        return tuple((layer.keys, layer.values) for layer in cache.layers)


# What prompts have in common --------------------------------------------------------------------


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two contexts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (left, right) in pairs if left != right), min(len(one), len(other)))


def common_length(contexts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all contexts share, without the last token of any."""
    ordered = sorted(map(tuple, contexts))  # what the first and the last share, all in between do
    return max(0, min(n_common(ordered[0], ordered[-1]), min(map(len, contexts)) - 1))


class StemGroup(NamedTuple):
    """Prompts of a batch that are alike beyond what the run shares.

    Attributes:
        rows: their indices in the batch.
        length: tokens that they share, from the beginning of the prompts.
    """

    rows: tuple[int, ...]
    length: int


def group_by_stem(contexts: Sequence[Sequence[int]], n_shared: int) -> list[StemGroup]:
    """Neighbours that share a stem of some length; a prompt without such neighbours is alone.

    Args:
        contexts: token ids of each prompt.
        n_shared: leading tokens that all of them share.

    Returns:
        Groups, in order, that hold every prompt once. One of a single prompt shares it all but the
        last token.
    """
    groups: list[StemGroup] = []
    for row, context in enumerate(contexts):
        if groups:
            last = groups[-1]
            shared = n_common(contexts[last.rows[0]], context)
            length = min(last.length, shared, len(context) - 1)
            least = _KEPT_STEM * (last.length - n_shared) if len(last.rows) > 1 else 0
            if length - n_shared >= max(_SHORTEST_STEM, least):
                groups[-1] = StemGroup((*last.rows, row), length)
                continue
        groups.append(StemGroup((row,), len(context) - 1))
    return groups


class Prefiller:
    """Prefills prompts, and keeps what all prompts of a run share.

    Args:
        model: a Hugging Face causal LM in eval mode.
        mask_style: how its attention takes its mask; see `attention_masks`.
        contexts: of all prompts of the run; empty to share nothing among batches.
        share: False to compute every prompt on its own, and every layer to its end.
        most_columns: where stems of several lengths would need more columns, padding included,
            a batch shares none. Some models count columns for positions, and are exact only up to
            the number that they were checked with.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_style: MaskStyle,
        contexts: Sequence[Sequence[int]] = (),
        *,
        share: bool = True,
        most_columns: int | None = None,
    ) -> None:
        self.model = model
        # A PEFT model has the whole model as its base; keys and values need no head.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.passes = PrefillPasses(inner.base_model, whole=not share)  # type: ignore[arg-type]
        self.mask_style = mask_style
        self.share = share
        self.most_columns = most_columns
        n_shared = common_length(contexts) if share and len(contexts) > 1 else 0
        self.shared_tokens = tuple(contexts[0][:n_shared]) if n_shared else ()
        self._shared: Columns | None = None

    @torch.no_grad()
    def prefill(self, contexts: Sequence[tuple[int, ...]]) -> Prefix:
        """Keys and values of every context but its last token."""
        device = input_device(self.model)
        lengths = torch.tensor([len(context) - 1 for context in contexts], device=device)
        n_shared = len(self.shared_tokens)
        if not all(
            len(context) > n_shared and context[:n_shared] == self.shared_tokens
            for context in contexts
        ):
            n_shared = 0
        groups = self._groups(contexts, n_shared)
        columns = self._extend(
            self._run_prefix(n_shared, len(groups)),
            [contexts[group.rows[0]][n_shared : group.length] for group in groups],
            [n_shared] * len(groups),
        )
        if any(len(group.rows) > 1 for group in groups):
            group_of = [index for index, group in enumerate(groups) for _ in group.rows]
            starts = [groups[index].length for index in group_of]
            rests = [context[start:-1] for context, start in zip(contexts, starts, strict=True)]
            columns = columns.rows(torch.tensor(group_of, device=device))
            columns = self._extend(columns, rests, starts)
            columns = columns.without_gaps(max(map(len, contexts)) - 1)
        return Prefix(*columns, lengths)

    def inputs(self, prefix: Prefix, rows: Rows) -> dict[str, Any]:
        """The model's arguments that read rows behind a prefix."""
        return {
            "input_ids": rows.tokens,
            "position_ids": rows.positions,
            "attention_mask": attention_masks(
                self.model, self.mask_style, prefix.positions, rows.positions, rows.sees
            ),
            "past_key_values": prefix.cache(),
            "use_cache": True,
        }

    def _groups(self, contexts: Sequence[Sequence[int]], n_shared: int) -> list[StemGroup]:
        """Prompts with a stem in common together; each alone if nothing is to be shared."""
        if self.share:
            groups = group_by_stem(contexts, n_shared)
            longest_rest = max(
                len(contexts[row]) - 1 - group.length for group in groups for row in group.rows
            )
            n_columns = max(group.length for group in groups) + longest_rest
            if self.most_columns is None or n_columns <= self.most_columns:
                return groups
        return [StemGroup((row,), len(context) - 1) for row, context in enumerate(contexts)]

    def _run_prefix(self, n_shared: int, batch: int) -> Columns:
        """What all prompts of the run share, for each row of a batch."""
        device = input_device(self.model)
        positions = torch.arange(n_shared, device=device).expand(batch, n_shared)
        if n_shared == 0:
            return Columns((), positions)
        if self._shared is None:
            no_columns = Columns((), torch.empty((1, 0), dtype=torch.long, device=device))
            self._shared = self._extend(no_columns, [self.shared_tokens], [0])
        keys_values = _changed(
            self._shared.keys_values, lambda tensor: tensor.expand(batch, -1, -1, -1)
        )
        return Columns(keys_values, positions)

    def _extend(
        self, columns: Columns, tokens: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Columns:
        """Prefill further tokens of each row, the first of which is at position `starts`."""
        if max(map(len, tokens)) == 0:
            return columns
        device = input_device(self.model)
        ids = right_pad(tokens, device)
        n_new = ids.shape[1]
        offsets = torch.arange(n_new, device=device)
        query_positions = torch.tensor(starts, device=device)[:, None] + offsets
        inputs: dict[str, Any] = {"input_ids": ids}
        if columns.keys_values:
            earlier = torch.ones(n_new, n_new, dtype=torch.bool, device=device).tril()
            inputs["attention_mask"] = attention_masks(
                self.model, self.mask_style, columns.positions, query_positions, earlier
            )
            # Padding must have a position that the model knows; it is never seen.
            ends = [start + max(1, len(new)) - 1 for start, new in zip(starts, tokens, strict=True)]
            last_positions = torch.tensor(ends, device=device)[:, None]
            inputs["position_ids"] = query_positions.minimum(last_positions)
        keys_values = self.passes.run(columns.keys_values, **inputs)
        n_tokens = torch.tensor([len(new) for new in tokens], device=device)
        positions = query_positions.masked_fill(offsets >= n_tokens[:, None], -1)
        return Columns(keys_values, torch.cat((columns.positions, positions), dim=1))
