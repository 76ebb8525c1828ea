"""Fan-out against replay, both against plain loops, and the choice between them."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from neuronllm_eval.engine import pass_size
from neuronllm_eval.engine.build import build_engine, rounding_noise, score_mismatch
from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import (
    Engine,
    OptionScores,
    PathIntegral,
    Target,
    gold_loglikelihood,
    gold_probability,
    option_cross_entropy,
)
from neuronllm_eval.engine.option_logits import score_options
from neuronllm_eval.engine.pass_size import PassSize, tree_size
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.engine.shared_prefix import MaskStyle
from neuronllm_eval.errors import UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.prompts import Prompt
from tests.fixtures.tiny_models import (
    CONFIGS,
    LOG_NATS,
    NODES,
    REPLAY_ONLY,
    ROUNDING,
    WEIGHTS,
    assert_same_integrals,
    assert_same_scores,
    loaded,
    random_model,
    random_prompt,
    random_scales,
    relative_difference,
)

# Lengths that differ, so that every batch is padded: one is longer than the tiny sliding windows
# of 8, one is a single token and so has no prefix at all.
PROMPTS = (
    random_prompt(0, 14, n_options=4),
    random_prompt(1, 1, n_options=3),
    random_prompt(2, 5, n_options=4),
    random_prompt(3, 9, n_options=3),
)
# Options of one token and of several, with beginnings in common and without, one of which begins
# another; and letters among them.
TEXTS = (
    Prompt(4, PROMPTS[0].context, ((5,), (6, 7), (6, 8, 9), (50, 51)), 2),
    Prompt(5, PROMPTS[1].context, ((10, 11, 12), (10, 11), (20, 21)), 1),
    PROMPTS[2],
    Prompt(7, PROMPTS[3].context, ((10, 11, 12, 13), (40, 11), (30, 11, 13)), 0),
)
BATCHES = {"letters": PROMPTS, "texts": TEXTS}


@functools.cache
def engines(
    architecture: str, dtype: torch.dtype = torch.float32
) -> tuple[FanOutEngine, ReplayEngine]:
    model, layers = loaded(architecture, dtype)
    fan_out = build_engine(model, layers, (*PROMPTS, *TEXTS), "fan_out", n_nodes=len(NODES))
    assert isinstance(fan_out, FanOutEngine)
    return fan_out, ReplayEngine(model, layers)


@functools.cache
def replayed_in_64_bits(architecture: str, batch: str, target: Target) -> Sequence[PathIntegral]:
    """Of a batch, in its order; full passes in 32 bits are themselves up to 1e-5 from these."""
    replay = ReplayEngine(*loaded(architecture, torch.float64))
    return replay.integrate(BATCHES[batch], NODES, WEIGHTS, target)


def unedited_winner(model: nn.Module, prompt: Prompt) -> int:
    """The token that greedy decoding gives after the context."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.context]), use_cache=False).logits
    return int(logits[0, -1].argmax())


def with_greedy_option(model: nn.Module, prompt: Prompt) -> Prompt:
    """The prompt with its last option replaced by the likeliest token."""
    winner = (unedited_winner(model, prompt),)
    others = [option for option in prompt.options if option != winner]
    options = (*others[: len(prompt.options) - 1], winner)
    return Prompt(prompt.doc_id, prompt.context, options, prompt.gold)


