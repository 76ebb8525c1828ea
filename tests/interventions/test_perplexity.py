"""Perplexity of a text under edits of all its positions."""

from __future__ import annotations

import math
from unittest.mock import patch

import lm_eval.api.instance
import numpy as np
import pytest
import torch

from neuronllm_eval.harness.plain_text import TextWindow, plain_text, text_windows
from neuronllm_eval.interventions import perplexity
from neuronllm_eval.interventions.perplexity import perplexities
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.hooks import scale_neurons
from tests.fixtures.harness import harness_model, model_dir
from tests.fixtures.tiny_models import loaded, random_scales, random_tokens, tiny_model

# Two windows of unlike length; the second reads five tokens before those it scores.
TOKENS = random_tokens(3, 20)
WINDOWS = (
    TextWindow((1, *TOKENS[:11]), TOKENS[:12]),
    TextWindow(TOKENS[7:19], TOKENS[12:20]),
)


def by_hand(scale) -> float:
    """Token by token, from the probabilities of whole passes."""
    model, layers = loaded("llama")
    product, count = 1.0, 0
    for window in WINDOWS:
        with torch.no_grad(), scale_neurons(layers.modules, scale):
            logits = model(input_ids=torch.tensor([window.tokens])).logits[0].double()
        rows = logits.softmax(-1)[-len(window.scored) :]
        for row, token in zip(rows, window.scored, strict=True):
            product *= float(row[token])
            count += 1
    return product ** (-1 / count)


@pytest.mark.parametrize("sequences", [1, 3, 16])
def test_perplexity_is_that_of_whole_passes(sequences):
    model, layers = loaded("llama")
    scales = random_scales(layers.shape)
    with patch.object(perplexity, "SEQUENCES_PER_PASS", sequences):
        found = perplexities(model, layers, WINDOWS, scales.numpy())
    expected = [by_hand(scale) for scale in scales]
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(math.log(expected[1] / expected[0])) > 0.1  # the edits tell


def test_an_edit_that_changes_nothing_changes_no_bit():
    model, layers = loaded("gpt2")
    factors = np.ones((2, *layers.shape), dtype=np.int8)
    plain, same = perplexities(model, layers, WINDOWS, factors)
    assert plain == same > 1


def test_the_unmasked_perplexity_is_the_harness_s():
    lm = harness_model(model_dir())
    layers = find_ffn_layers(lm.model)
    windows = text_windows(lm, plain_text())
    assert len(windows) > 1
    request = lm_eval.api.instance.Instance("loglikelihood_rolling", {}, (plain_text(),), 0)
    (loglikelihood,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    n_tokens = sum(len(window.scored) for window in windows)
    (found,) = perplexities(lm.model, layers, windows, np.ones((1, *layers.shape), dtype=np.int8))
    assert found == pytest.approx(math.exp(-loglikelihood / n_tokens), rel=1e-5)


def test_a_broken_model_has_no_finite_perplexity():
    model = tiny_model("llama")
    layers = find_ffn_layers(model)
    factors = np.ones((2, *layers.shape), dtype=np.float32)
    factors[1] = 1e38
    plain, broken = perplexities(model, layers, WINDOWS, factors)
    assert math.isfinite(plain)
    assert not math.isfinite(broken)
