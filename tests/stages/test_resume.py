"""A run that was interrupted goes on with the same command, and ends with the same bytes."""

from __future__ import annotations

import errno
import logging
import shutil
import signal
import time
from pathlib import Path

import pytest

from benchmarks.kill_resume import content
from benchmarks.launched import CONTEXT
from neuronllm_eval.cli import main as cli
from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime import checkpoint
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.runtime.resumable_work import RunLocks
from neuronllm_eval.stages import evaluate, prepare
from neuronllm_eval.stages import identify as identify_stage
from neuronllm_eval.stages import validate as validate_stage
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    identify,
    without_the_harness_tasks,
)
from tests.fixtures.damage import contents
from tests.fixtures.harness import TaskFolder, model_dir, scratch, some_docs
from tests.fixtures.processes import (
    N_UNITS,
    TASK,
    after_units,
    arguments,
    assert_same_bytes,
    run_eval,
    uninterrupted,
)


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


def stopped(
    output: Path, units: int, number: signal.Signals = signal.SIGINT, *more: object
) -> tuple[int, str, str]:
    """A run that gets a signal when so many units are finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "add", after_units(units, lambda: signal.raise_signal(number)))
        return run_eval(output, *more)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was stopped after three units; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        output = tmp_path_factory.mktemp("half")
        code, _, err = stopped(output, 3)
    assert code == 130, err
    return output


@pytest.fixture
def copied(half, tmp_path):
    shutil.copytree(half, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def done(tmp_path):
    """A finished run that a test may spoil."""
    uninterrupted()
    shutil.copytree(scratch() / "uninterrupted", tmp_path / "runs")
    return tmp_path / "runs"


def n_done(output: Path, stage: str = "identify") -> int:
    """Finished units of rank 0 in this launch, as a checkpoint says."""
    folder = output / TASK / "checkpoint" / stage
    fingerprint = checkpoint.json.loads((folder / "work.json").read_text())["fingerprint"]
    return len(Part.read(folder, "rank-0", fingerprint).done)


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_last_checkpoint_and_says_how_to_go_on(tmp_path, number, code):
    # Checkpoints by time never come in this run: only the signal writes one.
    got, _, err = stopped(tmp_path, 2, number, "--checkpoint_every", 3600)
    assert got == code
    last = err.strip().splitlines()[-1]
    assert last.startswith("interrupted; what is finished is kept in ")
    assert last.endswith("; the same command resumes from there")
    assert n_done(tmp_path) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    code, _, err = run_eval(tmp_path)
    assert code == 0, err
    assert_same_bytes(tmp_path / TASK)


def test_only_what_is_left_is_computed(copied, monkeypatch):
    added = []
    real = Part.add
    monkeypatch.setattr(
        Part, "add", lambda self, unit, lines: (added.append(unit), real(self, unit, lines))
    )
    assert run_eval(copied)[0] == 0
    assert added == [3, 4, *range(N_UNITS)]  # the last two of identify, and all of validate
    assert_same_bytes(copied / TASK)


def test_the_nodes_of_layers_are_chosen_once(copied, monkeypatch):
    chosen = load_settings(RunDirectory(copied / TASK)).layer_nodes
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "choose_quadrature", None)  # not called any more
        assert run_eval(copied)[0] == 0
    assert_same_bytes(copied / TASK)
    provenance = NeuronSet.load(copied / TASK).provenance
    assert provenance.layer_nodes == chosen
    assert len(chosen.split()) == len(provenance.completeness_gap_layers) == 2


def test_interrupted_at_every_unit(tmp_path):
    for _ in range(2 * N_UNITS):
        assert stopped(tmp_path, 1)[0] == 130
    assert run_eval(tmp_path)[0] == 0
    assert_same_bytes(tmp_path / TASK)


def test_interrupted_in_validation(tmp_path):
    assert stopped(tmp_path, N_UNITS + 2)[0] == 130
    assert n_done(tmp_path, "validate") == 2
    before = (tmp_path / TASK / "neurons.json").stat().st_mtime_ns
    code, _, err = run_eval(tmp_path)
    assert code == 0, err
    assert_same_bytes(tmp_path / TASK)
    assert (tmp_path / TASK / "neurons.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("module", "place"),
    [
        (identify_stage, "write_neurons"),
        (identify_stage, "close"),
        (validate_stage, "close"),
        (validate_stage, "write_results"),
        (evaluate, "validate_task"),
        (evaluate, "report_task"),
    ],
)
def test_interrupted_between_the_stages(tmp_path, monkeypatch, module, place):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, place, interrupt)
        code, _, err = run_eval(tmp_path)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    code, _, err = run_eval(tmp_path)
    assert code == 0, err
    assert_same_bytes(tmp_path / TASK)


@pytest.mark.parametrize("patience", [2.0, -1.0])
def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch, patience):
    def press():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # at once, the launcher's: the same press

    with monkeypatch.context() as patch:
        patch.setattr("neuronllm_eval.runtime.process._ONE_WISH", patience)
        patch.setattr(Part, "add", after_units(2, press))
        code, _, err = run_eval(tmp_path, "--checkpoint_every", 3600)
    assert code == 130
    waited = patience > 0
    assert ("what is finished is kept" in err) == waited
    assert n_done(tmp_path) == (2 if waited else 0)
    assert run_eval(tmp_path)[0] == 0
    assert_same_bytes(tmp_path / TASK)


# Damage and a full disk -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["newest", "records", "both"])
def test_a_damaged_checkpoint_costs_some_work_and_changes_nothing(copied, caplog, which):
    folder = copied / TASK / "checkpoint" / "identify"
    states = sorted(folder.glob("rank-0.*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    damaged = {
        "newest": states[-1:], "records": [folder / "rank-0.jsonl"], "both": states,
    }[which]  # fmt: skip
    for path in damaged:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        code, _, err = run_eval(copied)
    assert code == 0, err
    assert str(damaged[-1]) in caplog.text
    assert_same_bytes(copied / TASK)


@pytest.mark.parametrize("what", ["checkpoint", "artifact"])
def test_a_full_disk_is_said_and_gone_on_from(tmp_path, monkeypatch, what):
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if ("safetensors" in path.name) and (("rank-0.1" in path.name) == (what == "checkpoint")):
            real(path, content[:20])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        code, out, err = run_eval(tmp_path)
    assert_one_message((code, out, err), 1, "cannot be written", "No space left", "resumes")
    code, _, err = run_eval(tmp_path)
    assert code == 0, err
    assert_same_bytes(tmp_path / TASK)


def test_a_damaged_work_file_is_said(copied):
    path = copied / TASK / "checkpoint" / "identify" / "work.json"
    path.write_text(path.read_text()[:-20])
    assert_one_message(run_eval(copied), 1, "work.json", "is not valid JSON", "--overwrite")
    assert run_eval(copied, "--overwrite")[0] == 0
    assert_same_bytes(copied / TASK)


# Other settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--top_z", 0.2), "top_z is 0.2, there 0.1"),
        (("--n_steps", 3), "n_steps is 3, there 8"),
        (("--batch_size", 6), "batch_size is 6, there 3"),
        (("--limit", 4), "limit is 4, there 5"),
        (("--system_instruction", "Be brief."), "system_instruction is 'Be brief.', there None"),
    ],
)
def test_other_settings_are_refused_by_name(copied, flags, named):
    result = run_eval(copied, *flags)
    assert_one_message(result, 2, "already holds a run of other settings", named, "--overwrite")
    assert n_done(copied) == 3  # nothing is lost


def test_other_weights_are_refused_by_name(copied):
    result = run_eval(copied, "--model_args", f"pretrained={model_dir(seed=1)}")
    assert_one_message(result, 2, "already holds a run of other settings", "model_hash is")
    assert n_done(copied) == 3


def test_other_data_are_refused_by_name(tmp_path):
    folder = TaskFolder(tmp_path / "tasks")
    docs, others = some_docs(0, 6), some_docs(50, 6)
    folder.write("own", {"train": docs, "test": others})
    flags = ("--include_path", folder.path, "--batch_size", 1, "--checkpoint_every", 0)
    words = identify(tmp_path / "runs", *flags, "--top_k", 6, task="own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "add", after_units(2, lambda: signal.raise_signal(signal.SIGINT)))
        assert call(*words)[0] == 130
    before = contents(tmp_path / "runs")
    folder.write("own", {"train": [{**docs[0], "question": "Which?"}, *docs[1:]], "test": others})
    assert_one_message(call(*words), 2, "already holds a run of other settings", "prompts is")
    assert contents(tmp_path / "runs") == before
    folder.write("own", {"train": docs, "test": others})
    assert call(*words)[0] == 0


def test_overwrite_starts_anew(copied, monkeypatch):
    added = []
    real = Part.add
    monkeypatch.setattr(
        Part, "add", lambda self, unit, lines: (added.append(unit), real(self, unit, lines))
    )
    assert run_eval(copied, "--overwrite")[0] == 0
    assert added == [*range(N_UNITS), *range(N_UNITS)]
    assert_same_bytes(copied / TASK)


def test_a_finished_run_is_refused_or_kept(tmp_path):
    assert run_eval(tmp_path)[0] == 0
    assert_one_message(run_eval(tmp_path), 2, "already holds a run", "--overwrite")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / TASK).rglob("*.json*")}
    code, _, err = run_eval(tmp_path, "--resume")
    assert code == 0, err
    kept = {path: path.stat().st_mtime_ns for path in times if path.name != "summary.json"}
    assert kept.items() <= times.items()
    assert_same_bytes(tmp_path / TASK)


def test_tasks_that_are_finished_are_kept(tmp_path):
    both = ("--tasks", "demo_topic,demo_sentiment")
    assert stopped(tmp_path, 2 * N_UNITS + 2, signal.SIGTERM, *both)[0] == 143
    before = (tmp_path / TASK / "conditions.jsonl").stat().st_mtime_ns
    code, out, err = run_eval(tmp_path, *both)
    assert code == 0, err
    effects = [line.partition(":")[0] for line in out.splitlines()[:2]]
    assert effects == ["demo_topic", "demo_sentiment"]
    assert (tmp_path / TASK / "conditions.jsonl").stat().st_mtime_ns == before
    assert_same_bytes(tmp_path / TASK)


def test_a_validation_of_other_conditions_is_not_gone_on_with(tmp_path):
    assert stopped(tmp_path, N_UNITS + 2)[0] == 130
    other = ("validate", tmp_path, "--conditions", "degrade", "--n_random", 1)
    assert_one_message(call(*other), 2, "conditions has", "'degrade'", "there", "--overwrite")
    assert n_done(tmp_path, "validate") == 2
    code, _, err = call(*other, "--overwrite")
    assert code == 0, err
    assert "degrade" in (tmp_path / TASK / "report.md").read_text()
    same = ("validate", tmp_path, "--conditions", "suppress_good", "--n_random", 1)
    assert call(*same)[0] == 0  # replaces it, as ever
    assert_same_bytes(tmp_path / TASK)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ("--conditions", "degrade"),
            "conditions has ['degrade'] more than there and is missing ['suppress_good'].",
        ),
        (("--n_random", 2), "n_random is 2, there 1"),
        (("--suppress_scale", 0.5), "suppress_scale is 0.5, there 0.0"),
        (("--scale", "0,0.5"), "conditions has ['suppress_good.k8.x0.5'] more than there.\n"),
        (("--top_k", 3), "top_k is 3, there 8"),
        (("--limit", 4), "docs asked is missing ["),
    ],
)
def test_a_finished_validation_of_other_settings_is_refused(done, flags, named):
    before = content(done / TASK)
    same = ("validate", done, "--conditions", "suppress_good", "--n_random", 1, "--resume")
    assert_one_message(call(*same, *flags), 2, "other settings", named, "--overwrite")
    assert content(done / TASK) == before
    assert call(*same)[0] == 0


def test_run_eval_refuses_a_finished_validation_of_other_settings(done):
    before = content(done / TASK)
    more = ("--conditions", "degrade")
    assert_one_message(run_eval(done, "--resume", *more), 2, "other settings", "conditions has")
    assert content(done / TASK) == before
    assert run_eval(done, *more, "--overwrite")[0] == 0
    assert "degrade" in (done / TASK / "report.md").read_text()


def test_run_eval_does_not_validate_on_other_prompts_than_identify_found(done):
    """The neurons are kept, so that the data of their validation must be as they were."""
    run = RunDirectory(done / TASK)
    change_settings(run, validation_prompts={"0": "0" * 16})
    run.clear_validation()
    before = contents(run.path)
    assert_one_message(run_eval(done, "--resume"), 2, "prompt of validation doc 0")
    assert contents(run.path) == before


@pytest.mark.parametrize("name", ["conditions.jsonl", "validation.json"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text('{"a": 1}\n')])
def test_a_validation_that_cannot_be_read_is_made_again(done, name, spoil, caplog):
    spoil(done / TASK / name)
    with caplog.at_level(logging.WARNING):
        code, _, err = run_eval(done, "--resume")
    assert code == 0, err
    assert_same_bytes(done / TASK)


def test_validate_goes_on_by_itself(tmp_path):
    assert stopped(tmp_path, N_UNITS + 2)[0] == 130
    code, _, err = call("validate", tmp_path, "--conditions", "suppress_good", "--n_random", 1)
    assert code == 0, err
    assert_same_bytes(tmp_path / TASK)


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_checkpoints_at_no_time(tmp_path, value):
    result = run_eval(tmp_path, f"--checkpoint_every={value}")
    assert_one_message(result, 2, "checkpoint_every is", "0 or more")


# The lock ---------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_directory_is_refused(copied):
    locks = RunLocks()
    locks.take([copied / TASK])
    try:
        result = run_eval(copied)
        validated = call("validate", copied / TASK)
    finally:
        locks.release()
    assert_one_message(result, 2, "another run is at work in", TASK, "--output_path")
    assert "error: " in validated[2]
    assert n_done(copied) == 3
    assert run_eval(copied)[0] == 0


def hold(path: str) -> None:
    """Lock a directory, and never let go."""
    locks = RunLocks()
    locks.take([Path(path)])
    Path(path, "held").touch()
    time.sleep(600)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    holder = CONTEXT.Process(target=hold, args=(str(tmp_path),), daemon=True)
    holder.start()
    while not (tmp_path / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    locks = RunLocks()
    with pytest.raises(UsageError, match="another run is at work"):
        locks.take([tmp_path])
    holder.kill()
    holder.join()
    locks.take([tmp_path])
    locks.take([tmp_path])  # ours already
    locks.release()


def test_the_reference_is_no_accident(tmp_path):
    """Bytes are compared that a change would change."""
    code = call(*arguments(tmp_path, "--top_z", 0.2), entry=cli.run_eval_main)[0]
    assert code == 0
    found = (tmp_path / TASK / "scores.safetensors").read_bytes()
    assert found != uninterrupted()["scores.safetensors"]
