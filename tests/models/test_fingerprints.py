"""Digests tell apart what differs, and only that."""

from __future__ import annotations

import copy

import torch

from neuronllm_eval.models.fingerprints import digest, model_hash, tokenizer_hash
from tests.fixtures.harness import split_space_tokenizer, word_tokenizer
from tests.fixtures.tiny_models import tiny_model


def test_a_single_changed_weight_changes_the_hash():
    model = tiny_model("llama")
    other = copy.deepcopy(model)
    assert model_hash(other) == model_hash(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[:, 7] = 0  # one neuron, masked for good
    assert model_hash(other) != model_hash(model)


def test_the_hash_knows_the_dtype():
    model = tiny_model("llama")
    assert model_hash(copy.deepcopy(model).to(torch.bfloat16)) != model_hash(model)


def test_the_tokenizer_s_hash_is_that_of_what_it_does():
    one = tokenizer_hash(word_tokenizer())
    assert len(one) == 16
    padded = copy.deepcopy(word_tokenizer())  # others use it too
    padded(["A", "A B"], padding=True, truncation=True, max_length=4)  # a call, no change
    assert tokenizer_hash(padded) == one
    assert tokenizer_hash(split_space_tokenizer()) != one
    more = copy.deepcopy(word_tokenizer())  # others use it too
    more.add_tokens(["brand-new"])
    assert tokenizer_hash(more) != one
    special = copy.deepcopy(word_tokenizer())  # others use it too
    special.bos_token = special.eos_token
    assert tokenizer_hash(special) != one


def test_digest():
    assert digest("") == ""
    assert digest("a") != digest("b")
    assert len(digest("a")) == 16
