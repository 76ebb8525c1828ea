"""Neuron sets and scores: the same bytes every time, and a reason for every refusal."""

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
from neuronllm_eval.neurons.neuron_set import (
    NEURONS_FILE,
    SCORES_FILE,
    Neuron,
    NeuronScores,
    NeuronSet,
    Provenance,
)
from tests.tiny_models import provenance

AGAIN = "Remedy: run identify again."


def neuron_set(**changes: Any) -> NeuronSet:
    """Three good and two bad neurons of three layers of eight."""
    values: dict[str, Any] = {
        "n_layers": 3,
        "width": 8,
        "good": (Neuron(0, 1, 2.5), Neuron(2, 7, 0.1), Neuron(0, 4, 1e-17)),
        "bad": (Neuron(1, 0, -3.0), Neuron(2, 1, -1 / 3)),
        "top_k": 3,
        "ambiguous": "keep",
        "provenance": provenance(),
    }
    return NeuronSet(**(values | changes))


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


def contents() -> dict[str, Any]:
    """A valid neurons.json, parsed."""
    return json.loads(neuron_set().to_json())


def load_contents(tmp_path: Path, values: Any) -> NeuronSet:
    (tmp_path / NEURONS_FILE).write_text(json.dumps(values))
    return NeuronSet.load(tmp_path)


def refusal_of(tmp_path: Path, values: Any) -> str:
    """The text of the refusal, which must name the file."""
    with pytest.raises(ArtifactError) as refusal:
        load_contents(tmp_path, values)
    return str(refusal.value)


# Round trips ------------------------------------------------------------------------------------


def test_neurons_file_comes_back_byte_for_byte(tmp_path):
    text = neuron_set().to_json()
    (tmp_path / NEURONS_FILE).write_text(text)
    loaded = NeuronSet.load(tmp_path)
    assert loaded == neuron_set()
    assert loaded.to_json() == text == neuron_set().to_json()
    assert text.endswith("}\n")
    assert NeuronSet.load(tmp_path / NEURONS_FILE) == loaded


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
        "provenance": dataclasses.asdict(provenance()),
    }


names = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def neuron_sets(draw: st.DrawFn) -> NeuronSet:
    n_layers, width = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    places = st.tuples(st.integers(0, n_layers - 1), st.integers(0, width - 1))
    chosen = [Neuron(*place, draw(numbers)) for place in draw(st.lists(places, unique=True))]
    cut = draw(st.integers(0, len(chosen)))
    return NeuronSet(
        n_layers=n_layers,
        width=width,
        good=tuple(chosen[:cut]),
        bad=tuple(chosen[cut:]),
        top_k=draw(st.integers(max(1, cut, len(chosen) - cut), 60)),
        ambiguous=draw(st.sampled_from(["keep", "drop"])),
        provenance=provenance(
            model=draw(names),
            system_instruction=draw(names),
            completeness_gap_max=draw(numbers),
            seed=draw(st.integers()),
        ),
    )


@given(neuron_sets())
def test_any_set_comes_back_as_it_was(tmp_path_factory, neurons):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(neurons.to_json(), encoding="utf-8")
    loaded = NeuronSet.load(path)
    assert loaded == neurons
    assert loaded.to_json() == neurons.to_json()


# Damage -----------------------------------------------------------------------------------------


@given(st.data())
def test_a_flipped_bit_in_the_neurons_file_is_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.json"
    content = bytearray(neuron_set().to_json().encode())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(ArtifactError):  # any other error fails this test
        loaded = NeuronSet.load(path)
        assert len(loaded.good) == 3  # another digit or letter, still a valid file


