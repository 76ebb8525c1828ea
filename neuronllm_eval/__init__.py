"""NeuronLLM for EleutherAI's lm-evaluation-harness (arXiv 2601.04548).

The public names are loaded when they are first used: torch and the harness take seconds.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from neuronllm_eval.old_names import OldNames

if TYPE_CHECKING:
    from neuronllm_eval.api import identify as identify
    from neuronllm_eval.api import validate as validate
    from neuronllm_eval.errors import NeuronLLMError as NeuronLLMError
    from neuronllm_eval.evaluation.finished_run import Run as Run
    from neuronllm_eval.masked_lm.model import NeuronMaskedLM as NeuronMaskedLM
    from neuronllm_eval.neurons.neuron_set import Neuron as Neuron
    from neuronllm_eval.neurons.neuron_set import NeuronSet as NeuronSet
    from neuronllm_eval.neurons.scores import NeuronScores as NeuronScores

__version__ = "0.1.0"
_PUBLIC = {
    "identify": "api",
    "validate": "api",
    "Neuron": "neurons.neuron_set",
    "NeuronLLMError": "errors",
    "NeuronMaskedLM": "masked_lm.model",
    "NeuronScores": "neurons.scores",
    "NeuronSet": "neurons.neuron_set",
    "Run": "evaluation.finished_run",
}
__all__ = [
    "Neuron",
    "NeuronLLMError",
    "NeuronMaskedLM",
    "NeuronScores",
    "NeuronSet",
    "Run",
    "__version__",
    "identify",
    "validate",
]

sys.meta_path.append(OldNames())


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
