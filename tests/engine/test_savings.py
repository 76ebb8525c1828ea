"""What fan-out saves changes no number and no decision, and is dropped where it would."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import transformers as tf
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn

from neuronllm_eval.attribution.identify import IdentificationSettings, QuestionRecord
from neuronllm_eval.attribution.integrated_gradients import attribute
from neuronllm_eval.attribution.methods import ACE, to_scores
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine import build as engine_module
from neuronllm_eval.engine import fan_out as fan_out_module
from neuronllm_eval.engine.build import Mismatch, build_engine
from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import (
    Engine,
    OptionScores,
    PathIntegral,
    option_cross_entropy,
)
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.engine.scaled_copies import ScaledCopies, all_plain
from neuronllm_eval.errors import ModelError
from neuronllm_eval.interventions.conditions import CONDITIONS, condition_scales
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.neurons.selection import select_neurons
from neuronllm_eval.prompts import Prompt, Question
from tests.fixtures.tiny_models import (
    CONFIGS,
    LOG_NATS,
    NODES,
    ROUNDING,
    WEIGHTS,
    assert_same_integrals,
    assert_same_scores,
    identify_all,
    loaded,
    provenance,
    proxies,
    random_model,
    random_prompt,
    random_scales,
    random_tokens,
    relative_difference,
    score_all,
    tiny_model,
)

# What all prompts of the run share is longer than the tiny sliding windows of 8.
SHARED = random_tokens(9, 12)
LONG_STEM, STEM = random_tokens(1, 25), random_tokens(2, 10)
QUESTIONS = (
    proxies(10, (*SHARED, *STEM), [5, 7, 4], n_options=4),
    proxies(20, (*SHARED, *random_tokens(3, 3)), [6, 9, 2], n_options=2),  # too short a stem
    proxies(30, (*SHARED, *LONG_STEM), [1, 1, 3], n_options=5),
    # The beginnings of another question's prompts, with and without a stem in common with them.
    (
        Prompt(40, (*SHARED, *LONG_STEM[:20]), ((10,), (11,)), 1),
        Prompt(41, (*SHARED, STEM[0]), ((10,), (11,), (12,)), 2),
    ),
    # Options of several tokens, in two orders.
    (
        Prompt(50, (*SHARED, *LONG_STEM[:9]), ((10,), (11, 12), (11, 13, 14), (40, 41)), 1),
        Prompt(51, (*SHARED, *LONG_STEM[:9]), ((40, 41), (11, 13, 14), (10,), (11, 12)), 3),
    ),
)
RUN = tuple(prompt for question in QUESTIONS for prompt in question)
LETTERS = tuple(prompt for question in QUESTIONS[:-1] for prompt in question)
SHORT = (random_prompt(1, 1, n_options=3), random_prompt(2, 5), random_prompt(4, 1))
TWICE = (RUN[0], *QUESTIONS[2], RUN[0], RUN[0])
# name -> (all prompts of the run, batches of some of them).
BATCHES: dict[str, tuple[Sequence[Prompt], list[Sequence[Prompt]]]] = {
    "whole_run": (RUN, [RUN]),
    "questions": (RUN, list(QUESTIONS)),
    "single_prompts": (RUN, [[prompt] for prompt in RUN]),
    "stems_only": ((), [RUN, QUESTIONS[2]]),
    "neighbours_apart": (RUN, [RUN[::3], RUN[1::3]]),
    "one_token_prompts": ((*RUN, *SHORT), [SHORT, (SHORT[0], *QUESTIONS[0]), SHORT[::2]]),
    "strangers": (RUN, [(*QUESTIONS[0], *SHORT), (SHORT[1], *QUESTIONS[2])]),
    "equal_prompts": (TWICE, [TWICE, [TWICE[0], TWICE[0]]]),
}


# Those that normalise the FFN's output, and one whose down-projection is a linear layer of its own.
NOT_LATE = ("gemma2", "gemma3", "gemma3_mixed", "gemma3_seeing", "olmo2", "falcon")


@functools.cache
def checked(architecture: str) -> FanOutEngine:
    model, layers = loaded(architecture)
    engine = build_engine(model, layers, RUN, "fan_out", n_nodes=len(NODES))
    assert isinstance(engine, FanOutEngine)
    return engine


def with_and_without(
    architecture: str,
    contexts: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    savings: Savings | None = None,
    **options: int,
) -> tuple[FanOutEngine, FanOutEngine]:
    """An engine with all savings that the check finds sound, or others, and one without any."""
    model, layers = loaded(architecture, dtype)
    style, found = checked(architecture).mask_style, checked(architecture).savings
    saving = FanOutEngine(
        model, layers, mask_style=style, contexts=contexts, savings=savings or found, **options
    )
    return saving, FanOutEngine(model, layers, mask_style=style, savings=Savings.NONE)


def assert_equal_on(
    saving: Engine,
    plain: Engine,
    batches: Sequence[Sequence[Prompt]],
    target: Callable[[Tensor, int], Tensor] = option_cross_entropy,
    relative: float = 1e-5,
) -> None:
    scales = random_scales(saving.layers.shape)
    for batch in batches:
        assert_same_scores(saving.score(batch, scales), plain.score(batch, scales))
        assert_same_integrals(
            saving.integrate(batch, NODES, WEIGHTS, target),
            plain.integrate(batch, NODES, WEIGHTS, target),
            relative,
        )


@functools.cache
def full_passes(architecture: str) -> tuple[list[OptionScores], list[PathIntegral]]:
    """The run as replay computes it, which shares no code with what is checked."""
    replay = ReplayEngine(*loaded(architecture))
    scores = replay.score(RUN, random_scales(replay.layers.shape))
    return scores, replay.integrate(RUN, NODES, WEIGHTS, option_cross_entropy)


# The same numbers -------------------------------------------------------------------------------


# Attention, positions and FFN of different types; of all architectures the run in one batch is
# compared with full passes below.
@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma3_mixed", "mistral_sliding", "opt", "falcon"]
)
@pytest.mark.parametrize("name", BATCHES)
def test_savings_change_no_number(architecture, name):
    run, batches = BATCHES[name]
    saving, plain = with_and_without(architecture, [prompt.context for prompt in run])
    assert bool(saving.prefiller.shared_tokens) == (name not in ("stems_only", "one_token_prompts"))
    assert_equal_on(saving, plain, batches, relative=ROUNDING.get(architecture, 1e-5))


@pytest.mark.parametrize(
    "rule", [Quadrature("gauss_lobatto"), Quadrature("gauss_legendre", 2)], ids=str
)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_rules_with_and_without_the_ends_agree_with_full_passes(architecture, rule):
    # Gauss-Lobatto takes gradients at alpha = 0 and of the unedited row, Gauss-Legendre neither.
    saving, _ = with_and_without(architecture, [prompt.context for prompt in RUN])
    replay = ReplayEngine(*loaded(architecture))
    found, expected = (attribute(each, QUESTIONS[0], rule) for each in (saving, replay))
    for one, other in zip(found, expected, strict=True):
        assert relative_difference(one.values, other.values) <= ROUNDING.get(architecture, 1e-5)
        assert float((one.target_change - other.target_change).abs().max()) <= LOG_NATS


@pytest.mark.parametrize("architecture", CONFIGS)
def test_passes_over_a_few_layers_change_no_number(architecture):
    contexts = [prompt.context for prompt in RUN]
    # Room for one layer's nodes: a pass for each layer, and two conditions to a pass.
    for prompts, tree_rows in ((LETTERS, 1), (QUESTIONS[-1], 4)):
        saving, plain = with_and_without(
            architecture,
            contexts,
            rows_per_prompt=tree_rows * (1 + len(NODES)),
            rows_per_pass=2 * len(prompts) * tree_rows,
        )
        assert_equal_on(saving, plain, [prompts])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_check_takes_the_most_that_is_sound(architecture):
    engine = checked(architecture)
    late = architecture not in NOT_LATE
    assert engine.savings is (Savings.LATE if late else Savings.STAIRCASE)
    assert len(engine.decoder_layers) == engine.layers.n_layers
    assert engine.head is not None
    assert engine.prefiller.share


@pytest.mark.parametrize(
    ("architecture", "savings"),
    [
        (architecture, savings)
        for architecture in CONFIGS
        for savings in Savings
        if savings is not Savings.LATE or architecture not in NOT_LATE
    ],
)
def test_savings_agree_with_full_passes(architecture, savings):
    saving, _ = with_and_without(architecture, [prompt.context for prompt in RUN], savings=savings)
    assert saving.savings is savings
    scores, integrals = full_passes(architecture)
    assert_same_scores(saving.score(RUN, random_scales(saving.layers.shape)), scores)
    found = saving.integrate(RUN, NODES, WEIGHTS, option_cross_entropy)
    assert_same_integrals(found, integrals, 1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mistral_sliding", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_savings_stay_within_the_rounding_of_sixteen_bits(architecture, dtype):
    # 8 or 11 bits of mantissa: steps of 0.4% and 0.05%, over three layers.
    saving, plain = with_and_without(
        architecture, [prompt.context for prompt in RUN], dtype, Savings.STAIRCASE
    )
    relative, log_nats = (0.1, 0.3) if dtype is torch.bfloat16 else (0.02, 0.05)
    assert_same_integrals(
        saving.integrate(RUN, NODES, WEIGHTS, option_cross_entropy),
        plain.integrate(RUN, NODES, WEIGHTS, option_cross_entropy),
        relative,
        log_nats,
    )
    scales = random_scales(saving.layers.shape)
    for one, other in zip(saving.score(RUN, scales), plain.score(RUN, scales), strict=True):
        assert float((one.loglikelihoods - other.loglikelihoods).abs().max()) <= log_nats


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "mistral_sliding", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_late_copies_are_as_near_to_full_precision_as_others(architecture, dtype):
    # They round elsewhere, so they are compared with the same weights in float32.
    contexts = [prompt.context for prompt in RUN]
    late, plain = with_and_without(architecture, contexts, dtype, Savings.LATE)
    assert late.savings is Savings.LATE
    model = copy.deepcopy(plain.model).float()
    exact = FanOutEngine(
        model, find_ffn_layers(model), mask_style=plain.mask_style, savings=Savings.NONE
    )
    given = (RUN, NODES, WEIGHTS, option_cross_entropy)
    errors = [
        [
            float((one.attribution - other.attribution).norm() / other.attribution.norm())
            for one, other in zip(engine.integrate(*given), exact.integrate(*given), strict=True)
        ]
        for engine in (late, plain)
    ]
    assert sum(errors[0]) < 1.6 * sum(errors[1])  # 0.9 to 1.4
    assert sum(errors[0]) < (0.1 if dtype is torch.bfloat16 else 0.02) * len(RUN)


def gold_loglikelihood(loglikelihoods: Tensor, gold: int) -> Tensor:
    """A target that moves when all options become likelier together."""
    return loglikelihoods[..., gold]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_a_target_that_is_not_shift_invariant_gets_loglikelihoods(architecture):
    saving, plain = with_and_without(architecture, [prompt.context for prompt in RUN])
    replay = ReplayEngine(saving.model, saving.layers)
    assert_equal_on(saving, plain, [RUN], gold_loglikelihood)
    assert_equal_on(saving, replay, [QUESTIONS[2]], gold_loglikelihood)
    for prompt, found in zip(
        RUN, saving.integrate(RUN, NODES, WEIGHTS, gold_loglikelihood), strict=True
    ):
        assert found.target == pytest.approx(float(found.loglikelihoods[prompt.gold]))


# The same decisions -----------------------------------------------------------------------------

ASKED = tuple(
    Question(
        f"q{number}",
        proxies(
            10 * number,
            (*SHARED, *random_tokens(number, 2 + 5 * (number % 4))),
            [3 + number % 5, 6, 4 + number % 3],
            n_options=(4, 5, 2)[number % 3],
        ),
    )
    for number in range(20)
)
TOP_K = 12


def ace_scores(engine: Engine, batch_size: int) -> tuple[list[QuestionRecord], object]:
    settings = IdentificationSettings(batch_size=batch_size)
    sums, records = identify_all(engine, ASKED, settings)
    return records, to_scores(ACE(), sums["ace"], [], provenance())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_mixed"])
def test_no_decision_of_identification_changes_with_the_batch_size(architecture):
    model, layers = loaded(architecture)
    prompts = [prompt for question in ASKED for prompt in question.prompts]
    engine = build_engine(model, layers, prompts, "fan_out", n_nodes=4)
    expected, scores = ace_scores(engine, 1)
    # The last neuron chosen and the first one left out are further apart than rounding can bring.
    for signed in (scores.score, -scores.score):
        ranked = np.sort(signed, axis=None)[::-1]
        assert ranked[TOP_K - 1] - ranked[TOP_K] > 1e-4 * ranked[0]
    chosen = select_neurons(scores, TOP_K)
    assert len({record.right for record in expected}) > 1
    for batch_size in (3, 7, 48):
        records, found = ace_scores(engine, batch_size)
        assert [each.right for each in records] == [each.right for each in expected]
        for one, other in zip(records, expected, strict=True):
            for row, wanted in zip(one.loglikelihoods, other.loglikelihoods, strict=True):
                assert row == pytest.approx(wanted, abs=1e-4)
        assert np.array_equal(found.good_count, scores.good_count)
        assert np.array_equal(found.bad_count, scores.bad_count)
        again = select_neurons(found, TOP_K)
        for kind in ("good", "bad"):
            places = [each.location for each in getattr(again, kind)]
            assert places == [each.location for each in getattr(chosen, kind)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_mixed"])
def test_no_decision_of_validation_changes_with_the_batch_size(architecture):
    model, layers = loaded(architecture)
    prompts = [prompt for question in ASKED for prompt in question.prompts]
    engine = build_engine(model, layers, prompts, "fan_out", n_nodes=4)
    chosen = select_neurons(ace_scores(engine, 48)[1], TOP_K)
    factors = np.stack([condition_scales(chosen, name) for name in CONDITIONS])
    expected = score_all(engine, ASKED, factors, 1)
    answers = np.stack([doc.loglikelihoods.argmax(-1) for doc in expected])
    assert (answers != answers[:, :1]).any()  # some condition changes some answer
    for batch_size in (3, 7, 48):
        found = score_all(engine, ASKED, factors, batch_size)
        for one, other in zip(found, expected, strict=True):
            assert (one.question_id, one.doc_id) == (other.question_id, other.doc_id)
            assert np.array_equal(one.loglikelihoods.argmax(-1), other.loglikelihoods.argmax(-1))
            assert np.array_equal(one.greedy, other.greedy)
            assert np.allclose(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=1e-4)


# Models that break an assumption ----------------------------------------------------------------

BUILD = {"prompts": RUN, "n_nodes": len(NODES)}


def assert_saves_nothing(model: nn.Module, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The engine that is built says why it saves nothing, and its numbers are those of replay."""
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), **BUILD)
    assert isinstance(engine, FanOutEngine)
    assert not engine.prefiller.share
    assert engine.decoder_layers == []
    assert engine.head is None
    (message,) = caplog.messages
    assert message.startswith("computing every token, row and logit: ")
    assert reason in message
    assert_equal_on(engine, ReplayEngine(model, engine.layers), [RUN])


