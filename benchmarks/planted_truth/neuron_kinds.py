"""The kinds of planted neurons, and what a model has of them.

Five kinds, one neuron per option letter in every chosen layer:

    right     fires where its letter is right, and pushes that letter
    wrong     fires where its letter is right, and pushes the next letter, always the same
    alike     fires always, and pushes all letters alike against the rest of the vocabulary, half of
              these neurons up and half down; in the last layer only, since later layers undo it
    position  fires always, and pushes its letter, whatever is asked
    silent    fires always, louder than any other neuron of the model, and writes nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neuronllm_eval.models.ffn_layers import FFNLayers

RIGHT, WRONG, ALIKE, POSITION, SILENT = KINDS = ("right", "wrong", "alike", "position", "silent")


@dataclass(frozen=True)
class PlantedNeuron:
    """One wired neuron.

    Attributes:
        layer: its layer.
        index: its place in the layer.
        kind: of `KINDS`.
        letter: index of the option it stands for: which is right where it fires, or, of
            `position`, which it pushes.
        effect: what it moves its letters by, as measured, log-nats.
    """

    layer: int
    index: int
    kind: str
    letter: int
    effect: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """(layer, index)."""
        return self.layer, self.index

    @property
    def sign(self) -> int:
        """1 if it pushes up, -1 if down, 0 if not at all."""
        if self.kind == ALIKE:
            return 1 - 2 * (self.letter % 2)
        return int(self.kind != SILENT)

    def pushes(self, n_letters: int) -> int:
        """The letter that it pushes."""
        return (self.letter + (self.kind == WRONG)) % n_letters


@dataclass(frozen=True)
class PlantedModel:
    """A model with wired neurons, its FFN layers, and what was planted."""

    model: nn.Module
    layers: FFNLayers
    neurons: tuple[PlantedNeuron, ...]

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers planted in."""
        return tuple(sorted({neuron.layer for neuron in self.neurons}))

    def of_kind(self, kind: str) -> tuple[PlantedNeuron, ...]:
        """The neurons of one kind."""
        return tuple(neuron for neuron in self.neurons if neuron.kind == kind)
