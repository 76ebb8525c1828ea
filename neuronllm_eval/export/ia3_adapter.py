"""A condition as a PEFT IA3 adapter: factors on what enters the FFN down-projections.

A mask over all positions is exactly what an IA3 adapter does whose `feedforward_modules` are the
down-projections: vectors that multiply their input, one factor for each neuron. The two files are
written here as PEFT writes them, but with the same bytes for the same factors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuronllm_eval.errors import ModelError, NeuronLLMError, UsageError
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import Figures, adapter_card
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, Scales
from neuronllm_eval.models.ffn_layers import DOWN_PROJECTIONS, FFNLayers
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory

logger = logging.getLogger(__name__)
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Types in which a factor is not what it is in float32.
_HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Ia3Site:
    """Where a model takes IA3 vectors.

    Attributes:
        names: names of the down-projections, in layer order.
        targets: endings of module names that PEFT looks for: one ending, or the whole names where
            other modules, such as those of a vision tower, have that ending too.
        fan_in_fan_out: whether the weights are [inputs, outputs], as GPT-2's.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    fan_in_fan_out: bool


def ia3_site(model: nn.Module, layers: FFNLayers) -> Ia3Site:
    """Where PEFT puts IA3 vectors so that they scale the neurons of `layers`.

    Args:
        model: may be on the meta device: only names and types of modules are read.
        layers: its down-projections.

    Raises:
        ModelError: a down-projection is of a type that PEFT's IA3 does not know.
    """
    types = {type(module) for module in layers.modules}
    if unknown := [each.__name__ for each in types if not issubclass(each, (nn.Linear, Conv1D))]:
        raise ModelError(
            f"the down-projections are {', '.join(sorted(unknown))} modules",
            expected="torch.nn.Linear (bitsandbytes' are) or transformers' Conv1D, which is what "
            "PEFT's IA3 takes",
            remedy="load the model without that quantisation, or use "
            "`neuronllm-eval run --model neuronllm` with positions=all",
        )
    suffixes = (path for path in DOWN_PROJECTIONS if layers.names[0].endswith(f".{path}"))
    suffix = max(suffixes, key=len)
    # As PEFT finds its targets.
    matching = {name for name, _ in model.named_modules() if name.endswith(f".{suffix}")}
    targets = (suffix,) if matching == set(layers.names) else layers.names
    return Ia3Site(layers.names, targets, any(issubclass(each, Conv1D) for each in types))


def rounded_factors(factors: NDArray[np.float32], dtype: str) -> Tensor:
    """[layers, neurons] float32 factors as they are in a model of `dtype`, such as `bfloat16`.

    PEFT multiplies in float32 and rounds the product; a mask multiplies in the model's type. With
    factors that the model's type holds, both round the same exact product.

    Raises:
        UsageError: a factor is too large for the type.
    """
    values = torch.from_numpy(np.ascontiguousarray(factors))
    if dtype in _HALVES:
        values = values.to(getattr(torch, dtype)).float()
    if not bool(torch.isfinite(values).all()):
        raise UsageError(
            f"a factor of {np.abs(factors).max():g} for a model in {dtype}",
            expected=f"factors that {dtype} can hold",
            remedy="check --scale, --suppress_scale and --enhance_scale",
        )
    return values


def adapter_weights(site: Ia3Site, factors: Tensor) -> bytes:
    """The content of `adapter_model.safetensors`, of [layers, neurons] `rounded_factors`."""
    vectors = {
        f"base_model.model.{name}.ia3_l": row.reshape(1, -1).clone()
        for name, row in zip(site.names, factors, strict=True)
    }
    return save(vectors, metadata={"format": "pt"})


def adapter_config(site: Ia3Site, base_model: str, revision: str) -> str:
    """The content of `adapter_config.json`; `base_model` is a name or path."""
    return dump_json(
        {
            "auto_mapping": None,
            "base_model_name_or_path": base_model,
            "exclude_modules": None,
            "fan_in_fan_out": site.fan_in_fan_out,
            "feedforward_modules": list(site.targets),
            "inference_mode": True,
            "init_ia3_weights": True,
            "modules_to_save": None,
            "peft_type": "IA3",
            "revision": None if revision == "main" else revision,
            "target_modules": list(site.targets),
            "task_type": "CAUSAL_LM",
        }
    )


def require_plain_model(model_args: Mapping[str, Any]) -> None:
    """Raise ModelError if a run's model has an adapter or added weights itself."""
    for name in ("peft", "delta"):
        if model_args.get(name):
            raise ModelError(
                f"the run's model has {name}={model_args[name]!r:.200} on top of it",
                expected="a model that is one checkpoint",
                remedy="merge it into a checkpoint, and run identify on that",
            )


def adapter_files(
    export: Export, factors: NDArray[Any], site: Ia3Site, figures: Figures | None = None
) -> dict[str, str | bytes]:
    """The content of an adapter's files, by name.

    Args:
        export: its record.
        factors: [layers, neurons] float32.
        site: where the base model takes them.
        figures: its measured effect, for the card.

    Raises:
        UsageError: a factor is too large for the model's type.
    """
    origin = export.provenance
    return {
        WEIGHTS_FILE: adapter_weights(site, rounded_factors(factors, origin.dtype)),
        CONFIG_FILE: adapter_config(site, origin.model, origin.model_revision),
        EXPORT_FILE: export.to_json(),
        CARD_FILE: adapter_card(export, figures),
    }


def write_standard_adapters(
    run: RunDirectory,
    neurons: NeuronSet,
    model: nn.Module,
    layers: FFNLayers,
    model_args: Mapping[str, Any],
) -> None:
    """Write adapters/<condition>/ of a run, for every condition at its standard scales.

    Without neurons none is written. A model that can have no adapter is logged.
    """
    if not (neurons.good or neurons.bad):
        return
    try:
        require_plain_model(model_args)
        site = ia3_site(model, layers)
    except NeuronLLMError as error:
        logger.warning("%s: no adapters are written: %s", run.path, error.found)
        return
    for condition in CONDITIONS:
        if condition == UNMASKED:
            continue
        files = adapter_files(*Export.of(neurons, condition, Scales(), "peft"), site)
        for name, content in files.items():
            run.write(run.adapter(condition) / name, content)
