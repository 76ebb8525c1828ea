"""What neurons promote, against the model's own modules fed with the direction itself."""

from __future__ import annotations

from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn

from neuronllm_eval.explain.norms import read_norm, trace
from neuronllm_eval.explain.token_effects import TokenEffect, Unembedding, promotions
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.harness import word_tokenizer
from tests.fixtures.tiny_models import VOCABULARY, n_hooks, random_prompt, tiny_model

CONTEXT = random_prompt(0, 12).context
PLACES = [(0, 0), (1, 47), (2, 5)]
# Where each family keeps its final norm, and the norm of a layer's FFN output if there is one.
FINAL = {
    "llama": "model.norm",
    "llama_tied": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "falcon": "transformer.ln_f",
    "phi": "model.final_layernorm",
    "opt": "model.decoder.final_layer_norm",
    "gemma2": "model.norm",
    "gemma3": "model.norm",
    "olmo2": "model.norm",
}
BEHIND = {"gemma2", "gemma3", "olmo2"}


def model_with_gains(architecture: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model whose norms are not all ones."""
    model = tiny_model(architecture, dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.5 * noise).to(parameter.dtype)
    return model


@torch.no_grad()
def fed(module: nn.Module, vector: Tensor) -> Tensor:
    """What a vector adds to a module's output, all others being small beside it."""
    return module(1e4 * vector[None, None]) - module(torch.zeros_like(vector)[None, None])


def brute_force(model: nn.Module, architecture: str, layer: int, index: int) -> Tensor:
    """[vocabulary] standardised logits of a neuron's direction, by the model's own modules."""
    down = find_ffn_layers(model).modules[layer]
    one_hot = torch.zeros(48)
    one_hot[index] = 1
    with torch.no_grad():
        vector = down(one_hot) - down(torch.zeros(48))
    if architecture in BEHIND:
        block = model.model.layers[layer]
        vector = fed(block.post_feedforward_layernorm, vector)[0, 0]
    hidden = fed(attrgetter(FINAL[architecture])(model), vector)[0, 0]
    logits = model.get_output_embeddings().weight.detach() @ hidden
    return (logits - logits.mean()) / logits.std(correction=0)


@pytest.mark.parametrize("architecture", FINAL)
def test_effects_are_what_the_modules_make_of_the_direction(architecture):
    model = model_with_gains(architecture)
    layers = find_ffn_layers(model)
    unembedding = Unembedding.of(model, layers, CONTEXT)
    assert unembedding.notes == ()
    assert unembedding.final.name == FINAL[architecture]
    assert set(unembedding.behind) == ({0, 1, 2} if architecture in BEHIND else set())
    effects = unembedding.effects(PLACES, VOCABULARY)
    for row, location in zip(effects, PLACES, strict=True):
        expected = brute_force(model, architecture, *location)
        assert torch.allclose(row, expected, atol=2e-3), (row - expected).abs().max()
    assert n_hooks(model) == 0


def test_16_bits_read_the_same_norm():
    model = model_with_gains("llama", torch.bfloat16)
    found = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    assert torch.equal(found.final.gain, model.model.norm.weight.detach().float())
    effects = found.effects(PLACES, VOCABULARY)
    expected = brute_force(model.float(), "llama", *PLACES[1])
    assert torch.allclose(effects[1], expected, atol=0.02)


def test_a_neuron_that_writes_one_token_promotes_it():
    model = model_with_gains("llama")
    layers = find_ffn_layers(model)
    with torch.no_grad():
        # Any vector in the way of the final norm, so that token 17 alone is meant.
        gain = model.model.norm.weight
        model.lm_head.weight.zero_()
        model.lm_head.weight[17, 3] = 1.0
        layers.modules[1].weight[:, 5] = 0.0
        layers.modules[1].weight[3, 5] = 2.0 / gain[3]
        layers.modules[1].weight[:, 6] = -layers.modules[1].weight[:, 5]
        layers.modules[1].weight[:, 7] = 0.0
    effects = Unembedding.of(model, layers, CONTEXT).effects([(1, 5), (1, 6), (1, 7)], VOCABULARY)
    helps, hurts, nothing = promotions(effects, word_tokenizer(), 2)
    # One token of 97 at 1, the others at 0: mean 1/97, standard deviation sqrt(96)/97.
    word = word_tokenizer().decode([17])
    assert helps.promotes[0] == TokenEffect(17, word, pytest.approx(96**0.5, rel=1e-5))
    assert hurts.demotes[0] == TokenEffect(17, word, pytest.approx(-(96**0.5), rel=1e-5))
    assert {each.effect for each in nothing.promotes} == {0.0}


def test_rows_of_the_head_beyond_the_tokenizer_do_not_count():
    model = model_with_gains("gpt2")
    unembedding = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    effects = unembedding.effects(PLACES, 40)
    assert effects.shape == (3, 40)
    assert torch.allclose(effects.mean(-1), torch.zeros(3), atol=1e-6)


# What cannot be read ----------------------------------------------------------------------------


def test_what_feeds_the_head_may_be_no_norm():
    model = tiny_model("llama")
    model.model.norm = nn.Linear(32, 32)
    found = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    assert found.final is None
    assert found.notes == (
        "the final norm is left out: model.norm feeds the LM head and is not a norm",
    )
    effects = found.effects([(0, 0)], VOCABULARY)[0]
    plain = model.lm_head.weight.detach() @ found.layers.modules[0].weight.detach()[:, 0]
    assert int(effects.argmax()) == int(plain.argmax())


def test_nothing_may_feed_the_head():
    model = tiny_model("llama")
    model.model.norm = nn.Identity()
    notes = Unembedding.of(model, find_ffn_layers(model), CONTEXT).notes
    assert notes == ("the final norm is left out: the LM head's input is no module's output",)


def test_what_the_ffn_goes_through_may_be_no_norm():
    model = tiny_model("gemma3")
    model.model.layers[1].post_feedforward_layernorm = nn.Linear(32, 32)
    found = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    assert set(found.behind) == {0, 2}
    assert found.notes == (
        "model.layers.1.post_feedforward_layernorm, which the FFN's output goes through, is left "
        "out",
    )


class _Adapted(nn.Linear):
    """A layer whose weight does not say what it computes."""

    def forward(self, vectors: Tensor) -> Tensor:
        return 2 * super().forward(vectors).flip(-1)


def test_a_down_projection_whose_weights_do_not_tell_is_asked():
    model = model_with_gains("llama")
    own = nn.Linear(48, 32)
    model.model.layers[0].mlp.down_proj = _Adapted(48, 32)
    model.model.layers[0].mlp.down_proj.load_state_dict(own.state_dict())
    unembedding = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    assert unembedding.notes == ()
    effects = unembedding.effects([(0, 3)], VOCABULARY)[0]
    logits = model.lm_head.weight @ (own.weight[:, 3].flip(-1) * model.model.norm.weight)
    expected = (logits - logits.mean()) / logits.std(correction=0)
    assert torch.allclose(effects, expected, atol=1e-4)


def test_a_head_whose_weights_do_not_tell_reads_no_tokens():
    model = tiny_model("llama")
    model.lm_head = _Adapted(32, VOCABULARY)
    found = Unembedding.of(model, find_ffn_layers(model), CONTEXT)
    assert found.effects(PLACES, VOCABULARY) is None
    assert found.notes == ("the LM head is not a plain linear layer, so no tokens are read",)


def test_no_activation_function_or_linear_layer_passes_for_a_norm():
    model = model_with_gains("gpt2")
    found = [read_norm(step) for step in trace(model, CONTEXT[:8])]
    names = {norm.name.split(".")[-1] for norm in found if norm is not None}
    assert names == {"ln_1", "ln_2", "ln_f"}
    assert n_hooks(model) == 0
