"""Attention masks by hand, and against what transformers makes of the same tokens."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neuronllm_eval.engine.shared_prefix import (
    MaskStyle,
    attention_masks,
    mask_styles,
)
from tests.fixtures.tiny_models import CONFIGS


def visible(mask: Tensor) -> list[list[list[int]]]:
    """[batch, rows, columns]: 1 where the additive mask lets a token look."""
    assert mask.shape[1] == 1
    assert bool(((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all())
    return (mask[:, 0] == 0).int().tolist()


class WithConfig(NamedTuple):
    """What masks depend on of a model."""

    config: tf.PretrainedConfig
    dtype: torch.dtype = torch.float32


def fan_out_masks(
    config: tf.PretrainedConfig,
    style: MaskStyle,
    keys: Tensor,
    lengths: Tensor,
    n_rows: int,
    dtype: torch.dtype,
):
    """Masks of copies of the token at position `lengths`, which see themselves alone."""
    itself = torch.eye(n_rows, dtype=torch.bool)
    queries = lengths[:, None].expand(-1, n_rows)
    return attention_masks(WithConfig(config, dtype), style, keys, queries, itself)


# Copies of one token ----------------------------------------------------------------------------


def test_a_copy_sees_its_own_prefix_and_itself():
    # Prefixes of 2 and 0 tokens in a cache of 2 columns, then 2 copies.
    keys, lengths = torch.tensor([[0, 1], [-1, -1]]), torch.tensor([2, 0])
    mask = fan_out_masks(tf.LlamaConfig(), MaskStyle.SINGLE, keys, lengths, 2, torch.float32)
    assert visible(mask) == [[[1, 1, 1, 0], [1, 1, 0, 1]], [[0, 0, 1, 0], [0, 0, 0, 1]]]


def test_a_window_holds_the_copy_and_the_tokens_before_it():
    # Window 3: the copy after 4 prefix tokens sees those at 2 and 3; after 2, both.
    config = tf.MistralConfig(sliding_window=3)
    keys, lengths = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1]]), torch.tensor([4, 2])
    mask = fan_out_masks(config, MaskStyle.SINGLE, keys, lengths, 1, torch.bfloat16)
    assert visible(mask) == [[[0, 0, 1, 1, 1]], [[1, 1, 0, 0, 1]]]
    assert mask.dtype is torch.bfloat16


def test_a_window_is_of_places_in_the_prompt_and_not_of_columns():
    # Window 3: after tokens 0 and 1, padding and token 2, the copy at 3 sees 1, 2 and itself.
    config = tf.MistralConfig(sliding_window=3)
    keys, lengths = torch.tensor([[0, 1, -1, 2]]), torch.tensor([3])
    mask = fan_out_masks(config, MaskStyle.SINGLE, keys, lengths, 1, torch.float32)
    assert visible(mask) == [[[0, 1, 0, 1, 1]]]


def test_mixed_layers_get_one_mask_a_type():
    config = CONFIGS["gemma3"]()
    config.sliding_window = 2
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    keys, lengths = torch.tensor([[0, 1, 2]]), torch.tensor([3])
    masks = fan_out_masks(config, MaskStyle.PER_TYPE, keys, lengths, 1, torch.float32)
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert visible(masks["full_attention"]) == [[[1, 1, 1, 1]]]
    assert visible(masks["sliding_attention"]) == [[[0, 0, 1, 1]]]


def test_styles_to_try_by_the_layers_of_the_model():
    assert mask_styles(WithConfig(tf.LlamaConfig())) == (MaskStyle.SINGLE,)
    assert mask_styles(WithConfig(CONFIGS["gemma3"]())) == (MaskStyle.PER_TYPE, MaskStyle.SINGLE)
    hybrid = tf.Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"])
    assert mask_styles(WithConfig(hybrid)) == ()


# Tokens that go on ------------------------------------------------------------------------------


def continued(config: tf.PretrainedConfig, style: MaskStyle, keys: Tensor, queries: Tensor):
    """Masks of tokens that follow one another."""
    n_new = queries.shape[1]
    own = torch.ones(n_new, n_new, dtype=torch.bool).tril()
    return attention_masks(WithConfig(config), style, keys, queries, own)


def test_a_further_token_sees_the_prefix_the_earlier_ones_and_itself():
    # The second row's cache holds one token and padding.
    keys, queries = torch.tensor([[0, 1], [0, -1]]), torch.tensor([[2, 3], [1, 2]])
    mask = continued(tf.LlamaConfig(), MaskStyle.SINGLE, keys, queries)
    assert visible(mask) == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 1, 0], [1, 0, 1, 1]]]


def test_a_window_moves_on_with_the_tokens():
    # Window 2: each token sees itself and the one before it, in the cache or not.
    config = tf.MistralConfig(sliding_window=2)
    keys, queries = torch.tensor([[0, 1], [0, -1]]), torch.tensor([[2, 3, 4], [1, 2, 3]])
    mask = continued(config, MaskStyle.SINGLE, keys, queries)
    assert visible(mask) == [
        [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
        [[1, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_without_a_cache_the_mask_is_the_usual_one():
    keys, queries = torch.empty((1, 0), dtype=torch.long), torch.arange(3)[None]
    mask = continued(tf.LlamaConfig(), MaskStyle.SINGLE, keys, queries)
    assert visible(mask) == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


@pytest.mark.parametrize("window", [None, 1, 3])
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3), data=st.data())
def test_every_token_sees_what_its_place_says(window, lengths, data):
    # Any columns may be padding; what counts is the place of the token that stands there.
    config = tf.MistralConfig(sliding_window=window)
    width, n_new = max(lengths), 2
    keys = torch.full((len(lengths), width), -1)
    for row, length in enumerate(lengths):
        columns = data.draw(st.permutations(range(width)))[:length]
        keys[row, sorted(columns)] = torch.arange(length)
    queries = torch.tensor(lengths)[:, None] + torch.arange(n_new)
    found = visible(continued(config, MaskStyle.SINGLE, keys, queries))
    for row in range(len(lengths)):
        places = [*keys[row].tolist(), *queries[row].tolist()]
        for query, own in enumerate(queries[row].tolist()):
            assert found[row][query] == [
                int(0 <= place <= own and (window is None or own - place < window))
                for place in places
            ]
