"""Short digests of a model, a task and a template, so that an artifact can name its origin."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

_SAMPLED_WEIGHTS = 64


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of SHA-256; empty for an empty text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def model_hash(model: nn.Module) -> str:
    """A digest of every parameter's name, shape, and a sample of its values.

    It tells two checkpoints of one architecture apart; it does not depend on the path they were
    loaded from, nor on their device.
    """
    state = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED_WEIGHTS)].cpu()
        state.update(f"{name}{tuple(parameter.shape)}".encode())
        state.update(sample.to(torch.float32).numpy().tobytes())
    return state.hexdigest()[:16]


def task_hash(config: dict[str, Any]) -> str:
    """A digest of a harness task's configuration, as the harness dumps it into result files."""
    volatile = {"metadata", "test_split"}
    kept = {key: value for key, value in config.items() if key not in volatile}
    return digest(json.dumps(kept, sort_keys=True, default=str))


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {
        name: version(name)
        for name in ("neuronllm-eval", "lm_eval", "transformers", "torch", "accelerate", "datasets")
    }
