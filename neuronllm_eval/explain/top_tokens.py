"""`tokens.json`: what the neurons that the report lists promote and demote, from the weights alone.

Identification writes it, so that the report has tokens without `explain`. It is an aid to reading
and nothing is chosen by it: what stands in its way is logged, and the file is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.logit_lens import Promotion, TokenEffect, Unembedding, promotions
from neuronllm_eval.formats.json_files import dump_json, exact_keys, read_json, require_schema
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet

SCHEMA_VERSION = 1
# Of either kind, in reports.
LISTED_NEURONS = 10
LISTED_TOKENS = 4
# Of an effect: what batches, threads and devices change lies beyond.
_DECIMALS = 2
_AGAIN = "remove the file: the report does without it"


@dataclass(frozen=True)
class ListedTokens:
    """What the listed neurons' directions promote and demote, where their activation is positive.

    Attributes:
        found: by kind, layer and index; good neurons first, best first.
    """

    found: dict[tuple[str, int, int], Promotion]

    def to_json(self) -> str:
        """The content of `tokens.json`."""
        neurons = [
            {
                "kind": kind,
                "layer": layer,
                "index": index,
                "promotes": [_written(each) for each in tokens.promotes],
                "demotes": [_written(each) for each in tokens.demotes],
            }
            for (kind, layer, index), tokens in self.found.items()
        ]
        return dump_json({"schema_version": SCHEMA_VERSION, "neurons": neurons})

    @classmethod
    def load(cls, path: Path) -> ListedTokens:
        """Read a `tokens.json`; without one, nothing is known.

        Raises:
            ArtifactError: it is damaged, or holds what identification never writes.
        """
        if not path.exists():
            return cls({})
        values = exact_keys(
            read_json(path, _AGAIN), {"schema_version", "neurons"}, path, "the file", _AGAIN
        )
        require_schema(values["schema_version"], SCHEMA_VERSION, path)
        keys = {"kind", "layer", "index", "promotes", "demotes"}
        found = {}
        for each in _list(values["neurons"], path, "neurons"):
            neuron = exact_keys(each, keys, path, "a neuron", _AGAIN)
            place = (neuron["kind"], neuron["layer"], neuron["index"])
            if place[0] not in ("good", "bad") or not all(
                type(number) is int and number >= 0 for number in place[1:]
            ):
                raise _damaged(path, f"a neuron is {place!r:.100}")
            if place in found:
                raise _damaged(path, f"the neuron {place} occurs twice")
            found[place] = Promotion(
                _read(neuron["promotes"], path), _read(neuron["demotes"], path)
            )
        return cls(found)


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
    places = [(kind, each.layer, each.index) for kind, each in chosen]
    return ListedTokens(dict(zip(places, found, strict=True)))


def _written(each: TokenEffect) -> dict[str, Any]:
    return {"token": each.token, "text": each.text, "effect": round(each.effect, _DECIMALS)}


def _read(values: Any, path: Path) -> tuple[TokenEffect, ...]:
    kinds = {"token": int, "text": str, "effect": float}
    found = []
    for each in _list(values, path, "tokens"):
        token = exact_keys(each, set(kinds), path, "a token", _AGAIN)
        for name, kind in kinds.items():
            if type(token[name]) is not kind:
                raise _damaged(path, f"a token's {name} is {token[name]!r:.100}")
        if not math.isfinite(token["effect"]):
            raise _damaged(path, f"a token's effect is {token['effect']}")
        found.append(TokenEffect(**token))
    return tuple(found)


def _list(value: Any, path: Path, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _damaged(path, f"{what} are a {type(value).__name__}")
    return value


def _damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="a file as `neuronllm-eval identify` writes it",
        remedy=_AGAIN,
    )