@given(st.data())
def test_a_flipped_bit_in_the_scores_file_is_refused_or_harmless(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    content = bytearray(neuron_scores().to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (directory / SCORES_FILE).write_bytes(content)
    with contextlib.suppress(ArtifactError):
        assert NeuronScores.load(directory).score.ndim == 2


@given(st.data())
def test_truncated_files_are_refused(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    text = neuron_set().to_json()
    # The last two characters are "}" and a line break; without the latter it is still JSON.
    (directory / NEURONS_FILE).write_text(text[: data.draw(st.integers(0, len(text) - 2))])
    with pytest.raises(ArtifactError, match=r"neurons\.json is not valid JSON: "):
        NeuronSet.load(directory)
    content = neuron_scores().to_bytes()
    (directory / SCORES_FILE).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ArtifactError, match=r"scores\.safetensors cannot be read: "):
        NeuronScores.load(directory)


def test_missing_files_are_named(tmp_path):
    for kind, name in ((NeuronSet, NEURONS_FILE), (NeuronScores, SCORES_FILE)):
        with pytest.raises(ArtifactError) as refusal:
            kind.load(tmp_path)
        assert str(refusal.value) == (
            f"there is no {tmp_path / name}.\n"
            "Expected: a run directory written by `neuronllm-eval identify`.\n"
            "Remedy: check the path, or run identify first."
        )
    with pytest.raises(ArtifactError, match=r"there is no .*/nowhere/neurons\.json\."):
        NeuronSet.load(tmp_path / "nowhere")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / NEURONS_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match=r"neurons\.json cannot be read: .*utf-8"):
        NeuronSet.load(tmp_path)


def test_text_that_is_no_json_is_refused(tmp_path):
    (tmp_path / NEURONS_FILE).write_text("layer: 3\n")
    with pytest.raises(ArtifactError) as refusal:
        NeuronSet.load(tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / NEURONS_FILE} is not valid JSON: Expecting value")
    assert message.endswith(f"Expected: a file as this package writes it.\n{AGAIN}")


def test_json_nested_without_end_is_refused(tmp_path):
    (tmp_path / NEURONS_FILE).write_text("[" * 200_000)
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        NeuronSet.load(tmp_path)


# neurons.json key by key ------------------------------------------------------------------------


def test_unknown_and_missing_keys_are_named(tmp_path):
    values = contents()
    values["colour"] = values.pop("width")
    message = refusal_of(tmp_path, values)
    assert message.startswith(
        f"{tmp_path / NEURONS_FILE}: the file has the wrong keys: "
        "missing ['width'], unknown ['colour'].\n"
        "Expected: ambiguous, bad, good, n_layers, provenance, schema_version, top_k, width.\n"
    )
    assert message.endswith(
        "Remedy: run identify again, with the version of neuronllm_eval that reads the file."
    )


@pytest.mark.parametrize("values", [[], 3, "text", None])
def test_something_other_than_an_object_is_refused(tmp_path, values):
    kind = type(values).__name__
    assert f"the file has the wrong keys: a {kind}.\n" in refusal_of(tmp_path, values)


@pytest.mark.parametrize("version", [1, 4, "3", None])
def test_another_schema_is_refused(tmp_path, version):
    message = refusal_of(tmp_path, contents() | {"schema_version": version})
    assert message == (
        f"{tmp_path / NEURONS_FILE} has schema version {version!r}.\nExpected: 3.\n"
        "Remedy: run identify again with this version of neuronllm_eval."
    )


@pytest.mark.parametrize("name", ["n_layers", "width", "top_k"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, [3]])
def test_sizes_must_be_positive_integers(tmp_path, name, value):
    message = refusal_of(tmp_path, contents() | {name: value})
    assert message == (
        f"{tmp_path / NEURONS_FILE}: {name} is {value!r}.\nExpected: a positive integer.\n{AGAIN}"
    )


@pytest.mark.parametrize("kind", ["good", "bad"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", True),
        ("layer", 1.0),
        ("layer", "1"),
        ("index", False),
        ("index", None),
        ("score", "high"),
        ("score", None),
        ("score", True),
        ("score", [1.0]),
    ],
)
def test_neurons_of_other_types_are_refused(tmp_path, kind, name, value):
    values = contents()
    values[kind][1][name] = value
    message = refusal_of(tmp_path, values)
    assert message == (
        f"{tmp_path / NEURONS_FILE}: {kind} holds {values[kind][1]}.\n"
        f"Expected: integers for layer and index, a number for score.\n{AGAIN}"
    )


def test_neurons_with_other_keys_are_refused(tmp_path):
    values = contents()
    del values["good"][0]["score"]
    message = refusal_of(tmp_path, values)
    assert f"{NEURONS_FILE}: good has the wrong keys: missing ['score'], unknown []" in message
    values["good"][0] = [0, 1, 2.5]
    assert "good has the wrong keys: a list" in refusal_of(tmp_path, values)


@pytest.mark.parametrize("value", [None, 3, True])
def test_neurons_that_are_no_list_are_refused(tmp_path, value):
    refusal_of(tmp_path, contents() | {"good": value})


@pytest.mark.parametrize("value", [None, 3, "sometimes"])
def test_an_unknown_rule_for_ambiguous_neurons_is_refused(tmp_path, value):
    refusal_of(tmp_path, contents() | {"ambiguous": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", 3), ("n_questions", 3.5), ("n_questions", True), ("completeness_gap_max", "small")],
)
def test_provenance_of_other_types_is_refused_by_key(tmp_path, name, value):
    values = contents()
    values["provenance"][name] = value
    message = refusal_of(tmp_path, values)
    assert message.startswith(f"{tmp_path / NEURONS_FILE}: provenance.{name} is {value!r}.\n")
    assert message.endswith(AGAIN)


def test_provenance_with_other_keys_is_refused(tmp_path):
    values = contents()
    values["provenance"]["mood"] = values["provenance"].pop("seed")
    message = refusal_of(tmp_path, values)
    assert "provenance has the wrong keys: missing ['seed'], unknown ['mood']" in message


def test_provenance_that_is_not_finite_is_refused(tmp_path):
    values = contents()
    values["provenance"]["completeness_gap_max"] = float("nan")
    refusal_of(tmp_path, values)


def test_provenance_may_hold_whole_numbers_for_floats(tmp_path):
    values = contents()
    values["provenance"]["completeness_gap_max"] = 2
    assert load_contents(tmp_path, values).provenance.completeness_gap_max == 2
    loaded = Provenance.from_dict(values["provenance"], Path("somewhere"))
    assert loaded == provenance(completeness_gap_max=2)


# The set itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "index"), [(3, 0), (-1, 0), (0, 8), (0, -1)])
@pytest.mark.parametrize("kind", ["good", "bad"])
def test_neurons_outside_the_model_are_refused(kind, layer, index):
    with pytest.raises(ArtifactError) as refusal:
        neuron_set(**{kind: (Neuron(layer, index, 1.0),)})
    assert str(refusal.value) == (
        f"{kind} neuron (layer {layer}, index {index}).\n"
        "Expected: layers 0 to 2, indices 0 to 7.\n"
        "Remedy: the file does not fit the model it names; run identify again."
    )


def test_neurons_outside_the_model_are_refused_at_load(tmp_path):
    assert "good neuron (layer 2, index 7)" in refusal_of(tmp_path, contents() | {"width": 7})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(tmp_path, score):
    values = contents()
    values["bad"][1]["score"] = score  # Python's JSON writes and reads NaN and Infinity
    message = refusal_of(tmp_path, values)
    assert message == (
        f"{tmp_path / NEURONS_FILE}: bad neuron (layer 2, index 1) has score {score}.\n"
        f"Expected: a finite number.\n{AGAIN}"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"good": (Neuron(1, 2, 0.5), Neuron(1, 2, 0.25))},
        {"good": (Neuron(1, 2, 0.5),), "bad": (Neuron(1, 2, -0.5),)},
    ],
)
def test_neurons_listed_twice_are_refused(changes):
    with pytest.raises(ArtifactError) as refusal:
        neuron_set(**changes)
    assert str(refusal.value) == (
        "neurons listed twice: [(1, 2)].\n"
        f"Expected: every neuron at most once, good or bad.\n{AGAIN}"
    )


