"""Short digests of a model, a task and a template, so that an artifact can name its origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
import xxhash
from torch import nn

from neuronllm_eval.errors import ModelError

_CHUNK = 1 << 28  # bytes


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of SHA-256; empty for an empty text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def model_hash(model: nn.Module) -> str:
    """A digest of every parameter's name, shape and values, in the dtype they are loaded in.

    It does not depend on the path or the device. A few seconds for 7 billion parameters.

    Raises:
        ModelError: some are offloaded to disk.
    """
    return _hash(model.named_parameters())


def base_model_hash(model: nn.Module) -> str:
    """The `model_hash` that a model had before PEFT put an IA3 adapter on it.

    Raises:
        ModelError: as `model_hash`.
    """
    return _hash(
        (name.removeprefix("base_model.model.").replace(".base_layer.", "."), parameter)
        for name, parameter in model.named_parameters()
        if ".ia3_l." not in name
    )


def _hash(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    state = xxhash.xxh3_128()
    for name, parameter in sorted(parameters):
        if parameter.is_meta:
            raise ModelError(
                f"{name} is not in memory but offloaded to disk",
                expected="a model whose weights are all on its devices",
                remedy="use more or larger devices, or a smaller dtype",
            )
        state.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        flat = parameter.detach().contiguous().flatten().view(torch.uint8)
        for start in range(0, len(flat), _CHUNK):  # bounds the copy from a GPU
            state.update(flat[start : start + _CHUNK].cpu().numpy().tobytes())
    return state.hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """A digest of what a Hugging Face tokenizer turns text into tokens by.

    Of a fast one the whole of its pipeline, but for padding and truncation, which calls set; of a
    slow one its vocabulary. Special tokens and how they are added count for both.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        known = json.loads(backend.to_str())
        known.pop("padding", None)
        known.pop("truncation", None)
    else:
        known = dict(sorted(tokenizer.get_vocab().items()))
    probe = tokenizer.build_inputs_with_special_tokens([]) if backend is None else None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest(json.dumps([known, special, probe], sort_keys=True))


def task_hash(config: dict[str, Any], asked: dict[str, Any] | None = None) -> str:
    """A digest of a harness task's configuration, as the harness dumps it into result files.

    Args:
        config: the configuration.
        asked: how an AQUA task asks its questions; its metadata, which say so, also hold what
            does not matter.
    """
    volatile = {"metadata", "test_split"}
    kept = {key: value for key, value in config.items() if key not in volatile}
    if asked:
        kept["asked"] = asked
    return digest(json.dumps(kept, sort_keys=True, default=str))


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {
        name: version(name)
        for name in ("neuronllm-eval", "lm_eval", "transformers", "torch", "accelerate", "datasets")
    }
