"""The kinds of planted neurons, and a model with planted neurons.

Five kinds, one neuron per option letter in every chosen layer:

    correct    active where its letter is gold, and writes that letter
    incorrect  active where its letter is gold, and writes the next letter, always the same
    alike      always active, and moves all letters alike against the rest of the vocabulary, half
               of these neurons up and half down; in the last layer only, since later layers undo it
    position   always active, and writes its letter whatever the question
    silent     always active, more than any other neuron of the model, and writes nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neuronllm_eval.models.ffn_layers import FFNLayers

CORRECT, INCORRECT, ALIKE, POSITION, SILENT = KINDS = (
    "correct",
    "incorrect",
    "alike",
    "position",
    "silent",
)


@dataclass(frozen=True)
class PlantedNeuron:
    """One planted neuron.

    Attributes:
        layer: its layer.
        index: within the layer.
        kind: of `KINDS`.
        letter: index of its option: the gold one where it is active, or of `position` the one it
            writes.
        effect: measured change of its letters, log-nats.
    """

    layer: int
    index: int
    kind: str
    letter: int
    effect: float = 0.0

    @property
    def location(self) -> tuple[int, int]:
        """(layer, index)."""
        return self.layer, self.index

    @property
    def sign(self) -> int:
        """1 if it raises its letters, -1 if it lowers them, 0 if it writes nothing."""
        if self.kind == ALIKE:
            return 1 - 2 * (self.letter % 2)
        return int(self.kind != SILENT)

    def pushes(self, n_letters: int) -> int:
        """The letter that it writes."""
        return (self.letter + (self.kind == INCORRECT)) % n_letters


@dataclass(frozen=True)
class PlantedModel:
    """A model with planted neurons, and its FFN layers."""

    model: nn.Module
    layers: FFNLayers
    neurons: tuple[PlantedNeuron, ...]

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers that were planted in."""
        return tuple(sorted({neuron.layer for neuron in self.neurons}))

    def of_kind(self, kind: str) -> tuple[PlantedNeuron, ...]:
        """The neurons of one kind."""
        return tuple(neuron for neuron in self.neurons if neuron.kind == kind)
