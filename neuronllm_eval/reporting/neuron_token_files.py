"""The tokens of the top neurons, from `explain.json` and `tokens.json`. Strict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.logit_lens import TokenEffect
from neuronllm_eval.explain.top_tokens import LISTED_TOKENS, ListedTokens
from neuronllm_eval.formats.json_files import read_json
from neuronllm_eval.runs.directory import RunDirectory

_AGAIN = "run `neuronllm-eval explain` on the run again, or remove the file"


@dataclass(frozen=True)
class NeuronTokens:
    """What a neuron does, in few words.

    Attributes:
        promotes: tokens that it promotes where its activation is positive, strongest first.
        demotes: those that it demotes there.
        positive: share of the prompts on which it is; None where it was not explained.
        reading: `letter`, `content`, or empty.
    """

    promotes: tuple[str, ...]
    demotes: tuple[str, ...]
    positive: float | None = None
    reading: str = ""

    @property
    def explained(self) -> bool:
        """Whether its activations are known, and so how often it does the reverse."""
        return self.positive is not None


def read_tokens(run: RunDirectory) -> dict[tuple[str, int, int], NeuronTokens]:
    """By kind, layer and index; empty where neither file is there.

    Raises:
        ArtifactError: a file is damaged.
    """
    listed = {
        place: NeuronTokens(_texts(tokens.promotes), _texts(tokens.demotes))
        for place, tokens in ListedTokens.load(run.tokens).found.items()
    }
    return {**listed, **_explained(run.explanation)}


def _texts(effects: Sequence[TokenEffect]) -> tuple[str, ...]:
    return tuple(each.text for each in effects[:LISTED_TOKENS])


def _explained(path: Path) -> dict[tuple[str, int, int], NeuronTokens]:
    if not path.exists():
        return {}
    values = read_json(path, _AGAIN)
    try:
        return {
            (str(each["kind"]), int(each["neuron"]["layer"]), int(each["neuron"]["index"])): _read(
                each
            )
            for each in values["neurons"]
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            expected="a file as `neuronllm-eval explain` writes it",
            remedy=_AGAIN,
        ) from error


def _read(values: Mapping[str, Any]) -> NeuronTokens:
    promotes, demotes = (
        tuple(str(each["text"]) for each in values["tokens"][name][:LISTED_TOKENS])
        for name in ("promotes", "demotes")
    )
    reading = str(values["letters"]["reading"])
    return NeuronTokens(promotes, demotes, float(values["positive"]), reading)
