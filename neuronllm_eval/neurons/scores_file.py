"""The tensors of `scores.safetensors`: their names, types and shapes, checked before they are read.

A file's header may claim whatever it likes; nothing is allocated before it is known to be sensible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.json_files import exact_keys, naming, require_file

# Ten times the neurons of the largest dense models; more is no model but a damaged file.
MOST_NEURONS = 1 << 26
MOST_LETTERS = 26
METADATA = "neuronllm_eval"  # the only key: safetensors writes several in no fixed order
DTYPES = {
    "score": "float64",
    "good_count": "int64",
    "bad_count": "int64",
    "half_sums": "float64",
    "letter_sums": "float64",
}


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """The arrays of a `scores.safetensors` by name, and its metadata, which are JSON.

    Raises:
        ArtifactError: the file is missing or damaged, or its tensors are not the expected ones.
    """
    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = exact_keys(file.metadata(), {METADATA}, path, "metadata")
            exact_keys(dict.fromkeys(file.keys()), set(DTYPES), path, "tensors")
            slices = {name: file.get_slice(name) for name in DTYPES}
            naming(path, require_shapes, *_claimed(slices))
            return {name: file.get_tensor(name) for name in DTYPES}, metadata[METADATA]
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a safetensors file written by identify",
            remedy="run identify again",
        ) from error


def _claimed(slices: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and types that the header of a safetensors file gives its tensors."""
    known = {"F64": "float64", "I64": "int64"}
    shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
    dtypes = {name: known.get(each.get_dtype(), each.get_dtype()) for name, each in slices.items()}
    return shapes, dtypes


def require_shapes(shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> None:
    """Raise ArtifactError unless the arrays of `NeuronScores` have sensible, agreeing shapes."""
    shape = shapes["score"]
    letters = shapes["letter_sums"][:1]
    expected = {
        "score": shape,
        "good_count": shape,
        "bad_count": shape,
        "half_sums": (2, *shape),
        "letter_sums": (*letters, *shape),
    }
    for name, want in expected.items():
        if len(shape) != 2 or shapes[name] != want or dtypes[name] != DTYPES[name]:
            raise ArtifactError(
                f"scores: {name} has shape {shapes[name]} and type {dtypes[name]}",
                expected=f"shape {want}, a two-dimensional score, type {DTYPES[name]}",
                remedy="run identify again",
            )
    require_size_of_model(*shape)
    if not 1 <= letters[0] <= MOST_LETTERS:
        raise ArtifactError(
            f"scores: letter_sums has {letters[0]} letters",
            expected=f"1 to {MOST_LETTERS}",
            remedy="run identify again",
        )


def require_size_of_model(n_layers: int, width: int) -> None:
    """Raise ArtifactError for sizes that no model has, before arrays of that size are made."""
    if n_layers < 1 or width < 1 or n_layers * width > MOST_NEURONS:
        raise ArtifactError(
            f"{n_layers} layers of {width} neurons",
            expected=f"1 to {MOST_NEURONS:,} neurons in all",
            remedy="run identify again",
        )
