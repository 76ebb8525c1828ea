"""Find the FFN down-projections of a Hugging Face causal LM.

A neuron (l, i) is coordinate i of the input of layer l's FFN down-projection. This module knows
what that module is called in each architecture family, checks that every layer has one and that
all have the same width, and says what is unsupported and why.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neuronllm_eval.errors import ModelError

# Path of the down-projection inside a decoder layer -> families that use it.
DOWN_PROJECTIONS = (
    "mlp.down_proj",  # llama, mistral, qwen, gemma, olmo, phi3, stablelm, cohere, granite, ...
    "mlp.c_proj",  # gpt2, gpt_neo, gpt_bigcode, starcoder2
    "mlp.dense_4h_to_h",  # gpt_neox, falcon, bloom
    "mlp.fc2",  # phi
    "mlp.fc_out",  # gptj, codegen
    "ffn.down_proj",  # mpt
    "fc2",  # opt, biogpt, xglm
    "feed_forward.w2",  # lfm2
)
_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?)(?P<layer>\d+)\.(?P<path>.+)$")


@dataclass(frozen=True)
class FFNLayers:
    """The FFN down-projections of one model, in layer order.

    Attributes:
        names: qualified module names, one per layer.
        modules: the modules themselves, one per layer.
        width: number of neurons per layer.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    width: int

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.modules)

    @property
    def shape(self) -> tuple[int, int]:
        """[layers, neurons]."""
        return self.n_layers, self.width


def input_width(module: nn.Module) -> int:
    """Number of inputs of a linear layer, also of GPT-2's transposed Conv1D."""
    if isinstance(width := getattr(module, "in_features", None), int):
        return width
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        raise ModelError(
            f"the down-projection is a {type(module).__name__} without a two-dimensional weight",
            expected="a linear layer (torch.nn.Linear, transformers Conv1D or a quantised one)",
            remedy="open an issue with the model's name",
        )
    return int(weight.shape[0])  # Conv1D keeps [inputs, outputs]


def find_ffn_layers(model: nn.Module) -> FFNLayers:
    """The FFN down-projections of `model`, one per decoder layer.

    Of a model that also sees or hears, they are those of its text decoder.

    Raises:
        ModelError: no known down-projection is found, several stacks have one, some layers have
            none (mixtures of experts, hybrid layers), or the layers differ in width.
    """
    # (stack, path of the down-projection) -> layer -> its name and module.
    by_stack: dict[tuple[str, str], dict[int, tuple[str, nn.Module]]] = defaultdict(dict)
    for name, module in model.named_modules():
        match = _LAYER.match(name)
        if match and match["path"] in DOWN_PROJECTIONS:
            layer = int(match["layer"])
            by_stack[match["stack"], match["path"]][layer] = (name, module)
    model_type = type(model).__name__
    if not by_stack:
        raise ModelError(
            f"{model_type} has no FFN down-projection under a known name",
            expected="decoder layers with one of " + ", ".join(DOWN_PROJECTIONS),
            remedy="mixture-of-experts and encoder-only models are not supported; for a new dense "
            "architecture add its path to DOWN_PROJECTIONS in models/ffn_layers.py",
        )
    stacks = _of_text_decoder(model, list(by_stack)) if len(by_stack) > 1 else list(by_stack)
    if len(stacks) != 1:
        raise ModelError(
            f"{model_type} has several stacks of FFN layers: "
            + ", ".join(sorted(stack + "N." + path for stack, path in by_stack)),
            expected="one stack in the text decoder that its get_decoder() names",
            remedy="encoder-decoders and models of several decoders are not supported",
        )
    layers = by_stack[stacks[0]]
    n_layers = max(layers) + 1
    if hasattr(model, "config"):
        n_layers = int(getattr(text_config(model), "num_hidden_layers", n_layers))
    if missing := sorted(set(range(n_layers)) - set(layers)):
        raise ModelError(
            f"{model_type} has {n_layers} decoder layers, and layers {missing} have no dense FFN",
            expected="a dense FFN with a down-projection in every layer",
            remedy="models with experts or without an FFN in some layers are not supported",
        )
    names, modules = zip(*(layers[layer] for layer in sorted(layers)), strict=True)
    widths = [input_width(module) for module in modules]
    if len(set(widths)) > 1:
        raise ModelError(
            f"{model_type} has FFN layers of different widths {widths}",
            expected="the same number of neurons in every layer",
            remedy="models with layers of different widths are not supported",
        )
    return FFNLayers(names=names, modules=modules, width=widths[0])


def _of_text_decoder(model: nn.Module, stacks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (stack, path) pairs whose layers are a list of the text decoder's own."""
    get_decoder = getattr(model, "get_decoder", None)
    if get_decoder is None or getattr(model.config, "is_encoder_decoder", False):
        return stacks
    decoder = get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    start = f"{name}." if name else ""
    return [
        (stack, path)
        for stack, path in stacks
        if stack.startswith(start) and stack.removeprefix(start).count(".") == 1  # as `layers.`
    ]


def text_config(model: nn.Module) -> Any:
    """A model's configuration; of one that also sees or hears, its text decoder's."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def input_device(model: nn.Module) -> torch.device:
    """Where a Hugging Face model expects token ids."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator]
