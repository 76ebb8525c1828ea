"""The commands that make a run again are parsed back into its settings and its conditions."""

from __future__ import annotations

import json
import subprocess

import pytest

from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.reporting.reproduce_commands import Judged, identify_command, validate_command
from neuronllm_eval.runs.directory import SECRETS, word_without_secrets
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.evaluate import condition_plan, requested_settings
from tests.fixtures.cli import call, change_settings, copy_of, finished_run, settings_of
from tests.fixtures.harness import neuron_set

PLAIN = RunSettings(model_args={"pretrained": "some/model"}, task="a_task")
ODD = RunSettings(
    model_args={"pretrained": "/a folder/model", "dtype": "bfloat16", "trust_remote_code": True},
    task="aqua:mmlu_law",
    include_path=("/my tasks", "/others"),
    num_fewshot=0,
    apply_chat_template=True,
    system_instruction="It's $HOME; rm -rf",
    description="Answer\nwith \x1b[31ma letter: it's \\n \u202e.",
    metadata={"n": 3, "text": "it's"},
    selection_split="dev",
    overlap="drop",
    limit=7,
    n_proxies=2,
    orders="swap",
    letter_style="(A)",
    n_options=4,
    distractors="random",
    on_bad_doc="fail",
    seed=3,
    batch_size="auto",
    device="cpu",
    engine="replay",
    method="qrnca",
    method_args={"threshold": 0.25},
    positions="all",
    quadrature="right_riemann",
    n_steps=16,
    top_z=12.0,
    top_k=0.015,
    ambiguous="drop",
    attribution_dtype="float32",
)
NEURONS = neuron_set(good=tuple((0, i) for i in range(8)), bad=((1, 3),))


def words_of(command):
    """The words of a command over several lines, as a shell takes them."""
    shell = ["bash", "-c", f"printf '%s\\0' {command}"]
    said = subprocess.run(shell, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    return said.stdout.decode().split("\0")[:-1]


def parsed(command):
    words = words_of(command)
    assert words[0] == "neuronllm-eval"
    return settings_of(*words[1:])[0]


@pytest.mark.parametrize(
    "settings", [PLAIN, ODD, PLAIN.model_copy(update={"top_k": 41.0, "limit": 9})]
)
def test_the_first_command_gives_the_same_settings(settings):
    again = requested_settings(parsed(identify_command(settings)))
    known = settings.model_copy(update={"method_args": again.method_args})
    assert settings.method_args.items() <= again.method_args.items()
    assert again == known


def test_what_is_the_default_is_left_out():
    assert identify_command(PLAIN) == (
        "neuronllm-eval identify \\\n    --model_args pretrained=some/model \\\n"
        "    --tasks a_task \\\n    --output_path runs/again"
    )


PLANS = {
    "all": (),
    "two": ("--conditions", "enhance,suppress_good", "--n_random", "3", "--seed", "5"),
    "fewer": ("--top_k", "3", "--suppress_scale", "0.25", "--enhance_scale=-1.5"),
    "swept": ("--top_k", "2,4,8", "--scale", "0,0.5,1.5,2,4"),
    "swept without the own factors": ("--top_k", "2,8", "--scale", "0.5,1.5"),
    "numbers alone": ("--top_k", "2,4,8", "--n_random", "0"),
    "factors alone": ("--scale", "0.5,4", "--conditions", "suppress_bad,enhance_bad"),
    "points by name": ("--conditions", "suppress_good,suppress_good.k2.x0.5,enhance.random_7"),
}


@pytest.mark.parametrize("flags", PLANS.values(), ids=PLANS)
def test_the_second_command_scores_the_same_conditions(flags):
    def planned(words) -> tuple[ConditionPlan, int]:
        plan = condition_plan(settings_of(*words)[0])
        neurons, over = plan.over(NEURONS)
        return over, neurons.top_k

    plan, top_k = planned(["validate", "runs/x", *flags])
    judged = Judged(plan.names, top_k, plan.scales, "all", 5, 3)
    command = validate_command(PLAIN.model_copy(update={"limit": 9}), judged)
    options = parsed(command)
    assert (options.positions, options.limit, str(options.run_dir)) == ("all", 5, "runs/again")
    assert options.batch_size == 3
    again, count = planned(words_of(command)[1:])
    assert (again.names, count) == (plan.names, top_k)
    assert again.scales == plan.scales


def test_a_sweep_is_written_as_its_lists():
    plan = condition_plan(settings_of("validate", "x", *PLANS["swept"])[0])
    names = plan.over(NEURONS)[1].names
    command = validate_command(PLAIN, Judged(names, 8, Scales(), "scored", None))
    assert "--top_k 2,4,8" in command
    assert "--scale 0,0.5,1.5,2,4" in command
    assert ".k" not in command


def test_a_batch_size_of_the_validation_s_own_is_in_the_report(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    flag = "--batch_size 7"
    assert flag not in run.report.read_text()
    options = ("--conditions", "enhance", "--n_random", 0)
    code, _, err = call("validate", run.path, *options, *flag.split())
    assert code == 0, err
    assert json.loads(run.validation.read_text())["batch_size"] == 7
    commands = run.report.read_text().split("### The same again")[1]
    assert commands.count(flag) == 1
    assert flag in commands.split("neuronllm-eval validate")[1]


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


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("token=x", "token=..."),
        (
            "--model_args=pretrained=m,token=x,dtype=y",
            "--model_args=pretrained=m,token=...,dtype=y",
        ),
        ("pretrained=m api_key=x dtype=y", "pretrained=m api_key=... dtype=y"),
        ('{"pretrained": "m", "token": "x, \\"y"}', '{"pretrained": "m", "token": ...}'),
        ("add_bos_token=True,tokenizer=x", "add_bos_token=True,tokenizer=x"),
    ],
)
def test_a_word_without_secrets(word, seen):
    assert word_without_secrets(word) == seen
