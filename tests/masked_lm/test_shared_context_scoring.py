"""Forks: several continuations of a context in one pass, against plain passes of every one."""

from __future__ import annotations

import random

import pytest
import torch

from neuronllm_eval.masked_lm.shared_context_scoring import (
    Fork,
    ForkScorer,
    Mask,
    exact_style,
    families,
)
from neuronllm_eval.models.hooks import edit_neurons
from tests.fixtures.tiny_models import (
    CONFIGS,
    REPLAY_ONLY,
    VOCABULARY,
    loaded,
    n_hooks,
    random_scales,
    random_tokens,
)

SHARED = random_tokens(1, 9)
STEM = random_tokens(2, 12)


def forks() -> list[Fork]:
    """Letters, shared leading tokens, branches of several lengths, one branch, short contexts."""
    letters = ((5,), (6,), (7,), (8,))
    spaced = ((3, 5), (3, 6), (3, 7))
    texts = (random_tokens(3, 4), random_tokens(4, 1), random_tokens(5, 6))
    prefixed = ((4, 9), (4, 9, 6), (4, 10))
    made = [
        Fork((*SHARED, *STEM, *random_tokens(10 + row, 3 + 2 * row)), options)
        for row, options in enumerate((letters, letters, spaced, texts, prefixed))
    ]
    made.append(Fork((*SHARED, *random_tokens(20, 2)), (random_tokens(6, 3),)))
    made.append(Fork(random_tokens(21, 2), texts))
    return made


FORKS = forks()
POSITIONS = ("unmasked", "scored", "everywhere")


def mask_of(layers, positions: str) -> Mask | None:
    if positions == "unmasked":
        return None
    return Mask(layers.modules, random_scales(layers.shape)[2], positions == "everywhere")


@torch.no_grad()
def plainly(model, forks, mask, dtype=torch.float64):
    """One continuation at a time, unpadded, with an edit of its own."""
    answers = []
    for fork in forks:
        own = []
        for continuation in fork.continuations:
            ids = torch.tensor([fork.context + continuation[:-1]])
            n_edited = len(continuation) - fork.n_shared
            where = slice(None) if mask is None or mask.all_positions else slice(-n_edited, None)

            def edit(layer, neurons, where=where):
                neurons = neurons.reshape(1, -1, neurons.shape[-1]).clone()
                neurons[:, where] *= mask.factors[layer].to(neurons)
                return neurons

            with edit_neurons([] if mask is None else mask.modules, edit):
                logits = model(ids, use_cache=False).logits[0, len(fork.context) - 1 :].to(dtype)
            target = torch.tensor(continuation)
            total = logits.log_softmax(-1).gather(-1, target[:, None]).sum()
            own.append((float(total), bool((logits.argmax(-1) == target).all())))
        answers.append(own)
    return answers


def assert_same(found, expected, tolerance=2e-4):
    assert [len(own) for own in found] == [len(own) for own in expected]
    for own, its in zip(found, expected, strict=True):
        for (one, greedy), (other, also) in zip(own, its, strict=True):
            assert one == pytest.approx(other, abs=tolerance)
            assert greedy == also


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", [*CONFIGS, *REPLAY_ONLY])
def test_forks_equal_plain_passes_wherever_they_are_used(architecture, positions):
    model, layers = loaded(architecture)
    mask = mask_of(layers, positions)
    expected = plainly(model, FORKS, mask)
    style = exact_style(model, FORKS, lambda some: plainly(model, some, mask), mask, None)
    if style is None:
        assert architecture in REPLAY_ONLY
        return
    scorer = ForkScorer(model, style.mask_style, FORKS, mask=mask, share=style.share)
    assert_same(scorer.score(FORKS), expected)
    assert n_hooks(model) == 0


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_batches_and_sharing_change_nothing(size, share):
    model, layers = loaded("llama")
    mask = mask_of(layers, "scored")
    style = exact_style(model, FORKS, lambda some: plainly(model, some, mask), mask, None)
    scorer = ForkScorer(model, style.mask_style, FORKS, mask=mask, share=share)
    found = [
        own for start in range(0, len(FORKS), size) for own in scorer.score(FORKS[start:][:size])
    ]
    assert_same(found, plainly(model, FORKS, mask))


