"""What a run will take is said beforehand, is about right, costs little and changes nothing."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.engine.batching import Pass, batch_bytes, replay_bytes
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages import cost_estimate as estimate
from neuronllm_eval.stages import evaluate
from neuronllm_eval.stages import identify as identify_stage
from neuronllm_eval.stages import validate as validate_stage
from neuronllm_eval.stages.cost_estimate import (
    Estimate,
    Stage,
    duration,
    estimate_if_long,
    estimate_line,
    estimate_table,
    longest_questions,
    median_questions,
    size,
)
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    identify,
)
from tests.fixtures.harness import model_dir
from tests.fixtures.tiny_models import tiny_model


def question(number: int, n_tokens: int, n_prompts: int = 2) -> Question:
    prompts = (Prompt(number, (3,) * n_tokens, ((1,), (2,)), 0),) * n_prompts
    return Question(str(number), prompts)


def names(questions: list[Question]) -> str:
    return " ".join(each.question_id for each in questions)


# Which questions are measured -------------------------------------------------------------------

# Of 50, 10, 40, 20, 30 tokens: by length they are 1 3 4 2 0.
SOME = [question(number, n_tokens) for number, n_tokens in enumerate((50, 10, 40, 20, 30))]


@pytest.mark.parametrize(
    ("n_prompts", "median", "longest"),
    [
        (1, "4", "0"),
        (2, "4", "0"),
        (3, "4 2", "0"),  # 3 prompts are no room for two questions of 2
        (4, "4 2", "0 2"),
        (6, "3 4 2", "0 2 4"),
        (8, "3 4 2 0", "0 2 4 3"),
        (99, "1 3 4 2 0", "0 2 4 3 1"),
    ],
)
def test_questions_of_the_middle_and_the_longest(n_prompts, median, longest):
    assert names(median_questions(SOME, n_prompts)) == median
    assert names(longest_questions(SOME, n_prompts)) == longest


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 5)), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_the_middle_is_a_window_around_the_median(shapes, n_prompts):
    questions = [question(number, *shape) for number, shape in enumerate(shapes)]
    found = median_questions(questions, n_prompts)
    sizes = [len(each.prompts) for each in found]
    assert sum(sizes) >= n_prompts or len(found) == len(questions)
    assert len(set(names(found).split())) == len(found)
    tokens = [len(each.prompts) * each.prompts[0].n_tokens for each in questions]
    mine = [tokens[int(each.question_id)] for each in found]
    below = sum(each < min(mine) for each in tokens)
    above = sum(each > max(mine) for each in tokens)
    assert abs(below - above) <= len(questions) - len(found) or not (below and above)
    assert below <= len(questions) / 2
    assert above <= len(questions) / 2


# Arithmetic, on a clock that only a stage moves ---------------------------------------------------


class Clock:
    """Stands still but for what the stage does: 1 ms a token, 0.5 s a result file."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[int] = []
        self.finished = 0

    def run(self, questions: list[Question]) -> None:
        self.runs.append(sum(len(each.prompts) for each in questions))
        self.now += 1e-3 * sum(p.n_tokens for each in questions for p in each.prompts)

    def finish(self) -> None:
        self.now += 8.0 if self.finished == 0 else 0.5  # the first loads what it needs
        self.finished += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def stage(clock: Clock, questions: list[Question], path: Path, **changes) -> Stage:
    model = tiny_model("llama")
    return Stage(
        **{
            "task": "t", "name": "validate", "engine": FanOutEngine(model, find_ffn_layers(model)),
            "questions": questions, "batch_size": 8, "passes": Pass(7, gradients=False),
            "run": clock.run, "finish": clock.finish, "n_files": 5, "disk": 10**6,
            "directory": path / "not" / "there", **changes,
        }
    )  # fmt: skip