@contextmanager
def own_scaling(layers: FFNLayers, factors: Tensor, first: int) -> Iterator[None]:
    """This file's own hooks: positions from `first` on of unpadded sequences are scaled."""

    def hook(layer: int):
        def scale(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            flat = args[0].clone()
            flat[..., first:, :] = flat[..., first:, :] * factors[layer].to(flat)
            return (flat, *args[1:])

        return scale

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in enumerate(layers.modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain_loglikelihoods(
    model: nn.Module, layers: FFNLayers, prompt: Prompt, factors: Tensor
) -> Tensor:
    """[options]: one unpadded sequence per option, token by token, as a reader would do it."""
    totals = []
    for option in prompt.options:
        tokens = torch.tensor([[*prompt.context, *option[:-1]]])
        with own_scaling(layers, factors, first=len(prompt.context) - 1):
            logits = model(input_ids=tokens, use_cache=False).logits[0].float()
        logprobs = logits.log_softmax(-1)
        start = len(prompt.context) - 1
        totals.append(sum(logprobs[start + n, token] for n, token in enumerate(option)))
    return torch.stack(totals)


# Fan-out equals replay --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "batch", "target"),
    [
        *((name, batch, option_cross_entropy) for name in CONFIGS for batch in BATCHES),
        *((name, "texts", gold_loglikelihood) for name in ("llama", "gpt2", "gemma2", "opt")),
    ],
)
def test_fan_out_integrates_as_replay_does(architecture, batch, target):
    integrals = (
        engines(architecture)[0].integrate(BATCHES[batch], NODES, WEIGHTS, target),
        replayed_in_64_bits(architecture, batch, target),
    )
    assert_same_integrals(*integrals, relative=ROUNDING.get(architecture, 1e-5))
    for one, other in zip(*integrals, strict=True):
        assert relative_difference(one.activations, other.activations) <= 1e-5
    # The last node is alpha = 1: the unedited prompt, whatever the layer.
    for integral in integrals[0]:
        last = integral.node_targets[:, -1]
        assert torch.allclose(last, torch.full_like(last, integral.target), atol=LOG_NATS)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("batch", BATCHES)
def test_one_step_needs_no_copies_and_equals_replay(architecture, batch):
    # All layers' gradients at alpha = 1 are those of the unedited tree.
    fan_out, replay = engines(architecture)
    one = torch.ones(1)
    assert_same_integrals(
        fan_out.integrate(BATCHES[batch], one, one, option_cross_entropy),
        replay.integrate(BATCHES[batch], one, one, option_cross_entropy),
    )


@pytest.mark.parametrize("architecture", CONFIGS)
def test_texts_are_scored_as_replay_and_a_plain_loop_score_them(architecture):
    fan_out, replay = engines(architecture)
    scales = random_scales(replay.layers.shape)
    expected = replay.score(TEXTS, scales)
    assert_same_scores(fan_out.score(TEXTS, scales), expected)
    for prompt, scores in zip(TEXTS, fan_out.score(TEXTS, scales), strict=True):
        for condition, factors in enumerate(scales):
            plain = plain_loglikelihoods(replay.model, replay.layers, prompt, factors)
            assert float((scores.loglikelihoods[condition] - plain).abs().max()) <= LOG_NATS


@pytest.mark.parametrize("architecture", CONFIGS)
def test_fan_out_scores_as_replay_does(architecture):
    fan_out, replay = engines(architecture)
    prompts = [with_greedy_option(replay.model, prompt) for prompt in PROMPTS]
    scales = random_scales(replay.layers.shape)
    expected = replay.score(prompts, scales)
    assert_same_scores(fan_out.score(prompts, scales), expected)
    for scores in expected:
        assert scores.greedy[0].tolist() == [False] * (scores.greedy.shape[1] - 1) + [True]
    # The edits tell: no two conditions score alike.
    first = expected[0].loglikelihoods
    assert float((first[:, None] - first[None]).abs().amax(-1)[~torch.eye(4).bool()].min()) > 1e-3


@pytest.mark.parametrize("architecture", CONFIGS | REPLAY_ONLY)
def test_replay_scores_as_a_plain_loop_does(architecture):
    model, layers = loaded(architecture)
    scales = random_scales(layers.shape)
    scores = ReplayEngine(model, layers).score(PROMPTS, scales)
    for prompt, score in zip(PROMPTS, scores, strict=True):
        for condition, factors in enumerate(scales):
            expected = plain_loglikelihoods(model, layers, prompt, factors)
            assert float((score.loglikelihoods[condition] - expected).abs().max()) <= LOG_NATS


@pytest.mark.parametrize("architecture", CONFIGS)
def test_scaling_neurons_equals_scaling_the_columns_of_the_down_projection(architecture):
    # With a single token every position is the scored one, so that weights can be edited instead.
    prompt = random_prompt(7, 1)
    fan_out, replay = engines(architecture)
    factors = random_scales(replay.layers.shape)[2]
    edited = copy.deepcopy(replay.model)
    with torch.no_grad():
        for layer, module in enumerate(find_ffn_layers(edited).modules):
            transposed = isinstance(module, tf.pytorch_utils.Conv1D)  # [neurons, outputs]
            module.weight *= factors[layer][:, None] if transposed else factors[layer]
        logits = edited(input_ids=torch.tensor([prompt.context]), use_cache=False).logits
    expected, _ = score_options(logits[0], [option[0] for option in prompt.options])
    for engine in (fan_out, replay):
        (scores,) = engine.score([prompt], factors[None])
        assert float((scores.loglikelihoods - expected).abs().max()) <= LOG_NATS


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mistral_sliding"])
def test_bfloat16_agrees_within_its_own_rounding(architecture):
    # 8 bits of mantissa: 2**-8 = 0.4% a step, over three layers.
    fan_out, replay = engines(architecture, torch.bfloat16)
    integrals = [
        engine.integrate(PROMPTS, NODES, WEIGHTS, option_cross_entropy)
        for engine in (fan_out, replay)
    ]
    assert_same_integrals(*integrals, relative=0.05, log_nats=0.15)
    for one, other in zip(
        fan_out.score(PROMPTS, random_scales(replay.layers.shape)),
        replay.score(PROMPTS, random_scales(replay.layers.shape)),
        strict=True,
    ):
        assert one.loglikelihoods.dtype is torch.float32
        assert float((one.loglikelihoods - other.loglikelihoods).abs().max()) <= 0.15


@pytest.mark.parametrize(
    ("windowed", "full"), [("mistral_sliding", "mistral"), ("phi3_sliding", "phi3")]
)
def test_the_long_prompt_feels_the_window_and_the_short_one_does_not(windowed, full):
    # Else the comparisons above would say nothing about windows. Same weights, window 8 or none.
    unedited = torch.ones(1, 3, 48)
    found = engines(windowed)[0].score(PROMPTS, unedited)
    without = engines(full)[0].score(PROMPTS, unedited)
    gaps = [
        float((one.loglikelihoods - other.loglikelihoods).abs().max())
        for one, other in zip(found, without, strict=True)
    ]
    assert gaps[0] > 0.01  # 14 tokens
    assert gaps[1] <= LOG_NATS  # 1 token
    assert gaps[2] <= LOG_NATS  # 5 tokens


# Batches, order and chunks ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("batch", BATCHES)
def test_batched_equals_unbatched_in_any_order(architecture, batch):
    fan_out, _ = engines(architecture)
    scales = random_scales(fan_out.layers.shape)
    order = [2, 0, 3, 1]
    prompts = BATCHES[batch]
    shuffled = [prompts[index] for index in order]
    replayed = replayed_in_64_bits(architecture, batch, option_cross_entropy)
    together = fan_out.integrate(shuffled, NODES, WEIGHTS, option_cross_entropy)
    alone = [
        fan_out.integrate([prompt], NODES, WEIGHTS, option_cross_entropy)[0] for prompt in shuffled
    ]
    for found in (together, alone):
        assert_same_integrals(
            found,
            [replayed[index] for index in order],
            relative=ROUNDING.get(architecture, 1e-5),
        )
    scored = fan_out.score(prompts, scales)
    assert_same_scores(
        [scored[index] for index in order],
        [fan_out.score([prompt], scales)[0] for prompt in shuffled],
    )


@pytest.mark.parametrize("kind", [FanOutEngine, ReplayEngine])
@pytest.mark.parametrize("rows_per_pass", [1, 7])
@pytest.mark.parametrize("architecture", ["qwen2_sliding", "gpt2"])
def test_chunks_equal_one_pass(kind, rows_per_pass, architecture):
    model, layers = loaded(architecture)
    style = engines(architecture)[0].mask_style
    options = {"mask_style": style} if kind is FanOutEngine else {}
    whole = kind(model, layers, **options)
    chunked = kind(model, layers, rows_per_pass=rows_per_pass, **options)
    scales = random_scales(layers.shape, n_conditions=5)
    for prompts in BATCHES.values():
        assert_same_integrals(
            chunked.integrate(prompts, NODES, WEIGHTS, option_cross_entropy),
            whole.integrate(prompts, NODES, WEIGHTS, option_cross_entropy),
        )
        assert_same_scores(chunked.score(prompts, scales), whole.score(prompts, scales))


def test_rows_per_pass_bounds_the_rows_of_a_pass():
    model, layers = loaded("llama")
    batch = len(PROMPTS)
    rows: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda _module, args: rows.append(args[0].shape[0] * args[0].shape[1])
    )
    try:
        engine = FanOutEngine(model, layers, rows_per_pass=2 * batch)
        engine.score(PROMPTS, torch.ones(5, *layers.shape))
    finally:
        handle.remove()
    assert rows == [2 * batch, 2 * batch, batch]  # 5 conditions: 2, 2 and 1 at a time


