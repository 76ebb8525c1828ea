"""`tokens.json`: what the top neurons promote and demote, the only source of tokens in reports.

Identification writes it from the weights alone; `explain` adds how often each neuron is active and
what it is about. It is an aid to reading and nothing is selected by it: if it cannot be written,
the reason is logged and the report does without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from neuronllm_eval.explain.explanation import Explanation
from neuronllm_eval.explain.logit_lens import TokenEffect, Unembedding, promotions
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.formats.typed_files import Count, artifact, load
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet

SCHEMA_VERSION = 1
LISTED_NEURONS = 10  # good ones, and bad ones
LISTED_TOKENS = 4
# Decimals of an effect: differences between batches, threads and devices are smaller.
_DECIMALS = 2
_REMEDY = "remove the file: the report does without it"
Key = tuple[str, int, int]  # `good` or `bad`, layer, index


@artifact
@dataclass(frozen=True)
class NeuronTokens:
    """The tokens of a neuron's output direction.

    Attributes:
        kind: `good` or `bad`.
        promotes: tokens that it promotes while its activation is positive, strongest first.
        demotes: those that it demotes then.
        positive: share of the prompts on which its activation is positive; None before `explain`.
        reading: `letter` or `content` (`letter_bias`); empty if undefined, or before `explain`.
    """

    kind: Literal["good", "bad"]
    layer: Count
    index: Count
    promotes: tuple[TokenEffect, ...]
    demotes: tuple[TokenEffect, ...]
    positive: float | None = None
    reading: Literal["letter", "content", ""] = ""

    @property
    def key(self) -> Key:
        """What names it in a run."""
        return self.kind, self.layer, self.index


@artifact
@dataclass(frozen=True)
class _TokensFile:
    schema_version: Literal[1]
    neurons: tuple[NeuronTokens, ...]

    def __post_init__(self) -> None:
        keys = [neuron.key for neuron in self.neurons]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise ValueError(f"the neuron {key} occurs twice")


def read_tokens(path: Path) -> dict[Key, NeuronTokens]:
    """Read `tokens.json`; empty without that file.

    Raises:
        ArtifactError: the file is damaged.
    """
    neurons = load(_TokensFile, path, _REMEDY).neurons if path.exists() else ()
    return {neuron.key: neuron for neuron in neurons}


def tokens_json(neurons: Iterable[NeuronTokens]) -> str:
    """The content of `tokens.json`."""
    return dump_json(
        {"schema_version": SCHEMA_VERSION, "neurons": [_written(each) for each in neurons]}
    )


def _written(neuron: NeuronTokens) -> dict[str, Any]:
    values = dataclasses.asdict(neuron)
    for tokens in (values["promotes"], values["demotes"]):
        for token in tokens:
            token["effect"] = round(token["effect"], _DECIMALS)
    if neuron.positive is None:
        del values["positive"], values["reading"]
    return values


def with_explanation(
    tokens: Mapping[Key, NeuronTokens], explanation: Explanation
) -> list[NeuronTokens]:
    """The tokens of a run, with all that `explain` found."""
    explained = [
        NeuronTokens(
            "good" if each.kind == "good" else "bad",
            each.neuron.layer,
            each.neuron.index,
            each.tokens.promotes[:LISTED_TOKENS],
            each.tokens.demotes[:LISTED_TOKENS],
            each.positive,
            each.letters.reading,
        )
        for each in explanation.neurons
    ]
    return list({**tokens, **{neuron.key: neuron for neuron in explained}}.values())


def listed(neurons: NeuronSet) -> list[tuple[Literal["good", "bad"], Neuron]]:
    """The neurons in reports: the top good ones, then the top bad ones."""
    return [
        *(("good", neuron) for neuron in neurons.good[:LISTED_NEURONS]),
        *(("bad", neuron) for neuron in neurons.bad[:LISTED_NEURONS]),
    ]


def listed_tokens(
    unembedding: Unembedding, neurons: NeuronSet, tokenizer: PreTrainedTokenizerBase
) -> list[NeuronTokens] | None:
    """The listed neurons' tokens; None where part of the path to the vocabulary is not understood.

    `explain` shows what can be read then, beside what is left out; a report has no room for that.
    """
    top: Sequence[tuple[Literal["good", "bad"], Neuron]] = listed(neurons)
    if unembedding.notes or not top:
        return None
    effects = unembedding.effects([neuron.location for _, neuron in top], len(tokenizer))
    if effects is None:
        return None
    return [
        NeuronTokens(kind, neuron.layer, neuron.index, tokens.promotes, tokens.demotes)
        for (kind, neuron), tokens in zip(
            top, promotions(effects, tokenizer, LISTED_TOKENS), strict=True
        )
    ]
