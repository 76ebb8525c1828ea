"""The down-projections of each architecture are found, and what is unsupported is refused."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers, input_width
from tests.fixtures.tiny_models import CONFIGS, REPLAY_ONLY, VOCABULARY, n_hooks, tiny_model

# Name of layer 0's down-projection, by the model's layout.
FIRST_NAME = {
    "gpt2": "transformer.h.0.mlp.c_proj",
    "gpt_neo": "transformer.h.0.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.0.mlp.dense_4h_to_h",
    "phi": "model.layers.0.mlp.fc2",
    "falcon": "transformer.h.0.mlp.dense_4h_to_h",
    "falcon_alibi": "transformer.h.0.mlp.dense_4h_to_h",
    "gemma3_seeing": "model.language_model.layers.0.mlp.down_proj",  # its tower has mlp.fc2
    "opt": "model.decoder.layers.0.fc2",
}


def toy(*widths: int | None) -> nn.Module:
    """Decoder layers `layers.N.mlp.down_proj` of the given widths; None for one without an FFN."""
    layers = []
    for width in widths:
        mlp = nn.Module()
        if width is not None:
            mlp.down_proj = nn.Linear(width, 4)
        layer = nn.Module()
        layer.mlp = mlp
        layers.append(layer)
    model = nn.Module()
    model.layers = nn.ModuleList(layers)
    return model


@pytest.mark.parametrize("architecture", CONFIGS | REPLAY_ONLY)
def test_every_layer_is_found(architecture):
    model = tiny_model(architecture)
    layers = find_ffn_layers(model)
    n_layers = 4 if architecture == "gpt_neo" else 3
    assert layers.shape == (n_layers, 48)
    first = FIRST_NAME.get(architecture, "model.layers.0.mlp.down_proj")
    assert layers.names == tuple(first.replace("0", str(n), 1) for n in range(n_layers))
    assert all(
        model.get_submodule(name) is module
        for name, module in zip(layers.names, layers.modules, strict=True)
    )


@pytest.mark.parametrize("architecture", CONFIGS | REPLAY_ONLY)
def test_what_enters_the_module_has_the_width_found(architecture):
    model = tiny_model(architecture)
    layers = find_ffn_layers(model)
    seen = []
    for module in layers.modules:
        module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[-1]))
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    assert seen == [layers.width] * layers.n_layers
    assert n_hooks(model) >= layers.n_layers  # the hooks above did hang on this very model


def test_width_of_a_transposed_layer_is_its_number_of_inputs():
    conv = tf.pytorch_utils.Conv1D(4, 6)  # four outputs, six inputs
    assert tuple(conv.weight.shape) == (6, 4)
    assert input_width(conv) == 6
    assert input_width(nn.Linear(6, 4)) == 6


def test_width_of_something_else_is_refused():
    with pytest.raises(ModelError) as refusal:
        input_width(nn.LayerNorm(5))
    assert str(refusal.value) == (
        "the down-projection is a LayerNorm without a two-dimensional weight.\n"
        "Expected: a linear layer (torch.nn.Linear, transformers Conv1D or a quantised one).\n"
        "Remedy: open an issue with the model's name."
    )


def test_layers_are_in_numerical_order():
    layers = find_ffn_layers(toy(*[7] * 12))
    assert layers.names[2:4] == ("layers.2.mlp.down_proj", "layers.3.mlp.down_proj")
    assert layers.names[-1] == "layers.11.mlp.down_proj"
    assert isinstance(layers, FFNLayers)
    assert layers.shape == (12, 7)


def mixtral() -> nn.Module:
    """Every FFN is a mixture of experts."""
    return tf.AutoModelForCausalLM.from_config(
        tf.MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    )


def mamba() -> nn.Module:
    """No FFN at all."""
    config = tf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4
    )
    return tf.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (mixtral, "MixtralForCausalLM"),
        (mamba, "MambaForCausalLM"),
        (lambda: nn.Linear(3, 4), "Linear"),
    ],
)
def test_models_without_a_dense_ffn_are_refused(build, kind):
    with pytest.raises(ModelError) as refusal:
        find_ffn_layers(build())
    message = str(refusal.value)
    assert message.startswith(f"{kind} has no FFN down-projection under a known name.\n")
    assert "Expected: decoder layers with one of mlp.down_proj, mlp.c_proj, " in message
    assert "Remedy: mixture-of-experts and encoder-only models are not supported" in message


def test_a_layer_without_a_dense_ffn_between_others_is_refused():
    with pytest.raises(ModelError) as refusal:
        find_ffn_layers(toy(7, None, 7, None, 7))
    assert str(refusal.value) == (
        "Module has 5 decoder layers, and layers [1, 3] have no dense FFN.\n"
        "Expected: a dense FFN with a down-projection in every layer.\n"
        "Remedy: models with experts or without an FFN in some layers are not supported."
    )


def test_last_layers_without_a_dense_ffn_are_refused_by_the_configured_depth():
    model = toy(7, 7)
    model.config = tf.LlamaConfig(num_hidden_layers=4)  # DeepSeek: dense first, then experts
    with pytest.raises(ModelError, match=r"4 decoder layers, and layers \[2, 3\] have no dense"):
        find_ffn_layers(model)


def test_layers_of_different_widths_are_refused():
    with pytest.raises(ModelError) as refusal:
        find_ffn_layers(toy(7, 8, 7))
    assert str(refusal.value) == (
        "Module has FFN layers of different widths [7, 8, 7].\n"
        "Expected: the same number of neurons in every layer.\n"
        "Remedy: models with layers of different widths are not supported."
    )


def test_two_stacks_are_refused_by_name():
    model = nn.Module()
    model.encoder, model.decoder = toy(7), toy(7)
    with pytest.raises(ModelError) as refusal:
        find_ffn_layers(model)
    message = str(refusal.value)
    assert "decoder.layers.N.mlp.down_proj, encoder.layers.N.mlp.down_proj" in message
    assert "Expected: one stack in the text decoder that its get_decoder() names.\n" in message
    assert "encoder-decoders and models of several decoders are not supported" in message


def test_an_encoder_decoder_is_refused():
    """Its decoder has a stack of its own, but nothing here feeds an encoder."""
    config = tf.BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    with pytest.raises(ModelError, match=r"model\.decoder\.layers\.N\.fc2, model\.encoder\.layers"):
        find_ffn_layers(tf.AutoModelForSeq2SeqLM.from_config(config))


def test_only_a_list_of_the_decoders_own_counts():
    """Towers within the decoder are passed over; two lists in parts of it are refused."""
    model = nn.Module()
    model.config = tf.LlamaConfig(num_hidden_layers=2)
    model.decoder = toy(7, 7)
    model.decoder.tower = toy(5)
    model.get_decoder = lambda: model.decoder
    assert find_ffn_layers(model).shape == (2, 7)
    model.decoder = nn.ModuleDict({"one": toy(7, 7), "other": toy(7, 7)})
    with pytest.raises(ModelError, match="several stacks"):
        find_ffn_layers(model)
