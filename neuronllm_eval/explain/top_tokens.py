"""`tokens.json`: what the neurons that the report lists promote and demote, from the weights alone.

Identification writes it, so that the report has tokens without `explain`. It is an aid to reading
and nothing is chosen by it: what stands in its way is logged, and the file is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from transformers import PreTrainedTokenizerBase

from neuronllm_eval.explain.logit_lens import TokenEffect, Unembedding, promotions
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.formats.typed_files import Count, artifact, load, one_of
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet

# Of either kind, in reports.
LISTED_NEURONS = 10
LISTED_TOKENS = 4
# Of an effect: what batches, threads and devices change lies beyond.
_DECIMALS = 2


@dataclass(frozen=True)
class ListedNeuron:
    """The tokens that a neuron's direction promotes and demotes where its activation is positive.

    Attributes:
        kind: `good` or `bad`.
        layer: of the neuron.
        index: of the neuron.
        promotes: strongest first.
        demotes: strongest first.
    """

    kind: Annotated[str, one_of(("good", "bad"))]
    layer: Count
    index: Count
    promotes: tuple[TokenEffect, ...]
    demotes: tuple[TokenEffect, ...]


@artifact
@dataclass(frozen=True)
class ListedTokens:
    """The content of `tokens.json`: good neurons first, best first."""

    neurons: tuple[ListedNeuron, ...]
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if len(self.found) < len(self.neurons):
            raise ValueError("a neuron occurs twice")

    @property
    def found(self) -> dict[tuple[str, int, int], ListedNeuron]:
        """By kind, layer and index."""
        return {(each.kind, each.layer, each.index): each for each in self.neurons}

    def to_json(self) -> str:
        """The content of the file."""
        return dump_json(asdict(self))

    @classmethod
    def load(cls, path: Path) -> ListedTokens:
        """Read a `tokens.json`; without one, there are no neurons.

        Raises:
            ArtifactError: it is damaged.
        """
        if not path.exists():
            return cls(())
        return load(cls, path, "remove the file: the report does without it")


def listed(neurons: NeuronSet) -> list[tuple[str, Neuron]]:
    """The neurons that reports list: the top good ones, then the top bad ones."""
    sets = {"good": neurons.good, "bad": neurons.bad}
    return [(kind, each) for kind, found in sets.items() for each in found[:LISTED_NEURONS]]


def listed_tokens(
    unembedding: Unembedding, neurons: NeuronSet, tokenizer: PreTrainedTokenizerBase
) -> ListedTokens | None:
    """The listed neurons' tokens; None where part of the path to the vocabulary is not understood.

    `explain` shows what can be read then, beside what is left out; a report has no room for that.
    """
    chosen = listed(neurons)
    if unembedding.notes or not chosen:
        return None
    effects = unembedding.effects([each.location for _, each in chosen], len(tokenizer))
    if effects is None:
        return None
    found = promotions(effects, tokenizer, LISTED_TOKENS)
    return ListedTokens(
        tuple(
            ListedNeuron(
                kind, each.layer, each.index, _rounded(tokens.promotes), _rounded(tokens.demotes)
            )
            for (kind, each), tokens in zip(chosen, found, strict=True)
        )
    )


def _rounded(effects: Sequence[TokenEffect]) -> tuple[TokenEffect, ...]:
    return tuple(replace(each, effect=round(each.effect, _DECIMALS)) for each in effects)