def test_a_pass_does_not_lengthen_the_prefix_for_the_next():
    fan_out, _ = engines("llama")
    scales = random_scales(fan_out.layers.shape)
    twice = torch.cat((scales, scales))
    rows = fan_out.score(PROMPTS, twice)[0].loglikelihoods
    assert torch.allclose(rows[:4], rows[4:], atol=LOG_NATS)


# Options of several tokens ----------------------------------------------------------------------


LONG_OPTIONS = Prompt(
    doc_id=41,
    context=PROMPTS[2].context,
    options=((5,), (6, 7), (6, 8, 9), (50, 51)),
    gold=2,
)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3", "falcon_alibi"])
def test_replay_scores_options_of_several_tokens_as_a_plain_loop_does(architecture):
    model, layers = loaded(architecture)
    scales = random_scales(layers.shape)
    for rows_per_pass in (1, 16):
        engine = ReplayEngine(model, layers, rows_per_pass=rows_per_pass)
        (scores,) = engine.score([LONG_OPTIONS], scales)
        for condition, factors in enumerate(scales):
            expected = plain_loglikelihoods(model, layers, LONG_OPTIONS, factors)
            assert torch.allclose(scores.loglikelihoods[condition], expected, atol=LOG_NATS)


def test_an_option_of_several_tokens_is_greedy_if_every_token_is():
    model, layers = loaded("llama")
    context = PROMPTS[2].context
    path: list[int] = []
    for _ in range(3):
        path.append(unedited_winner(model, Prompt(0, (*context, *path), ((1,), (2,)), 0)))
    first, second, third = path
    wrong_last = (first, second, (third + 1) % 97)
    wrong_first = ((first + 1) % 97, second, third)
    prompt = Prompt(0, context, (tuple(path), wrong_last, wrong_first, (first,)), 0)
    (scores,) = ReplayEngine(model, layers).score([prompt], torch.ones(1, *layers.shape))
    assert scores.greedy.tolist() == [[True, False, False, True]]


