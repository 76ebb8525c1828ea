"""What prompts share is computed once: groups by hand, tokens counted, caches left alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.shared_prefix import (
    Columns,
    MaskStyle,
    Prefiller,
    Prefix,
    common_length,
    group_by_stem,
)
from neuronllm_eval.prompts import Prompt
from tests.fixtures.tiny_models import (
    NODES,
    WEIGHTS,
    assert_same_scores,
    contexts,
    loaded,
    proxies,
    random_prompt,
    random_scales,
    random_tokens,
    tiny_model,
)

# Lists of few different tokens, so that many begin alike.
CONTEXTS = st.lists(
    st.lists(st.integers(1, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=6
)


# Lengths and groups -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ([(1, 2, 3, 4), (1, 2, 5, 6)], 2),
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),  # each keeps its last token
        ([(1, 2), (1, 2, 3, 4)], 1),  # so does one that is the beginning of another
        ([(1,), (1, 2, 3)], 0),
        ([(5, 1), (6, 1)], 0),
        ([(1, 2, 3, 9), (1, 2, 3, 8), (1, 7, 3, 8)], 1),
    ],
)
def test_common_length_by_hand(contexts, expected):
    assert common_length(contexts) == expected


@given(CONTEXTS)
def test_common_length_is_the_longest_shared_beginning_that_leaves_a_token(contexts):
    found = common_length(contexts)
    assert all(len(context) > found for context in contexts)
    assert len({context[:found] for context in contexts}) == 1
    longer = found + 1
    assert (
        any(len(context) <= longer for context in contexts)
        or len({context[:longer] for context in contexts}) > 1
    )


def lengths_and_rows(contexts: list[tuple[int, ...]], n_shared: int) -> list[tuple]:
    return [(group.rows, group.length) for group in group_by_stem(contexts, n_shared)]


def test_groups_by_hand():
    one, two = random_tokens(1, 10), random_tokens(2, 9)
    contexts = [
        (*one, 91, 92),
        (*one, 93),
        (*one, 94, 95, 96),
        (*two, 91, 92),
        (*two, 93, 94),
        (50, 51, 52),
    ]
    # The last prompt is alone and shares all but its last token with itself.
    assert lengths_and_rows(contexts, 0) == [((0, 1, 2), 10), ((3, 4), 9), ((5,), 2)]


def test_a_stem_below_eight_tokens_is_not_worth_a_step():
    stem = random_tokens(1, 12)
    contexts = [(*stem, 91, 92), (*stem, 93, 94)]
    assert lengths_and_rows(contexts, 4) == [((0, 1), 12)]  # 8 beyond what the run shares
    assert lengths_and_rows(contexts, 5) == [((0,), 13), ((1,), 13)]


def test_a_question_that_begins_like_the_last_one_does_not_cut_its_stem():
    stem = random_tokens(1, 40)
    question = [(*stem, 91, 92), (*stem, 93, 94)]
    near = [(*stem[:30], 91, 92), (*stem[:30], 93, 94)]  # 30 of 40 is three quarters
    far = [(*stem[:29], 91, 92), (*stem[:29], 93, 94)]
    assert lengths_and_rows(question + near, 0) == [((0, 1, 2, 3), 30)]
    assert lengths_and_rows(question + far, 0) == [((0, 1), 40), ((2, 3), 29)]


@st.composite
def contexts_that_share(draw) -> tuple[list[tuple[int, ...]], int]:
    """Contexts made of stems of up to 40 tokens, and how many leading tokens to call the run's."""
    stems = [random_tokens(seed, 40) for seed in range(3)]
    beginning = random_tokens(7, draw(st.integers(0, 10)))
    contexts = [
        (*beginning, *stems[which][:length], *rest)
        for which, length, rest in draw(
            st.lists(
                st.tuples(
                    st.integers(0, 2),
                    st.integers(0, 40),
                    st.lists(st.integers(1, 3), min_size=1, max_size=3),
                ),
                min_size=1,
                max_size=8,
            )
        )
    ]
    return contexts, draw(st.integers(0, common_length(contexts)))


