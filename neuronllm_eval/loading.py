"""Load a model as `lm_eval --model hf` does, and read its `--model_args`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from neuronllm_eval.architectures import FFNLayers, find_ffn_layers
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.fingerprints import model_hash
from neuronllm_eval.precision import dtype_name
from neuronllm_eval.settings import RunSettings

# What lm_eval, transformers and torch raise for wrong names, settings, files and devices.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    ImportError,
    AttributeError,
    AssertionError,
    RuntimeError,
)


@dataclass(frozen=True)
class LoadedModel:
    """A harness model, its FFN layers, and a digest and the dtype of its weights as loaded."""

    lm: HFLM
    layers: FFNLayers
    hash: str
    dtype: str


def load_model(settings: RunSettings) -> LoadedModel:
    """Load the model as `lm_eval --model hf` does, and find its FFN layers.

    Raises:
        ModelError: the model cannot be loaded, or has no FFN down-projections.
        UsageError: several processes, which this version does not share work among.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"started with {os.environ['WORLD_SIZE']} processes",
            expected="one process; this version does not yet share work among several",
            remedy="start it without accelerate launch or torchrun",
        )
    arguments = {**settings.model_args}
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_device(device)
    given = {"batch_size": settings.batch_size, "device": device}
    try:
        lm = HFLM(**{**given, **arguments})
    except _LOADING_ERRORS as error:
        raise ModelError(
            f"the model {arguments.get('pretrained')!r} cannot be loaded: "
            f"{str(error).strip() or type(error).__name__}",
            expected="--model_args as for `lm_eval --model hf`: pretrained=NAME_OR_PATH[,...]",
            remedy="check --model_args and --device; offline, give a local path",
        ) from error
    if lm.backend != "causal":
        raise ModelError(
            f"{type(lm.model).__name__} is not a causal language model",
            expected="a decoder-only model",
            remedy="choose another model",
        )
    return LoadedModel(lm, find_ffn_layers(lm.model), model_hash(lm.model), dtype_name(lm.model))


def _require_device(device: str) -> None:
    """Raise UsageError for a device whose name means nothing; lm_eval would take another."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"--device {device} is unknown",
            expected="cpu, cuda, cuda:0, mps or the like",
            remedy="check the spelling",
        ) from error


def parse_model_args(values: Sequence[str]) -> dict[str, Any]:
    """`key=value,key=value` arguments as lm_eval reads them.

    Raises:
        UsageError: not of that form, or without `pretrained`.
    """
    try:
        arguments = dict(simple_parse_args_string(",".join(values)))
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"--model_args {' '.join(values)} cannot be read: {error}",
            expected="key=value,key=value",
            remedy="for example --model_args pretrained=gpt2,dtype=float32",
        ) from error
    if "pretrained" not in arguments:
        raise UsageError(
            f"--model_args {' '.join(values)} names no model",
            expected="pretrained=NAME_OR_PATH",
            remedy="add pretrained=",
        )
    return arguments
