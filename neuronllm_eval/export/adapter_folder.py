"""The files of an adapter's folder, and those that every run has for its standard conditions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from neuronllm_eval.errors import ModelError, NeuronLLMError
from neuronllm_eval.export.ia3_adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Ia3Site,
    adapter_config,
    adapter_weights,
    ia3_site,
    rounded_factors,
)
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import adapter_card
from neuronllm_eval.export.validated_figures import Figures
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, Scales
from neuronllm_eval.models.ffn_layers import FFNLayers
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory

logger = logging.getLogger(__name__)


def require_plain_model(model_args: Mapping[str, Any]) -> None:
    """Raise ModelError if a run's model is itself one with an adapter or weights added to it."""
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
        export: what it is.
        factors: [layers, neurons] float32.
        site: where the base model takes them.
        figures: for the card.

    Raises:
        UsageError: a factor is too large for the model's type.
    """
    known = export.provenance
    return {
        WEIGHTS_FILE: adapter_weights(site, rounded_factors(factors, known.dtype)),
        CONFIG_FILE: adapter_config(site, known.model, known.model_revision),
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
    """adapters/<condition>/ of a run, for every condition at its standard scales.

    A model that can have none is said to, and the run goes on without; so it does without neurons.

    Args:
        run: where they go.
        neurons: of the run.
        model: whose neurons they are.
        layers: its down-projections.
        model_args: of the run.
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
            write_whole(run.adapter(condition) / name, content)
