"""What reports take from `explain.json`: the tokens of the top neurons. Strict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.strict_json import read_json

_AGAIN = "run `neuronllm-eval explain` on the run again, or remove the file"
_SHOWN = 4


@dataclass(frozen=True)
class NeuronTokens:
    """What a neuron does, in few words.

    Attributes:
        promotes: tokens that it mostly promotes, strongest first.
        reading: `letter`, `content`, or empty.
    """

    promotes: tuple[str, ...]
    reading: str


def read_tokens(path: Path) -> dict[tuple[str, int, int], NeuronTokens]:
    """By kind, layer and index; empty where the run was not explained.

    Raises:
        ArtifactError: the file is damaged.
    """
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
    # With a negative activation, a neuron promotes what its direction demotes.
    tokens = values["tokens"]["promotes" if float(values["positive"]) >= 0.5 else "demotes"]
    return NeuronTokens(
        tuple(str(each["text"]) for each in tokens[:_SHOWN]), str(values["letters"]["reading"])
    )
