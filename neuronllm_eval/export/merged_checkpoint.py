"""A condition as a full checkpoint: factors multiplied into the down-projections' weights.

(h * s) W and h (s W) are the same products where s is 0 or a power of two. Other factors round each
weight once, in the model's type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.models.loading import readable_loading

_MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_mergeable(model: nn.Module, layers: FFNLayers) -> None:
    """Raise ModelError unless the down-projections are linear layers with plain weights."""
    for name, module in zip(layers.names, layers.modules, strict=True):
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, Tensor) and weight.dtype in _MERGEABLE
        if not plain or not _is_unpacked(model) or not isinstance(module, (nn.Linear, Conv1D)):
            kind = type(module).__name__ if weight is None else weight.dtype
            raise ModelError(
                f"{name} is quantised, or no plain linear layer ({kind})",
                expected="weights of a floating-point type of 16 bits or more, to multiply",
                remedy="export with --format peft, which leaves the weights alone; or load the "
                "model without quantisation and run identify on that",
            )


def _is_unpacked(model: nn.Module) -> bool:
    """Whether a model is not quantised, or was read from a GGUF file into plain weights."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return True
    is_gguf = quantizer.quantization_config.quant_method == "gguf"
    return is_gguf and all(parameter.is_floating_point() for parameter in model.parameters())


@torch.no_grad()
def merge_factors(layers: FFNLayers, factors: Tensor) -> None:
    """Multiply factors into the weights of the down-projections, in place; biases stay.

    Args:
        layers: as `require_mergeable` takes them.
        factors: [layers, neurons] float32, as `ia3_adapter.rounded_factors` gives them.

    Raises:
        ModelError: a weight becomes too large for its type; the model is then of no use.
    """
    for name, module, row in zip(layers.names, layers.modules, factors, strict=True):
        weight = module.weight
        assert isinstance(weight, Tensor)
        factor = row.to(weight.device)
        column = (
            factor[:, None] if isinstance(module, Conv1D) else factor
        )  # Conv1D: [inputs, outputs]
        # Type promotion: 16-bit weights are multiplied in float32 and rounded once, as PEFT does.
        product = (weight.data * column).to(weight.dtype)
        if not bool(torch.isfinite(product).all()):
            raise ModelError(
                f"{name} times the factors is not finite in {weight.dtype}",
                expected="weights that stay within their type",
                remedy="use a smaller --scale, or export with --format peft",
            )
        weight.data = product


def save_checkpoint(
    model: transformers.PreTrainedModel, model_args: Mapping[str, Any], folder: Path
) -> None:
    """Write a model, and the tokenizer that the run's `model_args` name, as a checkpoint."""
    base, tokenizer_name = model_args["pretrained"], model_args.get("tokenizer")
    options = {"trust_remote_code": False}
    options |= {
        name: model_args[name]
        for name in ("revision", "trust_remote_code", "subfolder")
        if model_args.get(name) is not None
    }
    if model_args.get("gguf_file") and not tokenizer_name:  # as lm_eval does
        options["gguf_file"] = model_args["gguf_file"]
    else:
        options["use_fast"] = model_args.get("use_fast_tokenizer", True)
    with readable_loading(base):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_name or base, **options)
    if getattr(model, "hf_quantizer", None) is not None:
        # Read from GGUF, and plain (`require_mergeable`): the checkpoint is that of a plain model.
        model.hf_quantizer = None
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