@given(contexts_that_share())
def test_groups_hold_every_row_once_and_share_what_they_say(drawn):
    contexts, n_shared = drawn
    groups = group_by_stem(contexts, n_shared)
    assert [row for group in groups for row in group.rows] == list(range(len(contexts)))
    for group in groups:
        own = [contexts[row] for row in group.rows]
        assert n_shared <= group.length < min(map(len, own))
        assert len({context[: group.length] for context in own}) == 1
        if len(own) == 1:
            assert group.length == len(own[0]) - 1
        else:
            assert group.length - n_shared >= 8


@given(contexts_that_share())
def test_joining_never_cuts_a_stem_below_its_share(drawn):
    contexts, n_shared = drawn
    for group in group_by_stem(contexts, n_shared):
        rows = group.rows
        # What the first prompts of the group would share without each further one.
        stems = [
            common_length([contexts[row] for row in rows[:size]]) - n_shared
            for size in range(2, len(rows) + 1)
        ]
        assert all(later >= 0.75 * before for before, later in itertools.pairwise(stems))


def test_gaps_are_closed_by_hand():
    # Two rows of one head: tokens 0, 1, 2 with a gap, and tokens 0, 1 without.
    positions = torch.tensor([[0, -1, 1, -1, 2], [0, 1, -1, -1, -1]])
    keys = torch.arange(10.0).reshape(2, 1, 5, 1)
    ((found, values),), places = Columns(((keys, 10 * keys),), positions).without_gaps(3)
    assert places.tolist() == [[0, 1, 2], [0, 1, -1]]
    assert found[:, 0, :, 0].tolist()[0] == [0, 2, 4]
    assert found[1, 0, :2, 0].tolist() == [5, 6]
    assert torch.equal(values, 10 * found)


# How many tokens are computed -------------------------------------------------------------------


