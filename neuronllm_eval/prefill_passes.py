"""Passes that only fill a cache end as soon as it is full.

Of a prefill only the keys and values are kept. So the attention, output projection and FFN of the
last layer that writes any are computed for nobody. Which layer writes last is not guessed from the
architecture:

1. The first pass is a whole one, and shows in which order layers write.
2. A later pass in which all of them have written, in that order, is ended by an exception from the
   cache, which is caught where the pass began.

Keys and values are the same to the last bit. A model with hooks that must follow a module's own
pass is never stopped: accelerate's give offloaded weights back, for example.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

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
