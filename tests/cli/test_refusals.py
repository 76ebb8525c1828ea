"""Bad input on the command line: one message, no traceback, and nothing lost."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import MambaConfig, MambaForCausalLM

from neuronllm_eval.cli import evaluate as commands
from neuronllm_eval.cli import main as cli
from neuronllm_eval.errors import NeuronLLMError
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import IdentifySettings
from neuronllm_eval.stages import evaluate
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.harness import (
    TaskFolder,
    model_dir,
    scratch,
    some_docs,
    word_tokenizer,
)


@pytest.fixture(scope="module")
def run() -> RunDirectory:
    return finished_run()


@pytest.fixture
def copied(run, tmp_path) -> RunDirectory:
    return copy_of(run, tmp_path / "copy")


@pytest.fixture
def only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


# Bad input --------------------------------------------------------------------------------------


@functools.cache
def model_without_ffn() -> Path:
    path = scratch() / "mamba"
    config = MambaConfig(
        vocab_size=len(word_tokenizer()), hidden_size=16, num_hidden_layers=2, state_size=4
    )
    MambaForCausalLM(config).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def odd_tasks(tmp_path) -> TaskFolder:
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("said", output_type="generate_until", doc_to_choice=None,
                 metric_list=[{"metric": "exact_match"}])  # fmt: skip
    folder.write("shared", {"train": some_docs(0, 5), "test": some_docs(3, 5)})
    folder.write("one_split", training_split="test")
    right, wrong = some_docs(0, 1)[0], {**some_docs(1, 1)[0], "answer": 9}
    folder.write("no_gold", {"train": [right, wrong], "test": some_docs(9)})
    folder.write("no_first_gold", {"train": [wrong, right], "test": some_docs(9)})
    return folder


@pytest.mark.parametrize(
    ("task", "code", "parts"),
    [
        ("no_such_task", 1, ("unknown task 'no_such_task'", "--include_path")),
        ("said", 1, ("task said has output_type generate_until", "multiple_choice")),
        ("shared", 1, ("2 questions of the selection split are in the validation split", "drop")),
        ("one_split", 1, ("the selection split 'test' is also the validation split",)),
        ("no_gold", 1, ("doc 1 of task no_gold has gold 9", "0 to 3")),  # is skipped by default
        ("no_first_gold", 1, ("no_first_gold",)),  # lm_eval itself fails on reading it
    ],
)
def test_tasks_that_are_refused(tmp_path, odd_tasks, only_own_tasks, task, code, parts):
    flags = ("--include_path", odd_tasks.path, "--on_bad_doc", "fail")
    assert_one_message(call(*identify(tmp_path / "runs", *flags, task=task)), code, *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--n_steps", 0), 2, ("n_steps is 0", "2 to 1000 nodes")),
        (("--n_steps", -4), 2, ("n_steps is -4",)),
        (("--top_k", 0), 2, ("top_k is 0", "1 to 96")),
        (("--top_k", 97), 2, ("top_k is 97", "1 to 96")),
        (("--top_k", 2.5), 2, ("top_k is 2.5",)),
        (("--top_z", 0), 2, ("top_z is 0", "1 to 48")),
        (("--top_z", 49), 2, ("top_z is 49", "1 to 48")),
        (("--limit", 0), 2, ("limit is 0", "1 or more")),
        (("--batch_size", 0), 2, ("batch_size is 0",)),
        (("--n_proxies", 0), 2, ("n_proxies is 0",)),
        (("--num_fewshot", -1), 2, ("num_fewshot is -1", "0 or more")),
        (("--include_path", "no/such/folder"), 2, ("no/such/folder is not a directory",)),
        (("--selection_split", "dev"), 1, ("no split 'dev'", "selection, validation")),
        (("--selection_split", "validation"), 1, ("also the validation split", "different docs")),
        (("--model_args", "pretrained=no/such/model"), 1, ("'no/such/model' cannot be loaded",)),
        (("--model_args", "pretrained=/no/such/model"), 1, ("'/no/such/model' cannot be loaded",)),
        (("--model_args", "dtype=float32"), 2, ("names no model", "pretrained=")),
        (("--model_args", "pretrained"), 1, ("the model '' cannot be loaded", "pretrained=NAME")),
        (("--model_args", "pretrained={model},dtype=float99"), 1, ("float99",)),
        (("--model_args", "pretrained={model},no_such_setting=1"), 1, ("no_such_setting",)),
        (("--n_options", 27), 2, ("n_options is 27", "2 to 26")),
        (("--metadata", '{"n_option": 2}'), 2, ("'n_option' is unknown", "'n_options'")),
        (("--metadata", '{"orders": "any"}'), 2, ("orders is 'any'", "original")),
        (("--apply_chat_template",), None, ("chat template",)),  # the tokenizer has none
        (("--num_fewshot", 100), None, ("demo_topic",)),  # there are not so many
        (("--model_args", "pretrained={mamba}"), 1, ("no FFN down-projection",)),
    ],
)  # fmt: skip
def test_identify_refuses(tmp_path, only_own_tasks, flags, code, parts):
    folders = {"model": model_dir(), "mamba": model_without_ffn()}
    given = [re.sub(r"{(model|mamba)}", lambda m: str(folders[m[1]]), str(flag)) for flag in flags]
    assert_one_message(call(*identify(tmp_path, *given)), code, *parts)


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("--n_steps", 0, "n_steps is 0"),
        ("--n_steps", 1, "2 to 1000 nodes"),  # auto begins with gauss_lobatto
        ("--output_path", "{file}", "cannot be written"),
        ("--output_path", "{file}/deeper", "cannot be written"),
        ("--output_path", "{place}", "demo_topic/neurons.json is a folder"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    tmp_path, only_own_tasks, monkeypatch, flag, value, part
):
    monkeypatch.setattr(evaluate, "load_model", lambda _: pytest.fail("a model is loaded"))
    (tmp_path / "file").touch()
    (tmp_path / "place" / "demo_topic" / "neurons.json").mkdir(parents=True)
    given = str(value).format(file=tmp_path / "file", place=tmp_path / "place")
    assert_one_message(call(*identify(tmp_path / "runs", flag, given)), None, part)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--n_steps", 0), ("--top_k", 97), ("--top_z", 0), ("--selection_split", "dev"),
     ("--model_args", "pretrained=no/such/model")],
)  # fmt: skip
def test_a_refused_command_leaves_the_run_that_was_there(copied, tmp_path, flag, value):
    # --overwrite means: put a new run in its place, not: take the old one away.
    output = tmp_path / "runs"
    shutil.copytree(copied.path, output / "demo_topic")
    before = sorted(path.name for path in (output / "demo_topic").iterdir())
    assert call(*identify(output, "--overwrite", flag, value))[0] in (1, 2)
    assert sorted(path.name for path in (output / "demo_topic").iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--conditions", "harm"), 2, ("unknown condition 'harm'", "suppress_good", "enhance")),
        (("--conditions", "degrade,", "harm.random_1"), 2, ("unknown condition 'harm.random_1'",)),
        (("--n_random", -1), 2, ("n_random is -1",)),
        (("--enhance_scale", "nan"), 2, ("enhance_scale is 'nan'",)),
        (("--top_k", 7), 2, ("top_k=7 of a set selected with top_k=6", "1 to 6")),
        (("--top_k", "2,7"), 2, ("top_k=7 of a set selected with top_k=6", "identify", "larger")),
        (("--top_k", "97"), 2, ("top_k is 97", "1 to 96")),
        (("--top_k", "2,six"), 2, ("top_k is '2,six'", "numbers with commas", "--top_k")),
        (("--top_k", ""), 2, ("top_k is ''", "numbers with commas")),
        (("--top_k", "2,,4"), 2, ("top_k is '2,,4'", "numbers with commas")),
        (("--top_k", "2,2.0"), 2, ("top_k holds 2 more than once",)),
        (("--top_k", "2.5,4"), 2, ("top_k is 2.5",)),
        (("--top_k", "0"), 2, ("top_k is 0", "a count from 1")),
        (("--scale", "half"), 2, ("scale is 'half'", "--scale")),
        (("--scale", ","), 2, ("scale is ','",)),
        (("--scale", "0,0.5,0.50"), 2, ("scale holds 0.5 more than once",)),
        (("--scale", "0,-2"), 2, ("scale is -2", "0 or more")),
        (("--scale", "nan"), 2, ("scale is 'nan'", "numbers")),
        (("--scale", "1"), 2, ("scale holds 1 alone",)),
        (
            ("--scale", "0,4", "--conditions", "degrade,suppress_bad"),
            2,
            ("no condition takes scale 4: degrade, suppress_bad", "enhance_good", "--conditions"),
        ),
        (("--conditions", "suppress_good.k7.x0"), 2, ("top_k=7 of a set selected with top_k=6",)),
        (("--conditions", "suppress_good.k3"), 2, ("unknown condition 'suppress_good.k3'",)),
        (("--limit", 0), 2, ("limit is 0",)),
        (("--batch_size", 0), 2, ("batch_size is 0",)),
    ],
)
def test_validate_refuses_and_keeps_what_is_there(copied, flags, code, parts):
    before = copied.conditions.read_bytes()
    assert_one_message(call("validate", copied.path, *flags), code, *parts)
    assert copied.conditions.read_bytes() == before


def test_validate_refuses_a_bad_condition_before_any_work(tmp_path):
    arguments = identify(tmp_path / "runs", "--conditions", "harm")[1:]
    assert_one_message(call(*arguments, entry=cli.run_eval_main), 2, "unknown condition 'harm'")
    assert not (tmp_path / "runs").exists()


def test_too_many_neurons_for_the_last_run_are_refused_before_the_first_is_evaluated(run, tmp_path):
    first = copy_of(run, tmp_path / "runs" / "a")
    second = copy_of(run, tmp_path / "runs" / "b")
    second.neurons.write_text(NeuronSet.load(second.neurons).top(3).to_json())
    before = first.conditions.read_bytes()
    result = call("validate", tmp_path / "runs", "--top_k", "2,5", "--n_random", 0)
    assert_one_message(result, 2, "top_k=5 of a set selected with top_k=3")
    assert first.conditions.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--top_k", "2,4", "--scale", "0,x"), ("scale is '0,x'",)),
        (("--top_k", "2,0.1"), ("top_k holds shares and counts: 2, 0.1",)),
        (("--top_k", "four"), ("top_k is 'four'",)),
        (("--top_k", "2,97"), ("top_k is 97", "1 to 96")),
    ],
)
def test_run_eval_refuses_a_bad_sweep_before_any_work(tmp_path, flags, parts):
    arguments = identify(tmp_path / "runs", *flags)[1:]
    assert_one_message(call(*arguments, entry=cli.run_eval_main), 2, *parts)
    assert not (tmp_path / "runs").exists()


def test_identify_chooses_one_number_of_neurons(tmp_path):
    result = call(*identify(tmp_path / "runs", "--top_k", "2,6"))
    assert_one_message(result, 2, "top_k holds 2 numbers", "one number for identify", "the largest")
    assert not (tmp_path / "runs").exists()


def test_neurons_of_another_model(copied):
    change_settings(copied, model_args={"pretrained": str(model_dir(n_layers=3))})
    before = copied.conditions.read_bytes()
    assert_one_message(
        call("validate", copied.path), 1, "of 2 layers of 48 neurons", "has 3 layers of 48"
    )
    assert copied.conditions.read_bytes() == before


@pytest.mark.parametrize("command", ["validate", "report"])
def test_a_run_directory_that_is_missing(tmp_path, command):
    result = call(command, tmp_path / "nowhere")
    assert_one_message(result, 1, "nowhere holds no run", "identify")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("judge",),
        ("identify", "--no_such_flag"),
        ("identify", "--engine", "steam"),
        ("identify", "--quadrature", "simpson"),
        ("identify", "--method", "luck"),
        ("identify", "--ambiguous", "maybe"),
        ("identify", "--overlap", "keep"),
        ("identify", "--limit", "few"),
        ("identify", "--metadata", "{"),
        ("identify", "--metadata", "[1]"),
        ("identify", "--orders", "random"),
        ("identify", "--letter_style", "1."),
        ("identify", "--distractors", "some"),
        ("identify", "--on_bad_doc", "ignore"),
        ("validate",),
    ],
)
def test_flags_that_do_not_parse(arguments):
    assert_one_message(call(*arguments), 2)


@pytest.mark.parametrize(
    ("own", "given", "unknown"),
    [
        ("identify", ("--lmit", 3), "--lmit 3 (perhaps --limit is meant)"),
        ("tasks make", ("x", "-o", "y", "--order=a"), "--order=a (perhaps --orders is meant)"),
        ("validate", ("x", "y"), "y."),
    ],
)
def test_an_unknown_flag_leads_to_the_help_of_its_command(own, given, unknown):
    said = f"neuronllm-eval {own}: unrecognized arguments: {unknown}"
    assert_one_message(call(*own.split(), *given), 2, said, f"see `neuronllm-eval {own} --help`")


def test_processes_that_no_launcher_started(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(*identify(tmp_path))
    assert_one_message(result, 2, "the 2 processes cannot reach each other", "MASTER_ADDR")


@pytest.mark.parametrize("rank", ["abc", "", "-1", "9" * 5000])
def test_a_rank_that_is_no_number(copied, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    assert_one_message(call("report", copied.path), 2, "RANK is '", "unset RANK")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_report_that_cannot_be_written_is_printed(copied, monkeypatch, number):
    def full(path: Path, _: bytes) -> int:
        raise OSError(number, os.strerror(number), str(path))

    shown = call("report", copied.path)[1]
    monkeypatch.setattr(Path, "write_bytes", full)
    result = call("report", copied.path)
    assert_one_message(result, 1, "the report cannot be written", os.strerror(number))
    assert "resumes" not in result[2]
    assert result[1] == shown


def test_one_process_reports_for_all(copied, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert call("report", copied.path) == (0, "", "")


@pytest.mark.parametrize(
    "given", [["pretrained=m,dtype=float32"], ["pretrained=m", "dtype=float32"]]
)
def test_model_args_in_either_form(given):
    settings = IdentifySettings.read({"model_args": given})
    assert settings.model_args == {"pretrained": "m", "dtype": "float32"}


def test_an_error_of_ours_is_one_message_and_any_other_escapes(monkeypatch):
    def fails_with(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(commands, "report", fail)

    fails_with(NeuronLLMError("a", expected="b", remedy="c"))
    assert call("report", "x") == (1, "", "error: a.\nExpected: b.\nRemedy: c.\n")
    fails_with(KeyboardInterrupt())
    assert call("report", "x")[0] == 130
    fails_with(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        call("report", "x")


def test_lm_eval_s_command_line_says_how_to_get_a_converted_task():
    result = call("run", "--model", "hf", "--tasks", "demo_topic,aqua:arc_easy")
    assert_one_message(result, 2, "does not know aqua:arc_easy", "tasks make arc_easy")
