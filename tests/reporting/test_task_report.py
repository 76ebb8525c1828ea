"""What reports read from a run directory: its commands, without secrets."""

from __future__ import annotations

import json
import subprocess

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.inert_text import SECRETS
from neuronllm_eval.reporting.task_report import TaskReport, read_commands
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import call, change_settings, copy_of, finished_run


def note(run: RunDirectory, *words: str, stage: str = "identify") -> None:
    run.note_command(stage, words, 1, {})


def test_the_commands_of_the_present_state_are_listed_once(tmp_path):
    run = RunDirectory(tmp_path)
    assert read_commands(run) == ()
    note(run, "run_eval.py", "--tasks", "a_task")
    note(run, "run_eval.py", "--tasks", "a_task", stage="validate")
    assert read_commands(run) == ("run_eval.py --tasks a_task",)
    note(run, "neuronllm-eval", "validate", "runs/a folder", "--top_k=1,2", stage="validate")
    assert read_commands(run) == (
        "run_eval.py --tasks a_task",
        "neuronllm-eval validate 'runs/a folder' --top_k=1,2",
    )


@pytest.mark.parametrize(
    "word",
    [
        "It's $HOME; rm -rf",
        "Answer\nwith \x1b[31ma letter: it's \\n \u202e.",
        'a\t"b"',
        "\U0001f600\n",
    ],
)
def test_a_shell_reads_the_same_words(tmp_path, word):
    run = RunDirectory(tmp_path)
    note(run, "identify", "--description", word)
    (command,) = read_commands(run)
    assert command.isprintable()
    shell = ["bash", "-c", f"printf '%s\\0' {command}"]
    said = subprocess.run(shell, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert said.stdout.decode().split("\0")[:-1] == ["identify", "--description", word]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"stage": "identify"}', '{"stage": "", "command": [3]}']
)
def test_a_damaged_file_of_commands_is_refused(tmp_path, line):
    run = RunDirectory(tmp_path)
    run.commands.write_text(f"{line}\n")
    with pytest.raises(ArtifactError, match=r"(?s)commands\.jsonl, line 1.*remove it and its line"):
        read_commands(run)


def test_the_report_lists_the_commands_of_the_run(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    options = ("--conditions", "enhance", "--n_random", 0, "--batch_size", 7)
    code, _, err = call("validate", run.path, *options)
    assert code == 0, err
    assert json.loads(run.validation.read_text())["batch_size"] == 7
    commands = run.report.read_text().split("#### Commands of this run")[1]
    assert commands.count("--batch_size=7") == 1
    assert "--batch_size=7" in commands.split("neuronllm-eval validate")[-1]


def test_a_report_knows_the_gold_options_of_the_selection_prompts():
    run = finished_run()
    lines = [json.loads(line) for line in run.questions.read_text().splitlines()]
    golds = [gold for line in lines for gold in line["gold"]]
    found = TaskReport.load(run)
    assert found.gold_counts == tuple(map(golds.count, range(len(found.scores.letter_sums))))
    assert "label neurons" in run.report.read_text()


# Secrets ----------------------------------------------------------------------------------------


def test_no_report_and_no_noted_command_has_a_token(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    secrets = {name: f"hf_of_{name}" for name in SECRETS}
    change_settings(run, model_args={"pretrained": "m", **secrets})
    given = ",".join(f"{name}={value}" for name, value in secrets.items())
    run.note_command("identify", ("x", "--model_args", f"pretrained=m,{given}"), 1, {})
    code, out, err = call("report", run.path)
    assert code == 0, err
    files = (run.page, run.report, run.summary, run.commands)
    for text in (out, err, *(path.read_text() for path in files)):
        assert "hf_of_" not in text
    assert all(f"{name}=..." in run.commands.read_text() for name in SECRETS)
