"""The functions of the package: the command line's work, its checks, and typed results."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuronllm_eval
from neuronllm_eval import Run, api, identify, validate
from neuronllm_eval.cli import commands
from neuronllm_eval.errors import ArtifactError, ModelError, NeuronLLMError, UsageError
from neuronllm_eval.formats.digests import SUMS_FILE
from neuronllm_eval.runs.settings import IdentifySettings
from tests.fixtures.cli import (
    copy_of,
    finished_run,
    jsonl,
    settings_of,
    without_the_harness_tasks,
)
from tests.fixtures.harness import model_dir

# As `cli.identify` and `QUICK` say it in words.
CHOSEN = {"tasks": ["demo_topic"], "limit": 4, "top_k": 6}
JUDGED = {"n_random": 2, "conditions": ["suppress_good", "enhance"]}


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """The run of `finished_run`, made from Python."""
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        made = identify(
            **CHOSEN,
            model_args={"pretrained": str(model_dir())},
            device="cpu",
            output_path=tmp_path_factory.mktemp("runs"),
        )
        return validate(made[0], **JUDGED)[0]


def files(path: Path) -> dict[str, bytes]:
    """The files of a run but for results, commands and digests of these: paths and times differ."""
    kept = (each for each in path.rglob("*") if each.is_file() and each.parent.name != "results")
    return {
        str(each.relative_to(path)): without_paths(each.read_bytes(), path)
        for each in kept
        if each.name not in ("commands.jsonl", ".lock", SUMS_FILE)
    }


def without_paths(content: bytes, path: Path) -> bytes:
    """The commands in reports name the folder."""
    return content.replace(str(path).encode(), b"OUT").replace(str(path.parent).encode(), b"OUT")


def loaded(**settings):
    path = model_dir(**settings)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


# The same as the command line --------------------------------------------------------------------


def test_the_files_are_those_of_the_command_line(run):
    command_line = finished_run()
    found = files(run.path)
    assert found == files(command_line.path)
    assert len(found) > 12
    for name in run.docs.conditions:
        theirs, ours = (
            json.loads(each.result(name).read_text()) for each in (command_line, run.directory)
        )
        assert theirs["results"] == ours["results"]


def test_the_commands_that_are_noted_do_the_same(run):
    ours, theirs = (
        [settings_of(*line["command"][1:]) for line in jsonl(each.commands)]
        for each in (run.directory, finished_run())
    )
    left_out = {"output_path", "run_dir"}
    for own, other in zip(ours, theirs, strict=True):
        for one, its in zip(own, other, strict=True):
            assert one.model_dump(exclude=left_out) == its.model_dump(exclude=left_out)
    assert jsonl(run.directory.commands)[1]["command"][:3] == [
        "neuronllm-eval", "validate", str(run.path)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "models"),
    [
        (identify, commands.BY_NAME["identify"].models),
        (validate, commands.BY_NAME["validate"].models),
    ],
)
def test_the_keywords_are_the_settings(function, models):
    parameters = inspect.signature(function).parameters
    settings = {name for model in models for name in model.model_fields} - {"model", "dry_run"}
    assert set(parameters) - {"model", "tokenizer", "progress"} == settings
    for name in parameters:
        assert f"\n        {name}: " in function.__doc__, "then it is not explained"
    defaults = {name: each.default for name, each in parameters.items() if name != "run_dir"}
    assert defaults.pop("progress") is False
    assert set(defaults.values()) == {None}  # all others are the settings'


# What is refused, and what is said ----------------------------------------------------------------


def test_types_and_devices_of_torch_are_taken_as_text(tmp_path):
    with pytest.raises(NeuronLLMError, match="no_such_task"):  # nothing before that is refused
        identify(
            model_args={"pretrained": Path("x"), "dtype": torch.float32},
            device=torch.device("cpu"),
            tasks="no_such_task",
            output_path=tmp_path,
        )
    read = IdentifySettings.read(
        {"model_args": {"dtype": torch.float32}, "device": torch.device("cpu")}
    )
    assert (read.model_args, read.device) == ({"dtype": "float32"}, "cpu")


def test_an_argument_that_no_file_can_hold_is_refused_before_any_work():
    with pytest.raises(NeuronLLMError, match="quantization_config is a object"):
        identify(model_args={"pretrained": "x", "quantization_config": object()})


def test_an_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="topk"):
        identify(topk=3)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"top_z": "many"}, "top_z is 'many'.\nExpected: a number"),
        ({"top_k": 0}, "top_k is 0"),
        ({"method": "psychic"}, "psychic"),
        ({"overwrite": 3}, "overwrite is 3"),
        ({"tasks": "demo_topc"}, "demo_topc"),
        ({"model_args": {"pretrained": "no/such/model"}}, "no/such/model"),
        ({"tokenizer": object()}, "tokenizer without model"),
        ({"model": "gpt2"}, "model is a str"),
    ],
)
def test_a_mistake_raises_and_prints_nothing(given, part, tmp_path, capfd):
    defaults = {"output_path": tmp_path / "runs", "device": "cpu", "limit": 2}
    if "model" in given:
        given = given | {"model_args": {"pretrained": "x"}, "device": None}
    with pytest.raises(NeuronLLMError) as error:
        identify(**{**defaults, **given})
    assert part in str(error.value)
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="holds no run"):
        validate(tmp_path)


def test_nothing_is_printed_unless_asked(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (found,) = identify(
        **CHOSEN,
        model_args={"pretrained": str(model_dir())},
        device="cpu",
        output_path=tmp_path,
    )
    validate(found, conditions="degrade", n_random=1)
    said = capfd.readouterr()
    assert said.out == ""
    assert "question" not in said.err
    assert "it/s" not in said.err


# A model in memory --------------------------------------------------------------------------------


def test_a_model_in_memory_gives_the_same_run(run, tmp_path):
    model, tokenizer = loaded()
    named = {"pretrained": str(model_dir())}
    given = {"model": model, "tokenizer": tokenizer}
    (found,) = identify(**CHOSEN, **given, model_args=named, output_path=tmp_path)
    (found,) = validate(found, **given, **JUDGED)
    expected = files(run.path)
    differing = {name for name, content in files(found.path).items() if expected[name] != content}
    # The settings, and the commands that make the run again: one of the two names the device.
    assert differing == {"run.yaml", "report.md", "report.html", "README.md"}
    same = run.settings.model_copy(update={"device": None})
    assert found.settings == same
    assert tokenizer.pad_token is not None


def test_a_model_in_memory_names_itself(tmp_path):
    model, _ = loaded()
    (found,) = identify(**CHOSEN, model=model, output_path=tmp_path)
    assert found.settings.model_args == {"pretrained": str(model_dir()), "dtype": "float32"}
    # Whoever comes later loads it by that name, and finds other weights where it was changed.
    assert validate(found, **JUDGED)[0].summaries
    model.lm_head.weight.data += 1
    with pytest.raises(ModelError, match="other weights"):
        validate(found, model=model, **JUDGED)


def test_a_model_without_a_name_needs_one(tmp_path):
    model, tokenizer = loaded()
    model.name_or_path = ""
    with pytest.raises(UsageError, match="no name_or_path"):
        identify(model=model, tokenizer=tokenizer, output_path=tmp_path)


def test_a_model_in_memory_stays_on_its_device(run):
    model, _ = loaded()
    with pytest.raises(UsageError, match="a model stays on its device"):
        validate(run, model=model, device="cpu")


# Results ------------------------------------------------------------------------------------------


def test_a_run_gives_what_its_files_hold(run):
    assert (run.task, run.method) == ("demo_topic", "ace")
    assert run.is_validated
    assert len(run.neurons.good) == 6
    assert run.scores.score.shape == run.neurons.shape
    assert len(run.questions) == 4
    assert run.validation.top_k == 6
    theirs, ours = (
        without_paths(each.report.read_bytes(), each.path)
        for each in (finished_run(), run.directory)
    )
    assert ours == theirs
    written = json.loads(run.directory.summary.read_text())
    for each in written["conditions"]:
        ours = run.summaries[each["name"]]
        assert dataclasses.asdict(ours.accuracy) == each["accuracy"]
        assert run.metrics(each["name"]) == each["metrics"]
    assert dataclasses.asdict(run.split_half) == written["split_half"]
    assert run.docs.correct["enhance.random_1"].shape == (12,)


def test_a_run_without_its_files_says_which(tmp_path):
    for name in ("settings", "report", "neurons"):
        with pytest.raises(ArtifactError, match=str(tmp_path)):
            getattr(Run(tmp_path), name)


# The package's own names --------------------------------------------------------------------------


def test_public_names_are_there_and_no_others():
    for name in neuronllm_eval.__all__:
        assert getattr(neuronllm_eval, name) is not None
    assert set(neuronllm_eval.__all__) <= set(dir(neuronllm_eval))
    with pytest.raises(AttributeError, match="identfy"):
        neuronllm_eval.identfy  # noqa: B018
    assert neuronllm_eval.identify is api.identify


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import sys, neuronllm_eval; print([n for n in ('torch', 'lm_eval') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_what_a_run_does_not_have_is_said(tmp_path):
    run = Run(str(copy_of(finished_run(), tmp_path / "run").path))
    with pytest.raises(ArtifactError, match=r"(?s)no result of .*nope.*suppress_good"):
        run.metrics("nope")
    run.directory.conditions.unlink()
    fresh = Run(run.path)
    for ask in (lambda: fresh.docs, lambda: fresh.summaries, lambda: fresh.metrics("degrade")):
        with pytest.raises(ArtifactError, match=r"(?s)is not validated.*call validate"):
            ask()
