"""lm_eval's Hugging Face model with a neuron mask.

| module | idea |
|---|---|
| `model` | `NeuronMaskedLM`, lm_eval's model `neuronllm` |
| `mask_options` | its arguments: which neurons, under which condition, at which positions |
| `scoring` | requests -> forks where that is exact, else rows as in lm_eval |
| `shared_context_scoring` | several continuations of a context in one pass; is it exact? |

Read first: `model.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuronllm_eval.masked_lm.model import NeuronMaskedLM as NeuronMaskedLM


def __getattr__(name: str) -> Any:
    """`NeuronMaskedLM`, loaded when it is first used: torch takes seconds."""
    if name != "NeuronMaskedLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neuronllm_eval.masked_lm.model import NeuronMaskedLM

    return NeuronMaskedLM
