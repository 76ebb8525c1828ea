"""Tiny random causal LMs of every supported architecture, built from config alone.

With them go what most tests of the core need: random prompts, a provenance, a count of hooks,
comparisons of what engines give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from neuronllm_eval.engine.interface import Engine, OptionScores, PathIntegral, option_cross_entropy
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.prompts import Prompt

VOCABULARY = 97
# Any nodes and weights will do; alpha 0 and 1 are among them.
NODES = torch.tensor([0.0, 0.25, 0.7, 1.0])
WEIGHTS = torch.tensor([0.0, 0.5, 0.2, 0.3])
LOG_NATS = 1e-4  # what float rounding may do to a log-likelihood in fp32
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def _opt() -> tf.PretrainedConfig:
    return tf.OPTConfig(
        **_COMMON,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    )


def _gpt_neo() -> tf.PretrainedConfig:
    return tf.GPTNeoConfig(
        **_COMMON,
        hidden_size=32,
        intermediate_size=48,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        window_size=256,
        num_heads=4,
        max_position_embeddings=512,
    )


def _gpt2() -> tf.PretrainedConfig:
    return tf.GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=128)


CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_LLAMA_LIKE),
    "llama_tied": lambda: tf.LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=True),
    "mistral": lambda: tf.MistralConfig(**_LLAMA_LIKE, sliding_window=None),
    "mistral_sliding": lambda: tf.MistralConfig(**_LLAMA_LIKE, sliding_window=8),
    "qwen2": lambda: tf.Qwen2Config(**_LLAMA_LIKE),
    "qwen2_sliding": lambda: tf.Qwen2Config(
        **_LLAMA_LIKE, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": lambda: tf.Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        **{k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
    ),
    "phi": lambda: tf.PhiConfig(**_LLAMA_LIKE),
    "phi3": lambda: tf.Phi3Config(**_LLAMA_LIKE, sliding_window=None),
    "phi3_sliding": lambda: tf.Phi3Config(**_LLAMA_LIKE, sliding_window=8),
    "gemma2": lambda: tf.Gemma2Config(
        **_LLAMA_LIKE, head_dim=8, sliding_window=8, attn_implementation="eager"
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(**_LLAMA_LIKE, head_dim=8, sliding_window=8),
    "gemma3_mixed": lambda: tf.Gemma3TextConfig(
        **_LLAMA_LIKE,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3_seeing": lambda: tf.Gemma3Config(
        text_config={**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 8},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    ),
    "olmo2": lambda: tf.Olmo2Config(**_LLAMA_LIKE),
    "falcon": lambda: tf.FalconConfig(
        **_COMMON,
        hidden_size=32,
        ffn_hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        alibi=False,
    ),
    "opt": _opt,
}
# Models whose attention the fan-out engine cannot address: they take the replay engine.
REPLAY_ONLY: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "falcon_alibi": lambda: tf.FalconConfig(
        **_COMMON,
        hidden_size=32,
        ffn_hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        alibi=True,
    ),
}


@functools.cache
def loaded(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, FFNLayers]:
    """A model that no test may change, and its layers."""
    model = tiny_model(architecture, dtype)
    return model, find_ffn_layers(model)


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A random model in eval mode whose logits are spread enough to tell edits apart."""
    return random_model((CONFIGS | REPLAY_ONLY)[architecture](), dtype, seed)


def random_model(
    config: tf.PretrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Module:
    """The same for a configuration of the test's own."""
    torch.manual_seed(seed)
    config.get_text_config().initializer_range = 0.3
    model = tf.AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval()


def random_prompt(
    doc_id: int, n_tokens: int, n_options: int = 4, gold: int | None = None
) -> Prompt:
    """A prompt of `n_tokens` random tokens (3 to 96) with one-token options 10, 11, ..."""
    generator = torch.Generator().manual_seed(1000 + doc_id)
    context = torch.randint(3, VOCABULARY, (n_tokens,), generator=generator)
    return Prompt(
        doc_id=doc_id,
        context=tuple(context.tolist()),
        options=tuple((10 + option,) for option in range(n_options)),
        gold=doc_id % n_options if gold is None else gold,
    )


def random_tokens(seed: int, n_tokens: int) -> tuple[int, ...]:
    """Token ids that are no option's and start with one of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randint(30, VOCABULARY, (n_tokens,), generator=generator).tolist()
    return (20 + seed % 10, *rest[1:])[:n_tokens]


def proxies(
    doc_id: int, beginning: Sequence[int], rests: Sequence[int], n_options: int = 4
) -> tuple[Prompt, ...]:
    """Prompts that begin alike and go on with random tokens of their own, `rests` of them.

    No two of them share a token behind the beginning. Options are 10, 11, ...
    """
    return tuple(
        Prompt(
            doc_id=doc_id + number,
            context=(*beginning, *random_tokens(doc_id + number, n_tokens)),
            options=tuple((10 + option,) for option in range(n_options)),
            gold=(doc_id + number) % n_options,
        )
        for number, n_tokens in enumerate(rests)
    )


def contexts(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Their token ids up to the options."""
    return [prompt.context for prompt in prompts]


def n_hooks(model: nn.Module) -> int:
    """How many hooks of any kind hang on the model's modules."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference in units of the largest expected absolute value."""
    return float((found - expected).abs().max() / expected.abs().max())


def provenance(**changes: Any) -> Provenance:
    """A provenance with every field filled: names as texts, 3 and 0.5 as numbers."""
    fillings = {"int": 3, "float | None": 0.5}
    values = {
        field.name: fillings.get(str(field.type), field.name)
        for field in dataclasses.fields(Provenance)
    }
    return Provenance(**(values | {"positions": "scored"} | changes))


def random_scales(shape: tuple[int, int], n_conditions: int = 4) -> Tensor:
    """[conditions, layers, neurons]: unedited, everything masked, then random factors."""
    generator = torch.Generator().manual_seed(1)
    scales = 2 * torch.rand(n_conditions, *shape, generator=generator)
    scales[0], scales[1] = 1.0, 0.0
    return scales


def assert_same_integrals(
    found: Sequence[PathIntegral],
    expected: Sequence[PathIntegral],
    relative: float = 1e-5,
    log_nats: float = LOG_NATS,
) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float(other.attribution.abs().max()) > 1e-3  # there is something to compare
        assert relative_difference(one.attribution, other.attribution) <= relative
        assert float((one.node_targets - other.node_targets).abs().max()) <= log_nats
        assert float((one.loglikelihoods - other.loglikelihoods).abs().max()) <= log_nats
        assert abs(one.target - other.target) <= log_nats


def assert_same_scores(
    found: Sequence[OptionScores], expected: Sequence[OptionScores], log_nats: float = LOG_NATS
) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.loglikelihoods.shape == other.loglikelihoods.shape
        assert float((one.loglikelihoods - other.loglikelihoods).abs().max()) <= log_nats
        assert torch.equal(one.greedy, other.greedy)


def call_engine(engine: Engine, call: str, prompts: Sequence[Prompt]) -> object:
    """`engine.score` or `engine.integrate` with settings that do not matter."""
    if call == "score":
        return engine.score(prompts, torch.ones(2, *engine.layers.shape))
    return engine.integrate(prompts, NODES, WEIGHTS, option_cross_entropy)
