"""`gguf_file=` wherever `pretrained=` is taken, and only the file that neurons were found in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from neuronllm_eval import identify as identify_function
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.fingerprints import model_hash
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    change_settings,
    copy_of,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.harness import include_paths, model_dir, scratch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def _only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def folder() -> Path:
    """A folder of several GGUF files and nothing else."""
    path = scratch() / "gguf"
    path.mkdir()
    write_gguf(model_dir(), path / "plain.gguf")
    write_gguf(model_dir(), path / "packed.gguf", quantised=True)
    write_gguf(model_dir(seed=1), path / "other.gguf", quantised=True)
    write_gguf(model_dir(n_layers=3), path / "deeper.gguf")
    return path


def identified(output: Path, folder: Path, file: str, *more: object):
    arguments = list(identify(output, "--top_k", 6, *more))
    arguments[arguments.index("--model_args") + 1] = f"pretrained={folder},gguf_file={file}"
    return call(*arguments)


@pytest.fixture(scope="module")
def run(folder) -> RunDirectory:
    """Identified and validated on the quantised file."""
    output = scratch() / "gguf_run"
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for result in (identified(output, folder, "packed.gguf"), call("validate", output, *QUICK)):
            assert result[0] == 0, result[2]
    return RunDirectory(output / "demo_topic")


def evaluated(model: str, model_args: str):
    """Log-likelihoods of one task by stock lm_eval, in which `NeuronMaskedLM` is `neuronllm`."""
    assert NeuronMaskedLM  # importing it registers it
    found = lm_eval.simple_evaluate(
        model, model_args=model_args, tasks=["demo_topic"], limit=6, device="cpu", batch_size=6,
        task_manager=TaskManager(include_path=include_paths(), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    return [sample["resps"] for sample in found["samples"]["demo_topic"]]


# What the file gives ----------------------------------------------------------------------------


def test_weights_and_tokens_are_those_of_the_folder_that_was_converted(folder):
    expected = AutoModelForCausalLM.from_pretrained(model_dir())
    plain = AutoModelForCausalLM.from_pretrained(folder, gguf_file="plain.gguf")
    assert model_hash(plain) == model_hash(expected)
    packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file="packed.gguf")
    assert model_hash(packed) != model_hash(expected)
    for one, other in zip(packed.parameters(), expected.parameters(), strict=True):
        # 8 bits of the largest of 32 weights, which are few times 0.3.
        assert float((one - other).detach().abs().max()) <= 0.01
    texts = ["Question: Which word is it?\nAnswer: A", "<s> B", "  two  spaces"]
    known, read = (
        AutoTokenizer.from_pretrained(model_dir()),
        AutoTokenizer.from_pretrained(folder, gguf_file="packed.gguf"),
    )
    assert [read(text).input_ids for text in texts] == [known(text).input_ids for text in texts]


def test_the_run_names_the_file(run, folder):
    provenance = json.loads(run.neurons.read_text())["provenance"]
    assert (provenance["model"], provenance["gguf_file"]) == (str(folder), "packed.gguf")
    assert f"{folder}/packed.gguf" in run.path.joinpath("report.md").read_text()
    card = run.path.joinpath("README.md").read_text()
    assert f"pretrained={folder},gguf_file=packed.gguf,neurons=" in card


def test_verify_recomputes_it(run):
    code, _, err = call("verify", run.path)
    assert code == 0, err


def test_masked_model_adapter_and_checkpoint_give_the_same_numbers(run, folder, tmp_path):
    for name, flags in {"peft": (), "merged": ("--format", "merged")}.items():
        code, _, err = call(
            "export", run.path, "--condition", "enhance", "--output_path", tmp_path / name, *flags
        )
        assert code == 0, err
    base = f"pretrained={folder},gguf_file=packed.gguf"
    mask = f"{base},neurons={run.path},condition=enhance,positions=all,fast=False"
    expected = evaluated("neuronllm", mask)
    assert evaluated("hf", base) != expected
    assert evaluated("hf", f"{base},peft={tmp_path / 'peft'}") == expected
    assert evaluated("hf", f"pretrained={tmp_path / 'merged'}") == expected
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    card = (tmp_path / "peft" / "README.md").read_text()
    assert f"from_pretrained({str(folder)!r}, gguf_file='packed.gguf')" in card


def test_a_tokenizer_of_its_own(folder, tmp_path):
    output = tmp_path / "runs"
    result = identified(output, folder, f"packed.gguf,tokenizer={model_dir()}")
    assert result[0] == 0, result[2]
    code, _, err = call(
        "export", output / "demo_topic", "--condition", "degrade", "--format", "merged",
        "--output_path", tmp_path / "merged",
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_model_in_memory(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="packed.gguf", dtype=torch.float32
    )
    (found,) = identify_function(
        model=model, model_args={"pretrained": str(folder), "gguf_file": "packed.gguf"},
        tasks="demo_topic", limit=4, top_k=6, output_path=tmp_path / "runs",
    )  # fmt: skip
    code, _, err = call("validate", found.path, *QUICK)  # loads it by those arguments
    assert code == 0, err


# Other files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "part"),
    [("other.gguf", "other weights"), ("plain.gguf", "other weights"), ("deeper.gguf", "2 layers")],
)
def test_another_file_of_the_folder_is_refused(run, folder, tmp_path, file, part):
    copied = copy_of(run, tmp_path / "copy")
    arguments = {"pretrained": str(folder), "gguf_file": file}
    change_settings(copied, model_args=arguments)
    result = call("validate", copied.path, *QUICK, "--overwrite")
    assert_one_message(result, 1, part, f"{folder}/packed.gguf", file)
    export = ("export", copied.path, "--condition", "enhance", "--output_path", tmp_path / "out")
    assert_one_message(call(*export, "--format", "merged"), 1, part, f"{folder}/packed.gguf")
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_replaced_is_refused(run, folder, tmp_path):
    replaced = tmp_path / "gguf"
    replaced.mkdir()
    shutil.copy(folder / "other.gguf", replaced / "packed.gguf")
    copied = copy_of(run, tmp_path / "copy")
    change_settings(copied, model_args={"pretrained": str(replaced), "gguf_file": "packed.gguf"})
    result = call("validate", copied.path, *QUICK, "--overwrite")
    assert_one_message(result, 1, "other weights", f"{replaced}/packed.gguf")


def test_identify_does_not_go_on_with_another_file(folder, tmp_path):
    assert identified(tmp_path, folder, "packed.gguf")[0] == 0
    result = identified(tmp_path, folder, "other.gguf")
    assert_one_message(result, None, "model_args", "packed.gguf", "other.gguf")


def test_the_masked_model_warns_of_another_file(run, folder, caplog):
    mask = f"neurons={run.path},condition=enhance"
    evaluated("neuronllm", f"pretrained={folder},gguf_file=packed.gguf,{mask}")
    assert "other weights" not in caplog.text
    evaluated("neuronllm", f"pretrained={folder},gguf_file=other.gguf,{mask}")
    assert "the neurons were found in other weights" in caplog.text


# Files that cannot be used ----------------------------------------------------------------------


def test_without_the_package(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_gguf_pytorch_utils, "is_gguf_available", lambda: False)
    result = identified(tmp_path / "runs", folder, "packed.gguf")
    assert_one_message(result, 1, "the package gguf", "pip install 'neuronllm-eval[gguf]'")
    assert not list(tmp_path.rglob("neurons.json"))


@pytest.mark.parametrize("damage", ["missing", "empty", "other", "cut"])
def test_a_spoiled_file(folder, tmp_path, damage):
    path = tmp_path / "spoiled.gguf"
    content = (folder / "packed.gguf").read_bytes()
    if damage != "missing":
        path.write_bytes({"empty": b"", "other": b"weights", "cut": content[:-5000]}[damage])
    result = identified(tmp_path / "runs", tmp_path, "spoiled.gguf")
    assert_one_message(result, 1, "cannot be loaded")
    assert not list(tmp_path.rglob("neurons.json"))


def test_missing_weights_are_refused(tmp_path):
    write_gguf(model_dir(), tmp_path / "less.gguf", without="blk.1.ffn_down.weight")
    result = identified(tmp_path / "runs", tmp_path, "less.gguf")
    assert_one_message(result, 1, "missing 1 weights", "layers.1.mlp.down_proj")


def test_run_yaml_holds_the_file(run):
    settings = yaml.safe_load(run.settings.read_text())["settings"]
    assert settings["model_args"]["gguf_file"] == "packed.gguf"
