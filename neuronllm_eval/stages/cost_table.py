"""What is said of estimates: a table after a dry run, a line before a long stage. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.stages.cost_estimate import Estimate

_HEADERS = ["task", "stage", "questions", "prompts", "tokens", "longest", "engine", "batch size",
            "conditions", "time", "weights", "memory", "disk"]  # fmt: skip


def estimate_table(estimates: Sequence[Estimate]) -> str:
    """All estimates of a dry run as a table, with what stands behind them."""
    rows = [
        [each.task, each.stage, str(each.n_questions), str(each.n_prompts), str(each.n_tokens),
         str(each.longest), each.engine, str(each.batch_size), str(each.n_conditions or ""),
         duration(each.seconds), size(each.weights), size(each.memory), size(each.disk)]
        for each in estimates
    ]  # fmt: skip
    how = (
        "measured on the longest prompts"
        if any(each.measured for each in estimates)
        else "estimated from the model's sizes"
    )
    seconds = sum(each.seconds for each in estimates)
    cost = sum(each.cost for each in estimates)
    free = size(min(each.memory_free for each in estimates))
    disk = sum(each.disk for each in estimates)
    return "\n".join([
        markdown_table(_HEADERS, rows),
        "",
        f"time: in all {duration(seconds)}, besides loading the model and building the questions",
        f"memory: beside the weights, {how}; {free} free",
        f"disk: in all {size(disk)}; {size(estimates[0].disk_free)} free",
        f"measured in {duration(cost)}; nothing was written",
    ])  # fmt: skip


def estimate_line(each: Estimate) -> str:
    """What a long run says before it starts."""
    return (
        f"{each.stage} {each.task}: about {duration(each.seconds)} for {each.n_prompts} prompts; "
        f"memory beside the weights about {size(each.memory)}, {size(each.memory_free)} are free; "
        f"about {size(each.disk)} on disk"
    )


def duration(seconds: float) -> str:
    """Such as `< 1 s`, `42 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 1:
        return "< 1 s"
    for unit, length, most in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{_figures(seconds / length)} {unit}"
    return f"{_figures(seconds / 86400)} days"


def size(n_bytes: int) -> str:
    """Such as `3.4 MiB`, `120 GiB`."""
    amount = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{_figures(amount)} {unit}"
        amount /= 1024
    return f"{_figures(amount)} TiB"


def _figures(amount: float) -> str:
    """Two significant figures, all of them where there are more before the point."""
    return f"{amount:.1f}" if 0 < amount < 9.95 and amount % 1 else f"{amount:.0f}"
