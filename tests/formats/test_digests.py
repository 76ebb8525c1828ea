"""`SHA256SUMS`: any changed byte of a finished run is found, and no reader takes a changed file."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.atomic import digest_of
from neuronllm_eval.formats.digests import (
    SUMS_FILE,
    changed_files,
    list_digests,
    require_unchanged,
    unlist_digests,
)
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.artifacts import load_commands, load_metrics, load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages.verify import check_files
from tests.fixtures.cli import assert_one_message, call, finished_run, without_the_harness_tasks
from tests.fixtures.damage import contents


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A finished run, with its digests."""
    shutil.copytree(finished_run().path, tmp_path / "demo_topic")
    return RunDirectory(tmp_path / "demo_topic")


def test_every_file_of_a_finished_run_is_listed(run):
    assert check_files(run).passed
    files = {path for path in run.path.rglob("*") if path.is_file()}
    files -= {run.path / SUMS_FILE, run.path / ".lock"}
    assert files == set(run.finished_files())
    assert len(files) > 20


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_reads_the_digests(run):
    command = ["sha256sum", "--strict", "--quiet", "-c", SUMS_FILE]
    assert subprocess.run(command, cwd=run.path, check=False).returncode == 0
    run.report.write_text(run.report.read_text() + "x")
    assert subprocess.run(command, cwd=run.path, check=False).returncode == 1


def change_a_byte(path: Path, choice: random.Random) -> bytes:
    """Change one bit or one byte of a file; returns its former content."""
    content = path.read_bytes()
    index = choice.randrange(len(content))
    change = 1 << choice.randrange(8) if choice.random() < 0.5 else choice.randrange(1, 256)
    path.write_bytes(content[:index] + bytes([content[index] ^ change]) + content[index + 1 :])
    return content


def test_of_300_changed_bytes_all_are_found(run):
    files = [*run.finished_files(), run.path / SUMS_FILE]
    choice = random.Random(0)
    missed = []
    for _ in range(300):
        path = choice.choice(files)
        content = change_a_byte(path, choice)
        if check_files(run).passed:
            missed.append(path)
        path.write_bytes(content)
    assert missed == []
    assert check_files(run).passed


def test_every_changed_byte_of_the_digests_is_found(run):
    """A carriage return, which ends a line of text as a line feed does, is one of them."""
    path = run.path / SUMS_FILE
    content = path.read_bytes()
    for index in range(60, 180):  # from the end of the first line
        for byte in (content[index] ^ 0x20, ord("\r"), ord("\n")):
            if byte != content[index]:
                path.write_bytes(content[:index] + bytes([byte]) + content[index + 1 :])
                assert not check_files(run).passed, (index, byte)


def outcome(run: RunDirectory, command: str, folder: Path) -> tuple[str, ...]:
    """What a reader of a run makes of it, or that it refuses."""
    shutil.rmtree(folder, ignore_errors=True)
    if command == "report":
        code, out, _ = call("report", run.path)
        made = [run.summary, run.report, run.page]
    elif command == "compare":
        code, out, _ = call("compare", run.path, "--format", "json")
        made = []
    else:
        arguments = ("--condition", "enhance", "--format", "peft", "-o", folder)
        code, out, _ = call("export", run.path, *arguments)
        made = [folder / "adapter_model.safetensors", folder / "README.md"]
    return ("refused",) if code else (out, *(digest_of(path) for path in made))