def test_time_is_scaled_to_the_tokens_of_all_prompts(clock, tmp_path):
    questions = [question(number, 10 + number % 37) for number in range(200)]
    found = estimate.estimate(stage(clock, questions, tmp_path))
    n_tokens = sum(2 * (10 + number % 37) for number in range(200))
    assert found.seconds == pytest.approx(1e-3 * n_tokens + 5 * 0.5)
    assert clock.runs == [2, 16]  # one question to warm up, two batches
    assert found.cost == pytest.approx(clock.now)
    assert (found.n_questions, found.n_prompts, found.n_tokens) == (200, 400, n_tokens)
    assert (found.longest, found.engine, found.batch_size) == (46, "fan_out", 8)
    assert (found.n_conditions, found.disk, found.measured) == (7, 10**6, False)
    assert found.disk_free > 0
    assert found.memory_free > 0
    assert not (tmp_path / "not").exists()


def test_no_conditions_and_no_files_in_identification(clock, tmp_path):
    one = stage(clock, [question(0, 9)], tmp_path, n_files=0, passes=Pass(5, gradients=True))
    found = estimate.estimate(one)
    assert found.n_conditions == clock.finished == 0
    assert found.seconds == pytest.approx(1e-3 * 18)


def test_memory_is_that_of_the_largest_batch(clock, tmp_path):
    model = tiny_model("llama")
    layers, passes = find_ffn_layers(model), Pass(7, gradients=False)
    questions = [question(number, 10 + number) for number in range(20)]
    for batch_size, expected in ((8, 8), (1, 2), (99, 40)):  # whole questions, and no more
        found = estimate.estimate(stage(clock, questions, tmp_path, batch_size=batch_size))
        assert found.memory == batch_bytes(model, layers, 29, expected, passes)
        assert found.weights == sum(4 * each.numel() for each in model.parameters())
    replay = stage(clock, questions, tmp_path, engine=ReplayEngine(model, layers))
    assert estimate.estimate(replay).memory == replay_bytes(model, layers, 29, passes)


def test_a_long_stage_is_measured_on_four_percent_of_its_questions(clock, tmp_path):
    questions = [question(number, 100) for number in range(1000)]  # 200 s
    found = estimate_if_long(stage(clock, questions, tmp_path, batch_size=64))
    assert found.seconds == pytest.approx(200)
    assert clock.runs == [2, 40]
    assert found.cost == pytest.approx(4.2)
    assert clock.finished == 0
    # Never more than a batch.
    estimate_if_long(stage(clock, questions, tmp_path, batch_size=8))
    assert clock.runs[2:] == [2, 8]


@pytest.mark.parametrize(
    ("n_questions", "n_tokens", "runs"),
    [
        (49, 10**6, []),  # its first question would be more than 2% of the work
        (50, 299, [2]),  # 29.9 s
        (50, 301, [2, 2]),
    ],
)
def test_only_a_long_stage_of_many_questions_is_measured(
    clock, tmp_path, n_questions, n_tokens, runs
):
    questions = [question(number, n_tokens) for number in range(n_questions)]
    found = estimate_if_long(stage(clock, questions, tmp_path))
    assert clock.runs == runs
    assert (found is not None) == (len(runs) == 2)


def test_a_first_question_that_was_only_slow_to_start_promises_nothing(clock, tmp_path):
    questions = [question(number, 100) for number in range(60)]  # 12 s

    def slow_start(some: list[Question]) -> None:
        clock.now += 0 if clock.runs else 5
        clock.run(some)

    assert estimate_if_long(stage(clock, questions, tmp_path, run=slow_start)) is None
    assert clock.runs == [2, 2]


def test_a_device_that_counts_is_asked_for_its_peak(clock, tmp_path, monkeypatch):
    held = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: held.update(peak=100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: held["peak"])
    monkeypatch.setattr(estimate, "free_memory", lambda device: 5)
    monkeypatch.setattr(Stage, "device", torch.device("cuda"))
    questions = [question(number, 10 + number) for number in range(20)]

    def run(some: list[Question]) -> None:
        clock.run(some)
        held["peak"] = max(held["peak"], 100 + max(p.n_tokens for q in some for p in q.prompts))

    found = estimate.estimate(stage(clock, questions, tmp_path, run=run))
    assert (found.memory, found.measured) == (29, True)  # the longest prompt's
    assert clock.runs == [8, 16]


# What is said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "< 1 s"), (1, "1 s"), (2.345, "2.3 s"), (9.97, "10 s"), (89.4, "89 s"),
        (90, "1.5 min"), (5399, "90 min"), (5400, "1.5 h"), (47 * 3600, "47 h"),
        (48 * 3600, "2 days"), (1e7, "116 days"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1 MiB"),
     (120 * 2**30, "120 GiB"), (3 * 2**40, "3 TiB")],
)  # fmt: skip
def test_sizes(n_bytes, text):
    assert size(n_bytes) == text


