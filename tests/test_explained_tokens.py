"""Tokens of neurons, as reports take them from explain.json."""

from __future__ import annotations

import json

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explained_tokens import NeuronTokens, read_tokens

TOKENS = {
    "promotes": [{"token": n, "text": f" up{n}", "effect": 3.0} for n in range(6)],
    "demotes": [{"token": 9, "text": " down", "effect": -3.0}],
}


def neuron(**changes) -> dict:
    return {
        "kind": "good",
        "neuron": {"layer": 1, "index": 7, "score": 2.0},
        "tokens": TOKENS,
        "positive": 0.8,
        "letters": {"means": [], "index": 0.1, "reading": "content"},
        **changes,
    }


def written(tmp_path, *neurons):
    path = tmp_path / "explain.json"
    path.write_text(json.dumps({"neurons": neurons}))
    return path


def test_the_strongest_tokens_in_the_direction_that_a_neuron_mostly_has(tmp_path):
    found = read_tokens(written(tmp_path, neuron(), neuron(kind="bad", positive=0.2)))
    assert found == {
        ("good", 1, 7): NeuronTokens((" up0", " up1", " up2", " up3"), "content"),
        ("bad", 1, 7): NeuronTokens((" down",), "content"),
    }


def test_a_run_that_was_not_explained(tmp_path):
    assert read_tokens(tmp_path / "explain.json") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"neuron": None}, {"neuron": {"layer": "x", "index": 0}}, {"tokens": []},
        {"tokens": {"promotes": [{}]}}, {"tokens": {"promotes": 3}}, {"positive": None},
        {"letters": 0},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, change):
    with pytest.raises(ArtifactError, match="run `neuronllm-eval explain` on the run again"):
        read_tokens(written(tmp_path, neuron(**change)))
