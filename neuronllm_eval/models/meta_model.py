"""A model without its weights: enough to know the names and kinds of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from neuronllm_eval.models.load_errors import readable_loading

_OF_CONFIG = ("revision", "trust_remote_code", "subfolder", "gguf_file")


def model_skeleton(model_args: Mapping[str, Any]) -> nn.Module:
    """The causal language model of `--model_args`, on the meta device.

    Raises:
        ModelError: its configuration cannot be read.
    """
    given = {name: model_args[name] for name in _OF_CONFIG if model_args.get(name) is not None}
    with readable_loading(model_args.get("pretrained")):
        config = transformers.AutoConfig.from_pretrained(model_args["pretrained"], **given)
        trust = {name: given[name] for name in given if name == "trust_remote_code"}
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, **trust)
