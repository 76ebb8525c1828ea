"""Every argument of lm_eval's Hugging Face model acts in all commands, or is refused by name."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.model_args import MODEL_ARGS, require_model_args
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import (
    StageInput,
    load_model,
    load_run_task,
    validation_questions,
    wrap_model,
)
from neuronllm_eval.stages.prepare import checked_engine
from tests.fixtures.harness import TaskFolder, model_dir


def test_the_table_has_every_argument_of_the_harness_and_no_other():
    arguments = list(inspect.signature(HFLM.__init__).parameters)
    assert sorted(MODEL_ARGS) == sorted(set(arguments) - {"self", "kwargs"})


def test_the_documented_table_is_this_one():
    page = Path(__file__).resolve().parents[2] / "docs" / "lm-eval.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    for name, argument in MODEL_ARGS.items():
        accepted = argument.accepted
        refused = "" if accepted is None else (
            f"refused but for {' and '.join(map(str, accepted))}" if accepted else "refused"
        )  # fmt: skip
        assert f"| `{name}` | {argument.effect} | {refused} |".replace("  ", " ") in rows, name


@pytest.mark.parametrize(
    "arguments",
    [
        {"mixed_precision_dtype": "bfloat16"},
        {"mixed_precision_dtype": torch.float16},
        {"softmax_dtype": "bfloat16"},
        {"batch_size": 8},
        {"tp_plan": "auto"},
        {"enable_thinking": True},
        {"backend": "seq2seq"},
    ],
    ids=str,
)
def test_what_only_run_can_do_is_refused_by_name(arguments):
    require_model_args(arguments)
    (name,) = arguments
    with pytest.raises(UsageError, match=rf"{name}=\S+ in --model_args cannot be used here: "):
        require_model_args(arguments, stages=True)
    settings = RunSettings(model_args={"pretrained": str(model_dir()), **arguments}, task="t")
    with pytest.raises(UsageError, match=name):
        load_model(settings)


@pytest.mark.parametrize(
    "arguments",
    [{"softmax_dtype": "float32"}, {"softmax_dtype": torch.float32}, {"backend": "causal"},
     {"enable_thinking": False}, {"mixed_precision_dtype": None}, {"attn_implementation": "eager"}],
    ids=str,
)  # fmt: skip
def test_what_all_commands_do_alike_is_accepted(arguments):
    require_model_args(arguments, stages=True)


def test_two_devices_are_refused():
    arguments = {"pretrained": str(model_dir()), "device": "cpu"}
    with pytest.raises(UsageError, match="--device is meta, and device=cpu"):
        load_model(RunSettings(model_args=arguments, task="t", device="meta"))


def test_a_model_in_memory_of_another_type_than_its_description():
    model = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    arguments = {"pretrained": str(model_dir()), "dtype": "bfloat16"}
    with pytest.raises(UsageError, match="dtype=bfloat16 in model_args, and the model in memory"):
        wrap_model(RunSettings(model_args=arguments, task="t"), model, None)


def test_unmasked_numbers_are_those_of_the_harness_own_model(tmp_path):
    # Whatever makes lm_eval call the model in another way is noticed on the first docs.
    folder = TaskFolder(tmp_path / "tasks")
    folder.write("plain")
    settings = RunSettings(
        model_args={"pretrained": str(model_dir())},
        task="plain",
        include_path=(str(folder.path),),
        device="cpu",
    )
    model = load_model(settings)
    questions = validation_questions(model.lm, settings, load_run_task(settings))
    inputs = StageInput(model, settings, questions)
    checked_engine(inputs, "scored")
    checked_engine(inputs, "all")
    model.lm.mixed_precision_dtype = torch.bfloat16
    with pytest.raises(ModelError, match=r"doc 0 of task plain has log-likelihoods that differ"):
        checked_engine(inputs, "scored")
