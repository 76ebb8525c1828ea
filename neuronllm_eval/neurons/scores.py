"""The scores of all neurons: the content of `scores.safetensors`. Saved without pickle.

Saving, loading and saving again gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import dump_json, require_readable
from neuronllm_eval.formats.typed_files import artifact, parse
from neuronllm_eval.neurons.neuron_set import (
    MOST_NEURONS,
    NEURONS_FILE,
    REMEDY,
    SCHEMA_VERSION,
    Provenance,
)

SCORES_FILE = "scores.safetensors"
_MOST_LETTERS = 26
_MOST_BYTES = MOST_NEURONS * 8 * (6 + _MOST_LETTERS) + (1 << 20)
_METADATA = "neuronllm_eval"  # the only key: safetensors writes several in no fixed order
_DTYPES = {
    "score": "float64",
    "good_count": "int64",
    "bad_count": "int64",
    "half_sums": "float64",
    "letter_sums": "float64",
}
_OPTIONAL = {"activation_mean": "float64"}  # which earlier versions did not write

_NAMES = {"F64": "float64", "I64": "int64", "F32": "float32", "I32": "int32"}  # safetensors' own


@artifact
@dataclass(frozen=True)
class _Header:
    """The JSON metadata of the file."""

    provenance: Provenance
    schema_version: Literal[3] = SCHEMA_VERSION


@dataclass(frozen=True)
class NeuronScores:
    """Sums over questions, as `attribution.identify` computes them.

    Attributes:
        score: [layers, neurons] float64, by the method; ACE sums log-nats over questions.
        good_count: [layers, neurons] int64, questions that put the neuron in G_e.
        bad_count: [layers, neurons] int64, questions that put it in B_e.
        half_sums: [2, layers, neurons] float64, the score over even and over odd questions.
        letter_sums: [letters, layers, neurons] float64, values of prompts, summed by gold letter.
        provenance: where they come from.
        activation_mean: [layers, neurons] float64, mean |activation| over the prompts, at the
            scored position, or of its mean over all positions where they are attributed; None in
            files of earlier versions.
    """

    score: NDArray[np.float64]
    good_count: NDArray[np.int64]
    bad_count: NDArray[np.int64]
    half_sums: NDArray[np.float64]
    letter_sums: NDArray[np.float64]
    provenance: Provenance
    activation_mean: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[layers, neurons]."""
        return self.score.shape[0], self.score.shape[1]

    def to_bytes(self) -> bytes:
        """The content of `scores.safetensors`."""
        values = {name: getattr(self, name) for name in (*_DTYPES, *_OPTIONAL)}
        arrays = {name: np.ascontiguousarray(v) for name, v in values.items() if v is not None}
        header = dump_json(dataclasses.asdict(_Header(self.provenance)))
        return save(arrays, metadata={_METADATA: header})

    @classmethod
    def load(cls, directory: Path, expected: tuple[int, int] | None = None) -> NeuronScores:
        """Read `scores.safetensors` of a run directory.

        Args:
            directory: of the run.
            expected: [layers, neurons] that it must have, if known: checked by the header.

        Raises:
            ArtifactError: the file is missing, damaged, or of another schema.
        """
        path = Path(directory) / SCORES_FILE
        arrays, metadata = _read(path, expected)
        header = parse(_Header, metadata, f"{path}, metadata", REMEDY)
        return cls(**arrays, provenance=header.provenance)


def _read(path: Path, expected: tuple[int, int] | None) -> tuple[dict[str, NDArray[Any]], str]:
    """The arrays by name, and the JSON metadata; the header is checked before any is read."""
    require_readable(path, _MOST_BYTES, REMEDY)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: _NAMES.get(part.get_dtype(), "other") for name, part in slices.items()}
            arrays: dict[str, NDArray[Any]] = {}
            problem = _header_problem(shapes, types, expected)
            if not problem:
                arrays = {name: file.get_tensor(name) for name in shapes}
                problem = _content_problem(arrays)
            if problem:
                raise ArtifactError(
                    f"{path}: {problem}", expected="the tensors that identify writes", remedy=REMEDY
                )
            return arrays, (file.metadata() or {}).get(_METADATA, "")
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a safetensors file written by identify",
            remedy=REMEDY,
        ) from error


def _header_problem(
    shapes: dict[str, tuple[int, ...]], types: dict[str, str], of_neurons: tuple[int, int] | None
) -> str:
    """What is wrong with the header of a file; empty if nothing is."""
    if differing := sorted((shapes.keys() - _OPTIONAL.keys()) ^ _DTYPES.keys()):
        return f"missing or unknown tensors: {', '.join(differing):.100}"
    shape, letters = shapes["score"], shapes["letter_sums"][:1]
    expected = dict.fromkeys(shapes, shape) | {
        "half_sums": (2, *shape),
        "letter_sums": (*letters, *shape),
    }
    for name, dtype in (_DTYPES | _OPTIONAL).items():
        if name in shapes and (shapes[name], types[name]) != (expected[name], dtype):
            return f"{name} has shape {shapes[name]} and type {types[name]}"
    if len(shape) != 2 or not 1 <= math.prod(shape) <= MOST_NEURONS:
        return f"score has shape {shape}"
    if not 1 <= letters[0] <= _MOST_LETTERS:
        return f"letter_sums has {letters[0]} letters"
    if of_neurons not in (None, shape):
        return f"score has shape {shape}, and {NEURONS_FILE} {of_neurons}: of different runs"
    return ""


def _content_problem(arrays: dict[str, NDArray[Any]]) -> str:
    """What is wrong with the values of a file; empty if nothing is."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            return f"{name} contains NaN or infinity"
        if name.endswith(("_count", "_mean")) and array.min() < 0:
            return f"{name} contains {array.min()}"
    return ""
