"""How long a stage will take, and how much memory and disk, from a short measurement.

1. The stage's own computation is run on a few of its own questions, of about median length, after
   a pass that warms up. Nothing is kept, and nothing that the stage computes later depends on it.
2. Time is scaled to the tokens of all prompts. What happens once per result file is timed twice,
   and the shorter time is taken.
3. On a CUDA device, the pass that warms up is a batch of the longest prompts, and its peak is the
   memory; elsewhere memory is estimated from the model's sizes (`batch_sizes`).

`estimate` measures two batches at most, and is for `--dry_run`. `estimate_if_long` is for every
other run: it measures no more than 4% of the questions, and nothing where they are few.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from neuronllm_eval.engine.batching import Pass, batch_bytes, free_memory, replay_bytes
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.prompts import Question
from neuronllm_eval.runtime.resumable_work import Launch

# A run that is expected to take longer says so beforehand, in seconds.
LONG = 30.0
# Share of the questions that each of the two measurements of such a run may take.
_SHARE = 0.02


@dataclass(frozen=True)
class Stage:
    """A stage that is ready to run.

    Attributes:
        task: its task.
        name: `identify` or `validate`.
        engine: computes it.
        questions: all of them.
        batch_size: prompts per pass.
        passes: what a pass holds.
        run: computes some of the questions as the stage does, and keeps nothing.
        finish: what is done once for each result file.
        n_files: result files.
        text: reads a plain text once.
        n_texts: how often it is read, each time under another condition.
        disk: bytes of all artifacts.
        directory: where they go; it need not exist.
    """

    task: str
    name: str
    engine: Engine
    questions: Sequence[Question]
    batch_size: int
    passes: Pass
    run: Callable[[Sequence[Question]], object]
    finish: Callable[[], object]
    n_files: int
    disk: int
    directory: Path
    text: Callable[[], object] = lambda: None
    n_texts: int = 0

    @property
    def device(self) -> torch.device:
        """Where the model is; of one that is spread, the first part of it."""
        return next(self.engine.model.parameters()).device


@dataclass(frozen=True)
class Estimate:
    """What a stage will take.

    Attributes:
        task: the stage's task.
        stage: `identify` or `validate`.
        n_questions: questions.
        n_prompts: prompts, which are docs.
        n_tokens: of all prompts.
        longest: tokens of the longest prompt.
        engine: name of the engine.
        batch_size: prompts per pass.
        n_conditions: conditions scored, 0 in identification.
        seconds: time without loading the model and building the questions.
        weights: bytes of the model's weights, which are loaded already.
        memory: bytes beside the weights.
        measured: whether `memory` was measured, rather than estimated from the model's sizes.
        memory_free: bytes.
        disk: bytes of the artifacts.
        disk_free: bytes.
        cost: seconds that measuring took.
    """

    task: str
    stage: str
    n_questions: int
    n_prompts: int
    n_tokens: int
    longest: int
    engine: str
    batch_size: int
    n_conditions: int
    seconds: float
    weights: int
    memory: int
    measured: bool
    memory_free: int
    disk: int
    disk_free: int
    cost: float


def estimate(stage: Stage) -> Estimate:
    """Measure up to two batches around the median length, and all else that the stage does."""
    start = time.perf_counter()
    memory, measured = stage_bytes(stage), False
    if stage.device.type == "cuda":
        batch = longest_questions(stage.questions, stage.batch_size)
        memory, measured = _peak(stage.device, lambda: stage.run(batch)), True
    else:
        stage.run(median_questions(stage.questions, 1))
    seconds = _scaled(stage, 2 * stage.batch_size)
    if stage.n_files:  # the first time is of no use: it also loads what the harness needs
        seconds += stage.n_files * min(_timed(stage.finish), _timed(stage.finish))
    if stage.n_texts:
        seconds += stage.n_texts * _timed(stage.text)
    return _estimate(stage, seconds, memory, measured, time.perf_counter() - start)


def estimate_if_long(stage: Stage) -> Estimate | None:
    """The estimate of a stage that will take more than `LONG` seconds; None of any other.

    Stages of few questions have none either: their progress shows as soon. One question is timed
    first, and more of them only if that one promises a long run. What is done for each result file
    is left out.
    """
    start = time.perf_counter()
    n_prompts = sum(len(question.prompts) for question in stage.questions)
    if len(stage.questions) * _SHARE < 1 or _scaled(stage, 1) < LONG:
        return None
    seconds = _scaled(stage, min(stage.batch_size, int(_SHARE * n_prompts)))
    if seconds < LONG:
        return None
    cost = time.perf_counter() - start
    return _estimate(stage, seconds, stage_bytes(stage), False, cost)


def announce_if_long(stage: Stage, launch: Launch) -> None:
    """Announce what a stage will take, if it takes long; the first process does for all."""
    if launch.announce is not None and launch.ranks.is_first:
        expected = estimate_if_long(stage)
        if expected is not None:
            launch.announce(estimate_line(expected))


def _estimate(stage: Stage, seconds: float, memory: int, measured: bool, cost: float) -> Estimate:
    prompts = [prompt for question in stage.questions for prompt in question.prompts]
    here = stage.directory.absolute()
    nearest = next(path for path in (here, *here.parents) if path.exists())
    return Estimate(
        task=stage.task,
        stage=stage.name,
        n_questions=len(stage.questions),
        n_prompts=len(prompts),
        n_tokens=sum(prompt.n_tokens for prompt in prompts),
        longest=max(prompt.n_tokens for prompt in prompts),
        engine=stage.engine.name,
        batch_size=stage.batch_size,
        n_conditions=0 if stage.passes.gradients else stage.passes.n_copies,
        seconds=seconds,
        weights=sum(parameter.nbytes for parameter in stage.engine.model.parameters()),
        memory=memory,
        measured=measured,
        memory_free=free_memory(stage.device),
        disk=stage.disk,
        disk_free=shutil.disk_usage(nearest).free,
        cost=cost,
    )


def stage_bytes(stage: Stage) -> int:
    """Bytes that a stage's largest pass takes beside the weights, from the model's sizes."""
    engine = stage.engine
    prompts = [prompt for question in stage.questions for prompt in question.prompts]
    longest = max(prompt.n_tokens for prompt in prompts)
    if isinstance(engine, ReplayEngine):
        return replay_bytes(engine.model, engine.layers, longest, stage.passes, stage.batch_size)
    most = max(len(question.prompts) for question in stage.questions)
    size = min(len(prompts), max(stage.batch_size, most))  # whole questions go together
    return batch_bytes(engine.model, engine.layers, longest, size, stage.passes)


def median_questions(questions: Sequence[Question], n_prompts: int) -> list[Question]:
    """Questions of about median length, with `n_prompts` prompts or some more; at least one."""
    ordered = sorted(questions, key=_tokens)
    first = last = (len(ordered) - 1) // 2
    count = len(ordered[first].prompts)
    while count < n_prompts and last - first + 1 < len(ordered):
        if first > 0 and (last + 1 == len(ordered) or (last - first) % 2):
            first -= 1
            count += len(ordered[first].prompts)
        else:
            last += 1
            count += len(ordered[last].prompts)
    return ordered[first : last + 1]


def longest_questions(questions: Sequence[Question], n_prompts: int) -> list[Question]:
    """The longest questions, as many as a batch of `n_prompts` prompts holds; at least one."""
    chosen: list[Question] = []
    for question in sorted(questions, key=_longest_prompt, reverse=True):
        n_prompts -= len(question.prompts)
        if chosen and n_prompts < 0:
            break
        chosen.append(question)
    return chosen


def _tokens(question: Question) -> int:
    return sum(prompt.n_tokens for prompt in question.prompts)


def _longest_prompt(question: Question) -> int:
    return max(prompt.n_tokens for prompt in question.prompts)


def _scaled(stage: Stage, n_prompts: int) -> float:
    """Seconds for all questions, from those of about median length with so many prompts."""
    sample = median_questions(stage.questions, n_prompts)
    share = sum(map(_tokens, sample)) / sum(map(_tokens, stage.questions))
    return _timed(lambda: stage.run(sample)) / share


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _peak(device: torch.device, action: Callable[[], object]) -> int:
    """Bytes that a CUDA device holds at most during an action, above what it held before."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    return int(torch.cuda.max_memory_allocated(device)) - int(before)


# In words ---------------------------------------------------------------------------------------

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
