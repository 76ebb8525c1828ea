"""`SHA256SUMS`: any changed byte of a finished run is found, and no reader takes a changed file."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

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


def test_of_300_flipped_bits_all_are_found(run):
    files = [*run.finished_files(), run.path / SUMS_FILE]
    choice = random.Random(0)
    missed = []
    for _ in range(300):
        path = choice.choice(files)
        content = path.read_bytes()
        index, bit = choice.randrange(len(content)), 1 << choice.randrange(8)
        path.write_bytes(content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :])
        if check_files(run).passed:
            missed.append((path, index, bit))
        path.write_bytes(content)
    assert missed == []
    assert check_files(run).passed


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
