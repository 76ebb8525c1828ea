"""Whether neurons and a model belong together: the shape they were found in, and the weights."""

from __future__ import annotations

from neuronllm_eval.errors import ModelError
from neuronllm_eval.neurons.neuron_set import NeuronSet


def require_same_shape(neurons: NeuronSet, shape: tuple[int, int], model: str) -> None:
    """Raise ModelError unless the neurons belong to a model of `shape` [layers, neurons]."""
    if neurons.shape != shape:
        raise ModelError(
            f"the neurons were found in {neurons.provenance.model}, of {neurons.n_layers} layers "
            f"of {neurons.width} neurons; {model} has {shape[0]} layers of {shape[1]}",
            expected="the model they were found in",
            remedy="pass that model as pretrained=, or run identify on this one",
        )


def has_other_weights(neurons: NeuronSet, dtype: str, weights_hash: str) -> bool:
    """Whether the neurons were found in other weights; those of another dtype do not tell."""
    known = neurons.provenance
    return known.dtype == dtype and known.model_hash != weights_hash


def require_same_weights(neurons: NeuronSet, dtype: str, weights_hash: str, name: str) -> None:
    """Raise ModelError if the neurons were found in other weights of the same dtype.

    Args:
        neurons: what was found.
        dtype: of the weights as loaded.
        weights_hash: of the weights as loaded (`fingerprints.model_hash`, which is slow).
        name: of the model.
    """
    if has_other_weights(neurons, dtype, weights_hash):
        raise ModelError(
            f"the neurons were found in other weights than those of {name}, though of one shape",
            expected=f"the weights of {neurons.provenance.model} as they were, with the hash "
            f"{neurons.provenance.model_hash}",
            remedy="run identify again; to try neurons on other weights on purpose, use "
            "`neuronllm-eval run --model neuronllm`",
        )