def test_the_table_and_the_line():
    one = Estimate("t", "identify", 200, 600, 60000, 120, "fan_out", 16, 0, 3000.0, 2**30, 2**28,
                   False, 2**34, 2**20, 2**36, 4.0)  # fmt: skip
    two = Estimate("t", "validate", 100, 300, 30000, 110, "replay", 8, 67, 60.0, 2**30, 2**27,
                   True, 2**33, 2**22, 2**36, 3.0)  # fmt: skip
    lines = estimate_table([one, two]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[2] == ["t", "identify", "200", "600", "60000", "120", "fan_out", "16", "",
                        "50 min", "1 GiB", "256 MiB", "1 MiB"]  # fmt: skip
    assert cells[3][6:] == ["replay", "8", "67", "60 s", "1 GiB", "128 MiB", "4 MiB"]
    assert lines[-4:] == [
        "time: in all 51 min, besides loading the model and building the questions",
        "memory: beside the weights, measured on the longest prompts; 8 GiB free",
        "disk: in all 5 MiB; 64 GiB free",
        "measured in 7 s; nothing was written",
    ]
    assert "estimated from the model's sizes; 16 GiB free" in estimate_table([one])
    assert estimate_line(one) == (
        "identify t: about 50 min for 600 prompts; memory beside the weights about 256 MiB, "
        "16 GiB are free; about 1 MiB on disk"
    )


# Dry runs ---------------------------------------------------------------------------------------


def files(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "copy")


@pytest.mark.parametrize("attribution_dtype", ["auto", "bfloat16"])
def test_a_dry_run_of_identify_writes_nothing(tmp_path, attribution_dtype):
    more = ("--dry_run", "--attribution_dtype", attribution_dtype)
    code, out, err = call(*identify(tmp_path / "runs", *more, task="demo_topic,demo_sentiment"))
    assert code == 0, err
    assert out.count("| identify |") == 2
    assert "| validate |" not in out
    assert "| fan_out |" in out
    assert out.strip().endswith("nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_run_eval_writes_nothing(tmp_path):
    more = ("--dry_run", "--top_k", "4,2", "--scale", "0,0.5", *QUICK)
    code, out, err = call(*identify(tmp_path / "runs", *more)[1:], entry=cli.run_eval_main)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if "| validate |" in line)
    # unmasked, 2 conditions, 3 points (k2.x0, k2.x0.5, k4.x0.5, enhance.k2: 4), 2 controls of each.
    assert line.split("|")[9].strip() == str(1 + 6 * 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_dry_run_over_a_run_that_is_there(tmp_path, more):
    run = copy_of(finished_run(), tmp_path / "demo_topic")
    (run.path / ".lock").unlink(missing_ok=True)
    before = files(tmp_path)
    result = call(*identify(tmp_path, "--dry_run", *more))
    if more:
        assert result[0] == 0
    else:
        assert_one_message(result, 2, f"{run.path} already holds a run")
    assert files(tmp_path) == before


def test_a_dry_run_of_validate_leaves_the_earlier_validation(copied):
    (copied.path / ".lock").unlink(missing_ok=True)
    before = files(copied.path)
    code, out, err = call("validate", copied.path, *QUICK, "--dry_run")
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if "| validate |" in line)
    assert line.split("|")[9].strip() == "7"
    assert files(copied.path) == before


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (("--top_k", "97"), 2, "top_k is 97"),
        (("--top_z", "0"), 2, "top_z"),
        (("--batch_size", "0"), 2, "batch_size is 0"),
        (("--n_steps", "0"), 2, "n_steps is 0"),
        (("--tasks", "no_such_task"), 1, "no_such_task"),
        (("--model_args", "pretrained=no/such"), 1, "cannot be loaded"),
        (("--conditions", "harm"), 2, "unknown condition"),
        (("--n_random", "-1"), 2, "n_random is -1"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path, flags, code, part):
    given = identify(tmp_path / "runs", *flags)[1:]
    dry = call(*given, "--dry_run", entry=cli.run_eval_main)
    assert_one_message(dry, code, part)
    real = call(*given, entry=cli.run_eval_main)
    assert dry[0] == real[0]
    assert dry[2].split("error: ")[1] == real[2].split("error: ")[1]
    assert list(tmp_path.iterdir()) == []


def test_neurons_of_another_model_are_refused(copied):
    change_settings(copied, model_args={"pretrained": str(model_dir(n_layers=3))})
    assert_one_message(call("validate", copied.path, "--dry_run"), 1, "has 3 layers of 48")


def test_what_is_written_is_about_what_was_estimated(tmp_path):
    """Within a factor of 2, for all stages of the embedded model together and each alone."""
    flags = identify(tmp_path, "--limit", 30, "--batch_size", 24, path=MODEL_DIR)[1:]
    seen: list[Estimate] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "estimate_table", lambda found: seen.extend(found) or "")
        assert call(*flags, *QUICK, "--dry_run", entry=cli.run_eval_main)[0] == 0
    assert call("identify", *flags)[0] == 0
    run = tmp_path / "demo_topic"
    sizes = [sum(map(len, files(run).values()))]
    assert call("validate", run, *QUICK)[0] == 0
    sizes.append(sum(map(len, files(run).values())) - sizes[0])
    for found, actual in zip(seen, sizes, strict=True):
        assert actual / 2 < found.disk < 2 * actual, found.stage


