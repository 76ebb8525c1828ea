"""The benchmarks run, and nothing has become ten times slower.

Bounds are a few times the figures of an idle machine, which stand beside them.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    adapter_equality,
    attribution_speed,
    engine_cost,
    evaluation_cost,
    growth,
    memory,
    method_cost,
    models,
    profiling,
    real_cost,
    request_speed,
)
from benchmarks.workload import Run, build_model, make_prompts, masked_model, score, stock_model
from neuronllm_eval.attribution.methods import METHODS
from tests.fixtures.harness import demo_model_dir, harness_model
from tests.fixtures.processes import run_module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def column(rows: Sequence[Sequence[str]], name: int, value: int) -> dict[str, float]:
    """A column of a table by another."""
    return {row[name]: float(row[value]) for row in rows}


def test_identification_and_validation_cost_about_a_stock_pass() -> None:
    rows = engine_cost.measure(4, 150, 2, batch_size=6, repeats=3, nodes=[3], conditions=[20])
    passes = column(rows, 3, 5)
    assert passes["stock pass"] == 1.0
    # 0.6 and 0.6
    assert passes["attribution, 3 Gauss-Lobatto nodes"] < 3
    assert passes["20 conditions"] < 3
    unsaved = passes["attribution, 3 Gauss-Lobatto nodes, nothing saved"]
    assert passes["attribution, 3 Gauss-Lobatto nodes"] < unsaved


@pytest.mark.parametrize("option_tokens", [1, 4])
def test_evaluation_costs_about_a_stock_pass(option_tokens: int) -> None:
    rows = evaluation_cost.measure(2, 60, option_tokens, n_questions=1, batch_size=6, repeats=3)
    passes = column(rows, 4, 6)
    assert passes["stock pass"] == 1.0
    # 1.0 each, or less
    assert passes["unmasked"] < 3
    assert passes["masked, positions=all"] < 3
    assert passes["masked, positions=scored"] < 3


def test_more_methods_cost_little_more() -> None:
    rows = {row[2]: float(row[4]) for row in method_cost.measure(2, 60, 2, 6, repeats=3)}
    assert rows["stock pass"] == 1.0
    assert rows["ace, qrnca, tn"] < 3 * rows["qrnca"]  # 1.2
    assert rows[", ".join(METHODS)] < 12  # 1.4


def test_the_timed_models_give_the_expected_log_likelihoods() -> None:
    model = build_model(n_layers=2)
    for option_tokens in (1, 4):
        prompts = make_prompts(60, 1, option_tokens)
        stock = score(stock_model(model, 6), prompts)
        assert len(stock) == 3 * 4
        unmasked = score(masked_model(model, 6), prompts)
        assert [greedy for _, greedy in unmasked] == [greedy for _, greedy in stock]
        assert [value for value, _ in unmasked] == pytest.approx([value for value, _ in stock])
        everywhere = score(masked_model(model, 6, "all"), prompts)
        scored = score(masked_model(model, 6, "scored"), prompts)
        # Masks have an effect, and it depends on their positions.
        for one, other in ((stock, everywhere), (stock, scored), (everywhere, scored)):
            assert max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True)) > 1e-3


def test_fan_out_is_faster_than_replay_and_as_complete() -> None:
    rows = attribution_speed.measure(
        build_model(n_layers=3), 60, n_questions=2, batch_size=6, repeats=3, nodes=[3], replay=True
    )
    passes, faster, gap = (
        column([row for row in rows if row[value]], 1, value) for value in (3, 4, 5)
    )
    alone, in_run = (
        f"fan-out, 3 Gauss-Lobatto nodes, {kind}" for kind in ("one prompt alone", "in a run")
    )
    assert passes["plain forward pass"] == 1.0
    assert passes[alone] < 8  # 1.6
    assert passes[in_run] < 4  # 0.7
    assert faster[alone] > 8  # 50
    assert faster[in_run] > 20  # 120
    assert gap[in_run] < gap[attribution_speed.REPLAY]


def test_one_forward_call_for_prefill_and_one_for_all_layers_and_nodes() -> None:
    """The reason for the speed, counted rather than timed."""
    model = build_model(n_layers=4)
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        Run(model, make_prompts(20, 1)[:1], batch_size=1).attribution(5)
    finally:
        handle.remove()
    assert len(calls) == 2


def test_time_grows_at_most_in_proportion() -> None:
    point = {"questions": 2, "layers": 2, "nodes": 3, "tokens": 40}
    for name, values in (("questions", (2, 6)), ("nodes", (3, 18)), ("tokens", (40, 160))):
        first, last = growth.measure(name, values, point, batch_size=6, repeats=3)
        assert first == [name, str(values[0]), first[2], "1.0", "1.00", "1.00"]
        assert float(last[3]) == values[1] / values[0]
        assert float(last[5]) < 3  # 0.3 to 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs a Linux kernel")
def test_attribution_takes_about_the_memory_of_a_stock_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """The command in a process that need not import anything."""
        assert command[:2] == [sys.executable, "-m"]
        code, out, err = run_module(*command[2:])
        assert code == 0, err
        return subprocess.CompletedProcess(command, 0, out, err)

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    case = memory.Case(layers=2, tokens=150, questions=2, batch_size=6)
    name = "attribution, 3 Gauss-Lobatto nodes"
    found = memory.measure(case, (memory.STOCK, name))
    assert all(peak.total > peak.loaded > 100 for peak in found.values())
    above = column(memory.rows(case, found), 3, 7)
    assert above[memory.STOCK] == 1.0
    assert above[name] < 4  # 0.7


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs a Linux kernel")
def test_the_cost_of_a_model_and_task_of_ones_own() -> None:
    actions = real_cost.prepare(harness_model(demo_model_dir(), 6), "demo_topic", [], 2)
    found = {name: real_cost.measured(action) for name, action in actions.items()}
    (stock, _), *others = found.values()
    assert next(iter(found)) == "stock pass"
    assert len(others) == 6
    for seconds, peak in others:
        assert 0 < seconds < 30 * stock
        assert 0 <= peak < 1000


def test_the_components_of_the_profile_add_up() -> None:
    run = Run(build_model(n_layers=2), make_prompts(60, 1), batch_size=3)
    spent = profiling.parts(run, n_nodes=3, repeats=1)
    assert set(spent) == {
        "prefill, attention, cache", "prefill, attention, rest", "prefill, FFN", "prefill, masks",
        "prefill, rest", "copies, attention, cache", "copies, attention, rest", "copies, FFN",
        "copies, LM head", "copies, masks", "copies, backward", "copies, rest", "all else",
    }  # fmt: skip
    assert all(each > 0 for each in spent.values())
    shares = [share for _, _, share in profiling.operators(run, 3)]
    assert math.isclose(sum(shares), 1)
    assert shares == sorted(shares, reverse=True)


def test_requests_are_built_about_as_fast_as_those_of_a_plain_task() -> None:
    found = request_speed.run(n_questions=300)
    plain, aqua = found["plain"], found["aqua"]
    assert aqua[2] == plain[2] == 300 * 3 * 4
    assert aqua[1] < 2 * plain[1]  # about 1.2; a template compiled for each doc: about 25


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_exports_give_the_masked_models_log_likelihoods() -> None:
    rows = adapter_equality.measure(("gpt2", adapter_equality.BIASED), ("bfloat16",), 3)
    assert [row[2] for row in rows] == ["2", "1.3"] * 2
    for row in rows:
        same = row[3:6] if row[2] == "2" else row[3:4]  # 1.3 rounds weights, where it is merged
        assert set(same) == {"0"}
        assert float(row[-1]) > 0.1  # the mask does something


def test_model_types_are_as_the_page_lists_them() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text("utf-8")
    known = [[cell.strip() for cell in line[2:-2].split("|")] for line in page.splitlines()
             if line.startswith("| ")]  # fmt: skip
    for kind, engine, path in (
        ("llama", "fan_out", ""),
        ("gemma3", "fan_out", "as one step"),
        ("bloom", "replay", ""),
    ):
        tried = models.try_kind(kind)
        assert (tried.engine, tried.path) == (engine, path)
        assert list(dataclasses.astuple(tried)) in known
    refused = models.try_kind("mixtral")
    assert not refused.works
    assert refused.engine == "MixtralForCausalLM has no FFN down-projection under a known name"
    assert models.try_kind("bart") == models.Tried("bart", models.ENCODER_DECODER)
    with pytest.raises(models.NotSmallError):
        models.small_model("reformer")
    assert models.try_kind("reformer").engine == "not tried"
