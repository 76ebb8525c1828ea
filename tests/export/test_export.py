"""`neuronllm-eval export`, and what stock lm_eval makes of it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import adapter_card
from neuronllm_eval.formats.atomic import whole_folder
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, Scales
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.fingerprints import Weights
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents
from tests.fixtures.harness import harness_model, include_paths, model_dir, neuron_set

PEFT_WARNING = "ignore:`is_gradient_checkpointing`:FutureWarning"
pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", EXPORT_FILE}


@pytest.fixture(autouse=True)
def _only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def run() -> RunDirectory:
    return finished_run()


@pytest.fixture
def copied(run, tmp_path) -> RunDirectory:
    return copy_of(run, tmp_path / "copy")


def export(run: RunDirectory, output, *more, condition="enhance"):
    return call("export", run.path, "--condition", condition, "--output_path", output, *more)


def exported(run: RunDirectory, output, *more, **which):
    code, out, err = export(run, output, *more, **which)
    assert code == 0, err
    assert out == f"written to {output}\n"
    return output


def evaluated(model: str, model_args: str):
    """The results and log-likelihoods of one task by stock lm_eval, but for times."""
    found = lm_eval.simple_evaluate(
        model, model_args=model_args, tasks=["demo_topic"], limit=12, device="cpu", batch_size=6,
        task_manager=TaskManager(include_path=include_paths(), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    samples = [sample["resps"] for sample in found["samples"]["demo_topic"]]
    return found["results"], samples


# The same numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "flags", "arguments"),
    [
        ("enhance", (), ""),
        ("suppress_good", ("--top_k", 3, "--scale", 0.5), ",top_k=3,scale=0.5"),
    ],
)
def test_stock_lm_eval_says_of_all_of_them_the_same(run, tmp_path, condition, flags, arguments):
    base = f"pretrained={model_dir()}"
    adapter = exported(run, tmp_path / "peft", *flags, condition=condition)
    merged = exported(run, tmp_path / "merged", *flags, "--format", "merged", condition=condition)
    masked = f",neurons={run.path},condition={condition},positions=all,fast=False"
    expected = evaluated("neuronllm", f"{base}{masked}{arguments}")
    assert evaluated("hf", base)[1] != expected[1]  # it does something
    assert evaluated("hf", f"{base},peft={adapter}") == expected
    assert evaluated("hf", f"pretrained={merged}") == expected


def test_the_command_line_of_lm_eval_takes_an_adapter_of_a_run(run, tmp_path, monkeypatch):
    flags = ("--tasks", "demo_topic", "--limit", "12", "--device", "cpu", "--batch_size", "6")
    written = {}
    for name, model in {
        "peft": ("hf", f"pretrained={model_dir()},peft={run.adapter('enhance')}"),
        "mask": ("neuronllm", f"pretrained={model_dir()},neurons={run.path},condition=enhance,"
                 "positions=all,fast=False"),
    }.items():  # fmt: skip
        monkeypatch.setattr(
            sys, "argv",
            ["lm_eval", "run", "--model", model[0], "--model_args", model[1], *flags,
             "--include_path", include_paths()[0], "--output_path", str(tmp_path / name)],
        )  # fmt: skip
        cli_evaluate()
        (path,) = (tmp_path / name).rglob("results_*.json")
        written[name] = json.loads(path.read_text())["results"]
    assert written["peft"] == written["mask"]


# What is written --------------------------------------------------------------------------------


def test_a_run_has_an_adapter_for_every_condition(run, tmp_path):
    neurons = NeuronSet.load(run.neurons)
    for condition in CONDITIONS:
        folder = run.adapter(condition)
        if condition == UNMASKED:
            assert not folder.exists()
            continue
        assert {path.name for path in folder.iterdir()} == ADAPTER
        made = Export.load(folder)
        assert (made.condition, made.scales, made.top_k) == (condition, Scales(), neurons.top_k)
        assert made.provenance == neurons.provenance
        again = exported(run, tmp_path / condition, condition=condition)
        for name in ADAPTER:
            assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_p_of_a_card_is_the_corrected_one(copied, tmp_path):
    summary = json.loads(copied.summary.read_text())
    (entry,) = (each for each in summary["conditions"] if each["name"] == "enhance")
    entry["accuracy"]["p_value"], entry["corrected"]["p_value"] = 0.03, 0.0625
    copied.summary.write_text(json.dumps(summary))
    card = (exported(copied, tmp_path / "a") / CARD_FILE).read_text()
    assert f"p 0.0625 after Holm's correction for {entry['corrected']['n_tests']})" in card


def test_the_cards_of_a_run_get_their_figures_with_its_report(run, copied):
    card = copied.adapter("enhance") / CARD_FILE
    judged = card.read_text()
    assert "points (95% interval" in judged
    copied.clear_validation()
    for command in ("report", "validate"):
        flags = ["--conditions", "enhance", "--n_random", "2"] if command == "validate" else []
        code, _, err = call(command, copied.path, *flags)
        assert code == 0, err
        text = card.read_text()
        assert ("None yet" in text) == (command == "report")
        assert "None yet" in (copied.adapter("degrade") / CARD_FILE).read_text()


def test_a_card_has_the_figures_of_exactly_what_was_judged(run, tmp_path):
    (entry,) = (
        each for each in json.loads(run.summary.read_text())["conditions"]
        if each["name"] == "enhance"
    )  # fmt: skip
    card = (exported(run, tmp_path / "a") / CARD_FILE).read_text()
    accuracy = entry["accuracy"]
    assert f"accuracy {accuracy['unmasked']:.1f}% unmasked" in card
    assert f"{accuracy['delta']:+.1f} points (95% interval {accuracy['low']:+.1f} to" in card
    assert f"{entry['n_beyond']} of 2 layer-matched" in card
    assert "edit every position" in card
    for number, flags in enumerate(
        (("--top_k", 3), ("--enhance_scale", 3), ("--suppress_scale", 0.5))
    ):
        card = (exported(run, tmp_path / f"b{number}", *flags) / CARD_FILE).read_text()
        assert "None yet" in card
    card = (exported(run, tmp_path / "c", condition="degrade") / CARD_FILE).read_text()
    assert "None yet" in card  # the run did not judge it
    # The scale that is not used does not matter.
    flags = ("--suppress_scale", 0)
    card = (
        exported(run, tmp_path / "d", *flags, condition="suppress_good") / CARD_FILE
    ).read_text()
    assert "points (95% interval" in card


def test_a_random_control_says_so(run, tmp_path):
    folder = exported(run, tmp_path / "a", condition="enhance.random_3")
    card = (folder / CARD_FILE).read_text()
    assert "seed 3" in card
    assert "None yet" in card
    assert Export.load(folder).condition == "enhance.random_3"


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_a_card_is_metadata_and_text_in_which_no_name_is_markup(kind):
    name = "```\n# x\n<script>`[a](b)|$(rm)"
    neurons = neuron_set(task=name, model=name, split=name, dtype="float32")
    card = adapter_card(Export.of(neurons, "enhance", Scales(), kind)[0], None)
    _, header, text = card.split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["library_name"] == {"peft": "peft", "merged": "transformers"}[kind]
    assert ("ia3" in values["tags"]) == (kind == "peft")
    assert "base_model" not in values
    in_code, outside = False, []
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        outside += [] if in_code else [line]
        assert not line.startswith("# x")
    assert not in_code
    assert "<script>" not in "\n".join(outside)
    assert "--tasks '" in text  # quoted for the shell
    made = Export.of(neuron_set(model="user/base"), "enhance", Scales(), kind)[0]
    assert yaml.safe_load(adapter_card(made, None).split("---\n")[1])["base_model"] == "user/base"


# Another base model -----------------------------------------------------------------------------


def test_an_adapter_on_other_weights_is_noticed(run, tmp_path, caplog):
    adapter = str(run.adapter("enhance"))
    lm = NeuronMaskedLM(str(model_dir()), peft=adapter, device="cpu", batch_size=4)
    assert "was made for other weights" not in caplog.text
    own = harness_model(model_dir()).model
    assert Weights.of_base(lm.model) == Weights.of(own) == Weights.of_base(own)
    assert Weights.of(lm.model) != Weights.of(own)
    with caplog.at_level(logging.WARNING):
        NeuronMaskedLM(str(model_dir(seed=1)), peft=adapter, device="cpu", batch_size=4)
    assert f"{adapter} was made for other weights than those of {model_dir(seed=1)}" in caplog.text


def test_a_model_of_other_weights_or_shape_is_not_merged(copied, tmp_path):
    change_settings(copied, model_args={"pretrained": str(model_dir(seed=1))})
    found = export(copied, tmp_path / "out", "--format", "merged")
    assert_one_message(found, 1, "found in other weights")
    change_settings(copied, model_args={"pretrained": str(model_dir(n_layers=3))})
    for kind in ("peft", "merged"):
        found = export(copied, tmp_path / "out", "--format", kind)
        assert_one_message(found, 1, "has 3 layers of 48")
    change_settings(copied, model_args={"pretrained": str(model_dir()), "peft": "a/b"})
    assert_one_message(export(copied, tmp_path / "out"), 1, "has peft='a/b' on top of it")
    change_settings(copied, model_args={"pretrained": "/no/such/model"})
    assert_one_message(export(copied, tmp_path / "out"), 1, "/no/such/model")
    assert not (tmp_path / "out").exists()


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "flags", "code", "parts"),
    [
        ("unmasked", (), 2, ("changes something",)),
        ("unmasked.random_1", (), 2, ("unmasked.random_1",)),
        ("improve", (), 2, ("unknown condition",)),
        ("enhance", ("--scale", 3), 2, ("scale=3.0", "suppress_scale")),
        ("enhance", ("--top_k", 7), 1, ("top_k=7",)),
        ("enhance", ("--top_k", 0), 1, ("top_k=0",)),
        ("enhance_good", ("--scale", "nan"), 2, ("scale is",)),
        ("enhance_good.k2.x3", ("--scale", 2), 2, ("names a factor itself",)),
        ("enhance", ("--format", "onnx"), 2, ("onnx",)),
        ("enhance", ("--format", "merged", "--device", "tpu9"), 2, ("tpu9",)),
    ],
)
def test_flags_that_cannot_be(run, tmp_path, condition, flags, code, parts):
    assert_one_message(export(run, tmp_path / "out", *flags, condition=condition), code, *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["neurons.json", "scores.safetensors", "run.yaml", "summary.json"])
def test_a_damaged_run_is_refused(copied, tmp_path, name):
    (copied.path / name).write_text('{"conditions": [{}]}')
    assert_one_message(export(copied, tmp_path / "out"), 1, name)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_task_or_several_are_refused(copied, tmp_path):
    change_settings(copied, task="demo_sentiment")
    assert_one_message(export(copied, tmp_path / "out"), 1, "demo_sentiment")
    copy_of(copied, tmp_path / "copy2")
    found = call("export", tmp_path, "--condition", "enhance", "--output_path", tmp_path / "out")
    assert_one_message(found, 2, "holds 2 runs: copy, copy2")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_but_an_export_on_request(run, tmp_path):
    first = exported(run, tmp_path / "out")
    before = contents(first)
    assert_one_message(export(run, first, "--top_k", 2), 2, "--overwrite")
    assert contents(first) == before
    exported(run, first, "--top_k", 2, "--overwrite")
    assert Export.load(first).top_k == 2
    exported(run, first, "--format", "merged", "--overwrite")
    assert not (first / "adapter_config.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for flags in ((), ("--overwrite",)):
        found = export(run, tmp_path / "mine", *flags)
        assert_one_message(found, 2, "contains something else")
    (tmp_path / "file").write_text("x")
    assert_one_message(export(run, tmp_path / "file"), 2, "not a directory")
    assert_one_message(export(run, tmp_path / "file" / "out"), 2, "not a directory")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine", "file"}


def test_a_folder_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "out"

    def write(text: str, fail: bool = False) -> None:
        with whole_folder(path) as folder:
            (folder / "file").write_text(text)
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write("one", fail=True)
    assert not list(tmp_path.iterdir())
    write("one")
    with pytest.raises(RuntimeError):
        write("two", fail=True)
    assert (path / "file").read_text() == "one"
    real = Path.rename

    def rename(self, target):  # the second of the two, into place
        if target == path and not self.name.endswith(".before"):
            raise OSError("no")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="no"):
            write("two")
    assert (path / "file").read_text() == "one"
    write("two")
    assert (path / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "onnx"), ("top_k", "3"), ("n_scaled", -1), ("condition", "improve"),
        ("scales", {"suppress": 0, "enhance": "x"}), ("scales", {}), ("schema_version", 2),
        ("provenance", {}), ("more", 1),
    ],
)  # fmt: skip
def test_a_damaged_record_of_an_export_is_refused(run, tmp_path, name, value):
    values = json.loads((run.adapter("enhance") / EXPORT_FILE).read_text())
    (tmp_path / EXPORT_FILE).write_text(json.dumps({**values, name: value}))
    with pytest.raises(ArtifactError, match=EXPORT_FILE):
        Export.load(tmp_path)


def test_a_model_that_can_have_no_adapter_is_identified_without(tmp_path, monkeypatch):
    from neuronllm_eval.errors import ModelError
    from neuronllm_eval.export import ia3_adapter

    def refuse(*_: object) -> None:
        raise ModelError("odd layers")

    monkeypatch.setattr(ia3_adapter, "ia3_site", refuse)
    code, _, err = call(*identify(tmp_path, "--top_k", 6))
    assert code == 0, err
    assert (tmp_path / "demo_topic" / "neurons.json").is_file()
    assert not (tmp_path / "demo_topic" / "adapters").exists()
