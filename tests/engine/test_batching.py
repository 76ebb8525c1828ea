"""As many prompts together as fit, fewer when they do not, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.engine import batching as batch_sizes
from neuronllm_eval.engine.batching import (
    LARGEST_BATCH,
    Pass,
    auto_batch_size,
    batch_bytes,
    free_memory,
    in_batches,
)
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.engine.pass_size import rows_per_prompt
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt, Question
from tests.fixtures.processes import run_code
from tests.fixtures.tiny_models import random_prompt, tiny_model

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(autouse=True, scope="module")
def _no_collection():
    """Collecting garbage takes a tenth of a second, and there is none here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_sizes, "clear_device_cache", lambda **_: None)
        yield


def questions(*sizes: int) -> list[Question]:
    """Questions of so many prompts each, whose doc ids count through."""
    found, number = [], 0
    for index, size in enumerate(sizes):
        prompts = tuple(
            Prompt(number + place, (7,) * (number + place + 2), ((1,), (2,)), 0)
            for place in range(size)
        )
        found.append(Question(f"q{index}", prompts))
        number += size
    return found


class Memory:
    """Computes doc ids, with room for `room` prompts at a time."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.tried: list[int] = []
        self.computed: list[int] = []

    def __call__(self, prompts: list[Prompt]) -> list[int]:
        self.tried.append(len(prompts))
        if len(prompts) > self.room:
            raise self.error(OUT_OF_MEMORY)
        self.computed += [prompt.doc_id for prompt in prompts]
        return [prompt.doc_id for prompt in prompts]


def test_batches_hold_whole_questions():
    memory = Memory(99)
    found = list(in_batches(questions(3, 3, 3, 1, 4), 6, memory))
    assert found == [
        (0, [0, 1, 2]),
        (1, [3, 4, 5]),
        (2, [6, 7, 8]),
        (3, [9]),
        (4, [10, 11, 12, 13]),
    ]
    assert memory.tried == [6, 4, 4]


@given(st.lists(st.integers(1, 6), max_size=20), st.integers(1, 12))
def test_no_batch_stops_while_the_next_question_still_fits(sizes, batch_size):
    memory = Memory(999)
    list(in_batches(questions(*sizes), batch_size, memory))
    done = 0
    for n_prompts in memory.tried:
        ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        first, last = ends.index(done), ends.index(done + n_prompts)
        assert n_prompts <= batch_size or last - first == 1
        assert last == len(sizes) or n_prompts + sizes[last] > batch_size
        done += n_prompts
    assert done == sum(sizes)


def test_a_question_is_never_left_out_for_its_size():
    assert list(in_batches(questions(4), 1, Memory(99))) == [(0, [0, 1, 2, 3])]


def test_a_batch_that_does_not_fit_is_halved_and_so_are_later_ones(caplog):
    memory = Memory(3)
    with caplog.at_level(logging.WARNING):
        found = list(in_batches(questions(2, 2, 2, 2, 2, 2), 8, memory))
    assert found == [(index, [2 * index, 2 * index + 1]) for index in range(6)]
    assert memory.tried == [8, 4, 2, 2, 2, 2, 2, 2]
    assert "out of memory; continuing with about 2 prompts at a time" in caplog.text


def test_proxies_of_one_question_need_not_fit_together():
    assert list(in_batches(questions(5), 1, Memory(1))) == [(0, [0, 1, 2, 3, 4])]


@given(
    sizes=st.lists(st.integers(1, 6), max_size=12),
    batch_size=st.integers(1, 20),
    room=st.integers(1, 20),
)
def test_every_prompt_is_computed_once_whatever_fits(sizes, batch_size, room):
    asked = questions(*sizes)
    memory = Memory(room)
    found = list(in_batches(asked, batch_size, memory))
    assert found == [
        (index, [prompt.doc_id for prompt in question.prompts])
        for index, question in enumerate(asked)
    ]
    assert memory.computed == list(range(sum(sizes)))


def test_one_prompt_that_does_not_fit_is_an_error_with_a_remedy():
    with pytest.raises(ModelError, match=r"one prompt of 2 tokens.*out of memory[\s\S]*bfloat16"):
        list(in_batches(questions(2), 4, Memory(0)))


def test_a_cpu_that_is_full_is_noticed_too():
    class CPUMemory(Memory):
        def __call__(self, prompts: list[Prompt]) -> list[int]:
            if len(prompts) > 1:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9")
            return super().__call__(prompts)

    assert list(in_batches(questions(2), 4, CPUMemory(9))) == [(0, [0, 1])]


def test_other_errors_are_not_taken_for_lack_of_memory():
    def broken(prompts: list[Prompt]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(in_batches(questions(2), 4, broken))


def test_what_was_yielded_before_an_error_stays():
    class Second(Memory):
        def __call__(self, prompts: list[Prompt]) -> list[int]:
            if prompts[0].doc_id:
                raise ValueError("later")
            return super().__call__(prompts)

    results = in_batches(questions(1, 1), 1, Second(9))
    assert next(results) == (0, [0])
    with pytest.raises(ValueError, match="later"):
        next(results)


# Estimates --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


ATTRIBUTION, SCORING = Pass(5, gradients=True), Pass(10, gradients=False)


def test_more_tokens_and_more_copies_need_more_memory(model):
    layers = find_ffn_layers(model)

    def needed(n_tokens: int, n_copies: int, gradients: bool) -> int:
        return batch_bytes(model, layers, n_tokens, 4, Pass(n_copies, gradients))

    for gradients in (False, True):
        base = needed(100, 10, gradients)
        assert base < needed(200, 10, gradients) < 2.2 * base
        few = needed(10, 15, gradients)
        assert few < needed(10, 30, gradients) < 2 * few
    assert needed(100, 10, True) > needed(100, 10, False)  # of every layer, and kept


TEXTS = ((5,), (6, 7), (6, 8, 9), (50, 51))  # a tree of 4 rows


@pytest.mark.parametrize(
    "passes",
    [
        ATTRIBUTION,
        SCORING,
        Pass(300, gradients=False),
        Pass(5, gradients=True, tree_rows=4),
        Pass(13, gradients=False, tree_rows=4),
        Pass(300, gradients=False, tree_rows=4),
    ],
)
def test_copies_are_those_of_the_engine_s_largest_pass(model, passes):
    """Counted where they enter the layers' down-projections."""
    layers = find_ffn_layers(model)
    most = rows_per_prompt(passes.tree_rows, passes.n_copies if passes.gradients else 0)
    engine = FanOutEngine(model, layers, rows_per_prompt=most)
    prompts = [random_prompt(number, 9) for number in range(2)]
    if passes.tree_rows > 1:
        prompts = [replace(prompt, options=TEXTS) for prompt in prompts]
    seen: dict[int, list[int]] = {layer: [] for layer in range(layers.n_layers)}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0].shape[1])
        )
        for layer, module in enumerate(layers.modules)
    ]
    engine.prefiller.prefill([prompt.context for prompt in prompts])
    for found in seen.values():
        found.clear()
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        if passes.gradients:
            nodes = torch.linspace(0, 0.9, passes.n_copies)  # 1 would take no copy
            engine.integrate(prompts, nodes, torch.ones_like(nodes), option_cross_entropy)
        else:
            engine.score(prompts, torch.ones(passes.n_copies, *layers.shape))
    prefill = 8  # tokens; passes with as many copies there are none
    expected = passes.rows(layers.n_layers, len(prompts))
    assert [max(n for n in seen[layer] if n != prefill) for layer in seen] == expected