def assert_joins_at_the_layer(
    model: nn.Module, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """All is saved but late joining, with a reason if it was tried; numbers are those of replay."""
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), **BUILD)
    assert isinstance(engine, FanOutEngine)
    assert engine.savings is Savings.STAIRCASE
    assert engine.prefiller.share
    start = "copies join at the layer that edits them, not behind it: "
    expected = [] if reason is None else [start + reason]
    assert [each[: len(start + (reason or ""))] for each in caplog.messages] == expected
    assert_equal_on(engine, ReplayEngine(model, engine.layers), [RUN], relative=3e-5)


def test_an_error_in_late_joining_is_warned_of(monkeypatch, caplog):
    """It may be a fault, where a difference is what the model is like."""

    def fail(*_args: object, **_layer: object) -> None:
        raise RuntimeError("a fault\nand its details")

    monkeypatch.setattr(ScaledCopies, "_append", fail)
    assert_joins_at_the_layer(tiny_model("llama"), "RuntimeError: a fault", caplog)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2"])
def test_layers_that_normalise_what_the_ffn_gives(architecture, caplog):
    assert_joins_at_the_layer(tiny_model(architecture), "attributions differ by ", caplog)
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.03])
def test_layers_that_scale_what_the_ffn_gives(factor, caplog):
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _module, _args, output: factor * output)
    assert_joins_at_the_layer(model, "attributions differ by ", caplog)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapt", [LoraConfig, IA3Config])
