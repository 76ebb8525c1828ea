"""Tiny random causal LMs of every supported architecture, built from config alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as tf
from torch import nn

VOCABULARY = 97
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
        max_position_embeddings=128,
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


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A random model in eval mode whose logits are spread enough to tell edits apart."""
    torch.manual_seed(seed)
    config = (CONFIGS | REPLAY_ONLY)[architecture]()
    config.initializer_range = 0.3
    model = tf.AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval()
