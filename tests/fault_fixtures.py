"""Faults that strike inside a command: at any function it passes through, at any of its calls.

1. A command that nothing disturbs is traced: every function of the package that it calls, and those
   of other packages that stand for what can fail (`ELSEWHERE`), is a point.
2. A fault raises when a point is entered for the n-th time; a file that is being written gets half
   its content first.
3. What the fault leaves behind is compared with what was there before (`complaints`), and the same
   command is called again without it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import itertools
import json
import logging
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import psutil
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.numpy import load

from neuronllm_eval.aqua import dataset as aqua_task
from neuronllm_eval.aqua import metrics as aqua_metrics
from neuronllm_eval.formats.json_files import parse_json
from neuronllm_eval.harness.aqua_conversion import read_task
from neuronllm_eval.models.fingerprints import model_hash
from neuronllm_eval.runs.directory import COMMANDS_FILE, PAGE_FILE
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.runtime.run_lock import LOCK_FILE, RunLocks
from tests.cli_fixtures import call

PACKAGE = "/neuronllm_eval/"
# Points of other packages: the end of a file's path, and the function.
ELSEWHERE = {
    "pathlib.py": ("Path.write_bytes", "Path.write_text", "Path.mkdir", "Path.unlink"),
    "tests/fault_fixtures.py": ("fsync", "replace"),  # the built-in ones come through here
    "safetensors/numpy.py": ("save",),
    "jsonlines/jsonlines.py": ("Writer.write",),
    "filelock/_api.py": ("BaseFileLock.acquire",),
    "shutil.py": ("rmtree",),
    "json/__init__.py": ("dumps", "loads"),
    "yaml/__init__.py": ("safe_dump",),
    "tqdm/std.py": ("tqdm.update", "tqdm.__init__"),
    "torch/autograd/__init__.py": ("grad",),
    "torch/nn/modules/linear.py": ("Linear.forward",),
    "torch/nn/modules/module.py": ("Module.register_forward_pre_hook",),
    "transformers/modeling_utils.py": ("PreTrainedModel.from_pretrained",),
    "transformers/models/llama/modeling_llama.py": (
        "LlamaForCausalLM.forward", "LlamaDecoderLayer.forward", "LlamaAttention.forward",
    ),
    "transformers/cache_utils.py": ("DynamicLayer.update",),
    "lm_eval/evaluator.py": ("evaluate",),
    "lm_eval/loggers/evaluation_tracker.py": ("EvaluationTracker.save_results_aggregated",),
    "lm_eval/models/huggingface.py": ("HFLM.tok_encode",),
    "lm_eval/api/task.py": (
        "ConfigurableTask.__init__", "ConfigurableTask.fewshot_context",
        "ConfigurableTask.construct_requests", "ConfigurableTask.process_results",
    ),
    "datasets/arrow_dataset.py": ("Dataset.map", "Dataset.select"),
}  # fmt: skip
# Faults that struck in this process, by kind.
INJECTED: Counter[str] = Counter()
# Outside of what turns errors into messages, or nothing that could fail.
_NO_POINTS = {"cli.run_eval_main", "cli.main", "cli._guarded"}


# Kinds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What is raised, and how a command ends of it.

    Attributes:
        make: the exception.
        codes: exit codes; None where the exception itself comes out of the command.
    """

    make: Callable[[], BaseException]
    codes: tuple[int | None, ...]


KINDS = {
    # A bug: its traceback is what one wants to see.
    "internal": Kind(lambda: RuntimeError("a fault"), (None, 1)),
    "full disk": Kind(lambda: OSError(errno.ENOSPC, "No space left on device"), (1, 2)),
    "ctrl-c": Kind(KeyboardInterrupt, (130,)),
    "device memory": Kind(lambda: torch.OutOfMemoryError("CUDA out of memory."), (1,)),
    "memory": Kind(MemoryError, (1,)),
}