def test_a_prompt_with_long_options_does_not_send_the_others_to_replay():
    model, layers = loaded("llama")
    generator = torch.Generator().manual_seed(0)
    long = [tuple(torch.randint(3, 97, (50,), generator=generator).tolist()) for _ in range(3)]
    prompts = [PROMPTS[0], LONG_OPTIONS, Prompt(42, PROMPTS[3].context, ((5,), *long), 3)]
    engine = build_engine(model, layers, prompts, n_nodes=len(NODES))
    assert isinstance(engine, FanOutEngine)
    assert engine.size.rows_per_prompt == 12 * (1 + 3 * 49)
    replay = ReplayEngine(model, layers)
    assert_same_integrals(
        engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy),
        replay.integrate(prompts, NODES, WEIGHTS, option_cross_entropy),
    )
    scales = random_scales(layers.shape, n_conditions=9)
    assert_same_scores(engine.score(prompts, scales), replay.score(prompts, scales))


def test_a_large_vocabulary_leaves_room_for_fewer_rows(monkeypatch):
    monkeypatch.setattr(pass_size, "LOGITS_PER_PASS", 97 * 13)
    model, layers = loaded("llama")
    engine = FanOutEngine(model, layers)
    sizes: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda _module, args: sizes.append(args[0].shape[0] * args[0].shape[1])
    )
    try:
        found = engine.integrate([LONG_OPTIONS], NODES, WEIGHTS, option_cross_entropy)
        at_least_a_layer = list(sizes)
        engine.score([LONG_OPTIONS], torch.ones(5, *layers.shape))
    finally:
        handle.remove()
    # A tree has 4 rows. The unedited one has a pass of its own; three copies of a layer and one row
    # go through together; of five conditions three do.
    assert at_least_a_layer == [4, 13, 13, 13]
    assert sizes[4:] == [12, 8]
    replayed = ReplayEngine(model, layers).integrate(
        [LONG_OPTIONS], NODES, WEIGHTS, option_cross_entropy
    )
    assert_same_integrals(found, replayed)


