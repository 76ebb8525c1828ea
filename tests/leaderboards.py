"""Runs and entries of leaderboards, made up."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from neuronllm_eval.comparison.comparability import Terms
from neuronllm_eval.comparison.leaderboard import Entry
from neuronllm_eval.comparison.leaderboard_rows import BoardRun
from neuronllm_eval.neurons.neuron_set import Neuron
from neuronllm_eval.neurons.overlap import Places

TERMS = Terms(
    split="test",
    n_questions=60,
    question_ids="q",
    docs="d",
    n_proxies="3",
    orders="original",
    letter_style="A.",
    n_options="",
    distractors="none",
    num_fewshot="1",
    description="x",
    system_instruction="",
    chat_template="none",
    multiturn=True,
    metadata="m",
    task_config="c",
    chosen_split="train",
    n_chosen_on=120,
    chosen_at="scored",
    applied_at="scored",
    top_k=41,
    suppress=0.0,
    enhance=2.0,
    lm_eval="0.4.13",
    neuronllm_eval="0.1.0",
)
_NO_CHANGE = ("delta", "low", "high", "p_value", "p_holm", "controls_outdone", "n_controls",
              "control_p", "consistent_delta", "position_bias_delta", "top_k", "scale")  # fmt: skip


def entry(condition: str = "suppress_good", delta: float = -10.0, **changes: Any) -> Entry:
    """Of a model at 80%; `terms` may be a dict of what is other than in `TERMS`."""
    values: dict[str, Any] = {
        "model": "org/model",
        "model_hash": "h1",
        "dtype": "float32",
        "task": "demo",
        "method": "ace",
        "method_settings": json.dumps({"n_steps": 5}),
        "seed": 0,
        "condition": condition,
        "name": condition,
        "top_k": 41,
        "scale": 0.0,
        "n_good": 41,
        "n_bad": 41,
        "n_questions": 60,
        "n_docs": 180,
        "accuracy": 80.0 + delta,
        "note": None,
        "delta": delta,
        "low": delta - 5,
        "high": delta + 5,
        "p_value": 0.01,
        "p_holm": 0.0625,
        "controls_outdone": 19,
        "n_controls": 20,
        "control_p": 2 / 21,
        "consistent": 100 / 3,
        "consistent_delta": -20.0,
        "position_bias": 12.0,
        "position_bias_delta": 1.0,
        "majority": 75.0,
        "run": "runs/one",
    }
    if condition == "unmasked":
        values |= {**dict.fromkeys(_NO_CHANGE), "accuracy": 80.0}
    terms = dataclasses.replace(TERMS, **changes.pop("terms", {}))
    return Entry(**{**values, **changes}, terms=terms)


def board_run(
    path: str, *entries: Entry, good: tuple[int, ...] = (0, 1), **changes: Any
) -> BoardRun:
    """Of a model of one layer of 8 neurons, with neuron 7 as its bad one."""
    places = {
        "good": Places.of([Neuron(0, index, 1.0) for index in good], 1),
        "bad": Places.of([Neuron(0, 7, -1.0)], 1),
    }
    values: dict[str, Any] = {
        "path": path,
        "model": "org/model",
        "model_hash": "h1",
        "task": "demo",
        "method": "ace",
        "seed": 0,
        "shape": (1, 8),
        "places": places,
        "entries": entries,
        "lacks": "",
    }
    return BoardRun(**{**values, **changes})
