"""Several real processes over gloo: the same bytes as one, and no end without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import run as torchrun_command
from torch.distributed.launcher.api import elastic_launch

from benchmarks.kill_resume import content
from benchmarks.launched import CONTEXT, Launched, free_port
from neuronllm_eval.cli import main as cli
from tests.fixtures.damage import contents
from tests.fixtures.harness import model_dir, scratch
from tests.fixtures.processes import (
    LIMIT,
    TASK,
    arguments,
    assert_gone,
    assert_same_bytes,
    killed_after_two,
    only_own_tasks,
    run_eval,
    second_fails,
    second_killed_after_one,
    second_scores_row_by_row,
    uninterrupted,
)

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def launched(
    n_ranks: int, output: Path, *more: object, before: Callable[[int], None] | None = None
) -> Launched:
    """The run of `fixtures.processes`, started in so many processes."""
    log = output.with_name(f"{output.name}.{time.monotonic_ns()}.log")
    return Launched(n_ranks, arguments(output, *more), log, "run_eval_main", before)


def torchrun(*flags: object, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A launcher of its own, started."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, flags)]
    with open(log, "wb") as said:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=said, stderr=said
        )


# The same bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, n_ranks):
    run = launched(n_ranks, tmp_path / "runs")
    assert run.wait() == [0] * n_ranks, run.output()
    assert_same_bytes(tmp_path / "runs" / TASK)
    assert run.output().count("written to") == 1  # one of them speaks for all
    assert run.output().count("[rank") == 0


def test_processes_with_nothing_to_do(tmp_path):
    assert run_eval(tmp_path / "one", "--limit", 1)[0] == 0
    run = launched(3, tmp_path / "three", "--limit", 1)
    assert run.wait() == [0, 0, 0], run.output()
    assert content(tmp_path / "one" / TASK) == content(tmp_path / "three" / TASK)


def test_two_choose_the_settings_that_one_does(tmp_path):
    options = ("--method", "auto", "--top_k", 64)
    assert run_eval(tmp_path / "one", *options)[0] == 0
    run = launched(2, tmp_path / "two", *options)
    assert run.wait() == [0, 0], run.output()
    one, two = (content(tmp_path / name / TASK) for name in ("one", "two"))
    assert one == two
    choices = [
        (tmp_path / name / TASK / "method_choice.json").read_bytes() for name in ("one", "two")
    ]
    assert choices[0] == choices[1]


def test_the_batch_size_is_one_for_all(tmp_path):
    run = launched(2, tmp_path / "two", "--batch_size", "auto")
    assert run.wait() == [0, 0], run.output()
    assert run_eval(tmp_path / "one", "--batch_size", "auto")[0] == 0
    assert content(tmp_path / "one" / TASK) == content(tmp_path / "two" / TASK)


# Interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_killed_and_gone_on_with_by_another_number(tmp_path, first, then):
    run = launched(first, tmp_path / "runs", before=killed_after_two)
    assert run.wait() == [-signal.SIGKILL] * first, run.output()
    assert (tmp_path / "runs" / TASK / "checkpoint" / "identify" / "work.json").exists()
    run = launched(then, tmp_path / "runs")
    assert run.wait() == [0] * then, run.output()
    assert_same_bytes(tmp_path / "runs" / TASK)


def test_a_process_that_vanishes_ends_the_others(tmp_path):
    """Without a launcher that would end them."""
    start = time.monotonic()
    run = launched(2, tmp_path / "runs", before=second_killed_after_one)
    assert run.wait() == [1, -signal.SIGKILL], run.output()
    assert time.monotonic() - start < 60
    run = launched(1, tmp_path / "runs")
    assert run.wait() == [0], run.output()
    assert_same_bytes(tmp_path / "runs" / TASK)


def test_a_process_that_fails_says_why_and_ends_the_others(tmp_path):
    run = launched(2, tmp_path / "runs", before=second_fails)
    assert run.wait() == [1, 1], run.output()
    errors = [line for line in run.output().splitlines() if "error: " in line]
    assert errors == ["[rank 1] error: doc 7 is rotten."]
    assert "Traceback" not in run.output()


def test_sigterm_to_all_of_them(tmp_path):
    # torchrun and accelerate pass it on to every process.
    output = tmp_path / "runs"
    run = launched(2, output, "--limit", 200, "--overwrite")
    folder = output / TASK / "checkpoint" / "identify"
    end = time.monotonic() + 60
    while len(list(folder.glob("rank-*.1.safetensors"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    run.send(signal.SIGTERM)
    assert run.wait() == [143, 143], run.output()
    assert run.output().count("interrupted; what is finished is kept in") == 1


def test_torchrun_ends_with_the_error_of_the_one_that_failed(tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from neuronllm_eval.cli import main as cli\n"
        "from tests.fixtures.processes import only_own_tasks, second_fails\n"
        f"Path({str(pids)!r}, os.environ['RANK']).write_text(str(os.getpid()))\n"
        "only_own_tasks(int(os.environ['RANK']))\n"
        "second_fails(int(os.environ['RANK']))\n"
        "raise SystemExit(cli.run_eval_main(sys.argv[1:]))\n"
    )
    log = tmp_path / "log"
    flags = ("--nproc-per-node", 2, "--master-port", free_port(), script)
    start = time.monotonic()
    process = torchrun(*flags, *arguments(tmp_path / "runs"), log=log, PYTHONPATH=str(ROOT))
    assert process.wait(120) != 0
    assert time.monotonic() - start < 60
    said = log.read_text()
    assert said.index("[rank 1] error: doc 7 is rotten.") < said.index("Root Cause")
    assert said.count("error: ") == 1
    assert_gone(pids)


# The masked model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neurons(tmp_path_factory):
    uninterrupted()
    return scratch() / "uninterrupted" / TASK


def masked(neurons: Path, output: Path, *more: object) -> list[str]:
    """The arguments of lm_eval's command line with a masked model: 7 docs."""
    given = f"pretrained={model_dir()},neurons={neurons},condition=suppress_good"
    flags = [
        "run", "--model", "neuronllm", "--model_args", given, "--tasks", TASK, "--limit", 7,
        "--batch_size", 4, "--device", "cpu", "--log_samples", "--output_path", output, *more,
    ]  # fmt: skip
    return [str(flag) for flag in flags]


