"""What result files say about a mask, so that two that scale other neurons can be told apart."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.interventions.conditions import UNMASKED, condition_scales
from neuronllm_eval.masked_lm.model_args import MaskOptions
from neuronllm_eval.models.fingerprints import digest


def mask_hash(factors: NDArray[np.float32]) -> str:
    """A digest of which neurons of a model of this shape are scaled, and by what; empty if none is.

    Args:
        factors: [layers, neurons] of every neuron; those of factor 1 do not count.
    """
    layers, indices = np.nonzero(factors != 1)
    if not layers.size:
        return ""
    scaled = factors[layers, indices] + np.float32(0)  # makes 0 of -0
    known = [factors.shape, layers.tolist(), indices.tolist(), scaled.tolist()]
    return digest(json.dumps(known))


def mask_section(options: MaskOptions) -> dict[str, Any]:
    """The section `neuronllm` of a result file's `config`.

    `mask_hash` is empty where nothing is masked, and `model_hash`, which is that of the model the
    neurons were found in, where there are no neurons.
    """
    neurons = options.neurons
    scaled = ""
    if neurons is not None and options.condition != UNMASKED:
        scaled = mask_hash(condition_scales(neurons, options.condition, options.scales))
    section: dict[str, Any] = {
        "condition": options.condition,
        "positions": options.positions,
        "suppress_scale": options.scales.suppress,
        "enhance_scale": options.scales.enhance,
        "n_good": len(neurons.good) if neurons else 0,
        "n_bad": len(neurons.bad) if neurons else 0,
        "mask_hash": scaled,
        "model_hash": neurons.provenance.model_hash if neurons else "",
    }
    if options.source:
        section["neurons"] = options.source
    return section
