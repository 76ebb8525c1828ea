"""Neuron sets and scores: the same bytes every time, and a reason for every refusal."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE, Neuron, NeuronSet
from tests.fixtures.tiny_models import provenance


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
            completeness_gap_layers=tuple(draw(st.lists(numbers, max_size=3))),
            layer_nodes=draw(st.sampled_from(["", "3 41@0.1", "7@1e-05"])),
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
def test_truncated_files_are_refused(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    text = neuron_set().to_json()
    # The last two characters are "}" and a line break; without the latter it is still JSON.
    (directory / NEURONS_FILE).write_text(text[: data.draw(st.integers(0, len(text) - 2))])
    with pytest.raises(ArtifactError, match=r"neurons\.json is not valid JSON: "):
        NeuronSet.load(directory)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no .*neurons\.json.*\n.*\n.*identify first"):
        NeuronSet.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"there is no .*/nowhere/neurons\.json\."):
        NeuronSet.load(tmp_path / "nowhere")


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Replace a value, by the names on the way to it."""
    *way, last = path.split(".")
    for name in way:
        values = values[int(name) if isinstance(values, list) else name]  # type: ignore[index]
    values[int(last) if isinstance(values, list) else last] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("n_layers", 0, "n_layers is 0"),
        ("width", 2.0, "width is 2.0"),
        ("top_k", True, "top_k is True"),
        ("width", 7, "good neuron (layer 2, index 7) is not in a model of 3 layers of 7 neurons"),
        ("n_layers", 1 << 30, "are no model"),
        ("top_k", 2, "3 good neurons with top_k=2"),
        ("good.1.layer", "1", "good.1.layer is '1'"),
        ("good.1.layer", -1, "good neuron (layer -1, index 7)"),
        ("bad.0.score", None, "bad.0.score is None"),
        ("bad.0.score", float("inf"), "bad.0.score is inf"),
        ("good.0", [0, 1, 2.5], "good.0 is [0, 1, 2.5]"),
        ("good.0", {"layer": 2, "index": 7, "score": 1}, "neurons listed twice: [(2, 7)]"),
        ("bad.0", {"layer": 2, "index": 7, "score": 1}, "neurons listed twice: [(2, 7)]"),
        ("good", 3, "good is 3"),
        ("ambiguous", "sometimes", "ambiguous: 'sometimes' is not keep or drop"),
        ("colour", "red", "colour is an unknown key"),
        ("provenance.n_questions", 3.5, "provenance.n_questions is 3.5"),
        ("provenance.completeness_gap_max", "small", "provenance.completeness_gap_max is 'small'"),
        ("provenance", {}, "provenance.tool_version is missing (and 32 more problems)"),
        (
            "schema_version",
            2,
            "schema_version is 2.\nExpected: 3.\nRemedy: run identify again",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_by_key(tmp_path, path, value, message):
    values = contents()
    put(values, path, value)
    assert message in refusal_of(tmp_path, values)


def test_a_file_of_the_second_schema_is_refused_with_the_remedy(tmp_path):
    values = contents() | {"schema_version": 2}
    for name in ("method_args", "positions"):  # which it did not have
        del values["provenance"][name]
    assert refusal_of(tmp_path, values) == (
        f"{tmp_path / NEURONS_FILE}: schema_version is 2 (and 2 more problems).\nExpected: 3.\n"
        "Remedy: run identify again with this version of neuronllm_eval."
    )


# The set itself ---------------------------------------------------------------------------------


def test_top_takes_the_first_of_each():
    top = neuron_set().top(2)
    assert [neuron.location for neuron in top.good] == [(0, 1), (2, 7)]
    assert [neuron.location for neuron in top.bad] == [(1, 0), (2, 1)]
    assert top.top_k == 2
    assert top.shape == (3, 8)
    assert top.top(1).bad == (Neuron(1, 0, -3.0),)
    assert neuron_set().top(3) == neuron_set()  # two bad ones are all there are


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_refuses_more_than_the_set_was_chosen_with(k):
    with pytest.raises(ArtifactError) as refusal:
        neuron_set().top(k)
    assert str(refusal.value) == (
        f"top_k={k} of a set selected with top_k=3.\nExpected: 1 to 3.\n"
        "Remedy: run `neuronllm-eval identify` with a larger --top_k."
    )
    with pytest.raises(ArtifactError, match="top_k=2 of a set selected with top_k=1"):
        neuron_set().top(1).top(2)