@pytest.mark.slow  # runs twice what it times
def test_the_time_is_about_what_the_run_takes(tmp_path, monkeypatch):
    """Within a factor of 3, both stages on the embedded model."""
    torch.set_num_threads(1)
    more = ("--limit", 60, "--batch_size", 24, "--n_random", 5)
    flags = identify(tmp_path, *more, path=MODEL_DIR)[1:]
    seen: list[Estimate] = []
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "estimate_table", lambda found: seen.extend(found) or "")
        assert call(*flags, "--dry_run", entry=cli.run_eval_main)[0] == 0
    taken = []

    def timed(work, *args):
        start = time.perf_counter()
        result = work(*args)
        taken.append(time.perf_counter() - start)
        return result

    def timed_all(work, *args):
        start = time.perf_counter()
        yield from work(*args)
        taken.append(time.perf_counter() - start)

    for stage, name, timing in (
        (identify_stage, "identify", timed_all),
        (validate_stage, "score_conditions", timed_all),
        (validate_stage, "write_results", timed),
    ):
        monkeypatch.setattr(stage, name, functools.partial(timing, getattr(stage, name)))
    assert call(*flags, entry=cli.run_eval_main)[0] == 0
    identified, scored, judged = taken
    for found, actual in zip(seen, (identified, scored + judged), strict=True):
        assert actual / 3 < found.seconds < 3 * actual, (found.stage, found.seconds, actual)


# Other runs -------------------------------------------------------------------------------------


def test_a_short_run_says_nothing_new(tmp_path):
    code, _, err = call(*identify(tmp_path, "--limit", 60)[1:], *QUICK, entry=cli.run_eval_main)
    assert code == 0
    assert "about" not in err


def test_a_long_run_says_what_it_takes_and_computes_the_same(tmp_path, monkeypatch):
    flags = ("--limit", 60, "--batch_size", 12, *QUICK)
    assert call(*identify(tmp_path / "a", *flags)[1:], entry=cli.run_eval_main)[0] == 0
    monkeypatch.setattr(estimate, "LONG", 0.0)
    code, out, err = call(*identify(tmp_path / "b", *flags)[1:], entry=cli.run_eval_main)
    assert code == 0
    said = [line for line in err.splitlines() if "memory beside the weights" in line]
    assert [line.split(":")[0] for line in said] == ["identify demo_topic", "validate demo_topic"]
    assert "memory beside" not in out
    for name in ("scores.safetensors", "neurons.json", "questions.jsonl", "conditions.jsonl"):
        one, other = (tmp_path / each / "demo_topic" / name for each in "ab")
        assert one.read_bytes() == other.read_bytes(), name
    code, _, err = call("validate", tmp_path / "b", *QUICK)
    assert code == 0
    assert err.count("validate demo_topic: about") == 1
