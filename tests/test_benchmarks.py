"""The benchmarks run, and attribution has not become ten times dearer."""

from __future__ import annotations

import torch

from benchmarks.attribution_speed import build_model, measure, random_prompt
from neuronllm_eval.architectures import find_ffn_layers
from neuronllm_eval.attribution import Quadrature, attribute
from neuronllm_eval.fan_out import FanOutEngine


def test_attribution_costs_a_few_plain_passes() -> None:
    torch.set_num_threads(1)
    rows = measure(build_model(n_layers=3), n_tokens=60, repeats=3, replay=True)
    plain_passes = {row[1]: float(row[3]) for row in rows}
    assert plain_passes["one plain forward pass"] == 1.0
    # About 2 at 150 tokens, more on short prompts. Replay: 5 passes and back for each layer.
    assert plain_passes["fan-out, 4 nodes of gauss_legendre"] < 15
    assert (
        plain_passes["replay, 4 nodes of gauss_legendre"]
        > 2 * plain_passes["fan-out, 4 nodes of gauss_legendre"]
    )


def test_one_forward_call_for_prefill_and_one_for_all_layers_and_nodes() -> None:
    """The promise behind the speed, counted rather than timed."""
    model = build_model(n_layers=4)
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        engine = FanOutEngine(model, find_ffn_layers(model))
        attribute(engine, [random_prompt(20)], Quadrature("gauss_legendre", 4))
    finally:
        handle.remove()
    assert len(calls) == 2