def test_down_projections_that_are_adapted(adapt, caplog):
    where = {"feedforward_modules": ["down_proj"]} if adapt is IA3Config else {}
    model = get_peft_model(tiny_model("llama"), adapt(target_modules=["down_proj"], **where))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3" in name or "lora" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    assert_joins_at_the_layer(model.eval(), None, caplog)


def test_down_projections_of_a_kind_of_their_own(caplog):
    assert_joins_at_the_layer(tiny_model("falcon"), None, caplog)


def test_down_projections_whose_weights_are_elsewhere():
    downs = [nn.Linear(2, 3), nn.Linear(2, 3, device="meta")]
    assert all_plain(downs[:1])
    assert not all_plain(downs)


class Packed:
    """A mask that nothing but its own layer can read."""

    def __init__(self, content: object) -> None:
        self.content = content


def test_layers_that_get_their_mask_in_another_form(caplog):
    model = tiny_model("llama")

    def pack(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "attention_mask": Packed(kwargs["attention_mask"])}

    def unpack(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"].content}

    for layer in model.model.layers:
        layer.register_forward_pre_hook(pack, with_kwargs=True)
        layer.self_attn.register_forward_pre_hook(unpack, with_kwargs=True)
    assert_saves_nothing(model, "RuntimeError: ", caplog)


def test_an_architecture_whose_hidden_states_have_four_dimensions(caplog):
    # Gemma 3n carries several versions of every hidden state: [versions, batch, rows, hidden].
    config = tf.Gemma3nTextConfig(
        vocab_size=97,
        vocab_size_per_layer_input=97,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=3,
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        activation_sparsity_pattern=[0.0] * 3,
        laurel_rank=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = tf.Gemma3nForCausalLM(config).eval()
    assert_saves_nothing(model, "RuntimeError: ", caplog)


def test_layers_that_are_called_from_the_last_to_the_first(caplog, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(
        fan_out_module, "decoder_layers_of", lambda *_: list(reversed(model.model.layers))
    )
    engine = FanOutEngine(model, find_ffn_layers(model))
    with pytest.raises(RuntimeError):
        engine.integrate(RUN[:2], NODES, WEIGHTS, option_cross_entropy)
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        built = build_engine(model, find_ffn_layers(model), **BUILD)
    assert "computing every token, row and logit: RuntimeError: " in caplog.text
    assert isinstance(built, FanOutEngine)
    assert not built.prefiller.share


class OtherHead(nn.Linear):
    """Not the plain linear layer whose rows may be picked."""


def test_a_head_of_another_kind_is_computed_in_full_and_the_rest_is_saved(caplog):
    model = tiny_model("llama")
    head = OtherHead(32, 97, bias=False)
    head.load_state_dict(model.lm_head.state_dict())
    model.lm_head = head
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), **BUILD)
    assert caplog.messages == []
    assert isinstance(engine, FanOutEngine)
    assert engine.head is None
    assert len(engine.decoder_layers) == 3
    assert engine.prefiller.shared_tokens == SHARED
    assert_equal_on(engine, ReplayEngine(model, engine.layers), [RUN])


def after_the_head(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """The model does something to its logits after its LM head."""
    forward = model.forward

    def changed(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = changed


def unlikely_tail(logits: Tensor) -> Tensor:
    """Tokens from 50 on are padding of the vocabulary; the options are 10 to 14."""
    columns = torch.arange(logits.shape[-1])
    return torch.where(columns < 50, logits, logits - 20)


def token_biases(logits: Tensor) -> Tensor:
    return logits + torch.linspace(-2, 2, 97)


def option_biases(logits: Tensor) -> Tensor:
    """Biases by column that broadcast over any number of columns."""
    return logits * (1 + 0.5 * torch.arange(logits.shape[-1]) % 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unlikely_tail, "log-likelihoods differ by "),
        (token_biases, "RuntimeError: The size of tensor "),
        (option_biases, "attributions differ by "),
    ],
)
def test_logits_that_depend_on_their_column_after_the_head(change, reason, caplog):
    model = tiny_model("llama")
    after_the_head(model, change)
    assert_saves_nothing(model, reason, caplog)


def test_logits_that_are_all_treated_alike_after_the_head_are_no_hindrance():
    model = tiny_model("llama")
    after_the_head(model, lambda logits: 3 * (logits / 3).tanh())
    engine = build_engine(model, find_ffn_layers(model), **BUILD)
    assert isinstance(engine, FanOutEngine)
    assert engine.head is model.lm_head
    assert_equal_on(engine, ReplayEngine(model, engine.layers), [RUN])


def test_a_model_that_ignores_position_ids_takes_the_replay_engine(caplog):
    model = tiny_model("llama")

    def drop(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "position_ids": None}  # columns are counted instead

    model.model.register_forward_pre_hook(drop, with_kwargs=True)
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), **BUILD)
    assert isinstance(engine, ReplayEngine)
    assert len(caplog.messages) == 1  # why nothing is saved, then why that does not help either
    assert caplog.messages[0].startswith("using the slower replay engine: ")
    for message in caplog.messages:
        assert "log-likelihoods differ by " in message