def test_top_takes_the_first_of_each():
    top = neuron_set().top(2)
    assert [neuron.place for neuron in top.good] == [(0, 1), (2, 7)]
    assert [neuron.place for neuron in top.bad] == [(1, 0), (2, 1)]
    assert top.top_k == 2
    assert top.shape == (3, 8)
    assert top.top(1).bad == (Neuron(1, 0, -3.0),)
    assert neuron_set().top(3) == neuron_set()  # two bad ones are all there are


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_refuses_more_than_the_set_was_chosen_with(k):
    with pytest.raises(ArtifactError) as refusal:
        neuron_set().top(k)
    assert str(refusal.value) == (
        f"top_k={k} of a set chosen with top_k=3.\nExpected: 1 to 3.\n"
        "Remedy: run `neuronllm-eval identify` with a larger --top_k."
    )
    with pytest.raises(ArtifactError, match="top_k=2 of a set chosen with top_k=1"):
        neuron_set().top(1).top(2)


# Scores key by key ------------------------------------------------------------------------------


def test_scores_of_another_type_are_refused():
    with pytest.raises(ArtifactError) as refusal:
        neuron_scores(score=arrays()["score"].astype(np.float32))
    assert str(refusal.value) == (
        "scores: score has shape (2, 3) and type float32.\n"
        f"Expected: shape (2, 3), a two-dimensional score, type float64.\n{AGAIN}"
    )


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("score", np.zeros(3)),
        ("score", np.zeros((2, 2, 3))),
        ("good_count", np.zeros((3, 2), np.int64)),
        ("bad_count", np.zeros((2, 3))),  # floats
        ("half_sums", np.zeros((3, 2, 3))),
        ("half_sums", np.zeros((2, 3))),
        ("letter_sums", np.zeros((2, 3))),
        ("letter_sums", np.zeros((4, 3, 3))),
        ("letter_sums", np.zeros(())),
    ],
)
def test_scores_of_another_shape_are_refused(name, array):
    with pytest.raises(ArtifactError, match=r"scores: \w+ has shape .* and type ") as refusal:
        neuron_scores(**{name: array})
    assert AGAIN in str(refusal.value)


