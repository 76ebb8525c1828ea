"""Prompts, padding, log-likelihoods and targets by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.engine.interface import SHIFT_INVARIANT
from neuronllm_eval.engine.option_logits import right_pad, score_options
from neuronllm_eval.errors import DocError
from neuronllm_eval.prompts import Prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ((5,),)}, "doc 9 has options of [1] tokens."),
        ({"options": ((5,), ())}, "doc 9 has options of [1, 0] tokens."),
        (
            {"options": ((5,), (5,))},
            "doc 9 has options that become the same tokens ((5,), (5,)).\n"
            "Expected: letters that the tokenizer can tell apart.\n"
            "Remedy: use another target_delimiter.",
        ),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_refused(changes, message):
    values = {"doc_id": 9, "context": (1, 2), "options": ((5,), (6,)), "gold": 1}
    with pytest.raises(DocError) as refusal:
        Prompt(**(values | changes))
    assert str(refusal.value).startswith(message)


def test_length_of_a_prompt_counts_all_option_tokens_but_the_last():
    short = Prompt(0, (1, 2, 3), ((5,), (6,)), 0)
    long = Prompt(1, (1, 2, 3), ((5,), (6, 7), (6, 8, 9)), 0)
    assert short.n_tokens == 3
    assert short.one_token_options
    assert long.n_tokens == 3 + 2  # the longest option has three tokens
    assert not long.one_token_options


def test_padding_is_on_the_right():
    padded = right_pad([[7, 8, 9], [5]], torch.device("cpu"))
    assert padded.tolist() == [[7, 8, 9], [5, 0, 0]]


def test_option_loglikelihoods_by_hand():
    # exp of the logits: 1, 2, 5 of 8 and 4, 2, 2 of 8.
    logits = torch.tensor([[1.0, 2.0, 5.0], [4.0, 2.0, 2.0]]).log()
    loglikelihoods, greedy = score_options(logits.to(torch.float64), [2, 0])
    expected = torch.tensor([[5 / 8, 1 / 8], [2 / 8, 4 / 8]]).log()
    assert torch.allclose(loglikelihoods, expected)
    assert loglikelihoods.dtype is torch.float32
    assert greedy.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("target", sorted(SHIFT_INVARIANT, key=lambda one: one.__name__))
@given(logits=st.lists(st.floats(-20, 20), min_size=5, max_size=5), gold=st.integers(0, 2))
def test_a_shift_invariant_target_is_the_same_for_logits_as_for_loglikelihoods(
    target, logits, gold
):
    values = torch.tensor(logits)
    loglikelihoods, _ = score_options(values, [0, 2, 4])
    expected = target(loglikelihoods, gold)
    assert torch.allclose(target(values[[0, 2, 4]], gold), expected, atol=1e-4)


def test_every_target_that_is_said_to_be_shift_invariant_is_one_of_the_methods():
    used = {quantity.target for each in METHODS.values() for quantity in each().quantities}
    assert used >= SHIFT_INVARIANT
