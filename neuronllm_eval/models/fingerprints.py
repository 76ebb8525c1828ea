"""Digests of a model, a task and a template by which artifacts name their origin.

And whether neurons and a model belong together, by shape and by these digests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import xxhash

from neuronllm_eval.errors import ModelError
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance

if TYPE_CHECKING:  # digests of texts need no torch
    from torch import nn

_CHUNK = 1 << 28  # bytes
_SAMPLED = 64  # matrices
# What rounding to 16 bits may do to a weight, twice: relative, and to the tiniest.
_ROUNDING, _TINY = 2**-7, 1e-6


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of SHA-256; empty for an empty text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {
        name: version(name)
        for name in ("neuronllm-eval", "lm_eval", "transformers", "torch", "accelerate", "datasets")
    }


# Models -----------------------------------------------------------------------------------------


def dtype_name(model: nn.Module) -> str:
    """The floating-point type of a model's weights, such as `bfloat16`."""
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return str(next(types)).removeprefix("torch.")


@dataclass(frozen=True)
class Weights:
    """What says whether a model has the weights that neurons were found in.

    Attributes:
        dtype: their floating-point type, such as `bfloat16`.
        hash: their `model_hash`, which is of this type.
        sample: some of them in bfloat16, which other types agree with up to rounding.
    """

    dtype: str
    hash: str
    sample: str

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Of a model as it is loaded."""
        return cls(dtype_name(model), model_hash(model), _sample(model.named_parameters()))

    @classmethod
    def of_base(cls, model: nn.Module) -> Weights:
        """Of a model as it was before PEFT put an IA3 adapter on it."""
        return cls(dtype_name(model), _hash(_base_weights(model)), _sample(_base_weights(model)))

    def differ(self, origin: Provenance) -> bool:
        """Whether neurons were found in others: to the bit, or in another type up to rounding."""
        if self.dtype == origin.dtype:
            return self.hash != origin.model_hash
        if not origin.weights_sample:  # of an earlier version
            return False
        if len(self.sample) != len(origin.weights_sample):
            return True
        pairs = zip(_values(self.sample), _values(origin.weights_sample), strict=True)
        return any(
            abs(one - other) > _ROUNDING * max(abs(one), abs(other)) + _TINY for one, other in pairs
        )  # never for NaN, which stands for packed weights


def model_hash(model: nn.Module) -> str:
    """A digest of every parameter's name, shape and values, in the dtype they are loaded in.

    It does not depend on the path or the device. A few seconds for 7 billion parameters.

    Raises:
        ModelError: some are offloaded to disk.
    """
    return _hash(model.named_parameters())


def _base_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".ia3_l." not in name:
            base_name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield base_name, parameter


def _sample(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """One weight of each of up to 64 matrices, in bfloat16, four hexadecimal digits each."""
    import torch

    matrices = [parameter for _, parameter in sorted(parameters) if parameter.dim() > 1]
    weights = [
        parameter.detach().flatten()[parameter.numel() // 3].float().cpu()
        if parameter.is_floating_point()
        else torch.tensor(torch.nan)
        for parameter in matrices[:: -(-len(matrices) // _SAMPLED)]
    ]
    bits = torch.stack(weights).bfloat16().view(torch.int16).tolist()
    return "".join(f"{each & 0xFFFF:04x}" for each in bits)


def _values(sample: str) -> list[float]:
    """The weights of a `_sample`."""
    words = (sample[start : start + 4] for start in range(0, len(sample), 4))
    return [struct.unpack(">f", bytes.fromhex(word + "0000"))[0] for word in words]


def _hash(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    import torch

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


def require_same_shape(neurons: NeuronSet, shape: tuple[int, int], model: str) -> None:
    """Raise ModelError unless the neurons belong to a model of `shape` [layers, neurons]."""
    if neurons.shape != shape:
        raise ModelError(
            f"the neurons were found in {neurons.provenance.model_name}, of {neurons.n_layers} "
            f"layers of {neurons.width} neurons; {model} has {shape[0]} layers of {shape[1]}",
            expected="the model they were found in",
            remedy="pass that model as pretrained=, or run identify on this one",
        )


def require_same_weights(neurons: NeuronSet, weights: Weights, model: str) -> None:
    """Raise ModelError if the neurons were found in other weights."""
    if weights.differ(neurons.provenance):
        raise ModelError(
            f"the neurons were found in other weights than those of {model}, though of one shape",
            expected=f"the weights of {neurons.provenance.model_name} as they were, with the hash "
            f"{neurons.provenance.model_hash}",
            remedy="run identify again; to try neurons on other weights on purpose, use "
            "`neuronllm-eval run --model neuronllm`",
        )


# Tokenizers and tasks ---------------------------------------------------------------------------


def tokenizer_hash(tokenizer: Any) -> str:
    """A digest of how a Hugging Face tokenizer turns text into tokens.

    Of a fast one the whole pipeline, except padding and truncation, which calls set; of a slow one
    its vocabulary. Special tokens and how they are added count for both.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    probe = None
    if backend is not None:
        pipeline = json.loads(backend.to_str())
        pipeline.pop("padding", None)
        pipeline.pop("truncation", None)
    else:
        pipeline = dict(sorted(tokenizer.get_vocab().items()))
        probe = tokenizer.build_inputs_with_special_tokens([])
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest(json.dumps([pipeline, special, probe], sort_keys=True))


def task_hash(config: dict[str, Any], question_settings: dict[str, Any] | None = None) -> str:
    """A digest of a harness task's configuration, as the harness dumps it into result files.

    Args:
        config: the configuration.
        question_settings: how an AQUA task poses its questions; its metadata, which say so, also
            hold what does not matter.
    """
    hashed = {key: value for key, value in config.items() if key not in ("metadata", "test_split")}
    if question_settings:
        hashed["asked"] = question_settings
    return digest(json.dumps(hashed, sort_keys=True, default=str))