# The choice of an engine ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_ordinary_architecture_gets_fan_out_without_a_warning(architecture, caplog):
    model, layers = loaded(architecture)
    with caplog.at_level(logging.WARNING):
        assert build_engine(model, layers, PROMPTS).name == "fan_out"
    # transformers says once a process that a token is its padding token.
    ours = [each.message for each in caplog.records if each.name.startswith("neuronllm_eval")]
    assert ours == []


def test_replay_can_be_insisted_on():
    model, layers = loaded("llama")
    engine: Engine = build_engine(model, layers, PROMPTS, "replay")
    assert engine.name == "replay"


def test_an_unknown_engine_is_refused():
    model, layers = loaded("llama")
    with pytest.raises(UsageError) as refusal:
        build_engine(model, layers, PROMPTS, "fanout")
    assert str(refusal.value) == (
        "unknown engine 'fanout'.\nExpected: auto or fan_out or replay.\nRemedy: check --engine."
    )


def test_attention_with_alibi_falls_back_and_says_why(caplog):
    model, layers = loaded("falcon_alibi")
    with caplog.at_level(logging.WARNING, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, layers, PROMPTS)
    assert isinstance(engine, ReplayEngine)
    (message,) = caplog.messages
    assert message.startswith("using the slower replay engine: mask style single: ")
    with pytest.raises(UsageError, match="the fan-out engine is not exact here: mask style"):
        build_engine(model, layers, PROMPTS, "fan_out")


def gpt_neo(window: int) -> tuple[nn.Module, FFNLayers]:
    """GPT-Neo numbers the copies by their place in the pass, where its local layers look back."""
    config = CONFIGS["gpt_neo"]()
    config.window_size = window
    model = random_model(config)
    return model, find_ffn_layers(model)


def test_a_local_window_that_counts_the_copies_falls_back(caplog):
    model, layers = gpt_neo(window=8)
    with caplog.at_level(logging.WARNING, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, layers, PROMPTS)
    assert isinstance(engine, ReplayEngine)
    (message,) = caplog.messages
    assert "mask style single: log-likelihoods differ by " in message
    assert message.endswith(" log-nats (tolerance 0.002)")
    with pytest.raises(UsageError, match="log-likelihoods differ by"):
        build_engine(model, layers, PROMPTS, "fan_out")