@contextmanager
def tokens_computed(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens each layer gets within the context."""
    counts = [0] * len(model.model.layers)
    handles = []
    for index, layer in enumerate(model.model.layers):

        def count(_module: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
            counts[index] += args[0].shape[0] * args[0].shape[1]

        handles.append(layer.input_layernorm.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


# Prompts of 60 tokens: 36 (60%) are the run's, 14 the question's, 10 the proxy's own.
SHARED = random_tokens(9, 36)
QUESTIONS = [
    proxies(10 * number, (*SHARED, *random_tokens(number, 14)), [10, 10, 10]) for number in range(4)
]
RUN = [prompt.context for question in QUESTIONS for prompt in question]


def test_tokens_of_prompts_that_share_are_computed_once():
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN)
    batches = [
        [*QUESTIONS[0]],
        [*QUESTIONS[1]],
        [*QUESTIONS[2], *QUESTIONS[3]],
    ]
    found = []
    for batch in batches:
        with tokens_computed(model) as counts:
            engine.integrate(batch, NODES, WEIGHTS, option_cross_entropy)
        found.append(counts)
    # A question: 14 tokens of the stem, then 9 of each proxy before its last one. Copies: 3 nodes
    # of each layer up to this one and the unedited one, which is the fourth, of each proxy.
    question = 14 + 3 * 9
    copies = [3 * 4, 3 * 7, 3 * 10]
    assert found == [
        [36 + question + n for n in copies],  # the run's own tokens, once
        [question + n for n in copies],
        [2 * (question + n) for n in copies],
    ]


def test_copies_that_join_late_are_computed_above_their_layer_only():
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN, savings=Savings.LATE)
    with tokens_computed(model) as counts:
        engine.integrate(QUESTIONS[0], NODES, WEIGHTS, option_cross_entropy)
    assert counts == [36 + 14 + 3 * 9 + n for n in (3 * 1, 3 * 4, 3 * 7)]


def test_without_savings_every_token_is_computed():
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN, savings=Savings.NONE)
    for _ in range(2):
        with tokens_computed(model) as counts:
            engine.integrate(QUESTIONS[0], NODES, WEIGHTS, option_cross_entropy)
        assert counts == [3 * 59 + 3 * 10] * 3


def test_scoring_shares_the_same_prefix():
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN)
    engine.integrate(QUESTIONS[0], NODES, WEIGHTS, option_cross_entropy)
    with tokens_computed(model) as counts:
        engine.score(QUESTIONS[1], random_scales(layers.shape, 5))
    assert counts == [14 + 3 * 9 + 3 * 5] * 3


def test_a_batch_with_a_stranger_shares_nothing_with_the_run():
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN)
    stranger = random_prompt(1, 20)
    with tokens_computed(model) as counts:
        engine.prefiller.prefill(contexts([*QUESTIONS[0], stranger]))
    # The stem has 50 tokens now, and the stranger's 19 are padded to them; then 4 rows of 9.
    assert counts == [2 * 50 + 4 * 9] * 3


def test_prompts_without_a_stem_take_one_step():
    model, layers = loaded("llama")
    prompts = proxies(10, SHARED, [5, 8, 1])
    prefiller = Prefiller(model, MaskStyle.SINGLE, [prompt.context for prompt in prompts])
    assert prefiller.shared_tokens == SHARED
    for first in (36, 0):
        with tokens_computed(model) as counts:
            prefiller.prefill(contexts(prompts))
        assert counts == [first + 3 * 7] * 3  # padded to the longest
    assert len(layers.modules) == 3


def test_the_shared_tokens_are_computed_when_they_are_first_needed():
    model, _ = loaded("llama")
    with tokens_computed(model) as counts:
        Prefiller(model, MaskStyle.SINGLE, RUN)
    assert counts == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapted", [False, True])
def test_the_head_is_not_computed_for_a_prefix(adapted):
    model = tiny_model("llama")
    if adapted:
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(model, config).eval()
    prefiller = Prefiller(model, MaskStyle.SINGLE, RUN)
    heads: list[Tensor] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: heads.append(output)
    )
    prefix = prefiller.prefill(contexts(QUESTIONS[0]))
    assert heads == []
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([QUESTIONS[0][2].context]), past_key_values=cache)
    expected = cache.layers[2].keys[0, :, :59]
    assert torch.allclose(prefix.keys_values[2][0][2], expected, atol=1e-4)


# What a prefix is -------------------------------------------------------------------------------


def test_columns_know_their_places():
    model, _ = loaded("llama")
    stem = random_tokens(1, 12)
    prompts = [*proxies(10, stem, [3, 5]), random_prompt(1, 3)]
    prefix = Prefiller(model, MaskStyle.SINGLE).prefill(contexts(prompts))
    assert prefix.lengths.tolist() == [14, 16, 2]
    assert prefix.positions.tolist() == [
        [*range(14), -1, -1],
        [*range(16)],
        [0, 1, *[-1] * 14],
    ]
    assert prefix.keys_values[0][0].shape[2] == 16


def test_one_token_prompts_have_no_prefix():
    model, _ = loaded("llama")
    prefix = Prefiller(model, MaskStyle.SINGLE).prefill(
        contexts([random_prompt(1, 1), random_prompt(2, 1)])
    )
    assert prefix.keys_values == ()
    assert prefix.positions.shape == (2, 0)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_mixed", "gpt2"])
def test_keys_and_values_are_those_of_a_plain_pass(architecture):
    model, _ = loaded(architecture)
    stem = random_tokens(1, 12)
    prompts = [*proxies(10, stem, [1, 5, 3]), random_prompt(1, 9)]
    style = MaskStyle.PER_TYPE if architecture == "gemma3_mixed" else MaskStyle.SINGLE
    prefix = Prefiller(model, style).prefill(contexts(prompts))
    for row, prompt in enumerate(prompts):
        size = len(prompt.context) - 1
        with torch.no_grad():
            cache = DynamicCache()
            model(input_ids=torch.tensor([prompt.context]), past_key_values=cache)
        for layer, plain in enumerate(cache.layers):
            for found, expected in zip(
                prefix.keys_values[layer], (plain.keys, plain.values), strict=True
            ):
                assert torch.allclose(found[row, :, :size], expected[0, :, :size], atol=1e-4)


def copies(prefix: Prefix) -> list[Tensor]:
    return [each.clone() for pair in prefix.keys_values for each in pair]


def test_passes_leave_the_prefix_as_it_is(monkeypatch):
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers, contexts=RUN, rows_per_prompt=5)
    prefixes = []
    prefill = engine.prefiller.prefill

    def watched(prompts: list[Prompt]) -> Prefix:
        prefix = prefill(prompts)
        prefixes.append((prefix, copies(prefix), prefix.positions.clone()))
        return prefix

    monkeypatch.setattr(engine.prefiller, "prefill", watched)
    engine.integrate(QUESTIONS[0], NODES, WEIGHTS, option_cross_entropy)  # 3 passes
    shared = [each.clone() for pair in engine.prefiller._shared.keys_values for each in pair]
    engine.score(QUESTIONS[1], random_scales(layers.shape, 8))
    engine.integrate([*QUESTIONS[2], *QUESTIONS[3]], NODES, WEIGHTS, option_cross_entropy)
    after = [each for pair in engine.prefiller._shared.keys_values for each in pair]
    assert all(torch.equal(one, other) for one, other in zip(shared, after, strict=True))
    assert all(each.shape[:3:2] == (1, 36) for each in after)
    assert len(prefixes) == 3
    for prefix, before, positions in prefixes:
        found = copies(prefix)
        assert all(torch.equal(one, other) for one, other in zip(before, found, strict=True))
        assert torch.equal(prefix.positions, positions)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_padding_needs_no_position_that_the_model_does_not_have(architecture):
    # 128 positions. Rests of up to 59 tokens behind a stem of 120 would reach the 179th.
    model, layers = loaded(architecture)
    prompts = [
        *proxies(10, random_tokens(1, 120), [8, 8]),
        *proxies(20, random_tokens(2, 40), [60, 60]),
    ]
    engine = FanOutEngine(model, layers)
    scales = random_scales(layers.shape)
    expected = [
        FanOutEngine(model, layers, savings=Savings.NONE).score([each], scales) for each in prompts
    ]
    assert_same_scores(engine.score(prompts, scales), [scores for (scores,) in expected])


# Padding stays within what was checked ----------------------------------------------------------

# Stems of 18 and 9 tokens, rests of 2 and 9 before the last token: 27 columns, though 20 would do.
UNEVEN = [*proxies(10, random_tokens(1, 18), [3, 3]), *proxies(20, random_tokens(2, 9), [10, 10])]


def test_a_prefix_has_no_more_columns_than_its_longest_prompt():
    model, _ = loaded("llama")
    prefix = Prefiller(model, MaskStyle.SINGLE).prefill(contexts(UNEVEN))
    assert prefix.positions.shape == (4, 20)
    assert prefix.keys_values[0][0].shape[2] == 20


@pytest.mark.parametrize(("most_columns", "computed"), [(27, 2 * 18 + 4 * 9), (26, 4 * 20)])
def test_stems_are_not_shared_where_padding_would_take_too_many_columns(most_columns, computed):
    model, _ = loaded("llama")
    prefiller = Prefiller(model, MaskStyle.SINGLE, most_columns=most_columns)
    with tokens_computed(model) as counts:
        prefiller.prefill(contexts(UNEVEN))
    assert counts == [computed] * 3


def test_the_engine_knows_how_many_columns_were_checked():
    model, layers = loaded("llama")
    contexts = [prompt.context for prompt in UNEVEN]
    engine = FanOutEngine(model, layers, contexts=contexts, rows_per_prompt=100)
    assert engine.prefiller.most_columns == 20 + 100
    assert FanOutEngine(model, layers).prefiller.most_columns is None
