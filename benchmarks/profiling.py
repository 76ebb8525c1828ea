"""Where the time of an attribution goes: by component of the engine, by operator.

Components are timed with a clock at their boundaries, which hardly slows them; operators by torch's
profiler, in a separate run, as shares of all operators' time.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from benchmarks.workload import Run, now, seconds
from neuronllm_eval.engine import fan_out, shared_prefix
from neuronllm_eval.engine.shared_prefix import Prefiller
from neuronllm_eval.formats.markdown import markdown_table

N_OPERATORS = 15
# Prefill and the copies' pass call the same modules; their names tell whose part it is.
_PARTS = {"self_attn": "attention", "mlp": "FFN", "lm_head": "LM head"}
_OUTSIDE = "all else"


class Clock:
    """Seconds of nested components, each without the components within it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, name: str) -> None:
        """A part begins; within another, it is named after both."""
        self._charge()
        self._open.append(f"{self._open[-1]}, {name}" if self._open else name)

    def leave(self) -> None:
        """The innermost part ends."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        time = now()
        if self._open:
            self.spent[self._open[-1]] += time - self._since
        self._since = time

    @contextmanager
    def around(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Within the context, calls of `owner.name` are the part."""
        real = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return real(*args, **kwargs)
            finally:
                self.leave()

        with mock.patch.object(owner, name, timed):
            yield

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Within the context, the model's attention, FFNs and head are timed as components."""
        handles = []
        try:
            for name, module in model.named_modules():
                part = _PARTS.get(name.rpartition(".")[2])
                if part is not None:
                    enter = partial(self._on_enter, part)
                    handles.append(module.register_forward_pre_hook(enter))
                    leave = module.register_forward_hook(self._on_leave, always_call=True)
                    handles.append(leave)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_enter(self, part: str, *_: Any) -> None:
        self.enter(part)

    def _on_leave(self, *_: Any) -> None:
        self.leave()


def parts(run: Run, n_nodes: int, repeats: int) -> dict[str, float]:
    """Median seconds of each part of an attribution; their sum is about its time."""
    found: dict[str, list[float]] = defaultdict(list)
    run.attribution(n_nodes)  # warm up
    for _ in range(repeats):
        clock = Clock()
        with ExitStack() as stack:
            stack.enter_context(clock.within(run.model))
            engine = fan_out.FanOutEngine
            for owner, name, part in (
                (Prefiller, "prefill", "prefill"),
                (engine, "_pass", "copies"),
                (shared_prefix, "attention_masks", "masks"),
                (DynamicCache, "update", "cache"),
                (torch.autograd, "grad", "backward"),
            ):
                stack.enter_context(clock.around(owner, name, part))
            whole = seconds(partial(run.attribution, n_nodes))
        for name, spent in clock.spent.items():
            has_parts = any(other.startswith(f"{name}, ") for other in clock.spent)
            found[f"{name}, rest" if has_parts else name].append(spent)
        found[_OUTSIDE].append(whole - sum(clock.spent.values()))
    return {name: statistics.median(spent) for name, spent in found.items()}


def operators(run: Run, n_nodes: int) -> list[tuple[str, int, float]]:
    """Name, calls and share of the time of each operator, the slowest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its start and stop
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run.attribution(n_nodes)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = [(event.key, event.count, event.self_cpu_time_total / total) for event in events]
    return sorted(shares, key=lambda each: -each[2])


def report(run: Run, n_nodes: int, repeats: int) -> str:
    """Both tables."""
    spent = parts(run, n_nodes, repeats)
    total = sum(spent.values())
    ordered = sorted(spent.items(), key=lambda each: -each[1])
    by_part = [
        [name, f"{1e3 * each / len(run.prompts):.2f}", f"{100 * each / total:.1f}"]
        for name, each in ordered
    ]
    by_operator = [
        [name, str(calls), f"{100 * share:.1f}"]
        for name, calls, share in operators(run, n_nodes)[:N_OPERATORS]
    ]
    tables = (
        markdown_table(["part", "ms per prompt", "%"], by_part),
        markdown_table(["operator", "calls", "% of all operators"], by_operator),
    )
    return "\n\n".join(tables)