def test_no_pass_is_larger_than_the_checked_one():
    # 13 prefix tokens and the 128 checked copies fit a window of 150; 13 + 4 * 60 + 1 would not.
    model, layers = gpt_neo(window=150)
    engine = build_engine(model, layers, PROMPTS)
    assert isinstance(engine, FanOutEngine)
    nodes = torch.linspace(0, 1, 60)
    weights = torch.full((60,), 1 / 60)
    rows = []
    handle = model.transformer.h[0].register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[1])
    )
    try:
        found = engine.integrate(PROMPTS, nodes, weights, option_cross_entropy)
    finally:
        handle.remove()
    assert max(rows) == 119  # two layers of 59 nodes, and the unedited copy, which is the last
    replayed = ReplayEngine(model, layers).integrate(PROMPTS, nodes, weights, option_cross_entropy)
    assert_same_integrals(found, replayed)


def test_a_window_shorter_than_the_largest_pass_falls_back():
    # 13 prefix tokens and 128 copies exceed a window of 100, though fewer copies would fit.
    model, layers = gpt_neo(window=100)
    assert build_engine(model, layers, PROMPTS).name == "replay"


def test_the_engine_makes_room_for_the_nodes_it_was_built_for():
    model, layers = loaded("llama")
    engine = build_engine(model, layers, PROMPTS, n_nodes=200)
    assert isinstance(engine, FanOutEngine)
    assert engine.size.rows_per_prompt == 202
    nodes, weights = torch.linspace(0, 1, 201), torch.full((201,), 1 / 201)
    found = engine.integrate(PROMPTS[:1], nodes, weights, option_cross_entropy)
    small = FanOutEngine(model, layers, rows_per_prompt=60)  # takes four passes for each layer
    in_parts = small.integrate(PROMPTS[:1], nodes, weights, option_cross_entropy)
    assert_same_integrals(in_parts, found)


def test_attention_that_reads_no_such_mask_falls_back(caplog):
    config = CONFIGS["qwen2"]()
    model = random_model(config)
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with caplog.at_level(logging.WARNING, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), PROMPTS)
    assert engine.name == "replay"
    assert "the model mixes in attention layers that take no ordinary mask" in caplog.text


@pytest.mark.parametrize("architecture", ["gemma3_mixed", "qwen2_sliding"])
def test_a_wrong_mask_is_noticed(architecture):
    # One mask for all layers ignores that some have a window of 8, which 14 tokens exceed.
    model, layers = loaded(architecture)
    wrong = FanOutEngine(model, layers, mask_style=MaskStyle.SINGLE)
    reason = score_mismatch(wrong, ReplayEngine(model, layers), PROMPTS[:1])
    assert reason is not None
    assert score_mismatch(engines(architecture)[0], ReplayEngine(model, layers), PROMPTS) is None


class ScoresOf:
    """An engine whose every log-likelihood is the given number, one for each prompt."""

    def __init__(self, *values: float) -> None:
        self.model, self.layers = loaded("llama")
        self.size = PassSize(97, rows_per_prompt=3)
        self.values = values

    def score(self, prompts: Sequence[Prompt], scales: Tensor) -> list[OptionScores]:
        return [
            OptionScores(
                torch.full((len(scales), 4), value),
                torch.zeros(len(scales), 4).bool(),
                torch.zeros(len(scales)),
            )
            for _, value in zip(prompts, self.values, strict=True)
        ]


@pytest.mark.parametrize(
    ("fast", "expected"),
    [
        ((0.0, 0.0), None),
        ((0.0, 0.0015), None),
        ((0.003, 0.0), "log-likelihoods differ by 0.003 log-nats (tolerance 0.002)"),
        ((0.0, 0.5), "log-likelihoods differ by 0.5 log-nats (tolerance 0.002)"),
        ((float("nan"), 0.0), "log-likelihoods differ by nan log-nats (tolerance 0.002)"),
        ((0.0, float("nan")), "log-likelihoods differ by nan log-nats (tolerance 0.002)"),
    ],
)
def test_any_prompt_decides_whether_the_engines_disagree(fast, expected):
    found = score_mismatch(ScoresOf(*fast), ScoresOf(0.0, 0.0), PROMPTS[:2])
    assert (found and str(found)) == expected


