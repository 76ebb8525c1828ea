"""Trees of options: by hand, what is read off them, and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.engine.option_tree import OptionTree, OptionTrees
from neuronllm_eval.engine.shared_prefix import Prefix
from neuronllm_eval.prompts import Prompt

MIXED = Prompt(0, (90, 91), ((5,), (6, 7), (6, 8, 9), (6, 8, 4), (50, 51)), 2)
LETTERS = Prompt(1, (90, 91, 92), ((5,), (6,), (7,)), 0)


def test_a_tree_by_hand():
    # Behind 91: 6 and behind it 8, which two options share; 50. No option's last token is a row.
    tree = OptionTree.of(MIXED)
    assert tree.tokens == (91, 6, 8, 50)
    assert tree.parents == (0, 0, 1, 0)
    assert tree.depths == (0, 1, 2, 1)
    assert tree.reads == (
        ((0, 5),),
        ((0, 6), (1, 7)),
        ((0, 6), (1, 8), (2, 9)),
        ((0, 6), (1, 8), (2, 4)),
        ((0, 50), (3, 51)),
    )
    assert tree.sees(5).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],  # padding
    ]


def test_options_of_one_token_need_one_row():
    tree = OptionTree.of(LETTERS)
    assert (tree.tokens, tree.parents, tree.depths) == ((92,), (0,), (0,))


def test_an_option_that_begins_another_has_no_rows_of_its_own():
    tree = OptionTree.of(Prompt(0, (90,), ((5, 6), (5, 6, 7)), 0))
    assert tree.tokens == (90, 5, 6)
    assert tree.reads == (((0, 5), (1, 6)), ((0, 5), (1, 6), (2, 7)))


def prefix(*lengths: int) -> Prefix:
    return Prefix((), torch.zeros(len(lengths), 0, dtype=torch.long), torch.tensor(lengths))


def test_copies_by_hand():
    rows = OptionTrees([MIXED, LETTERS]).copies(prefix(1, 2), 2)
    assert rows.tokens.tolist() == [[91, 6, 8, 50] * 2, [92, 0, 0, 0] * 2]
    # Padding has the position of row 0, which the model knows.
    assert rows.positions.tolist() == [[1, 2, 3, 2] * 2, [2, 2, 2, 2] * 2]
    assert rows.sees.shape == (2, 8, 8)
    assert not rows.sees[:, :4, 4:].any()
    assert not rows.sees[:, 4:, :4].any()
    for copy in (slice(0, 4), slice(4, 8)):
        assert torch.equal(rows.sees[0, copy, copy], OptionTree.of(MIXED).sees(4))
        assert torch.equal(rows.sees[1, copy, copy], torch.eye(4).bool())


@st.composite
def prompts(draw: st.DrawFn) -> list[Prompt]:
    option = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple)
    options = st.lists(option, min_size=2, max_size=5, unique=True).map(tuple)
    return [Prompt(n, (0,), draw(options), 0) for n in range(draw(st.integers(1, 3)))]


@given(prompts(), st.integers(1, 3), st.booleans())
def test_what_is_read_off_equals_a_plain_loop(batch, n_copies, greedy):
    trees = OptionTrees(batch)
    torch.manual_seed(len(batch))
    logits = torch.randn(len(batch), n_copies * trees.n_rows, 7, dtype=torch.float64)
    if greedy:  # every row says 3
        logits[..., 3] = 9.0
    logits = logits.float().requires_grad_(True)
    found, flags = trees.loglikelihoods(logits), trees.greedy(logits)
    weights = [torch.randn_like(each) for each in found]
    (gradient,) = torch.autograd.grad(
        sum((each * weight).sum() for each, weight in zip(found, weights, strict=True)), logits
    )
    total = torch.zeros(())
    logprobs = logits.log_softmax(-1).reshape(len(batch), n_copies, trees.n_rows, 7)
    for prompt, tree, by_copy, scores, is_greedy, weight in zip(
        batch, trees.trees, logprobs, found, flags, weights, strict=True
    ):
        assert scores.shape == is_greedy.shape == (n_copies, len(prompt.options))
        for copy in range(n_copies):
            for number, option in enumerate(prompt.options):
                rows = [row for row, _ in tree.reads[number]]
                expected = sum(
                    by_copy[copy, row, token] for row, token in zip(rows, option, strict=True)
                )
                assert float(scores.detach()[copy, number]) == pytest.approx(
                    float(expected.detach()), abs=1e-5
                )
                likeliest = [int(by_copy[copy, row].argmax()) for row in rows]
                assert bool(is_greedy[copy, number]) == (likeliest == list(option))
                total = total + expected * weight[copy, number]
    (expected_gradient,) = torch.autograd.grad(total, logits)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)
