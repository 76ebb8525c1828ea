"""Run directories of other people: no code, no file elsewhere, no memory, no terminal escape.

`docs/security.md` names these tests.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.atomic import write_lines, write_whole
from neuronllm_eval.formats.digests import SUMS_FILE, changed_files
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.artifacts import load_neurons, load_scores, load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.checkpoint import write_durably
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    identify,
    jsonl,
    list_all,
    without_the_harness_tasks,
)

QUICK = ("--n_random", 0, "--conditions", "enhance")
HOSTILE = "\x1b]0;title\x07\u202eevil"
PAGE_OF_MEMORY = 200 << 10  # KiB, which is what `ru_maxrss` counts


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "run")


# Code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "verify", "explain"])
@pytest.mark.parametrize("part", ["metadata", "model_args"])
@pytest.mark.parametrize("inner", [dict, lambda **values: {"overrides": values}])
def test_a_run_names_no_function_that_is_called(run, tmp_path, command, part, inner):
    made = tmp_path / "made"
    function = inner(load="os.mkdir", load_kwargs={"path": str(made)})
    change_settings(run, **{part: {**getattr(load_settings(run), part), **function}})
    options = QUICK if command == "validate" else ()
    result = call(command, list_all(run).path, *options)
    assert_one_message(result, 2, "asks to call a function: load is", "--trust_remote_code")
    assert not made.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"metadata": {"harness_yaml": "/tmp/x.yaml"}},
        {"metadata": {"include_path": ["/tmp"]}},
        {"metadata": {"overrides": {"x": [{"load": "os.mkdir"}]}}},
        {"model_args": {"pretrained": "m", "allow_all_kernels": True}},
        {"model_args": {"pretrained": "m", "a": {"trust_remote_code": "yes"}}},
        {"model_args": {"pretrained": "m", "parallelize": True, "offload_folder": "/tmp/x"}},
        {"model_args": {"pretrained": "m", "cache_dir": "/tmp/x"}},
    ],
)
def test_what_else_leads_to_code_needs_consent(run, values):
    change_settings(run, **values)
    assert_one_message(call("validate", run.path, *QUICK), 2, "--trust_remote_code")


def test_a_run_cannot_name_the_folder_that_the_user_is_in(run, tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    for folder in ("/proc/self/cwd/tasks", str(tmp_path / "link"), str(tmp_path / "run/../tasks")):
        change_settings(run, include_path=[folder])
        assert_one_message(call("validate", run.path, *QUICK), 1, "include_path has")


# Files elsewhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["results", "adapters", "adapters/enhance", "checkpoint", "checkpoint/validate",
     "checkpoint/identify", "checkpoint/validate/base.jsonl"],
)  # fmt: skip
def test_no_link_leads_a_command_outside(run, tmp_path, name):
    outside, link = tmp_path / "outside", run.path / name
    (outside / "validate").mkdir(parents=True)
    (outside / "precious.json").write_text("{}")
    shutil.rmtree(link, ignore_errors=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside if "." not in name else outside / "precious.json")
    before = sorted(outside.rglob("*"))
    for words in (("validate", run.path, "--overwrite", *QUICK), ("report", run.path)):
        assert_one_message(call(*words), 1, f"{link} is a link", "remove the link")
    assert sorted(outside.rglob("*")) == before
    assert (outside / "precious.json").read_text() == "{}"


def test_files_that_are_links_are_replaced_and_not_written_through(run, tmp_path):
    outside = tmp_path / "precious.md"
    outside.write_text("mine")
    for path in (run.report, run.page, run.result("enhance"), run.adapter("enhance") / "README.md"):
        path.unlink()
        path.symlink_to(outside)
    code, _, err = call("validate", run.path, "--overwrite", *QUICK)
    assert code == 0, err
    assert outside.read_text() == "mine"
    assert not run.report.is_symlink()


@pytest.mark.parametrize(
    "write",
    [write_whole, lambda path, text: write_lines(path, [{"a": text}]),
     lambda path, text: write_durably(path, text.encode())],
)  # fmt: skip
def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(tmp_path, write):
    outside, path = tmp_path / "precious", tmp_path / "run" / "report.md"
    path.parent.mkdir()
    outside.write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to(outside)
    write(path, "text")
    assert outside.read_text() == "mine"
    assert "text" in path.read_text()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "a/.."])
def test_digests_name_no_file_outside(run, tmp_path, name):
    (tmp_path / "outside").write_text("")
    (run.path / SUMS_FILE).write_text(f"{'0' * 64}  {name}\n")
    assert changed_files(run.path, []) == [f"{SUMS_FILE} has lines that are no digests"]


# Memory -----------------------------------------------------------------------------------------


def sparse_scores(folder: Path, n_layers: int, width: int) -> None:
    """A whole `scores.safetensors` of zeros, of which the disk has the header alone."""
    shapes = {
        "score": [n_layers, width], "good_count": [n_layers, width],
        "bad_count": [n_layers, width], "half_sums": [2, n_layers, width],
        "letter_sums": [14, n_layers, width],
    }  # fmt: skip
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 8
        for size in shape:
            end = start + (end - start) * size
        dtype = "I64" if name.endswith("count") else "F64"
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with (folder / "scores.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)


def test_a_sparse_file_of_ten_gigabytes_costs_no_memory(tmp_path):
    sparse_scores(tmp_path, 8192, 8192)
    assert (tmp_path / "scores.safetensors").stat().st_size > 10e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match="on the disk"):
        NeuronScores.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < PAGE_OF_MEMORY


def test_scores_of_other_neurons_are_refused_by_their_header(run):
    sparse_scores(run.path, 2048, 2048)
    run.scores.write_bytes(run.scores.read_bytes()[:200])  # only what the header says is at fault
    sparse_scores(run.path, 1024, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match="of different runs"):
        load_scores(run, load_neurons(run, load_settings(run)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < PAGE_OF_MEMORY


@pytest.mark.parametrize(
    "content",
    [
        (1 << 60).to_bytes(8, "little") + b"{}",
        (99 << 20).to_bytes(8, "little") + b"{}",
        b"\x10" + bytes(7) + b"[" * 16,
        (400_008).to_bytes(8, "little") + b'{"a":' * 80_001 + b"1  ",
    ],
    ids=["2^60", "99 MiB", "lists", "deep"],
)
def test_a_header_that_declares_more_than_there_is(tmp_path, content):
    (tmp_path / "scores.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        NeuronScores.load(tmp_path)


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_huge_list_of_digests_is_not_read(run, command):
    with (run.path / SUMS_FILE).open("wb") as file:
        file.truncate(10 << 30)
    assert_one_message(call(command, run.path), 1, SUMS_FILE, "bytes")


# Text -------------------------------------------------------------------------------------------


def is_inert(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    "words",
    [("report", HOSTILE), ("validate", HOSTILE), ("explain", HOSTILE), ("compare", HOSTILE),
     ("verify", HOSTILE), (HOSTILE,), ("report", ".", f"--{HOSTILE}"),
     ("identify", "--tasks", HOSTILE), ("identify", "--model_args", f"pretrained={HOSTILE}"),
     ("identify", "--config", HOSTILE),
     ("identify", "--tasks", "demo_topic", "--limit", 1, "--output_path", f"/proc/{HOSTILE}")],
)  # fmt: skip
def test_no_message_has_a_terminal_escape(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert code in (1, 2)
    assert is_inert(out + err)
    assert "evil" in err


def test_nothing_printed_or_written_of_a_hostile_run_has_a_terminal_escape(tmp_path):
    run = copy_of(finished_run(), tmp_path / HOSTILE / "run")
    docs = jsonl(run.validation_docs)
    texts = [{**doc, "question": HOSTILE, "group": f"{HOSTILE} <b>"} for doc in docs]
    run.validation_docs.write_text("".join(f"{json.dumps(doc)}\n" for doc in texts))
    run.note_command("validate", (HOSTILE,), 1, {})
    run.summary.unlink()
    for command in ("report", "compare"):
        code, out, err = call(command, run.path)
        assert code == 0, err
        assert is_inert(out + err), command
    for path in (run.report, run.page, run.card):
        assert is_inert(path.read_text()), path
        assert "evil" in path.read_text(), path
    (run.path / SUMS_FILE).write_text(f"{'0' * 64}  {HOSTILE}\n")
    code, out, err = call("verify", run.path)
    assert code == 1
    assert is_inert(out + err)


# Secrets ----------------------------------------------------------------------------------------

SECRET = "hf_S3cretS3cretS3cretS3cret"


@pytest.mark.parametrize(
    "words",
    [
        ("--model_args", f"token={SECRET}"),
        ("--model_args", f'{{"pretrained":"/no/such","token":"{SECRET}"}}'),
        ("--model_args", f"pretrained=https://user:{SECRET}@host/x"),
        ("--model_args", f"pretrained=/no/such,dtype={SECRET}"),
        ("--model_args", f"pretrained=/no/such,api_key={SECRET},x"),
        ("--metadata", f'{{"token": "{SECRET}"'),
        ("--method_args", f"token={SECRET}"),
    ],
)
def test_no_message_quotes_a_secret(tmp_path, words):
    code, out, err = call("identify", "--tasks", "demo_topic", "--output_path", tmp_path, *words)
    assert code in (1, 2)
    assert SECRET not in out + err


def test_no_artifact_and_no_log_line_has_a_secret(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "tOkEn-of-the-environment")
    metadata = {"token": "s3cret1", "in": {"api_key": "s3cret2"}, "u": "https://u:s3cret3@h/"}
    words = [
        f"{word},token=s3cret4" if str(word).startswith("pretrained=") else word
        for word in identify(tmp_path, "--metadata", json.dumps(metadata), "--top_k", 4)
    ]
    said = ""
    for command in (words, ("validate", tmp_path, *QUICK), ("explain", tmp_path, "--limit", 2)):
        code, out, err = call(*command, "--verbosity", "DEBUG")
        assert code == 0, err
        said += out + err
    # The same command again finds its run: what is left out is not compared.
    code, out, err = call(*words, "--resume")
    assert code == 0, err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        text = path.read_text("utf-8", "replace")
        assert not re.search("s3cret|tOkEn", text), path
    assert not re.search("s3cret|tOkEn", said + caplog.text)
