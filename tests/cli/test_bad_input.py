"""Bad input of every kind: one message with found, expected and remedy, and nothing lost.

More tables: flags in `test_cli_refusals`, run directories in `test_bad_artifacts`, models in
`test_bad_models`.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.errors import TaskError
from neuronllm_eval.runs.directory import folder_name
from tests.fixtures.cli import (
    assert_one_message,
    call,
    copy_of,
    finished_run,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents, laughs
from tests.fixtures.harness import TaskFolder, model_dir, some_docs
from tests.fixtures.processes import run_module

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def _only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--colour", "red"), 2, ("unrecognized arguments: --colour red", "--help")),
        (("--tasks", ""), 2, ("tasks is ['']", "--tasks")),
        (("--tasks", ","), 2, ("tasks is [',']",)),
        (("--output_path", ""), 2, ("output_path is ''", "a path")),
        (("--include_path", ""), 2, ("include_path is ['']", "paths")),
        (("--include_path", sys.executable), 2, ("is not a directory",)),
        (("--limit", "few"), 2, ("limit is 'few'", "a whole number, 1 or more")),
        (("--metadata", DEEP), 2, ("metadata is '[[[", "a JSON object")),
        (("--metadata", '{"a": ' + "9" * 5000 + "}"), 2, ("metadata is ", "a JSON object")),
        (("--metadata", '{"overrides": 5}'), 2, ("overrides is 5", "--metadata")),
        (("--metadata", '{"overrides": 5}', "--n_proxies", 2), 2, ("overrides is 5",)),
        (("--metadata", '{"seed": NaN}'), 2, ("seed is nan", "a whole number")),
        (("--metadata", '{"question": "{{ no }}"}'), 1, ("no column 'no'", "dataset_kwargs")),
        (("--top_k", "nan"), 2, ("top_k is 'nan'", "numbers")),
        (("--top_k", "1e400"), 2, ("top_k is '1e400'", "numbers")),
        (("--top_z", "nan"), 2, ("top_z is 'nan'", "a number")),
        (("--n_steps", 10**9), 2, ("n_steps is 1000000000", "2 to 1000")),
        (("--num_fewshot", 10**12), 1, ("cannot build the requests", "--num_fewshot")),
        (("--selection_split", ""), 1, ("no split ''", "selection, validation")),
        (("--description", "much " * 4000), 1, ("longer than the model's context",)),
        (("--system_instruction", "\ud800"), 1, ("surrogates not allowed",)),
        (("--device", "meta"), 2, ("--device meta is not there",)),
        (("--device", "cpu:7"), 2, ("--device cpu:7 is not there",)),
        (("--device", "cuda:99"), 2, ("--device cuda:99 is not there", "CUDA_VISIBLE_DEVICES")),
    ],
)
def test_flags_of_identify(tmp_path, flags, code, parts):
    arguments = identify(tmp_path / "runs", *flags)
    assert_one_message(call(*arguments), code, *parts)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("value", "code", "parts"),
    [
        ("max_length=abc", 2, ("max_length is 'abc'", "a whole number from 1")),
        ("max_length=0", 2, ("max_length is 0", "from 1")),
        ("max_length=1.5", 2, ("max_length is 1.5",)),
        ("max_length=5", 1, ("longer than the model's context",)),
        ("add_bos_token=maybe", 2, ("add_bos_token is 'maybe'", "True or False")),
        ("trust_remote_code=1", 2, ("trust_remote_code is 1", "True or False")),
        ("parallelize=yes", 2, ("parallelize is 'yes'", "True or False")),
        ("prefix_token_id=-1", 2, ("prefix_token_id is -1", "from 0")),
        ("device=banana", 2, ("--device is cpu, and device=banana",)),
        ("batch_size=abc", 2, ("batch_size=abc in --model_args", "pass --batch_size")),
        ("dtype=float99", 1, ("cannot be loaded", "float99")),
        ("peft=/no/such", 1, ("cannot be loaded", "/no/such")),
        ("tokenizer=/no/such", 1, ("cannot be loaded", "/no/such")),
        ("backend=x", 2, ("backend=x in --model_args", "default or causal")),
        ("a=b=c", 1, ("cannot be loaded", "'a'")),
    ],
)
def test_model_args_of_identify(tmp_path, value, code, parts):
    given = f"pretrained={model_dir()},{value}"
    result = call(*identify(tmp_path / "runs", "--model_args", given))
    assert_one_message(result, code, *parts)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        (("--n_random", 10**9), 2, ("n_random is 1000000000", "0 to 1000")),
        (("--enhance_scale", "1e39"), 2, ("the enhance scale is 1e+39", "3.4e+38")),
        (("--suppress_scale", "inf"), 2, ("suppress_scale is 'inf'", "a number")),
        (("--conditions", ""), 2, ("conditions is ['']",)),
        (("--conditions", "../../x"), 2, ("unknown condition '../../x'",)),
        (("--conditions", "enhance.random_\u0663"), 2, ("unknown condition",)),  # an Arabic 3
        (("--conditions", "enhance.random_01"), 2, ("unknown condition 'enhance.random_01'",)),
        (("--conditions", "enhance.random_" + "1" * 5000), 2, ("unknown condition",)),
        (("--device", "meta"), 2, ("--device meta is not there",)),
        (("--engine", "steam"), 2, ("argument --engine", "invalid choice")),
    ],
)
def test_flags_of_validate(tmp_path, flags, code, parts):
    run = copy_of(finished_run(), tmp_path / "run")
    before = contents(tmp_path)
    assert_one_message(call("validate", run.path, *flags), code, *parts)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ((), 2, ("COMMAND", "--help")),
        (("judge",), 2, ("invalid choice: 'judge'",)),
        (("report", ""), 2, ("run_dir is ''", "a path")),
        (("validate", ""), 2, ("run_dir is ''", "a path")),
        (("tasks", "make", "../../x", "--output_path", "made"), 1, ("unknown task '../../x'",)),
        (("tasks", "make", "x", "--output_path", sys.executable), 2, ("is not a folder",)),
        (("tasks", "make", "x", "--output_path", ""), 2, ("output_path is ''", "a path")),
    ],
)
def test_other_commands(tmp_path, monkeypatch, arguments, code, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_message(call(*arguments), code, *parts)
    assert contents(tmp_path) == {}


# The masked model, through lm_eval's own command line ---------------------------------------------

HERE = "neurons={run}"  # filled in when the test runs


@pytest.mark.parametrize(
    ("given", "code", "parts"),
    [
        (f"{HERE},condition=degrade", 2, ("names no model", "pretrained=")),
        ("pretrained=/no/such", 1, ("'/no/such' cannot be loaded",)),
        ("{model},neurons=/no/such,condition=degrade", 1, ("there is no /no/such/neurons.json",)),
        ("{model},neurons=5,condition=degrade", 2, ("neurons is 5", "run directory")),
        ("{model},condition=degrade", 2, ("condition=degrade without neurons",)),
        (f"{{model}},{HERE}", 2, ("neurons without a condition", "suppress_good")),
        (f"{{model}},{HERE},condition=harm", 2, ("unknown condition 'harm'",)),
        (f"{{model}},{HERE},condition=5", 2, ("unknown condition 5",)),
        (f"{{model}},{HERE},condition=degrade,positions=5", 2, ("positions is 5", "scored or all")),
        (f"{{model}},{HERE},condition=enhance_bad,scale=x", 2, ("the enhance scale is 'x'",)),
        (f"{{model}},{HERE},condition=enhance_bad,scale=1e39", 2, ("the enhance scale is 1e+39",)),
        (f"{{model}},{HERE},condition=degrade,top_k=7", 1, ("top_k=7", "1 to 6")),
        (f"{{model}},{HERE},condition=degrade,top_k=x", 2, ("top_k is 'x'",)),
        (f"{{model}},{HERE},condition=degrade,max_length=abc", 2, ("max_length is 'abc'",)),
        (f"{{model}},{HERE},condition=degrade,dtype=float99", 1, ("cannot be loaded", "float99")),
        (f"{{model}},{HERE},condition=degrade,colour=red", 1, ("cannot be loaded", "colour")),
        (f"{{model}},{HERE},condition=degrade,peft=/no/such", 1, ("cannot be loaded", "/no/such")),
        (f"{{deeper}},{HERE},condition=degrade", 1, ("of 2 layers of 48 neurons", "has 3 layers")),
        (f"{{model}},{HERE},condition=degrade,batch_size=x", 1, ("lm_eval stopped", "batch_size")),
    ],
)
def test_the_masked_model(tmp_path, monkeypatch, given, code, parts):
    monkeypatch.chdir(tmp_path)
    before = contents(finished_run().path)
    model, deeper = f"pretrained={model_dir()}", f"pretrained={model_dir(n_layers=3)}"
    arguments = ("--tasks", "demo_topic", "--limit", 3, "--device", "cpu", "--model_args")
    filled = given.replace("{model}", model).replace("{deeper}", deeper)
    filled = filled.replace("{run}", str(finished_run().path))
    assert_one_message(call("run", "--model", "neuronllm", *arguments, filled), code, *parts)
    assert contents(finished_run().path) == before
    assert contents(tmp_path) == {}


def test_a_task_that_lm_eval_does_not_know():
    model = f"pretrained={model_dir()}"
    result = call("run", "--model", "neuronllm", "--tasks", "no_such", "--model_args", model)
    assert_one_message(result, 1, "no_such", "lm_eval ls tasks")


# Tasks and docs ---------------------------------------------------------------------------------

FILES = {"load": None, "load_kwargs": None}


def altered(**changes: object) -> dict[str, list[dict]]:
    """Splits whose first has docs with other values."""
    return {"train": [{**doc, **changes} for doc in some_docs(0)], "test": some_docs(9)}


@pytest.mark.parametrize(
    ("config", "code", "parts"),
    [
        ({"doc_to_text": "{{ nope }}"}, 1, ("'nope' is undefined",)),
        ({"doc_to_text": "{{ question"}, 1, ("unexpected end of template",)),
        ({"doc_to_target": "nope"}, 1, ("has gold 'nope'", "0 to 3")),
        ({"doc_to_choice": []}, 1, ("a_task cannot be loaded",)),
        ({"doc_to_choice": ["A"] * 4}, 1, ("become the same tokens",)),
        ({"metric_list": [{"metric": "luck"}]}, 1, ("a_task cannot be loaded",)),
        ({"metric_list": 5}, 1, ("a_task cannot be loaded",)),
        ({"num_fewshot": "many"}, 1, ("a_task cannot be loaded",)),
        ({"colour": "red"}, 1, ("a_task cannot be loaded", "colour")),
        ({"test_split": None}, 1, ("a_task cannot be loaded", "valid or test docs")),
        ({"test_split": "gone"}, 1, ("a_task cannot be loaded", "gone")),
        ({"splits": {"train": some_docs(0), "test": []}}, 1, ("a_task cannot be loaded",)),
        ({"aqua": True, "splits": altered(choices=["x"] * 4)}, 1, ("repeated options",)),
        ({"aqua": True, "splits": altered(choices=["x"])}, 1, ("fewer than 2 options",)),
        ({"aqua": True, "splits": altered(choices=None)}, 1, ("options are not texts",)),
        ({"aqua": True, "splits": altered(question=None)}, 1, ("no question", "train")),
        ({"aqua": True, "splits": altered(answer="zzz")}, 1, ("the gold 'zzz'",)),
        ({"aqua": True, "splits": altered(question="much " * 5000)}, 1, ("longer than",)),
        ({"aqua": True, "metadata": {"n_proxies": "three"}}, 2, ("n_proxies is 'three'",)),
        ({"aqua": True, "metadata": {"n_optons": 3}}, 2, ("'n_optons' is unknown", "n_options")),
        ({"aqua": True, "metadata": {"overrides": 5}}, 2, ("overrides is 5",)),
        ({"aqua": True, "data": {"choices": "nope"}}, 1, ("no column 'nope'",)),
        ({"aqua": True, "data": {"question": "{{ nope"}}, 1, ("is not valid Jinja",)),
        ({"aqua": True, "data": {"selection_split": 5}}, 1, ("no split 5", "train, test")),
        ({"aqua": True, "data": {"load": "no.such.function"}}, 1, ("No module named 'no'",)),
        ({"aqua": True, "data": {"load": 5}}, 1, ("the data cannot be loaded",)),
        ({"aqua": True, "data": {"load": "sys.exit", "load_kwargs": {}}}, 1, ("SystemExit",)),
        ({"aqua": True, "data": {**FILES, "path": "no/such"}}, 1, ("Couldn't reach 'no/such'",)),
        ({"aqua": True, "data": {**FILES, "data_files": [1]}}, 1, ("data_files is [1]",)),
        ({"aqua": True, "data": {**FILES, "data_files": {"train": "a.doc", "test": "b.doc"}}}, 1,
         ("files of the types doc", "jsonl")),
        ({"aqua": True, "data": {**FILES, "data_files": {"train": "no.csv", "test": "no.csv"}}}, 1,
         ("the data cannot be loaded", "no.csv")),
        ({"aqua": True, "data": {**FILES, "data_files": {"train": "e.jsonl", "test": "e.jsonl"}}},
         1, ("the data cannot be loaded",)),
    ],
)  # fmt: skip
def test_tasks(tmp_path, config, code, parts):
    tasks = TaskFolder(tmp_path / "tasks")
    tasks.write("a_task", **config)
    (tasks.path / "e.jsonl").write_bytes(b"")
    flags = ("--include_path", tasks.path)
    assert_one_message(call(*identify(tmp_path / "runs", *flags, task="a_task")), code, *parts)
    assert not (tmp_path / "runs").exists()


CHOICE = b"output_type: multiple_choice\n"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"\xff\xfe", ("unknown task 'a_task'",)),
        (b"task: a_task\n  x: [", ("a_task.yaml names it", "cannot read")),
        (b"task: a_task\ninclude: a_task.yaml\n", ("a_task.yaml names it",)),
        (b"task: a_task\ninclude: nope.yaml\n", ("a_task.yaml names it",)),
        (b"task: a_task\n" + CHOICE, ("a_task cannot be loaded",)),
        (
            b"task: a_task\ncustom_dataset: !function nope.load\n" + CHOICE,
            ("a_task cannot be loaded",),
        ),
        (f"task: a_task\n{laughs()}".encode() + CHOICE, ("a_task cannot be loaded",)),
        (f"task: a_task\nx: {'[' * 5000}{']' * 5000}\n".encode() + CHOICE, ("RecursionError",)),
    ],
)
def test_yaml_of_tasks(tmp_path, content, parts):
    (tmp_path / "a_task.yaml").write_bytes(content)
    flags = ("--include_path", tmp_path)
    assert_one_message(call(*identify(tmp_path / "runs", *flags, task="a_task")), 1, *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name", ["../../escape", "a/b", "..", ".", "a\\b", "x" * 300, "nul\0x", "tab\tx", "new\nline"]
)
def test_names_of_tasks_that_are_no_folder(tmp_path, name):
    tasks = TaskFolder(tmp_path / "tasks")
    tasks.write("a_task")
    file = tasks.path / "a_task.yaml"
    quoted = f"task: {json.dumps(name)}"
    file.write_text(file.read_text().replace("task: a_task", quoted))
    before = contents(tmp_path)
    output = tmp_path / "runs" / "deep" / "er"
    result = call(*identify(output, "--include_path", tasks.path, task=file))
    assert_one_message(result, 1, "the task is named", "a folder can have")
    after = {place: what for place, what in contents(tmp_path).items() if "pycache" not in place}
    assert after == before


@pytest.mark.parametrize("name", ["demo_topic", "aqua:belebele_eng_Latn", "größe", "a b", "-x"])
def test_names_of_tasks_that_are_a_folder(tmp_path, name):
    assert (tmp_path / folder_name(name)).resolve().parent == tmp_path.resolve()


def test_a_name_of_a_task_that_has_no_bytes():
    with pytest.raises(TaskError, match="is named"):
        folder_name("\ud800")


# Environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "banana", "-1", "0", "1.5"])
def test_a_number_of_processes_that_is_none(tmp_path, monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    result = call(*identify(tmp_path / "runs"))
    assert_one_message(result, 2, f"WORLD_SIZE is {value!r}", "unset WORLD_SIZE")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("place", ["a_file/runs", "/dev/null", "/proc/1/runs", "x" * 300])
def test_places_that_cannot_be_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("mine")
    before = contents(tmp_path)
    result = call(*identify(Path(place)))
    assert_one_message(result, 2, "cannot be written", "--output_path")
    assert contents(tmp_path) == before


def test_an_earlier_run_where_results_cannot_be_written(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    for path in (run.path / "results").iterdir():
        path.unlink()
    (run.path / "results").rmdir()
    (run.path / "results").write_text("mine")
    before = contents(tmp_path)
    result = call("validate", run.path, "--n_random", 0, "--conditions", "enhance")
    assert_one_message(result, 1, "results is not a folder")
    assert contents(tmp_path) == before


# As a command of its own --------------------------------------------------------------------------


@pytest.mark.slow
def test_messages_and_exit_codes_of_a_process(tmp_path):
    model = f"pretrained={MODEL_DIR}"
    cases = (
        (("identify", "--colour"), {}, 2, "unrecognized arguments"),
        (("report", tmp_path / "nowhere"), {}, 1, "holds no run"),
        (("identify", "--model_args", model), {"WORLD_SIZE": "x"}, 2, "WORLD_SIZE is 'x'"),
    )
    for arguments, environment, code, part in cases:
        place = ("--output_path", tmp_path / "runs") if arguments[0] == "identify" else ()
        found = run_module("neuronllm_eval", *arguments, *place, **environment)
        assert_one_message(found, code, part)
    assert contents(tmp_path) == {}


def _in_no_directory(gone: Path) -> None:
    os.chdir(gone)
    gone.rmdir()


@pytest.mark.slow
def test_a_working_directory_that_is_gone(tmp_path):
    before = functools.partial(_in_no_directory, tmp_path / "gone")
    (tmp_path / "gone").mkdir()
    found = run_module("neuronllm_eval", "identify", "--output_path", "runs", before=before)
    assert_one_message(found, 2, "cannot be written")


def test_a_terminal_that_has_not_all_letters(tmp_path, monkeypatch):
    # "größe" cannot be written in ASCII; the report must not be lost over it.
    tasks = TaskFolder(tmp_path / "tasks")
    name = tasks.write("größe")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    given = identify(tmp_path / "runs", "--include_path", tasks.path, task=name)
    assert cli.main([str(word) for word in given]) == 0
    sys.stdout.flush()
    assert rb"gr\xf6\xdfe" in written.getvalue()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_of_another_machine(tmp_path):
    result = call(*identify(tmp_path / "runs", "--device", "cuda"), entry=cli.main)
    assert_one_message(result, 2, "--device cuda is not there", "0 CUDA devices")
