"""A model at chance: the warning before the pass, and the headline after validation."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runtime.distributed import Ranks
from neuronllm_eval.runtime.resumable_work import Launch
from neuronllm_eval.stages import identify as identify_stage
from neuronllm_eval.stages.prepare import warn_of_chance
from tests.fixtures.cli import call, identify, jsonl, without_the_harness_tasks
from tests.fixtures.harness import CHATML, TaskFolder, model_dir, some_docs
from tests.fixtures.processes import TASK, assert_same_bytes, run_eval
from tests.stages.test_resume import stopped

AT_CHANCE = "the unmasked model is not clearly above chance"
LIMIT = 12


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


def warnings(caplog) -> list[str]:
    return [message for message in caplog.messages if AT_CHANCE in message]


@pytest.mark.parametrize("limit", [LIMIT, 60])
def test_a_model_at_chance_is_warned_of_with_its_predictions(tmp_path, caplog, limit):
    code, out, err = call(*identify(tmp_path, "--limit", limit))
    assert code == 0, err
    every = [is_right for line in jsonl(RunDirectory(tmp_path / TASK).questions)
             for is_right in line["right"]]  # fmt: skip
    assert (
        f"Unmasked accuracy on the selection questions: {np.mean(every):.1%}, chance 25.0%, not "
        "clearly above it." in out
    )
    # The pass's own records of the first 50 questions, which the warning was there before.
    lines = jsonl(RunDirectory(tmp_path / TASK).questions)[:50]
    predicted = [int(np.argmax(line["loglikelihoods"][0])) for line in lines]
    right = [line["right"][0] for line in lines]
    shares = [
        f"{'ABCD'[option]} {count / len(predicted):.0%}"
        for option, count in Counter(predicted).most_common()
    ]
    (message,) = warnings(caplog)
    assert message.startswith(f"{TASK}: {AT_CHANCE} on the first selection questions (accuracy ")
    assert f"accuracy {np.mean(right):.1%}, chance 25.0%, one-sided p " in message
    assert f" over {len(lines)} questions, binomial test at 0.05" in message
    assert f"; predicted: {', '.join(shares)}): " in message
    assert message.endswith(
        "Consider scoring option texts (the harness's own task on these data, if any) or more "
        "demonstrations (--num_fewshot, now 1)."
    )


def test_the_embedded_model_is_above_chance(tmp_path, caplog):
    arguments = ("--conditions", "suppress_good", "--n_random", 1, "--limit", LIMIT)
    code, out, err = call(
        "--model_args", f"pretrained={MODEL_DIR}", "--device", "cpu", "--tasks", TASK,
        "--output_path", tmp_path, *arguments, entry=cli.run_eval_main,
    )  # fmt: skip
    assert code == 0, err
    assert "only 12 questions select the neurons" in caplog.text  # warnings are heard
    assert warnings(caplog) == []
    report = (tmp_path / TASK / "report.md").read_text()
    assert "above chance" not in out + report


def test_the_headline_says_so_everywhere(tmp_path):
    code, out, err = run_eval(tmp_path)
    assert code == 0, err
    start = "The unmasked model is not clearly above chance on this task (accuracy "
    end = "neurons of a model at chance are about the options' position or form, not about the task"
    (line,) = [line for line in out.splitlines() if start in line]
    assert end in line
    assert "Suppressing 8 good neurons " in line.split(end)[1]
    for name in ("report.md", "report.html", "README.md"):
        text = (tmp_path / TASK / name).read_text().replace("&#39;", "'")
        assert (text.count(start), text.count(end)) == (1, 1), name


TEXTS = {
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "fewshot_split": "train",
}


@pytest.mark.parametrize(
    ("task", "template", "flags", "predicted", "advice"),
    [
        ("plain", "", (), r"option \d \d+%", "more demonstrations (--num_fewshot, now 0)."),
        (
            "plain", CHATML, ("--num_fewshot", 2), r"option \d \d+%",
            "more demonstrations (--num_fewshot, now 2) or --apply_chat_template.",
        ),
        (
            "aqua:plain", CHATML, ("--apply_chat_template",), r"[ABCD] \d+%",
            "scoring option texts (--tasks plain instead of aqua:plain) or more demonstrations "
            "(--num_fewshot, now 1).",
        ),
    ],
)  # fmt: skip
def test_the_advice_is_for_the_task(tmp_path, caplog, task, template, flags, predicted, advice):
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("plain", {"train": some_docs(0, 12), "test": some_docs(100)}, **TEXTS)
    path = model_dir("chat", chat_template=template or None, context=512)
    code, _, err = call(
        *identify(tmp_path / "runs", "--include_path", folder.path, "--limit", LIMIT, *flags,
                  task=task, path=path)
    )  # fmt: skip
    assert code == 0, err
    (message,) = warnings(caplog)
    assert message.startswith(f"{task}: ")
    assert re.search(f"; predicted: {predicted}", message), message
    assert message.endswith(f". Consider {advice}"), message


def test_a_resumed_run_is_warned_of_too_and_ends_with_the_same_bytes(tmp_path, caplog):
    assert stopped(tmp_path, 3)[0] == 130
    assert len(warnings(caplog)) == 1
    caplog.clear()
    assert run_eval(tmp_path)[0] == 0
    assert len(warnings(caplog)) == 1
    assert_same_bytes(tmp_path / TASK)
    caplog.clear()
    assert run_eval(tmp_path, "--resume")[0] == 0  # nothing left to identify
    assert warnings(caplog) == []


def test_the_check_changes_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(identify_stage, "warn_of_chance", lambda *_: None)
    assert run_eval(tmp_path)[0] == 0
    assert_same_bytes(tmp_path / TASK)


def test_several_methods_are_warned_of_once(tmp_path, caplog):
    assert call(*identify(tmp_path, "--method", "ace,gradxact", "--limit", LIMIT))[0] == 0
    assert len(warnings(caplog)) == 1


def test_only_the_first_process_scores():
    launch = Launch(Ranks(rank=1, n_ranks=2))
    warn_of_chance(None, None, launch)  # touches neither inputs nor engine
