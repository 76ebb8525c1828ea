"""Scores of all neurons: the same bytes every time, and a reason for every refusal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.neurons.scores import SCORES_FILE, NeuronScores
from tests.fixtures.tiny_models import provenance


def arrays() -> dict[str, np.ndarray]:
    """The tensors of two layers of three neurons, two letters."""
    halves = np.array([[[1.0, 0.0, -2.0], [0.5, 0, 0]], [[1 / 3, 0.0, 0.0], [0, 0, -1e-12]]])
    return {
        "score": halves.sum(0),
        "good_count": np.array([[2, 0, 0], [1, 0, 0]]),
        "bad_count": np.array([[0, 0, 1], [0, 0, 1]]),
        "half_sums": halves,
        "letter_sums": np.arange(12.0).reshape(2, 2, 3),
    }


def neuron_scores(**changes: Any) -> NeuronScores:
    return NeuronScores(**(arrays() | {"provenance": provenance()} | changes))


def test_scores_file_comes_back_byte_for_byte(tmp_path):
    content = neuron_scores().to_bytes()
    (tmp_path / SCORES_FILE).write_bytes(content)
    loaded = NeuronScores.load(tmp_path)
    for name, array in arrays().items():
        found = getattr(loaded, name)
        assert found.dtype == array.dtype
        assert (found == array).all()
    assert loaded.provenance == provenance()
    assert loaded.shape == (2, 3)
    assert loaded.to_bytes() == content == neuron_scores().to_bytes()


def test_scores_file_does_not_depend_on_the_layout_in_memory():
    turned = {name: np.asfortranarray(array) for name, array in arrays().items()}
    assert neuron_scores(**turned).to_bytes() == neuron_scores().to_bytes()


def test_scores_file_holds_no_pickle_and_names_its_tensors():
    content = neuron_scores().to_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert set(header) == {*arrays(), "__metadata__"}
    assert header["score"]["dtype"] == "F64"
    inner = json.loads(header["__metadata__"]["neuronllm_eval"])
    assert inner == {
        "schema_version": 3,
        "provenance": json.loads(json.dumps(dataclasses.asdict(provenance()))),
    }


@given(st.data())
def test_a_flipped_bit_in_the_scores_file_is_refused_or_harmless(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    content = bytearray(neuron_scores().to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (directory / SCORES_FILE).write_bytes(content)
    with contextlib.suppress(ArtifactError):
        assert NeuronScores.load(directory).score.ndim == 2


def write_scores(
    directory: Path,
    tensors: dict[str, np.ndarray] | None = None,
    header: Any = None,
    key: str = "neuronllm_eval",
) -> None:
    header = header or {"schema_version": 3, "provenance": dataclasses.asdict(provenance())}
    content = save(arrays() if tensors is None else tensors, metadata={key: json.dumps(header)})
    (directory / SCORES_FILE).write_bytes(content)


def test_the_writer_of_the_next_tests_writes_what_can_be_read(tmp_path):
    write_scores(tmp_path)
    assert NeuronScores.load(tmp_path).shape == (2, 3)


@given(st.data())
def test_truncated_files_are_refused(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    content = neuron_scores().to_bytes()
    (directory / SCORES_FILE).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ArtifactError, match=r"scores\.safetensors cannot be read: "):
        NeuronScores.load(directory)


def refusal_of(directory: Path) -> str:
    with pytest.raises(ArtifactError) as refusal:
        NeuronScores.load(directory)
    assert "scores.safetensors" in str(refusal.value)
    assert "run identify again" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("score", np.zeros(3), "has shape"),
        ("score", np.zeros((2, 2, 3)), "has shape"),
        ("score", np.zeros((2, 3), np.float32), "type float32"),
        ("good_count", np.zeros((3, 2), np.int64), "good_count has shape (3, 2)"),
        ("bad_count", np.zeros((2, 3)), "bad_count has shape (2, 3) and type float64"),
        ("bad_count", np.full((2, 3), -1), "bad_count contains -1"),
        ("half_sums", np.zeros((3, 2, 3)), "half_sums has shape (3, 2, 3)"),
        ("letter_sums", np.zeros((2, 3)), "letter_sums has shape (2, 3)"),
        ("letter_sums", np.zeros(()), "letter_sums has shape ()"),
        ("letter_sums", np.zeros((0, 2, 3)), "letter_sums has 0 letters"),
        ("half_sums", np.full((2, 2, 3), np.nan), "half_sums contains NaN or infinity"),
        ("score", np.full((2, 3), np.inf), "score contains NaN or infinity"),
        ("total", np.zeros((2, 3)), "missing or unknown tensors: total"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, name, array, message):
    write_scores(tmp_path, arrays() | {name: array})
    assert message in refusal_of(tmp_path)


def test_a_missing_tensor_is_refused(tmp_path):
    tensors = arrays()
    del tensors["score"]
    write_scores(tmp_path, tensors)
    assert "missing or unknown tensors: score" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"schema_version": 4, "provenance": {}}, "metadata: schema_version is 4"),
        ({"schema_version": 3}, "metadata: provenance is missing"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, header, message):
    write_scores(tmp_path, header=header)
    assert message in refusal_of(tmp_path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    write_scores(tmp_path, key="format")
    assert "metadata is not valid JSON" in refusal_of(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / SCORES_FILE).write_text("ace: 3\n" * 10)
    assert "cannot be read" in refusal_of(tmp_path)


def test_types_that_numpy_does_not_know_are_refused(tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    tensors["score"] = tensors["score"].to(torch.bfloat16)
    (tmp_path / SCORES_FILE).write_bytes(save_torch(tensors, metadata={"neuronllm_eval": "{}"}))
    refusal_of(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no .*scores\.safetensors"):
        NeuronScores.load(tmp_path)
