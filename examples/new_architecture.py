"""docs/extending.md: what the package makes of an architecture, on a tiny random model of it."""

from __future__ import annotations

import torch
import transformers

from neuronllm_eval.engine.build import ReplayEngine, build_engine
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt

torch.manual_seed(0)
config = transformers.StableLmConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip
model = transformers.AutoModelForCausalLM.from_config(config).eval()

layers = find_ffn_layers(model)  # ModelError says what is missing
print(layers.shape, layers.names)

prompts = [
    Prompt(number, tuple(range(5, 30 + number)), ((7,), (8,), (9,)), gold=1) for number in (0, 1)
]
engine = build_engine(model, layers, prompts)  # checks fan-out on these prompts
print("engine:", engine.name)
factors = torch.ones(2, *layers.shape)
factors[1, :, :10] = 0
for scored, expected in zip(
    engine.score(prompts, factors),
    ReplayEngine(model, layers).score(prompts, factors),
    strict=True,
):
    assert torch.allclose(scored.loglikelihoods, expected.loglikelihoods, atol=1e-5)
