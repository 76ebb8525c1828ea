"""The embedded model, its questions in all orders, and copies with planted neurons."""

from __future__ import annotations

import functools

import pytest

from benchmarks.planted_truth.__main__ import N_LETTERS, TASK
from benchmarks.planted_truth.measure import POSITION_KINDS, SKILL_KINDS
from benchmarks.planted_truth.neuron_kinds import PlantedModel
from benchmarks.planted_truth.plant import plant
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load_model import LoadedModel, load_model
from neuronllm_eval.stages.load_questions import (
    load_run_task,
    selection_questions,
    validation_questions,
)
from tests.cli_fixtures import without_the_harness_tasks

STRENGTH = 1.0
N_FITTING, N_ASKED = 40, 16


@functools.cache
def embedded() -> tuple[LoadedModel, tuple[Question, ...], tuple[Question, ...]]:
    """The model, questions to plant by, and others to find neurons by."""
    settings = RunSettings(
        model_args={"pretrained": str(MODEL_DIR)},
        task=TASK,
        n_proxies=N_LETTERS,
        seed=0,
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        model, task = load_model(settings), load_run_task(settings)
        fitting = settings.model_copy(update={"limit": N_FITTING})
        asked = settings.model_copy(update={"limit": N_ASKED})
        return (
            model,
            selection_questions(model.lm, fitting, task).questions,
            validation_questions(model.lm, asked, task).questions,
        )


def fitting_prompts() -> list[Prompt]:
    """What is planted by."""
    return [prompt for question in embedded()[1] for prompt in question.prompts]


def planted(layers: tuple[int, ...], kinds: tuple[str, ...], seed: int = 0) -> PlantedModel:
    """A copy with these kinds in these layers."""
    return plant(embedded()[0].lm.model, fitting_prompts(), layers, kinds, STRENGTH, seed)


@functools.cache
def skilled() -> PlantedModel:
    """With the neurons that the methods are told apart by."""
    return planted((2, 3), SKILL_KINDS)


@functools.cache
def biased() -> PlantedModel:
    """With neurons that push their letters whatever is asked."""
    return planted((3,), POSITION_KINDS)