def test_letters_that_need_the_whole_vocabulary_take_smaller_passes(model):
    # 8 prompts share 2**26 / 2**18 = 256 rows: 32 each, so 31 trees, of 5 copies in 6 layers. Else
    # all 12 layers have room.
    whole = Pass(5, gradients=True, compares_logits=False)
    assert whole.rows(12, 8, 2**18) == [1 + 5 * min(layer, 6) for layer in range(1, 13)]
    assert replace(whole, compares_logits=True).rows(12, 8, 2**18)[-1] == 1 + 5 * 12
    layers = find_ffn_layers(model)
    needed = [
        batch_bytes(model, layers, 9, 2, replace(whole, compares_logits=compares))
        for compares in (True, False)
    ]
    assert needed[1] > needed[0]


def test_gradients_at_alpha_1_alone_take_no_copies(model):
    layers = find_ffn_layers(model)
    engine, one = FanOutEngine(model, layers), torch.ones(1)
    rows = []
    handle = layers.modules[2].register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[1])
    )
    try:
        texts = [replace(random_prompt(number, 1), options=TEXTS) for number in range(2)]
        engine.integrate(texts, one, one, option_cross_entropy)
    finally:
        handle.remove()
    assert rows == [4]
    assert Pass(0, gradients=True, tree_rows=4).rows(3, 2) == [1, 1, 1]


