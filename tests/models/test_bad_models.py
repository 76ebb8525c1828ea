"""Spoiled model folders: what transformers and tokenizers choke on, and what they let pass."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from neuronllm_eval.errors import ModelError
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.loading import readable_loading
from neuronllm_eval.models.model_args import require_model_args
from tests.fixtures.cli import (
    assert_one_message,
    call,
    finished_run,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents
from tests.fixtures.harness import model_dir

Change = Callable[[Path], object]


@pytest.fixture
def spoiled(tmp_path) -> Path:
    """A model folder that a test may spoil."""
    shutil.copytree(model_dir(), tmp_path / "model")
    return tmp_path / "model"


def as_bytes(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content)


def cut(name: str) -> Change:
    """A file without its end."""
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-100])


def gone(pattern: str) -> Change:
    return lambda path: [file.unlink() for file in path.glob(pattern)]


def values(name: str, **changes: Any) -> Change:
    """A JSON file with other values."""

    def change(path: Path) -> None:
        found = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**found, **changes}))

    return change


def weights(alter: Callable[[dict[str, Any]], object]) -> Change:
    """Weights changed in place."""

    def change(path: Path) -> None:
        found = load_file(path / "model.safetensors")
        alter(found)
        save_file(found, path / "model.safetensors", metadata={"format": "pt"})

    return change


def words(*known: str) -> Change:
    """A tokenizer that knows only these words."""

    def change(path: Path) -> None:
        found = json.loads((path / "tokenizer.json").read_text())
        vocabulary = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", *known))}
        found["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
        found |= {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
        (path / "tokenizer.json").write_text(json.dumps(found))

    return change


def fewer_tokens(path: Path) -> None:
    """Embeddings of 100 tokens for a tokenizer of 500."""
    weights(
        lambda found: found.update(
            {name: each[:100].clone() for name, each in found.items() if len(each) == 500}
        )
    )(path)
    values("config.json", vocab_size=100)(path)


DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (gone("token*"), ("cannot be loaded", "tokenizer")),
        (as_bytes("tokenizer.json", b"{"), ("cannot be loaded",)),
        (as_bytes("tokenizer_config.json", b"{"), ("cannot be loaded",)),
        (words(), ("the tokenizer cannot encode", "[UNK]", "tokenizer=")),
        (words("<unk>"), ("options that become the same tokens", "letters")),
        (fewer_tokens, ("the tokenizer gives token", "the model has 100")),
        (gone("config.json"), ("cannot be loaded", "config.json")),
        (as_bytes("config.json", b"{"), ("cannot be loaded", "config.json")),
        (values("config.json", model_type="nope"), ("cannot be loaded", "nope")),
        (values("config.json", num_hidden_layers=0), ("no FFN down-projection",)),
        (values("config.json", num_hidden_layers=4), ("missing 9 weights", "config.json")),
        (values("config.json", num_attention_heads=5), ("cannot be loaded", "attention heads")),
        (values("config.json", hidden_size=-4), ("cannot be loaded", "negative")),
        (values("config.json", vocab_size=50), ("cannot be loaded",)),
        (gone("model.safetensors"), ("cannot be loaded", "model.safetensors")),
        (cut("model.safetensors"), ("cannot be loaded", "header")),
        (as_bytes("model.safetensors", b""), ("cannot be loaded",)),
        (weights(lambda found: found.pop(DOWN)), ("missing 1 weights", DOWN)),
        (
            weights(lambda found: found[DOWN].fill_(float("nan"))),
            ("gives NaN or infinite", "every question of the selection"),
        ),
    ],
)
def test_model_folders(tmp_path, monkeypatch, spoiled, change, parts):
    without_the_harness_tasks(monkeypatch)
    change(spoiled)
    before = contents(spoiled)
    result = call(*identify(tmp_path / "runs", path=spoiled))
    assert_one_message(result, 1, *parts)
    assert contents(spoiled) == before
    assert not list(tmp_path.rglob("neurons.json"))


def test_pickled_weights_are_not_unpickled(tmp_path, monkeypatch, spoiled):
    without_the_harness_tasks(monkeypatch)
    (spoiled / "model.safetensors").unlink()
    # Unpickling this would call os.mkdir.
    as_bytes("pytorch_model.bin", makes(tmp_path / "made"))(spoiled)
    result = call(*identify(tmp_path / "runs", path=spoiled))
    assert_one_message(result, 1, "cannot be loaded")
    assert not (tmp_path / "made").exists()


def makes(folder: Path) -> bytes:
    """A pickle that makes a folder when it is unpickled."""
    return b"cposix\nmkdir\n(V" + str(folder).encode() + b"\ntR."


def test_pickled_adapters_are_not_unpickled(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    adapter = tmp_path / "adapter"
    shutil.copytree(finished_run().adapter("enhance"), adapter)
    gone("*.safetensors")(adapter)
    as_bytes("adapter_model.bin", makes(tmp_path / "made"))(adapter)
    arguments = [*identify(tmp_path / "runs")]
    arguments[2] = f"{arguments[2]},peft={adapter}"
    assert_one_message(call(*arguments), 1, "cannot be loaded")
    assert not (tmp_path / "made").exists()


def test_a_chat_template_reaches_no_code(tmp_path, monkeypatch, spoiled):
    without_the_harness_tasks(monkeypatch)
    template = f"{{{{ cycler.__init__.__globals__.os.mkdir('{tmp_path / 'made'}') }}}}"
    as_bytes("chat_template.jinja", template.encode())(spoiled)
    result = call(*identify(tmp_path / "runs", "--apply_chat_template", path=spoiled))
    assert_one_message(result, 1, "unsafe")
    assert not (tmp_path / "made").exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path, monkeypatch, spoiled):
    without_the_harness_tasks(monkeypatch)
    (spoiled / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'made')!r})\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    values("config.json", model_type="own", auto_map=own)(spoiled)
    result = call(*identify(tmp_path / "runs", path=spoiled))
    assert_one_message(result, 1, "cannot be loaded", "trust_remote_code")
    assert not (tmp_path / "made").exists()


def test_the_masked_model_refuses_missing_weights_too(spoiled):
    weights(lambda found: found.pop(DOWN))(spoiled)
    with pytest.raises(ModelError, match=f"missing 1 weights, such as {DOWN}"):
        NeuronMaskedLM(str(spoiled), device="cpu")


def test_weights_that_the_model_does_not_take_are_told(spoiled, caplog):
    values("config.json", num_hidden_layers=1)(spoiled)
    NeuronMaskedLM(str(spoiled), device="cpu")
    assert "has 9 weights that the model does not use, such as model.layers.1." in caplog.text


def test_loading_leaves_the_loggers_as_they_were(spoiled):
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(ModelError, match="'m' cannot be loaded: KeyError"), readable_loading("m"):
        raise KeyError
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_arguments_that_are_not_given_are_none():
    require_model_args({"max_length": None, "add_bos_token": None, "dtype": 3})
