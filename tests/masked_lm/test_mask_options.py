"""Result files name the mask: others have another section, equal ones the same."""

from __future__ import annotations

import json

import numpy as np

from neuronllm_eval.masked_lm.mask_options import MaskOptions, mask_hash
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.neurons.neuron_set import NeuronSet
from tests.fixtures.cli import SCORED, finished_run
from tests.fixtures.harness import model_dir, neuron_set

CONTROLS = [name for name in SCORED if ".random_" in name]


def section(neurons: NeuronSet | None = None, condition: str = "degrade", **more: object) -> dict:
    return MaskOptions.read(neurons, condition, **more).section()


def factors(*edits: tuple[int, int, float], shape: tuple[int, int] = (2, 3)) -> np.ndarray:
    made = np.ones(shape, dtype=np.float32)
    for layer, index, factor in edits:
        made[layer, index] = factor
    return made


def test_a_digest_tells_places_factors_and_shapes_apart():
    masks = [
        factors(),
        factors((0, 1, 0)),
        factors((1, 1, 0)),
        factors((0, 2, 0)),
        factors((0, 1, 2)),
        factors((0, 1, 0), (1, 1, 2)),
        factors((0, 1, 2), (1, 1, 0)),
        factors((0, 1, 0), shape=(2, 4)),
    ]
    assert len({mask_hash(mask) for mask in masks}) == len(masks)
    assert mask_hash(factors((0, 1, -0.0))) == mask_hash(factors((0, 1, 0)))
    # sha256('[[2, 3], [0], [1], [0.0]]'), the first 16 digits
    assert mask_hash(factors((0, 1, 0))) == "5fe38cd5caee5ae3"


def test_sets_of_equal_size_have_other_sections():
    one, other = neuron_set(), neuron_set(good=((0, 2), (1, 2), (1, 7), (0, 40)))
    assert section(one) != section(other)
    assert {**section(one), "mask_hash": ""} == {**section(other), "mask_hash": ""}
    assert section(one) == section(neuron_set())
    assert section(one, "suppress_bad") == section(other, "suppress_bad")  # which are the same


def test_random_controls_have_other_sections_than_each_other():
    names = ["degrade", "degrade.random_0", "degrade.random_1", "degrade.random_10"]
    assert len({section(neuron_set(), name)["mask_hash"] for name in names}) == len(names)


def test_a_point_and_the_same_settings_by_hand_are_one_mask():
    point = section(neuron_set(), "suppress_good.k2.x0.5")
    same = section(neuron_set(), "suppress_good", top_k=2, scale=0.5)
    assert point == {**same, "condition": "suppress_good.k2.x0.5"}


def test_the_model_of_the_neurons_is_named():
    assert section(neuron_set(model_hash="abc"))["model_hash"] == "abc"
    assert section(neuron_set(model_hash="abc"), "unmasked")["mask_hash"] == ""
    bare = section(None, "unmasked")
    assert (bare["mask_hash"], bare["model_hash"]) == ("", "")


def test_the_result_files_of_a_run_have_the_section_of_the_masked_model():
    run = finished_run()
    found = {name: json.loads(run.result(name).read_text())["config"] for name in SCORED}
    assert len({config["neuronllm"]["mask_hash"] for config in found.values()}) == len(SCORED)
    for name in ("unmasked", "enhance", *CONTROLS[:1]):
        arguments = {"device": "cpu", **found[name]["model_args"]}
        assert arguments["pretrained"] == str(model_dir())
        info = NeuronMaskedLM(**arguments).get_model_info()
        assert found[name]["neuronllm"] == info["neuronllm"]
    neurons = NeuronSet.load(run.neurons)
    assert found["enhance"]["neuronllm"]["model_hash"] == neurons.provenance.model_hash != ""


def test_what_scales_nothing_has_no_digest():
    assert mask_hash(np.ones((2, 3), np.float32)) == ""
    assert mask_hash(np.array([[1, 2]], np.float32)) != ""