@pytest.mark.parametrize("name", ["score", "half_sums", "letter_sums"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_hold_nan_are_refused(name, value):
    array = arrays()[name].copy()
    array.flat[-1] = value
    with pytest.raises(ArtifactError) as refusal:
        neuron_scores(**{name: array})
    assert str(refusal.value) == (
        f"scores: {name} holds NaN or infinity.\nExpected: finite numbers.\n{AGAIN}"
    )


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


def test_scores_with_other_tensors_are_refused(tmp_path):
    tensors = arrays()
    tensors["total"] = tensors.pop("score")
    write_scores(tmp_path, tensors)
    with pytest.raises(ArtifactError) as refusal:
        NeuronScores.load(tmp_path)
    assert str(refusal.value).startswith(
        f"{tmp_path / SCORES_FILE}: tensors has the wrong keys: "
        "missing ['score'], unknown ['total']"
    )


def test_scores_of_another_schema_are_refused(tmp_path):
    write_scores(tmp_path, header={"schema_version": 4, "provenance": {}})
    with pytest.raises(ArtifactError, match="has schema version 4"):
        NeuronScores.load(tmp_path)


def test_scores_without_provenance_are_refused(tmp_path):
    write_scores(tmp_path, header={"schema_version": 3})
    with pytest.raises(ArtifactError, match=r"metadata has the wrong keys: missing \['provenance"):
        NeuronScores.load(tmp_path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    write_scores(tmp_path, key="format")
    with pytest.raises(ArtifactError, match=r"scores\.safetensors: metadata has the wrong keys"):
        NeuronScores.load(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / SCORES_FILE).write_text("ace: 3\n" * 10)
    with pytest.raises(ArtifactError) as refusal:
        NeuronScores.load(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / SCORES_FILE} cannot be read: ")
    assert str(refusal.value).endswith(
        f"Expected: a safetensors file written by identify.\n{AGAIN}"
    )


def test_types_that_numpy_does_not_know_are_refused(tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    tensors["score"] = tensors["score"].to(torch.bfloat16)
    (tmp_path / SCORES_FILE).write_bytes(save_torch(tensors, metadata={"neuronllm_eval": "{}"}))
    with pytest.raises(ArtifactError, match=r"scores\.safetensors: scores: score .* type BF16"):
        NeuronScores.load(tmp_path)