def test_prompts_of_large_trees_go_through_the_model_one_after_another():
    # 2048 / 2 rows of a pass; two layers' copies of 4 nodes and one row each: 4 prompts of 25 rows.
    assert Pass(4, gradients=True, tree_rows=25).batch(12, 64) == 5
    assert Pass(4, gradients=True, tree_rows=200).batch(12, 64) == 1
    assert Pass(4, gradients=True).batch(12, 64) == 64
    assert Pass(4, gradients=True, tree_rows=25).batch(12, 64, vocabulary=262_144) == 1


def test_copies_of_deep_models_and_large_batches_are_split_up():
    # 127 copies of a prompt beside the unedited one: 25 layers' of 5; 2048 of a batch: 8 layers'.
    assert ATTRIBUTION.rows(32, 1) == [min(1 + 5 * layer, 126) for layer in range(1, 33)]
    assert ATTRIBUTION.rows(12, 48) == [6, 11, 16, 21, 26, 31, 36, 41, 41, 41, 41, 41]
    assert ATTRIBUTION.rows(2, 4000) == [6, 6]
    assert Pass(300, gradients=False).rows(2, 4) == [128, 128]
    assert Pass(300, gradients=False).rows(2, 256) == [8, 8]


@pytest.mark.parametrize("free", [0, 0.5, 10, 100, 1e9])
@pytest.mark.parametrize("passes", [ATTRIBUTION, SCORING])
def test_auto_takes_what_fits_into_half_of_what_is_free(model, monkeypatch, free, passes):
    layers = find_ffn_layers(model)
    prompts = [prompt for question in questions(5) for prompt in question.prompts]

    def needed(size: int) -> int:
        return batch_bytes(model, layers, 6, size, passes)

    room = free * needed(1)
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: room)
    found = auto_batch_size(model, layers, prompts, passes)
    assert found == 1 or needed(found) <= room / 2
    assert found == LARGEST_BATCH or needed(found + 1) > room / 2
    assert (found == 1) == (free < 3)
    assert (found == LARGEST_BATCH) == (free == 1e9)


def test_free_memory_is_some():
    assert free_memory(torch.device("cpu")) > 2**20


# What a process takes at most while it computes, against what was estimated for it.
MEASURE = """
import ctypes, gc, json, sys, threading
import psutil, torch
from transformers import LlamaConfig, LlamaForCausalLM
from benchmarks.engine_cost import make_prompts, random_scales
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.attribution.integrated_gradients import attribute
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.batching import Pass, batch_bytes, replay_bytes
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.replay import ReplayEngine

torch.set_num_threads(1)
# Freed memory goes back at once, so that what is resident is what is held.
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    libc.malloc_trim(0)
process = psutil.Process()

def measure(kind, what, n_tokens, batch, n, dtype, heads):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=heads)
    model = LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    layers, prompts = find_ffn_layers(model), make_prompts(n_tokens, batch // 3)
    engine = {"fan_out": FanOutEngine, "replay": ReplayEngine}[kind](model, layers)
    scales = random_scales(layers, n)
    engine.score(make_prompts(20, 1)[:1], scales[:1])  # what is loaded once
    passes = Pass(n + 1, True) if what == "attribute" else Pass(n, False)
    expected = (batch_bytes(model, layers, n_tokens, batch, passes) if kind == "fan_out"
                else replay_bytes(model, layers, n_tokens, passes))
    gc.collect()
    before = process.memory_info().rss
    peaks, done = [before], threading.Event()
    def watch():
        while not done.wait(0.002):
            peaks.append(process.memory_info().rss)
    watcher = threading.Thread(target=watch)
    watcher.start()
    if what == "attribute":
        attribute(engine, prompts, Quadrature("gauss_legendre", n))
    else:
        engine.score(prompts, scales)
    done.set()
    watcher.join()
    return expected / (max(peaks) - before)

print(json.dumps([measure(*case) for case in json.loads(sys.argv[1])]))
"""
CASES = [
    ("fan_out", "attribute", 200, 12, 4, "float32", 8),
    ("fan_out", "attribute", 200, 12, 4, "bfloat16", 2),
    ("fan_out", "attribute", 60, 24, 16, "float32", 8),
    ("fan_out", "score", 200, 12, 24, "float32", 8),
    ("replay", "attribute", 100, 3, 4, "float32", 8),
    ("replay", "score", 100, 3, 8, "float32", 8),
]


@pytest.mark.slow  # a process of its own
def test_memory_is_what_a_process_takes_within_a_factor_of_2_and_a_half():
    code, out, err = run_code(MEASURE, json.dumps(CASES))
    assert code == 0, err
    found = json.loads(out)
    assert len(found) == len(CASES)
    assert all(1 / 2.5 < ratio < 2.5 for ratio in found), found