# Sixteen bits -----------------------------------------------------------------------------------

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def plain_init(config, dtype: torch.dtype) -> tuple[nn.Module, FFNLayers]:
    """A model as transformers draws it, whose logits are close together: errors show least."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    return model, find_ffn_layers(model)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_a_wrong_mask_is_noticed_in_sixteen_bits(dtype):
    # 89 prefix tokens exceed the local window of 16; the error is 0.16 log-nats in any dtype.
    config = CONFIGS["gpt_neo"]()
    config.hidden_size, config.intermediate_size, config.window_size = 64, 256, 16
    model, layers = plain_init(config, dtype)
    prompts = [random_prompt(0, 90), random_prompt(1, 30)]
    assert build_engine(model, layers, prompts).name == "replay"


def read(prompts):
    return [(prompt.context, prompt.options) for prompt in prompts]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_rounding_is_not_taken_for_a_wrong_mask(dtype):
    # Rounding of 24 layers reaches 0.07 log-nats in bfloat16, 30 times what float32 may differ.
    config = CONFIGS["llama"]()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 256, 688, 24
    config.initializer_range = 0.06
    model, layers = plain_init(config, dtype)
    prompts = [random_prompt(0, 90), random_prompt(1, 30)]
    assert build_engine(model, layers, prompts).name == "fan_out"
    assert rounding_noise(model, read(prompts)) < 0.1


def test_rounding_noise_is_small_in_full_precision():
    model, _ = loaded("mistral_sliding")
    assert rounding_noise(model, read(PROMPTS)) < 1e-4


# Nodes of each layer's own ----------------------------------------------------------------------

# Of layers 0 to 2: two copies, none, and five; rows are filled up with ones.
OF_LAYERS = torch.tensor(
    [[0.0, 0.5, 1.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0, 0.1, 0.2, 0.6, 0.9, 1.0]]
)
THEIR_WEIGHTS = torch.tensor(
    [[0.2, 0.5, 0.3, 0.0, 0.0, 0.0], [0.4, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.2, 0.1, 0.1]]
)


@pytest.mark.parametrize("batch", ["letters", "texts"])
@pytest.mark.parametrize("savings", list(Savings))
@pytest.mark.parametrize("trees", [12, 3])
def test_layers_have_nodes_of_their_own(batch, savings, trees):
    model, layers = loaded("llama")
    prompts = PROMPTS if batch == "letters" else [LONG_OPTIONS, *PROMPTS[:1]]
    # Room for three trees is less than layer 2 takes: its copies go through several passes.
    rows = trees * max(map(tree_size, prompts))
    fan_out = FanOutEngine(model, layers, savings=savings, rows_per_prompt=rows)
    found = fan_out.integrate(prompts, OF_LAYERS, THEIR_WEIGHTS, gold_loglikelihood)
    replayed = ReplayEngine(model, layers).integrate(
        prompts, OF_LAYERS, THEIR_WEIGHTS, gold_loglikelihood
    )
    assert_same_integrals(found, replayed, relative=1e-4)
    # Each layer as if all had its nodes.
    for layer, (nodes, weights) in enumerate(zip(OF_LAYERS, THEIR_WEIGHTS, strict=True)):
        n_nodes = int((nodes < 1).sum()) + 1
        alone = fan_out.integrate(prompts, nodes[:n_nodes], weights[:n_nodes], gold_loglikelihood)
        for one, other in zip(found, alone, strict=True):
            assert relative_difference(one.attribution[layer], other.attribution[layer]) < 1e-4


@pytest.mark.parametrize("batch", ["letters", "texts"])
def test_slopes_at_nodes_add_up_to_attributions(batch):
    model, layers = loaded("llama")
    prompts = PROMPTS if batch == "letters" else [LONG_OPTIONS]
    for engine in (FanOutEngine(model, layers), ReplayEngine(model, layers)):
        for one in engine.integrate(prompts, OF_LAYERS, THEIR_WEIGHTS, gold_probability):
            sums = (one.node_slopes * THEIR_WEIGHTS).sum(1)
            assert torch.allclose(sums, one.attribution.sum(1), atol=1e-5)