@dataclass(frozen=True)
class Fault:
    """What strikes where and when."""

    kind: str
    point: str
    call: int

    def __str__(self) -> str:
        return f"{self.kind} at call {self.call} of {self.point}"

    def strike(self, frame: FrameType) -> None:
        """Raise, with a file half written where one is being written."""
        if self.point in ("pathlib.Path.write_bytes", "pathlib.Path.write_text"):
            content = frame.f_locals["data"]
            raw = content.encode() if isinstance(content, str) else content
            with open(frame.f_locals["self"], "wb") as file:
                file.write(raw[: len(raw) // 2])
        raise KINDS[self.kind].make()


class Tracer:
    """Counts the calls of every point, and lets a fault strike.

    Attributes:
        counts: calls so far.
        struck: whether the fault has struck.
    """

    def __init__(self, fault: Fault | None = None, strike: Any = None) -> None:
        self.fault, self.strike = fault, strike or (fault.strike if fault else None)
        self.counts: Counter[str] = Counter()
        self.struck = False
        self._names: dict[CodeType, str] = {}
        self._starts: dict[CodeType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        name = self._names.get(code)
        if name is None:
            name = self._names[code] = point_of(code)
        # A generator that goes on is no new call.
        if not name or self._starts.setdefault(code, frame.f_lasti) != frame.f_lasti:
            return
        self.counts[name] += 1
        if self.fault and (name, self.counts[name]) == (self.fault.point, self.fault.call):
            sys.settrace(None)
            self.struck = True
            self.strike(frame)

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Within the context, calls are counted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def point_of(code: CodeType) -> str:
    """The point that a function is, such as `fan_out.FanOutEngine.score`; empty if it is none."""
    file = code.co_filename
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.10 knows the last part only
    stem = Path(file).stem
    if PACKAGE in file:
        comprehension = code.co_name in ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
        point = f"{stem}.{name}"
        is_body = not code.co_flags & inspect.CO_OPTIMIZED  # of a module or a class
        return "" if comprehension or is_body or point in _NO_POINTS else point
    for ending, names in ELSEWHERE.items():
        if file.endswith(f"/{ending}") and name in names:
            return f"{stem}.{name}"
    return ""


def fsync(handle: int) -> None:
    """`os.fsync`, where a fault may strike."""
    _FSYNC(handle)


def replace(*arguments: Any, **options: Any) -> None:
    """`os.replace`, where a fault may strike."""
    _REPLACE(*arguments, **options)


_FSYNC, _REPLACE = os.fsync, os.replace


# Commands ---------------------------------------------------------------------------------------


@dataclass
class Command:
    """A command that faults strike in.

    Attributes:
        arguments: for a folder of its own.
        entry: function of `neuronllm_eval.cli.main`.
        content: the artifacts in that folder, as they are compared.
        locked: the directories it locks.
        again: what is added to do it anew.
        kept: what is added to keep what is finished.
    """

    arguments: Callable[[Path], Sequence[object]]
    entry: Callable[..., int]
    content: Callable[[Path], dict[str, bytes]]
    locked: Callable[[Path], list[Path]] = field(default=lambda _: [])
    again: tuple[str, ...] = ("--overwrite",)
    kept: tuple[str, ...] = ("--resume",)

    def call(self, folder: Path, *more: object) -> tuple[int | None, str, BaseException | None]:
        """Exit code, what it said on standard error, and what came out of it instead."""
        for cached in (aqua_task._load, read_task._compiled, aqua_metrics._grouped):
            cached.cache_clear()  # as in a process of its own
        try:
            code, _, err = call(*self.arguments(folder), *more, entry=self.entry)
        except BaseException as error:  # noqa: BLE001
            return None, "", error
        return code, err, None


@contextlib.contextmanager
def models_kept() -> Iterator[list[tuple[torch.nn.Module, dict[str, Any]]]]:
    """Within the context, every model that is loaded is listed, with its state at that time."""
    found: list[tuple[torch.nn.Module, dict[str, Any]]] = []
    real = HFLM.__init__

    @functools.wraps(real)
    def init(self: HFLM, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        found.append((self.model, state_of(self.model)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFLM, "__init__", init)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        yield found


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """All that a command might leave changed in a model."""
    modules = dict(model.named_modules())
    return {
        "hooks": {
            (name, kind): len(hooks)
            for name, module in modules.items()
            for kind, hooks in vars(module).items()
            if "hooks" in kind and isinstance(hooks, Mapping) and hooks
        },
        "own forwards": [name for name, module in modules.items() if "forward" in vars(module)],
        "training": [name for name, module in modules.items() if module.training],
        "parameters": [(each.dtype, each.requires_grad) for each in model.parameters()],
        "gradients": sum(each.grad is not None for each in model.parameters()),
        "weights": model_hash(model),
    }


def points(command: Command, folder: Path) -> Counter[str]:
    """Calls of every point in a command that ends well."""
    tracer = Tracer()
    with models_kept(), tracer.tracing():
        code, err, error = command.call(folder)
    assert code == 0, error or err
    return tracer.counts


# Where faults are likeliest and do most harm: each kind strikes here.
WEAK_POINTS = re.compile(
    r"pathlib\.Path\.write_|fault_fixtures\.|Writer\.write|numpy\.save|\.edit$|option_head.*forward"
    r"|_join|autograd.*grad|Linear\.forward|register_forward_pre_hook|Part\.save|Part\.merge"
)


def choose(counts: Mapping[str, int], n_faults: int, seed: int = 0) -> list[Fault]:
    """Faults of every kind at the weak points, and at so many in all, or at every point there is.

    At others each point's first call and a later one, if there is one, have a fault of some kind.
    """
    rng = random.Random(seed)
    turn = itertools.cycle(KINDS)
    weak, others = [], []
    for point in sorted(counts):
        later = [rng.randint(2, counts[point])] if counts[point] > 1 else []
        if WEAK_POINTS.search(point):
            weak += [Fault(kind, point, rng.choice([1, *later])) for kind in KINDS]
        else:
            others += [Fault(next(turn), point, number) for number in (1, *later)]
    n_others = max(0, min(len(others), n_faults - len(weak)))
    return weak + rng.sample(others, n_others)


# After a fault ----------------------------------------------------------------------------------


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """Within the context, what the package warns of is listed."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("neuronllm_eval")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def strike(fault: Fault, command: Command, folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Let a fault strike in a new folder; everything that is not as it should be afterwards."""
    tracer = Tracer(fault)
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    others = set(psutil.Process().children(recursive=True))  # what other tests keep running
    with models_kept() as models:
        with warnings_kept() as warnings, tracer.tracing():
            code, err, error = command.call(folder)
        INJECTED[fault.kind] += tracer.struck
        if not tracer.struck:
            return [f"never struck; {tracer.counts[fault.point]} calls"]
        wrong = [
            f"the model's {name} are {now[name]}, before {before[name]}"
            for model, before in models
            for now in [state_of(model)]
            for name in before
            if now[name] != before[name]
        ]
    if [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != signals:
        wrong.append("signals are handled in another way")
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        wrong.append("gradients are off")
    if running := set(psutil.Process().children(recursive=True)) - others:
        wrong.append(f"processes are left: {running}")
    carried_on = code == 0
    wrong += _ending(fault, code, err, error, warnings)
    wrong += _files(command, folder, expected, carried_on)
    if wrong:
        return wrong
    again = command.again if carried_on else ()
    if not carried_on and command.content(folder) == expected:  # after the last of the work
        again = command.kept
    code, err, error = command.call(folder, *again)
    if code != 0:
        return [f"the command cannot be repeated: {error!r} {err}"]
    found = command.content(folder)
    wrong += [f"{name} differs after all" for name in expected if found.get(name) != expected[name]]
    wrong += [f"{name} is left after all" for name in found if name not in expected]
    if left := [path for path in folder.rglob("checkpoint")]:
        wrong.append(f"{left} are left after all")
    return wrong


def _ending(
    fault: Fault, code: int | None, err: str, error: BaseException | None, warnings: list[str]
) -> list[str]:
    """Whether the command's end and its words fit the fault."""
    if code == 0:  # only if it says what it does instead
        told = [said for said in warnings if "out of memory" in said or "a fault" in said]
        return [] if told else ["ended well, and said nothing"]
    if code not in KINDS[fault.kind].codes:
        return [f"ended with {code} {error!r} {err[-300:]}"]
    wrong = ["a traceback"] if "Traceback" in err else []
    if code in (1, 2):
        wrong += [f"no {word!r}: {err[-300:]}" for word in ("error: ", "Expected: ", "Remedy: ")
                  if word not in err]  # fmt: skip
    return wrong


def _files(
    command: Command, folder: Path, expected: dict[str, bytes], carried_on: bool
) -> list[str]:
    """Whether every file is whole, none is a temporary one, and no lock is held."""
    wrong = []
    found = command.content(folder)
    for name, content in found.items():
        if name not in expected:
            wrong.append(f"{name} is left")
            continue
        # The report gives cards their figures.
        ours, theirs = (_FIGURES.sub(b"", each) for each in (content, expected[name]))
        if carried_on:
            wrong += _unlike(name, ours, theirs)
        elif ours != theirs:
            wrong.append(f"{name} is half written")
    for path in folder.rglob("checkpoint/*"):
        wrong += _checkpoint(path)
    for path in command.locked(folder):
        if path.is_dir():
            locks = RunLocks()
            locks.take(path)
            locks.release()
    here = str(folder)
    if held := [each.path for each in psutil.Process().open_files() if here in each.path]:
        wrong.append(f"files are open: {held}")
    return wrong


def _checkpoint(folder: Path) -> list[str]:
    """Whether a stage's checkpoint can be gone on with."""
    work = folder / "work.json"
    if not work.exists():
        return [] if not list(folder.iterdir()) else [f"{folder} has no work.json"]
    fingerprint = parse_json(work.read_text(), work)["fingerprint"]
    wrong = []
    with warnings_kept() as warnings:
        for name in {path.name.partition(".")[0] for path in folder.iterdir()} - {"work"}:
            list(Part.read(folder, name, fingerprint).records())
            if not name:
                wrong.append(f"{list(folder.glob('.*'))} are left")
    return wrong + warnings


_NUMBER = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
_FIGURES = re.compile(rb"(?<=\n## Figures\n).*?(?=\n## How to use it\n)", re.DOTALL)
_SHORT_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def _unlike(name: str, content: bytes, expected: bytes) -> list[str]:
    """Whether what was computed in other batches says the same, but for rounding."""
    if name.endswith(".safetensors"):
        ones, others = (load(each) for each in (content, expected))  # provenance may differ
        same = {name: each.shape for name, each in ones.items()} == {
            name: each.shape for name, each in others.items()
        }
        return [] if same else [f"{name} has other tensors"]
    # In drawings, coordinates are to a hundredth, without zeros at the end.
    number, rounding = (_NUMBER, 1e-3) if name != PAGE_FILE else (_SHORT_NUMBER, 0.011)
    ones, others = (number.findall(each) for each in (content, expected))
    same = len(ones) == len(others) and all(
        one == other or abs(float(one) - float(other)) < rounding
        for one, other in zip(ones, others, strict=True)
    )
    return [] if same else [f"{name} differs from that of an undisturbed run"]


def run_content(run: Path) -> dict[str, bytes]:
    """Every file of a run directory but its checkpoint and lock, results without their times."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name == LOCK_FILE or name.startswith("checkpoint/"):
            continue
        found[name] = path.read_bytes()
        if name == COMMANDS_FILE:  # every command adds a line, each another one
            with contextlib.suppress(json.JSONDecodeError):  # half written
                found[name] = str(
                    bool([json.loads(line) for line in found[name].splitlines()])
                ).encode()
        if name.startswith("results/") and path.suffix == ".json":
            with contextlib.suppress(json.JSONDecodeError):  # half written
                found[name] = without_times(json.loads(found[name]))
    return found


_TIMES = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "git_hash")


def without_times(values: dict[str, Any]) -> bytes:
    """A result file as it is compared: but for times and places."""
    kept = {name: value for name, value in values.items() if name not in _TIMES}
    config = kept.get("config", {})
    for each in (config, config.get("model_args")):
        if isinstance(each, dict):
            each.pop("neurons", None)
    kept.pop("model_name", None)
    return json.dumps(kept, sort_keys=True).encode()
