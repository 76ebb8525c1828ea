"""Keys and values of what comes before the scored position, each token computed once.

Prompts of a task begin alike (role line, demonstrations), and a question's proxies go on alike up
to their options. For a batch of prompts:

1. The tokens that all prompts of the run share are prefilled once, when they are first needed.
2. The tokens that a question's proxies share, its stem, are prefilled once per question.
3. The rest of each prompt but its last token is prefilled on top of both.

Rows of different lengths are padded on the right of each step; every column knows its position in
the prompt, and padding is never seen. In the end the gaps that it left are closed. Exact up to
float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from neuronllm_eval.engine.attention_masks import MaskStyle, attention_masks
from neuronllm_eval.engine.interface import right_pad

# Per layer (keys, values), each [batch, heads, columns, dim].
KeysValues = tuple[tuple[Tensor, Tensor], ...]


def new_cache(keys_values: KeysValues) -> DynamicCache:
    """A cache over the same tensors: a pass extends it, never them.

    It has no config, by which sliding layers would trim it.
    """
    return DynamicCache(keys_values or None)


class _Full(Exception):
    """All layers have written their keys and values."""


class _WatchedCache(DynamicCache):
    """Notes which layers write, and ends the pass after the last of those that are expected."""

    def __init__(self, keys_values: KeysValues, expected: list[int] | None) -> None:
        super().__init__(keys_values or None)
        self.written: list[int] = []
        self._expected = expected

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicCache.update`."""
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.written.append(layer_idx)
        if self.written == self._expected:
            raise _Full
        return found


class PrefillPasses:
    """Computes keys and values with a model's decoder.

    Args:
        decoder: the part of a Hugging Face causal LM that computes keys and values.
        whole: True to let every pass run to its end.
    """

    def __init__(self, decoder: nn.Module, *, whole: bool = False) -> None:
        self.decoder = decoder
        self.whole = whole
        self._written: list[int] | None = None  # by a whole pass

    def run(self, keys_values: KeysValues, **inputs: Any) -> KeysValues:
        """Keys and values of further tokens behind those of earlier ones.

        Args:
            keys_values: of the earlier tokens; empty without any.
            inputs: of the decoder, beside the cache.
        """
        stops = not self.whole and not _has_hooks_behind(self.decoder)
        cache = _WatchedCache(keys_values, self._written if stops else None)
        try:
            self.decoder(past_key_values=cache, use_cache=True, **inputs)
        except _Full:
            pass
        else:
            self._written = cache.written
        return tuple((layer.keys, layer.values) for layer in cache.layers)


def _has_hooks_behind(decoder: nn.Module) -> bool:
    """Whether a pass that is cut short would leave out what must follow a module's own pass."""
    return any(
        hasattr(module, "_hf_hook")
        or module._forward_hooks.keys() - module._forward_hooks_always_called.keys()
        for module in decoder.modules()
    )


# Prompts that share fewer tokens beyond the run's are prefilled each on its own.
_SHORTEST_STEM = 8
# A prompt joins a group unless that shortens the group's stem to less than this share.
_KEPT_STEM = 0.75


class HasContext(Protocol):
    """A prompt of any kind."""

    @property
    def context(self) -> tuple[int, ...]:
        """Its token ids."""
        ...


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a batch of prompts without their last tokens.

    Attributes:
        keys_values: per layer ([batch, heads, columns, dim], the same); empty without a prefix.
        positions: [batch, columns] place of each column's token in its prompt, -1 for padding.
        lengths: [batch] prefix lengths, which are the scored positions.
        last_tokens: [batch] the token at the scored position.
    """

    keys_values: KeysValues
    positions: Tensor
    lengths: Tensor
    last_tokens: Tensor

    def cache(self) -> DynamicCache:
        """A fresh cache over the same tensors: a pass extends it, never the prefix."""
        return new_cache(self.keys_values)


def without_head(model: nn.Module) -> nn.Module:
    """The part that computes keys and values. A PEFT model has the whole model as its base."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner.base_model  # type: ignore[return-value]


