"""KL divergence of the next token's distribution from that under the first edit."""

from __future__ import annotations

import math

import pytest
import torch

from neuronllm_eval.engine.divergence import DivergenceFromFirst
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.models.hooks import scale_neurons
from neuronllm_eval.prompts import ALL, SCORED, Prompt
from tests.fixtures.tiny_models import loaded, random_prompt, random_scales

# p = (1/2, 1/4, 1/4) under the first edit, q = (1/4, 1/4, 1/2) under the second:
# KL(p || q) = 1/2 log 2 + 0 + 1/4 log(1/2) = 1/4 log 2. Logits may have any constant added.
FIRST, SECOND = [math.log(2) + 7, 7, 7], [-3, -3, math.log(2) - 3]


def divergences(*chunks):
    divergence = DivergenceFromFirst()
    rows = [torch.tensor(chunk) for chunk in chunks]
    return [divergence.of(row, row.logsumexp(-1)).tolist() for row in rows]


def test_a_hand_calculation():
    ((same, other),) = divergences([FIRST, SECOND])
    assert same == 0
    assert other == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_the_first_edit_of_the_first_chunk_is_what_all_are_compared_with():
    (first,), (second, again) = divergences([FIRST], [SECOND, FIRST])
    assert (first, again) == (0, 0)
    assert second == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_each_prompt_has_its_own_distribution():
    ((one, other),) = divergences([[FIRST, SECOND], [SECOND, FIRST]])
    # KL(q || p) is 1/4 log(1/2) + 1/2 log 2 too.
    assert one == [0, pytest.approx(math.log(2) / 4, rel=1e-5)]
    assert other == [0, pytest.approx(math.log(2) / 4, rel=1e-5)]


def test_ids_that_are_no_token_count_as_nothing():
    ((same, other),) = divergences([[*FIRST, -math.inf], [*SECOND, -math.inf]])
    assert same == 0
    assert other == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_an_edit_that_rules_out_a_token_is_infinitely_far():
    ((_, other),) = divergences([FIRST, [-math.inf, 0.0, 0.0]])
    assert other == math.inf


def test_small_divergences_keep_their_digits_over_a_large_vocabulary():
    generator = torch.Generator().manual_seed(0)
    first = 3 * torch.randn(50_000, generator=generator) + 20
    logits = torch.stack([first, first + 0.02 * torch.randn(50_000, generator=generator) + 4])
    exact = logits.double().log_softmax(-1)
    expected = float((exact[0].exp() * (exact[0] - exact[1])).sum())
    assert 1e-4 < expected < 1e-3
    found = DivergenceFromFirst().of(logits.clone(), logits.logsumexp(-1))
    assert float(found[1]) == pytest.approx(expected, abs=5e-6)


# Engines ----------------------------------------------------------------------------------------

TEXTS = Prompt(9, random_prompt(9, 12).context, ((10, 11, 12), (10, 13), (14,)), 0)
# What the options share is at the context's end.
SHARED = Prompt(7, random_prompt(7, 9).context, ((10,), (11,)), 1, n_shared=2)
PROMPTS = [random_prompt(1, 14), random_prompt(2, 6), TEXTS, SHARED]


def from_whole_passes(prompt, scales, positions):
    """The divergence at the context's last token, each edit by a hook of its own."""
    model, layers = loaded("llama")
    tokens = torch.tensor([prompt.context])
    columns = torch.ones_like(tokens, dtype=torch.bool)
    if positions == SCORED:
        columns[:, :-1] = False
    rows = []
    for scale in scales:
        with torch.no_grad(), scale_neurons(layers.modules, scale, columns):
            rows.append(model(input_ids=tokens).logits[0, -1].double().log_softmax(-1))
    return torch.stack([(rows[0].exp() * (rows[0] - row)).sum() for row in rows]).float()


@pytest.mark.parametrize("rows_per_pass", [4, 64])
@pytest.mark.parametrize("kind", ["fan_out", "replay", "replay at all positions"])
def test_engines_give_what_whole_passes_do(kind, rows_per_pass):
    model, layers = loaded("llama")
    positions = ALL if kind.endswith(ALL + " positions") else SCORED
    if kind == "fan_out":
        engine = FanOutEngine(model, layers, rows_per_pass=rows_per_pass)
    else:
        engine = ReplayEngine(model, layers, positions=positions, rows_per_pass=rows_per_pass)
    scales = random_scales(layers.shape, 6)
    for prompt, scores in zip(PROMPTS, engine.score(PROMPTS, scales), strict=True):
        expected = from_whole_passes(prompt, scales, positions)
        assert scores.kl.dtype == torch.float32
        assert float(scores.kl[0]) == 0  # unedited
        assert float(scores.kl[1:].min()) > 0.01
        torch.testing.assert_close(scores.kl, expected, rtol=1e-4, atol=1e-4)
