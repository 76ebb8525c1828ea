"""Tokens of neurons, as reports take them from explain.json and tokens.json."""

from __future__ import annotations

import json

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.logit_lens import TokenEffect
from neuronllm_eval.explain.top_tokens import ListedNeuron, ListedTokens
from neuronllm_eval.reporting.neuron_token_files import NeuronTokens, read_tokens
from neuronllm_eval.runs.directory import RunDirectory

TOKENS = {
    "promotes": [{"token": n, "text": f" up{n}", "effect": 3.0} for n in range(6)],
    "demotes": [{"token": 9, "text": " down", "effect": -3.0}],
}
UP = (" up0", " up1", " up2", " up3")


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
    run = RunDirectory(tmp_path)
    run.explanation.write_text(json.dumps({"neurons": neurons}))
    return run


def test_the_strongest_tokens_and_the_sign_that_a_neuron_mostly_has(tmp_path):
    found = read_tokens(written(tmp_path, neuron(), neuron(kind="bad", positive=0.2)))
    assert found == {
        ("good", 1, 7): NeuronTokens(UP, (" down",), 0.8, "content"),
        ("bad", 1, 7): NeuronTokens(UP, (" down",), 0.2, "content"),
    }
    assert all(each.explained for each in found.values())


def test_a_run_without_either_file(tmp_path):
    assert read_tokens(RunDirectory(tmp_path)) == {}


def test_identification_tells_of_neurons_that_were_not_explained(tmp_path):
    run = written(tmp_path, neuron())
    tokens = (TokenEffect(3, " own", 1.0),), ()
    listed = ListedTokens((ListedNeuron("good", 1, 7, *tokens), ListedNeuron("bad", 0, 2, *tokens)))
    run.tokens.write_text(listed.to_json())
    assert read_tokens(run) == {
        ("good", 1, 7): NeuronTokens(UP, (" down",), 0.8, "content"),
        ("bad", 0, 2): NeuronTokens((" own",), ()),
    }
    assert not read_tokens(run)["bad", 0, 2].explained


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