# Two questions that have no token in common, so that a run shares their stems only.
APART = (
    *proxies(10, random_tokens(1, 18), [4, 6]),
    *proxies(20, random_tokens(2, 11), [5, 3]),
)


def test_a_model_that_cannot_go_on_after_a_cache_shares_no_stems(caplog):
    model = tiny_model("llama")

    def forget(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = kwargs.get("position_ids")
        goes_on = given is not None and given.shape[1] > 1 and bool((given.diff() > 0).any())
        return args, {**kwargs, "position_ids": 0 * given} if goes_on else kwargs

    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        engine = build_engine(model, find_ffn_layers(model), APART)
    assert isinstance(engine, FanOutEngine)
    assert not engine.prefiller.share
    (message,) = caplog.messages
    assert message.startswith("computing every token, row and logit: log-likelihoods differ by ")
    assert_equal_on(engine, ReplayEngine(model, engine.layers), [APART])


@pytest.mark.parametrize("window", [148, 156])
def test_padding_between_stem_and_rest_does_not_leave_a_window_that_counts_columns(window):
    # GPT-Neo's local layers count columns. The longest prompt has 20 prefix tokens, and 128
    # copies are checked: 148 fit. Padded stems and rests would take 9 more columns.
    config = CONFIGS["gpt_neo"]()
    config.window_size = window
    model = random_model(config)
    layers = find_ffn_layers(model)
    prompts = [
        *proxies(10, random_tokens(1, 18), [3, 3]),
        *proxies(20, random_tokens(2, 9), [12, 12]),
    ]
    engine = build_engine(model, layers, prompts, n_nodes=len(NODES))
    assert isinstance(engine, FanOutEngine)
    replay = ReplayEngine(model, layers)
    scales = torch.ones(128, *layers.shape)
    scales[-4:] = random_scales(layers.shape)
    found = engine.score(prompts, scales)
    expected = replay.score(prompts, scales[-4:])
    for one, other in zip(found, expected, strict=True):
        gap = (one.loglikelihoods[-4:] - other.loglikelihoods).abs().max()
        assert float(gap) <= 1e-4
    assert_equal_on(engine, replay, [prompts])


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_gradients_are_checked_for_any_number_of_nodes(n_nodes, monkeypatch, caplog):
    model, layers = loaded("llama")
    monkeypatch.setattr(engine_module, "gradient_mismatch", lambda *_: Mismatch("a reason"))
    with caplog.at_level(logging.INFO, logger="neuronllm_eval.engine.build"):
        built = build_engine(model, layers, RUN, n_nodes=n_nodes)
        assert caplog.messages == ["computing every token, row and logit: a reason"]
        caplog.clear()
        scoring = build_engine(model, layers, RUN)  # will compute no gradients
    assert caplog.messages == []
    assert not built.prefiller.share
    assert scoring.prefiller.share


@pytest.mark.parametrize("call", ["score", "integrate_all"])
def test_running_out_of_memory_while_checking_is_said(call, monkeypatch):
    model, layers = loaded("llama")

    def full(*_args: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(FanOutEngine, call, full)
    with pytest.raises(ModelError) as refusal:
        build_engine(model, layers, **BUILD)
    assert str(refusal.value) == (
        "out of memory while checking the engine on a few prompts: no room.\n"
        "Expected: room for three prompts.\n"
        "Remedy: use a smaller model, dtype=bfloat16, or parallelize=True in --model_args."
    )


def test_prompts_of_the_check():
    longest, near, largest, shortest = engine_module._probe_prompts(RUN)
    assert largest is QUESTIONS[-1][0]  # which has the first of the largest trees
    assert engine_module._probe_prompts(LETTERS) == [longest, near, shortest]
    assert longest.n_tokens == max(prompt.n_tokens for prompt in RUN)
    assert near is not longest
    assert near.context[:37] == longest.context[:37] == SHARED + LONG_STEM
    assert shortest.n_tokens == min(prompt.n_tokens for prompt in RUN)
    assert engine_module._probe_prompts(SHORT) == [SHORT[1], SHORT[0]]
    assert engine_module._probe_prompts(RUN[:1]) == [RUN[0], RUN[0]]