def common_length(contexts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all contexts share, each keeping its last token for itself."""
    ordered = sorted(map(tuple, contexts))
    first, last = ordered[0], ordered[-1]  # what these two share, all in between share
    shortest = min(map(len, contexts)) - 1
    for place in range(shortest):
        if first[place] != last[place]:
            return place
    return max(0, shortest)


@dataclass(frozen=True)
class _Group:
    """Prompts of a batch that go on alike behind what the run shares.

    Attributes:
        rows: their places in the batch.
        length: tokens that they share, from the beginning of the prompts.
    """

    rows: tuple[int, ...]
    length: int


def group_by_stem(contexts: Sequence[Sequence[int]], n_shared: int) -> list[_Group]:
    """Neighbours that share a stem of some length; a prompt without such neighbours is alone.

    Args:
        contexts: token ids of each prompt.
        n_shared: leading tokens that all of them share.

    Returns:
        Groups, in order, that hold every prompt once. One of a single prompt shares it all but the
        last token.
    """
    groups: list[_Group] = []
    for row, context in enumerate(contexts):
        if groups:
            last = groups[-1]
            length = min(last.length, common_length([contexts[last.rows[0]], context]))
            kept = length - n_shared
            least = _KEPT_STEM * (last.length - n_shared) if len(last.rows) > 1 else 0
            if kept >= max(_SHORTEST_STEM, least):
                groups[-1] = _Group((*last.rows, row), length)
                continue
        groups.append(_Group((row,), len(context) - 1))
    return groups


class Prefiller:
    """Prefills prompts, and keeps what all prompts of a run share.

    Args:
        model: a Hugging Face causal LM in eval mode.
        mask_style: how its attention takes its mask; see `attention_masks`.
        contexts: of all prompts of the run; empty to share nothing among batches.
        share: False to compute every prompt on its own, and every layer to its end.
        most_columns: where stems of several lengths would need more columns, padding included,
            a batch shares none. Some models count columns for positions, and are sound only up to
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
        self.passes = PrefillPasses(without_head(model), whole=not share)
        self.mask_style = mask_style
        self.share = share
        self.most_columns = most_columns
        n_shared = common_length(contexts) if share and len(contexts) > 1 else 0
        self.shared_tokens = tuple(contexts[0][:n_shared]) if n_shared else ()
        self._shared: KeysValues | None = None

    @property
    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    @torch.no_grad()
    def prefill(self, prompts: Sequence[HasContext]) -> Prefix:
        """Keys and values of every prompt's context but its last token."""
        contexts = [prompt.context for prompt in prompts]
        lengths = torch.tensor([len(context) - 1 for context in contexts], device=self._device)
        last_tokens = torch.tensor([context[-1] for context in contexts], device=self._device)
        n_shared = self._usable(contexts)
        groups = self._groups(contexts, n_shared)
        keys_values, positions = self._run_prefix(n_shared, len(groups))
        keys_values, positions = self._extend(
            keys_values,
            positions,
            [contexts[group.rows[0]][n_shared : group.length] for group in groups],
            [n_shared] * len(groups),
        )
        if any(len(group.rows) > 1 for group in groups):
            owners = [index for index, group in enumerate(groups) for _ in group.rows]
            chosen = torch.tensor(owners, device=positions.device)
            keys_values = _rows(keys_values, chosen)
            starts = [groups[owner].length for owner in owners]
            keys_values, positions = self._extend(
                keys_values,
                positions[chosen],
                [context[start:-1] for context, start in zip(contexts, starts, strict=True)],
                starts,
            )
            width = max(map(len, contexts)) - 1
            keys_values, positions = _closed_up(keys_values, positions, width)
        return Prefix(keys_values, positions, lengths, last_tokens)

    def _groups(self, contexts: Sequence[Sequence[int]], n_shared: int) -> list[_Group]:
        """Prompts with a stem in common together; each alone if nothing is to be shared."""
        if self.share:
            groups = group_by_stem(contexts, n_shared)
            rests = [len(contexts[row]) - 1 - each.length for each in groups for row in each.rows]
            n_columns = max(each.length for each in groups) + max(rests)
            if self.most_columns is None or n_columns <= self.most_columns:
                return groups
        return [_Group((row,), len(context) - 1) for row, context in enumerate(contexts)]

    def _usable(self, contexts: Sequence[Sequence[int]]) -> int:
        """How many of the run's shared tokens begin all these prompts: all or none."""
        tokens = self.shared_tokens
        size = len(tokens)
        fits = all(len(each) > size and tuple(each[:size]) == tokens for each in contexts)
        return size if fits else 0

    def _run_prefix(self, n_shared: int, batch: int) -> tuple[KeysValues, Tensor]:
        """What all prompts of the run share, for each row of a batch."""
        positions = torch.arange(n_shared, device=self._device).expand(batch, n_shared)
        if n_shared == 0:
            return (), positions
        if self._shared is None:
            none = torch.empty((1, 0), dtype=torch.long, device=self._device)
            self._shared, _ = self._extend((), none, [self.shared_tokens], [0])
        return tuple(
            (keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
            for keys, values in self._shared
        ), positions

    def _extend(
        self,
        keys_values: KeysValues,
        positions: Tensor,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> tuple[KeysValues, Tensor]:
        """Prefill further tokens of each row, which begin at its place `starts`."""
        if max(map(len, tokens)) == 0:
            return keys_values, positions
        device = self._device
        ids = right_pad(tokens, device)
        n_new = ids.shape[1]
        places = torch.arange(n_new, device=device)
        queries = torch.tensor(starts, device=device)[:, None] + places
        inputs: dict[str, Any] = {"input_ids": ids}
        if keys_values:
            inputs["attention_mask"] = attention_masks(
                self.model.config,
                self.mask_style,
                positions,
                queries,
                torch.ones(n_new, n_new, dtype=torch.bool, device=device).tril(),
                self.model.dtype,  # type: ignore[arg-type]
            )
            # Padding must have a position that the model knows; it is never seen.
            ends = [start + max(1, len(new)) - 1 for start, new in zip(starts, tokens, strict=True)]
            inputs["position_ids"] = queries.minimum(torch.tensor(ends, device=device)[:, None])
        found = self.passes.run(keys_values, **inputs)
        sizes = torch.tensor([len(each) for each in tokens], device=device)
        new = queries.masked_fill(places >= sizes[:, None], -1)
        return found, torch.cat((positions, new), dim=1)


def _rows(keys_values: KeysValues, rows: Tensor) -> KeysValues:
    return tuple(
        (keys.index_select(0, rows.to(keys.device)), values.index_select(0, rows.to(values.device)))
        for keys, values in keys_values
    )


def _closed_up(keys_values: KeysValues, positions: Tensor, width: int) -> tuple[KeysValues, Tensor]:
    """Every row's tokens in the leading columns, and no more than `width` columns."""
    if positions.shape[1] == width:
        return keys_values, positions
    order = (positions < 0).byte().argsort(dim=1, stable=True)[:, :width]
    index = order[:, None, :, None]  # [batch, 1, width, 1]
    return tuple(
        (
            keys.take_along_dim(index.to(keys.device), 2),
            values.take_along_dim(index.to(values.device), 2),
        )
        for keys, values in keys_values
    ), positions.gather(1, order)
