"""tokens.json: written by identification where it can, read strictly, and never in its way."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.token_effects import (
    NeuronTokens,
    TokenEffect,
    Unembedding,
    listed_tokens,
    read_tokens,
    tokens_json,
    top_neurons,
)
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages import identify as identify_stage
from tests.fixtures.cli import assert_one_message, call, identify, without_the_harness_tasks
from tests.fixtures.harness import neuron_set, word_tokenizer
from tests.fixtures.tiny_models import tiny_model

UP = TokenEffect(3, " up", 2.345)
DOWN = TokenEffect(4, " down", -1.5)
WRITTEN = {
    "kind": "good", "layer": 1, "index": 7,
    "promotes": [{"token": 3, "text": " up", "effect": 2.35}],
    "demotes": [{"token": 4, "text": " down", "effect": -1.5}],
}  # fmt: skip


def written(path: Path, **changes: object) -> Path:
    values = {"schema_version": 1, "neurons": [{**WRITTEN, **changes}]}
    path.write_text(json.dumps(values))
    return path


# The file -----------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_to_two_decimals(tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text(tokens_json([NeuronTokens("good", 1, 7, (UP,), (DOWN,))]))
    values = {**WRITTEN, "positive": None, "reading": ""}
    assert json.loads(path.read_text()) == {"schema_version": 1, "neurons": [values]}
    rounded = NeuronTokens("good", 1, 7, (TokenEffect(3, " up", 2.35),), (DOWN,))
    assert read_tokens(path) == {("good", 1, 7): rounded}
    path.write_text(json.dumps({"schema_version": 1, "neurons": [WRITTEN]}))  # of release 0.1
    assert read_tokens(path) == {("good", 1, 7): rounded}


def test_a_run_without_it(tmp_path):
    assert read_tokens(tmp_path / "tokens.json") == {}


TOKEN = {"token": 3, "text": " up", "effect": 2.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "worst"}, r"neurons\.0\.kind is 'worst'"),
        ({"layer": -1}, r"neurons\.0\.layer is -1"),
        ({"index": True}, r"neurons\.0\.index is True"),
        ({"score": 1.0}, r"neurons\.0\.score is an unknown key"),
        ({"promotes": {}}, r"neurons\.0\.promotes is \{\}"),
        ({"promotes": [{**TOKEN, "text": 1}]}, r"neurons\.0\.promotes\.0\.text is 1"),
        ({"demotes": [{**TOKEN, "effect": None}]}, r"neurons\.0\.demotes\.0\.effect is None"),
        ({"demotes": [{**TOKEN, "effect": float("inf")}]}, "inf|Infinity"),
        ({"reading": "picture"}, r"neurons\.0\.reading is 'picture'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, said):
    with pytest.raises(ArtifactError, match=f"(?s)tokens.json.*{said}.*remove the file"):
        read_tokens(written(tmp_path / "tokens.json", **change))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema_version": 2, "neurons": []}, "schema_version is 2"),
        ({"schema_version": 1}, "neurons is missing"),
        ({"schema_version": 1, "neurons": [WRITTEN, WRITTEN]}, "occurs twice"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, values, said):
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=f"tokens.json.*{said}"):
        read_tokens(path)


# Which neurons ------------------------------------------------------------------------------------


def test_ten_of_either_kind_are_listed():
    locations = [(layer, index) for layer in range(2) for index in range(24)]
    neurons = neuron_set(locations[:12], locations[12:26], n_layers=2, width=48)
    found = [(kind, neuron.location) for kind, neuron in top_neurons(neurons)]
    assert found == [
        *(("good", each) for each in locations[:10]),
        *(("bad", each) for each in locations[12:22]),
    ]
    model = tiny_model("llama")
    unembedding = Unembedding.of(model, find_ffn_layers(model), range(8))
    tokens = listed_tokens(unembedding, neurons, word_tokenizer())
    assert [each.key for each in tokens] == [(kind, *location) for kind, location in found]
    assert {len(each.promotes) for each in tokens} == {4}


def test_nothing_is_told_of_no_neurons():
    model = tiny_model("llama")
    unembedding = Unembedding.of(model, find_ffn_layers(model), range(8))
    assert listed_tokens(unembedding, neuron_set([], []), word_tokenizer()) == ()


# Identification -----------------------------------------------------------------------------------


def noted(*_: object) -> Unembedding:
    """Of a model whose final norm is none that is understood."""
    model = tiny_model("llama")
    return Unembedding(find_ffn_layers(model), model.lm_head, None, {}, ("it is odd",))


def tokens_of(tmp_path, monkeypatch, caplog, of) -> tuple[RunDirectory, list[tuple[int, str]]]:
    """A run that is found with another `Unembedding.of`, and what is logged of its tokens."""
    without_the_harness_tasks(monkeypatch)
    monkeypatch.setattr(identify_stage.Unembedding, "of", of)
    with caplog.at_level(logging.INFO, "neuronllm_eval"):
        code, _, err = call(*identify(tmp_path))
    assert code == 0, err
    said = [(each.levelno, each.getMessage()) for each in caplog.records]
    return RunDirectory(tmp_path / "demo_topic"), [
        each for each in said if "tokens.json" in each[1]
    ]


def test_it_is_left_out_where_norms_are_not_understood(tmp_path, monkeypatch, caplog):
    run, said = tokens_of(tmp_path, monkeypatch, caplog, noted)
    assert said == [(logging.INFO, "there is no tokens.json: it is odd")]
    assert run.neurons.is_file()
    assert not run.tokens.exists()
    assert "Run `neuronllm-eval explain` on this directory" in run.report.read_text()


def broken(error: Exception):
    """In place of `Unembedding.of`."""

    def of(*_: object):
        raise error

    return of


def test_no_error_of_the_models_code_ends_an_identification(tmp_path, monkeypatch, caplog):
    run, said = tokens_of(tmp_path, monkeypatch, caplog, broken(RuntimeError("odd")))
    assert said == [(logging.WARNING, "there is no tokens.json: RuntimeError: odd")]
    assert run.neurons.is_file()
    assert not run.tokens.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("of CUDA"), "memory"),
        (MemoryError(), "memory"),
    ],
)
def test_what_runs_out_is_said_and_the_same_command_goes_on(tmp_path, monkeypatch, error, said):
    without_the_harness_tasks(monkeypatch)
    run = RunDirectory(tmp_path / "demo_topic")
    with monkeypatch.context() as patched:
        patched.setattr(identify_stage.Unembedding, "of", broken(error))
        assert_one_message(call(*identify(tmp_path)), 1, said)
    assert run.identifying.is_dir()
    code, _, err = call(*identify(tmp_path))
    assert code == 0, err
    assert run.tokens.is_file()


def test_every_method_of_a_pass_has_its_own(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    code, _, err = call(*identify(tmp_path, "--method", "ace,random"))
    assert code == 0, err
    found = {}
    for method in ("ace", "random"):
        run = RunDirectory(tmp_path / method / "demo_topic")
        found[method] = list(read_tokens(run.tokens))
        neurons = json.loads(run.neurons.read_text())
        assert found[method][0] == (
            "good", neurons["good"][0]["layer"], neurons["good"][0]["index"]
        )  # fmt: skip
    assert found["ace"] != found["random"]