def test_the_three_positions_differ():
    # Else the comparisons above would be worth nothing.
    model, layers = loaded("llama")
    found = [plainly(model, FORKS[:1], mask_of(layers, positions)) for positions in POSITIONS]
    values = [own[0][0][0] for own in found]
    assert min(abs(values[row] - values[row - 1]) for row in range(3)) > 1e-3


def test_a_fork_counts_its_queries_and_columns():
    fork = Fork((1, 2, 3), ((4, 5, 6), (4, 7)))
    assert fork.n_shared == 1
    assert fork.trunk == (3, 4)
    assert list(fork.branches()) == [(2, (5, 6)), (3, (7,))]
    assert fork.n_queries == 3  # 3 and 4, and 5
    assert fork.n_tokens == 5
    assert Fork((1, 2), ((4, 5),)).n_shared == 0  # what is shared takes two


def test_only_what_is_read_goes_through_the_head():
    model, _ = loaded("llama")
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda *args: shapes.append(args[-1].shape))
    style = exact_style(model, FORKS, lambda some: plainly(model, some, None), None, None)
    shapes.clear()
    ForkScorer(model, style.mask_style, FORKS).score(FORKS)
    handle.remove()
    assert shapes == [(len(FORKS), max(fork.n_queries for fork in FORKS), VOCABULARY)]


def test_the_softmax_dtype_is_that_of_the_harness():
    model, _ = loaded("llama", torch.bfloat16)
    fork = FORKS[0]
    style = exact_style(model, [fork], lambda some: plainly(model, some, None), None, None)
    coarse = ForkScorer(model, style.mask_style, [fork]).score([fork])[0]
    fine = ForkScorer(model, style.mask_style, [fork], softmax_dtype=torch.float32)
    for (value, _), (other, _) in zip(coarse, fine.score([fork])[0], strict=True):
        assert value == float(torch.tensor(value, dtype=torch.bfloat16))
        assert value == pytest.approx(other, abs=0.1)
        assert value != other


def test_a_model_whose_forks_go_wrong_is_found_out():
    model, _ = loaded("llama")

    def wrong(some):
        return [
            [(value + 0.1, greedy) for value, greedy in own] for own in plainly(model, some, None)
        ]

    assert exact_style(model, FORKS, wrong, None, None) is None


def test_a_pass_that_breaks_is_no_style_and_leaves_no_hook():
    model, layers = loaded("llama")
    mask = mask_of(layers, "everywhere")
    expected = plainly(model, FORKS, mask)

    def fail(_module, _args, given):
        if given.get("attention_mask") is not None:
            raise RuntimeError("no mask of four dimensions")

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        known = dict(zip(FORKS, expected, strict=True))
        style = exact_style(model, FORKS, lambda some: [known[fork] for fork in some], mask, None)
        assert style is None
    finally:
        handle.remove()
    assert n_hooks(model) == 0


# Families ---------------------------------------------------------------------------------------


def test_tasks_with_prefixes_of_their_own_are_families():
    rng = random.Random(0)
    tasks = []
    for task in range(3):
        prefix = random_tokens(100 + task, 30)
        tasks += [
            Fork((*prefix, *random_tokens(1000 * task + row, rng.randint(3, 9))), ((1,), (2,)))
            for row in range(20)
        ]
    rng.shuffle(tasks)
    found = families(tasks, 8)
    assert sorted(map(len, found)) == [20, 20, 20]
    for family in found:
        assert len({fork.context[:30] for fork in family}) == 1
    assert {fork for family in found for fork in family} == set(tasks)


def test_small_families_are_put_together_and_proxies_stay_side_by_side():
    made = []
    for question in range(10):
        stem = random_tokens(question, 20 + question)
        made += [
            Fork((*SHARED, *stem, *random_tokens(50 + row, 4)), ((1,), (2,))) for row in (0, 1)
        ]
    random.Random(1).shuffle(made)
    (family,) = families(made, 8)
    assert sorted(family, key=lambda fork: fork.context) == sorted(
        made, key=lambda fork: fork.context
    )
    stems = [fork.context[:-4] for fork in family]
    assert stems[0::2] == stems[1::2]
    lengths = [fork.n_tokens for fork in family]
    assert lengths == sorted(lengths, reverse=True)


def test_no_fork_is_no_family():
    assert families([], 4) == []


def test_one_fork_is_a_family():
    one = Fork((1, 2), ((3,), (4,)))
    assert families([one], 5) == [[one]]
