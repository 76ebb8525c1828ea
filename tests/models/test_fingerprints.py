"""Digests tell apart what differs, and only that."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from neuronllm_eval.models.fingerprints import Weights, digest, model_hash, tokenizer_hash
from neuronllm_eval.neurons.neuron_set import Provenance
from tests.fixtures.harness import split_space_tokenizer, word_tokenizer
from tests.fixtures.tiny_models import provenance, tiny_model


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


def found_in(model: torch.nn.Module) -> Provenance:
    weights = Weights.of(model)
    return provenance(dtype=weights.dtype, model_hash=weights.hash, weights_sample=weights.sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_recognised_in_any_dtype(dtype):
    model = tiny_model("llama")
    origin = found_in(model)
    assert len(origin.weights_sample) > 40
    same = copy.deepcopy(model).to(dtype)
    assert not Weights.of(same).differ(origin)
    assert not Weights.of(model).differ(found_in(same))
    torch.manual_seed(3)
    other = type(model)(model.config).to(dtype)
    assert Weights.of(other).differ(origin)


def test_runs_of_earlier_versions_have_no_sample():
    model = tiny_model("llama")
    origin = dataclasses.replace(found_in(model), weights_sample="")
    assert not Weights.of(copy.deepcopy(model).bfloat16()).differ(origin)


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
