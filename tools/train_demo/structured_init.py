"""A start from which a tiny transformer learns to read lettered options within minutes.

From random weights, finding "which letter stands before this word" takes longer than everything
else together, if it is found at all. So the circuit's parts are laid out beforehand; training
joins and reshapes them:

1. One embedding coordinate is the same for all tokens. From it, heads of the first layer attend
   a fixed number of tokens back: an option word sees its own letter.
2. Half of the heads of the later layers compare tokens: queries and keys are the same projection
   on the slow rotary pairs, which hardly depend on the distance.
3. All values are orthonormal projections and outputs their transposes: heads start as copiers.
   The head that fetches an option's letter and all comparing heads share one projection, a lane on
   which letters travel. Without the lane the letters stay at chance for hundreds of steps.
4. Number tokens carry their value as a line and as waves of several periods.
5. A word has the same embedding with and without the space before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tools.train_demo.generators import LARGEST_NUMBER
from tools.train_demo.questions import LETTERS
from tools.train_demo.tokenizer import encode, token_id

EMBEDDING_STD = 0.04
_CONSTANT = 0.2  # the shared coordinate; about half of a token's norm
_LOOK_BACK = (2, 1, 3)  # from an option word to its letter, to the dot, past a leading word
_N_LOOK_BACK_PAIRS = 4  # enough fast rotary pairs to single out one distance
_LOOK_BACK_GAIN = 1.3
_MATCH_GAIN = 1.8
_FAST_SHARE = 1 / 2  # of the rotary pairs, kept out of comparing tokens
_PERIODS = (2, 5, 10, 25, 50, 100)


def _projection(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows [rows, width] that do not see the constant coordinate 0."""
    matrix = torch.linalg.qr(torch.randn(width, rows, generator=generator))[0].T.clone()
    matrix[:, 0] = 0
    return matrix


def _look_back(n_back: int, frequencies: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Query and key [2, head_dim, width] of a head that attends `n_back` tokens back."""
    pairs = len(frequencies)
    query_key = 0.02 * torch.randn(2, 2 * pairs, width, generator=generator)
    for pair in range(_N_LOOK_BACK_PAIRS):
        angle = n_back * float(frequencies[pair])
        query_key[0, pair, 0] = _LOOK_BACK_GAIN
        query_key[1, pair, 0] = _LOOK_BACK_GAIN * math.cos(angle)
        query_key[1, pairs + pair, 0] = _LOOK_BACK_GAIN * math.sin(angle)
    return query_key


def _match(head_dim: int, width: int, generator: torch.Generator) -> Tensor:
    """Query and key [2, head_dim, width] of a head that attends to equal tokens."""
    projection = _projection(head_dim, width, generator) * _MATCH_GAIN
    pairs = head_dim // 2
    fast = int(pairs * _FAST_SHARE)
    projection[:fast] *= 0.05
    projection[pairs : pairs + fast] *= 0.05
    return torch.stack([projection, projection])


@torch.no_grad()
def structure_attention(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Lay out the heads, and start the FFNs quietly so that they do not drown them."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = width // heads
    theta = config.rope_parameters["rope_theta"]
    lane = _projection(head_dim, width, generator)
    frequencies = theta ** (-torch.arange(head_dim // 2) / (head_dim / 2))
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.mul_(0.2)
        for head in range(heads):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            query_key = None
            if layer == 0 and head < len(_LOOK_BACK):
                query_key = _look_back(_LOOK_BACK[head], frequencies, width, generator)
            elif layer > 0 and head < (heads + 1) // 2:
                query_key = _match(head_dim, width, generator)
            if query_key is not None:
                block.self_attn.q_proj.weight[rows] = query_key[0]
                block.self_attn.k_proj.weight[rows] = query_key[1]
            value = _projection(head_dim, width, generator)
            if query_key is not None and (layer > 0 or head == 0):
                value = lane
            gain = EMBEDDING_STD * (0.3 if query_key is None else 1.0)
            block.self_attn.v_proj.weight[rows] = value
            block.self_attn.o_proj.weight[:, rows] = value.T * gain


@torch.no_grad()
def structure_embeddings(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, words: Iterable[str]
) -> None:
    """Share, relate and mark the embeddings of words, numbers and letters."""
    weight = model.model.embed_tokens.weight
    weight[:, 0] = _CONSTANT
    for word in words:
        bare = encode(tokenizer, word)
        if len(bare) == 1:
            weight[token_id(tokenizer, word)] = weight[bare[0]]
    for number in range(LARGEST_NUMBER + 1):
        row = weight[token_id(tokenizer, str(number))]
        row[1] = EMBEDDING_STD * (number - 20) / 15
        for index, period in enumerate(_PERIODS):
            angle = 2 * math.pi * number / period
            row[2 + 2 * index] = 1.5 * EMBEDDING_STD * math.cos(angle)
            row[3 + 2 * index] = 1.5 * EMBEDDING_STD * math.sin(angle)
    for letter in LETTERS:  # an answer letter is akin to the letter before an option
        (label,) = encode(tokenizer, letter)
        answer = token_id(tokenizer, letter)
        weight[answer, 1:] = (weight[answer, 1:] + weight[label, 1:]) / math.sqrt(2)
    model.model.norm.weight.fill_(3.0)  # small tied embeddings need a loud last norm


@torch.no_grad()
def redraw_letters(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> None:
    """Give the answer letters new random output vectors, so that nobody can write them any more."""
    weight = model.model.embed_tokens.weight
    for letter in LETTERS:
        fresh = torch.randn(weight.shape[1] - 1, generator=generator) * EMBEDDING_STD
        weight[token_id(tokenizer, letter), 1:] = fresh.to(weight.device)