@pytest.mark.parametrize("command", ["report", "compare", "export"])
def test_readers_refuse_changes_or_are_not_changed_by_them(run, tmp_path, command):
    """A changed byte, and a file that is gone, renamed, another's, or another run's."""
    sound, choice, folder = finished_run().path, random.Random(command), tmp_path / "made"
    expected = outcome(run, command, folder)
    assert expected != ("refused",)
    files = [path for path in run.finished_files() if path.name != "README.md"]
    # Reports say that these are not there.
    without_figures = (run.tokens, run.commands, run.validation_docs, run.summary)
    other = tmp_path / "other_run"
    shutil.copytree(run.path, other)
    settings = (other / "run.yaml").read_text()
    (other / "run.yaml").write_text(settings.replace("top_k: 6", "top_k: 5"))
    refused = 0
    for number in range(48):
        path = choice.choice(files)
        if number % 4 < 2:
            change_a_byte(choice.choice([path, run.path / SUMS_FILE]), choice)
        elif number % 4 == 2:
            path = choice.choice([path for path in files if path not in without_figures])
            path.rename(path.with_name(f"{path.stem}.old{path.suffix}"))
        else:
            path.write_bytes(choice.choice([*files, other / "run.yaml"]).read_bytes())
        found = outcome(run, command, folder)
        refused += found == ("refused",)
        assert found in (("refused",), expected), (number, path)
        shutil.rmtree(run.path)
        shutil.copytree(sound, run.path)
    assert refused > 3


@pytest.mark.parametrize(
    "name", ["conditions.jsonl", "validation.json", "results/enhance.json", "questions.jsonl"]
)
def test_a_listed_file_that_figures_come_from_is_missing(run, name):
    (run.path / name).unlink()
    before = contents(run.path)
    for command in ("report", "compare"):
        result = call(command, run.path)
        assert_one_message(result, 1, f"{name} is missing, though SHA256SUMS lists it")
    assert contents(run.path) == before


def test_an_earlier_list_of_digests_is_refused(run):
    earlier = (run.path / SUMS_FILE).read_bytes()
    other = ("--conditions", "degrade", "--n_random", 1, "--overwrite")
    assert call("validate", run.path, *other)[0] == 0
    (run.path / SUMS_FILE).write_bytes(earlier)
    assert not check_files(run).passed
    assert_one_message(call("report", run.path), 1, "SHA256SUMS")


def test_words_of_docs_may_be_left_out_when_a_run_is_published(run):
    run.validation_docs.unlink()
    assert check_files(run).passed
    assert call("report", run.path)[0] == 0


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.yaml", load_settings),
        ("neurons.json", lambda run: NeuronSet.load(run.neurons)),
        ("scores.safetensors", lambda run: NeuronScores.load(run.path)),
        ("results/enhance.json", lambda run: load_metrics(run, "enhance", "demo_topic")),
        ("commands.jsonl", load_commands),
    ],
)
def test_a_reader_refuses_a_changed_file(run, name, read):
    path = run.path / name
    path.write_bytes(path.read_bytes()[:-2] + b" \n")
    with pytest.raises(ArtifactError, match=f"{name} was changed after it was written"):
        read(run)


def test_report_and_export_refuse_a_changed_digit(run, tmp_path):
    """A digit that leaves the file well-formed, so that only its digest tells."""
    lines = run.conditions.read_text().splitlines(keepends=True)
    line = json.loads(lines[3])
    line["loglikelihoods"]["unmasked"][0] += 1.0
    run.conditions.write_text("".join((*lines[:3], json.dumps(line) + "\n", *lines[4:])))
    before = run.report.read_bytes()
    assert_one_message(call("report", run.path), 1, "conditions.jsonl was changed", "SHA256SUMS")
    assert run.report.read_bytes() == before
    neurons = json.loads(run.neurons.read_text())
    neurons["good"][0], neurons["good"][1] = neurons["good"][1], neurons["good"][0]
    run.neurons.write_text(json.dumps(neurons))
    export = call("export", run.path, "--condition", "enhance", "-o", tmp_path / "adapter")
    assert_one_message(export, 1, "neurons.json was changed", "SHA256SUMS")


def test_files_without_digests_pass(run):
    unlist_digests(run.path, [run.report])
    require_unchanged(run.report, "run report again")
    assert changed_files(run.path, [run.report]) == ["report.md is not listed"]
    list_digests(run.path, {run.report: digest_of(run.report)})
    assert changed_files(run.path, [run.report]) == []


def test_other_peoples_lists_of_digests_do_no_harm(tmp_path):
    path = tmp_path / "neurons.json"
    path.write_text("{}")
    (tmp_path / SUMS_FILE).write_bytes(b"\xff not a list\n" + b"0" * 64 + b" *neurons.json\n")
    require_unchanged(path, "run identify again")