def results(output: Path) -> tuple[dict[str, Any], list[Any], Counter[int]]:
    """Metrics, what each doc was answered in their order, and how often each doc was asked."""
    (path,) = output.rglob("results_*.json")
    (samples,) = output.rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    lines.sort(key=lambda line: line["doc_id"])
    answers = [[float(option[0]) for option in line["filtered_resps"]] for line in lines]
    asked = Counter(line["doc_id"] for line in lines)
    return json.loads(path.read_text())["results"], answers, asked


@pytest.fixture(scope="module")
def masked_alone(neurons, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    run = Launched(1, masked(neurons, output), output / "log", before=only_own_tasks)
    assert run.wait() == [0], run.output()
    return results(output)


def close_to(values: Any) -> Any:
    """Metrics but for the order of adding."""
    return {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        for name, value in values.items()
    }


def test_two_processes_split_the_docs(neurons, masked_alone, tmp_path):
    run = Launched(2, masked(neurons, tmp_path), tmp_path / "log", before=only_own_tasks)
    assert run.wait() == [0, 0], run.output()
    metrics, answers, asked = results(tmp_path)
    assert asked == Counter(range(7))  # every doc once
    assert metrics[TASK] == close_to(masked_alone[0][TASK])
    np.testing.assert_allclose(answers, masked_alone[1], atol=1e-4)  # other batches
    # Four docs of four options on one, three and a doc to fill up on the other.
    assert "Building contexts for demo_topic on rank 1" in run.output()
    assert run.output().count("Tokenizing inputs: 100%") <= 2


def test_the_batch_size_of_a_masked_model_is_asked_for_equally_often(
    neurons, masked_alone, tmp_path
):
    """Each time they ask, all ranks meet: one that asks more often would wait for ever."""
    given = masked(neurons, tmp_path, "--batch_size", "auto", "--max_batch_size", 4)
    run = Launched(2, given, tmp_path / "log", before=second_scores_row_by_row)
    assert run.wait(90) == [0, 0], run.output()
    _, answers, asked = results(tmp_path)
    assert asked == Counter(range(7))
    np.testing.assert_allclose(answers, masked_alone[1], atol=1e-4)


# Commands that write nothing --------------------------------------------------------------------


def test_a_dry_run_is_told_by_one_process(tmp_path):
    run = launched(2, tmp_path / "runs", "--dry_run")
    assert run.wait(90) == [0, 0], run.output()
    assert run.output().count("identify") == run.output().count("validate") == 1
    assert "[rank" not in run.output()
    assert not (tmp_path / "runs").exists()


def test_a_verification_is_told_by_one_process(neurons, tmp_path):
    before = contents(neurons)
    run = Launched(2, ["verify", neurons, "--limit", 2], tmp_path / "log")
    assert run.wait(90) == [0, 0], run.output()
    assert run.output().count("All checks passed.") == 1
    assert "[rank" not in run.output()
    assert contents(neurons) == before


# Machines ---------------------------------------------------------------------------------------


def launcher(flags: list[str], words: list[str], log: Path) -> None:
    """What torchrun does, but that it forks instead of starting Python."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    only_own_tasks(0)
    # The flags must be followed by a command; what runs is `cli.main`.
    config, *_ = torchrun_command.config_from_args(
        torchrun_command.parse_args([*flags, "neuronllm-eval"])
    )
    config.start_method = "fork"
    elastic_launch(config, cli.main)(words)


def test_two_machines_split_the_docs(neurons, masked_alone, tmp_path):
    """Two launchers on loopback: both processes are number 0 of their machine."""
    network = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    words = masked(neurons, tmp_path / "out")
    nodes = []
    for node in range(2):
        flags = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", *network]
        nodes.append(
            CONTEXT.Process(target=launcher, args=(flags, words, tmp_path / f"log_{node}"))
        )
        nodes[-1].start()
    for node in nodes:
        node.join(180)
    assert [node.exitcode for node in nodes] == [0, 0], (tmp_path / "log_0").read_text()
    metrics, answers, asked = results(tmp_path / "out")
    assert asked == Counter(range(7))
    assert metrics[TASK] == close_to(masked_alone[0][TASK])
    np.testing.assert_allclose(answers, masked_alone[1], atol=1e-4)  # other batches
    for node in range(2):
        said = (tmp_path / f"log_{node}").read_text()
        assert f"Building contexts for demo_topic on rank {node}" in said


def test_fewer_docs_than_processes_is_said(neurons, tmp_path):
    words = masked(neurons, tmp_path, "--limit", 1)
    run = Launched(2, words, tmp_path / "log", before=only_own_tasks)
    assert set(run.wait()) <= {1, 2}, run.output()
    assert (
        "[rank 1] error: lm_eval stopped: ValueError: task.build_requests() did not find any"
        in (run.output())
    )
    assert "with several processes, each needs at least one doc" in run.output()
    assert "Traceback" not in run.output()


def test_the_run_has_as_many_questions_as_it_says():
    lines = uninterrupted()["questions.jsonl"].splitlines()
    assert len(lines) == LIMIT
