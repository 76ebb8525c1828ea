"""`explain` on a finished run: its files, what it refuses, and how it compares runs."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm_eval.explain.evidence import Mean
from neuronllm_eval.explain.explanation import (
    Explanation,
    LetterProfile,
    NeuronExplanation,
    QuestionEffect,
    SetOverlap,
)
from neuronllm_eval.explain.explanation_markdown import overlap_table, render, summary
from neuronllm_eval.explain.token_effects import Promotion, TokenEffect, read_tokens
from neuronllm_eval.neurons.neuron_set import COMPARED, Neuron, NeuronSet, Overlap
from neuronllm_eval.runs.artifacts import load_settings
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages.load import StageInput, load_model, load_run_task, selection_questions
from neuronllm_eval.stages.verify import Attributing
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    finished_run,
    jsonl,
    without_the_harness_tasks,
)
from tests.fixtures.cli import identify as identify_flags
from tests.fixtures.harness import model_dir

QUICK = ("--device", "cpu", "--limit", 4, "--top_n", 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def explained(tmp_path_factory) -> tuple[RunDirectory, str]:
    """A run that was explained, not to be changed, and what the command said."""
    run = copy_of(finished_run(), tmp_path_factory.mktemp("explained") / "demo_topic")
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        code, out, err = call("explain", run.path, *QUICK)
    assert code == 0, err
    return run, out


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "demo_topic")


def read(run: RunDirectory) -> dict:
    return json.loads(run.explanation.read_text())


# What it says -----------------------------------------------------------------------------------


def test_the_top_neurons_of_both_kinds_best_first(explained):
    run, _ = explained
    neurons = NeuronSet.load(run.neurons)
    wanted = [("good", each) for each in neurons.good[:3]]
    wanted += [("bad", each) for each in neurons.bad[:3]]
    found = read(run)["neurons"]
    assert [(each["kind"], Neuron(**each["neuron"])) for each in found] == wanted
    spread = read(run)["spread"]
    assert sum(spread["good"]) == len(neurons.good)
    assert spread["bad"][1] == sum(each.layer == 1 for each in neurons.bad)


def test_tokens_by_brute_force(explained):
    run, _ = explained
    model = AutoModelForCausalLM.from_pretrained(model_dir())
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    for each in read(run)["neurons"]:
        layer, index = each["neuron"]["layer"], each["neuron"]["index"]
        down = model.model.layers[layer].mlp.down_proj.weight[:, index]
        logits = model.lm_head.weight @ (down * model.model.norm.weight)
        order = logits.argsort(descending=True).tolist()
        promoted = [token["token"] for token in each["tokens"]["promotes"]]
        assert promoted == order[:10]
        assert [token["token"] for token in each["tokens"]["demotes"]] == order[:-11:-1]
        assert each["tokens"]["promotes"][0]["text"] == tokenizer.decode([order[0]])


def test_letters_are_the_sums_by_the_prompts_of_their_letter(explained):
    run, _ = explained
    with safe_open(run.scores, "numpy") as file:
        sums = file.get_tensor("letter_sums")
    golds = [gold for line in jsonl(run.questions) for gold in line["gold"]]
    assert read(run)["letter_counts"] == [golds.count(letter) for letter in range(4)]
    for each in read(run)["neurons"]:
        means = [
            float(sums[letter, each["neuron"]["layer"], each["neuron"]["index"]])
            / golds.count(letter)
            for letter in range(4)
        ]
        assert each["letters"]["means"] == pytest.approx(means)
        spread = np.var(means) / np.mean(np.square(means))
        assert each["letters"]["index"] == pytest.approx(spread)
        assert each["letters"]["reading"] == ("letter" if spread >= 0.5 else "content")


def test_questions_and_activations_are_those_of_the_run(explained):
    run, _ = explained
    settings = load_settings(run)
    model = load_model(settings)
    questions = selection_questions(model.lm, settings, load_run_task(settings))
    again = Attributing.of(StageInput(model, settings, questions), NeuronSet.load(run.neurons))
    lines = {line["question_id"]: line for line in jsonl(run.questions)}
    n_right = sum(sum(line["right"]) for line in lines.values())
    n_prompts = sum(len(line["right"]) for line in lines.values())
    stems = {doc["question_id"]: doc["question"] for doc in questions.task.eval_docs}
    sums = {
        questions.questions[index].question_id: sum(each.first.values for each in found)
        for index, found in again.recomputed(questions.questions)
    }
    for each in read(run)["neurons"]:
        assert (each["right"]["n_prompts"], each["wrong"]["n_prompts"]) == (
            n_right,
            n_prompts - n_right,
        )
        location = each["neuron"]["layer"], each["neuron"]["index"]
        values = {name: float(total[location]) for name, total in sums.items()}
        order = sorted(values, key=lambda name: -values[name])
        helped = [name for name in order if values[name] > 0][:3]
        hurt = [name for name in order[::-1] if values[name] < 0][:3]
        assert [one["question_id"] for one in each["helped"]] == helped
        assert [one["question_id"] for one in each["hurt"]] == hurt
        for one in (*each["helped"], *each["hurt"]):
            assert one["attribution"] == pytest.approx(values[one["question_id"]], abs=1e-6)
            assert stems[one["question_id"]].startswith(one["text"].removesuffix("..."))


def test_what_is_said_and_written(explained):
    run, out = explained
    text = run.explanation_text.read_text()
    first = NeuronSet.load(run.neurons).good[0]
    for heading in ("Tokens", "By gold letter", "Activation", "Questions", "Layers"):
        assert f"\n### {heading}\n" in text
    assert "4 of the 4 questions" in text
    assert f"| {first.layer}:{first.index} " in text
    assert f"| {first.layer}:{first.index} " in out
    assert f"written to {run.explanation_text}" in out
    assert "Overlap" not in out + text


def test_the_reports_have_the_tokens_from_then_on(explained):
    run, _ = explained
    before = finished_run()
    for path, earlier in ((run.page, before.page), (run.report, before.report)):
        assert "positive %" in path.read_text()
        # Three of each set, and the note that says what their tokens are.
        assert path.read_text().count("not explained") == 2 * (6 - 3) + 1
        assert "positive %" not in earlier.read_text()
        assert "demotes" in earlier.read_text()


def test_identification_found_the_same_tokens(explained):
    run, _ = explained
    listed = json.loads(finished_run().tokens.read_text())["neurons"]
    by_place = {(each["kind"], each["layer"], each["index"]): each for each in listed}
    assert len(by_place) == 12  # six of either kind
    for each in read(run)["neurons"]:
        found = by_place[each["kind"], each["neuron"]["layer"], each["neuron"]["index"]]
        for kind in ("promotes", "demotes"):
            expected = [
                {**token, "effect": pytest.approx(token["effect"], abs=0.006)}
                for token in each["tokens"][kind][:4]
            ]
            assert found[kind] == expected


def test_the_tokens_file_then_knows_of_activations_too(explained):
    run, _ = explained
    listed = read_tokens(run.tokens)
    assert len(listed) == 12
    for each in read(run)["neurons"]:
        found = listed[each["kind"], each["neuron"]["layer"], each["neuron"]["index"]]
        assert (found.positive, found.reading) == (each["positive"], each["letters"]["reading"])
    assert sum(each.positive is None for each in listed.values()) == 6


def test_it_says_the_same_again(explained, copied):
    run, _ = explained
    assert call("explain", copied.path, *QUICK)[0] == 0
    assert copied.explanation.read_bytes() == run.explanation.read_bytes()


def test_a_sample_is_smaller_and_so_is_another_number_of_neurons(copied):
    flags = ("--device", "cpu", "--limit", 2, "--top_n", 100)
    assert call("explain", copied.path, *flags)[0] == 0
    found, neurons = read(copied), NeuronSet.load(copied.neurons)
    assert (found["n_questions"], found["n_chosen_on"]) == (2, 4)
    assert len(found["neurons"]) == len(neurons.good) + len(neurons.bad)
    n_asked = sum(found["neurons"][0][name]["n_prompts"] for name in ("right", "wrong"))
    assert n_asked == 6  # three proxies each
    assert sum(found["letter_counts"]) == 12  # of all questions


def test_a_new_identification_takes_the_explanation_away(tmp_path):
    run = copy_of(finished_run(), tmp_path / "demo_topic")
    run.explanation.write_text("old")
    run.explanation_text.write_text("old")
    run.start()
    assert not run.explanation.exists()
    assert not run.explanation_text.exists()


# Several runs -----------------------------------------------------------------------------------


def test_sets_of_several_runs_are_compared(tmp_path):
    runs = tmp_path / "runs"
    one = copy_of(finished_run(), runs / "demo_topic")
    assert call(*identify_flags(runs, "--top_k", 6, task="demo_sentiment"))[0] == 0
    other = RunDirectory(runs / "demo_sentiment")
    code, out, err = call("explain", runs, *QUICK)
    assert code == 0, err
    sets = {run.path.name: NeuronSet.load(run.neurons) for run in (one, other)}
    found = {tuple(each["sets"]): each for each in read(one)["overlaps"]}
    assert list(found) == [tuple(pair) for pair in COMPARED]
    for (first, second), each in found.items():
        assert each["runs"] == ["demo_sentiment", "demo_topic"]
        a = {neuron.location for neuron in getattr(sets["demo_sentiment"], first)}
        b = {neuron.location for neuron in getattr(sets["demo_topic"], second)}
        assert each["overlap"]["jaccard"] == pytest.approx(len(a & b) / len(a | b))
        assert 0 < each["overlap"]["chance"] < 0.5
    assert read(other)["overlaps"] == read(one)["overlaps"]
    assert "## Overlap of sets" in out
    assert "| demo_sentiment | demo_topic " in out
    # Given one by one, and one of them twice.
    assert call("explain", one.path, runs, *QUICK)[1].count("written to") == 2


def test_runs_of_other_weights_are_marked(tmp_path):
    one = copy_of(finished_run(), tmp_path / "first" / "demo_topic")
    flags = identify_flags(tmp_path / "second", "--top_k", 6, path=model_dir(seed=1))
    assert call(*flags)[0] == 0
    code, out, err = call("explain", one.path, tmp_path / "second", *QUICK)
    assert code == 0, err
    assert out.count("other weights") == len(COMPARED)
    # Directories of one name are called by their paths.
    (found, *_) = read(one)["overlaps"]
    assert found["runs"] == [str(one.path), str(tmp_path / "second" / "demo_topic")]
    assert found["overlap"] is None


# Refused ----------------------------------------------------------------------------------------


def unexplained(run: RunDirectory) -> bool:
    return not run.explanation.exists() and not run.explanation_text.exists()


def test_other_weights(copied):
    change_settings(copied, model_args={"pretrained": str(model_dir(seed=1))})
    result = call("explain", copied.path, *QUICK)
    assert_one_message(result, 1, "other weights", "run identify again")
    assert unexplained(copied)


def test_another_shape(copied):
    change_settings(copied, model_args={"pretrained": str(model_dir(width=32))})
    assert_one_message(call("explain", copied.path, *QUICK), 1, "of 2 layers of 48 neurons")


def test_another_task(copied):
    change_settings(copied, task="demo_sentiment")
    assert_one_message(call("explain", copied.path, *QUICK), 1, "task 'demo_topic'")


def test_a_task_that_asks_otherwise(copied):
    change_settings(copied, letter_style="(A)")
    assert_one_message(
        call("explain", copied.path, *QUICK), 1, "the task of the run had the digest"
    )
    assert unexplained(copied)


def spoilt(run: RunDirectory, change) -> RunDirectory:
    lines = jsonl(run.questions)
    change(lines)
    run.questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda lines: lines[1].update(gold=[7, 0, 1]),
            ("the gold letters [0, 1", "with 4 letters"),
        ),
        (lambda lines: lines.pop(), ("has 9 prompts", "the scores 12 prompts")),
        (lambda lines: lines[0].update(question_id="stranger"), ("'stranger'", "demo_topic")),
        (lambda lines: lines[0].pop("question_id"), ("line 1: question_id is missing",)),
    ],
)
def test_damaged_questions(copied, change, parts):
    run = spoilt(copied, change)
    assert_one_message(call("explain", run.path, *QUICK), 1, "questions.jsonl", *parts)
    assert unexplained(run)


def test_a_run_without_neurons(copied):
    values = json.loads(copied.neurons.read_text())
    copied.neurons.write_text(json.dumps({**values, "good": [], "bad": []}))
    assert_one_message(call("explain", copied.path, *QUICK), 1, "neither good nor bad neurons")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--top_n", 0), "top_n is 0"),
        (("--limit", 0), "limit is 0"),
        (("--batch_size", 0), "batch_size is 0"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_flags_that_cannot_be(copied, flags, part):
    assert_one_message(call("explain", copied.path, *flags), 2, part)


def test_no_run_there(tmp_path):
    assert_one_message(call("explain", tmp_path, *QUICK), 1, "holds no run")
    assert_one_message(call("explain"), 2, "run_dir")


# Text -------------------------------------------------------------------------------------------


def explanation(**changes) -> Explanation:
    neuron = NeuronExplanation(
        kind="good",
        neuron=Neuron(1, 7, 2.5),
        tokens=Promotion(
            (TokenEffect(3, "|x|\n", 4.04), TokenEffect(4, "<b>", 3.0)),
            (TokenEffect(5, " A", -2.0),),
        ),
        positive=0.25,
        letters=LetterProfile((0.5, -0.25, None), 0.9),
        right=Mean(0.5, 0.125, 9, 3),
        wrong=Mean(None, None, 0, 0),
        value=0.75,
        knockout=Mean(-0.5, 0.125, 9, 3),
        doubling=Mean(0.5, None, 9, 1),
        helped=(QuestionEffect("q_1", "What | is *this*?", 0.75),),
        hurt=(QuestionEffect("q_2", "Who?", -0.5),),
    )
    values = {
        "task": "a_task|", "model": "<model>", "method": "ace", "measures": "luck",
        "n_questions": 3, "n_chosen_on": 5, "letter_counts": (4, 5, 0),
        "notes": ("the head is *odd*",), "neurons": (neuron,),
        "spread": {"good": [0, 1], "bad": [2, 0]}, "overlaps": (),
    }  # fmt: skip
    return Explanation(**{**values, **changes})


def cells(text: str, name: str) -> list[list[str]]:
    """Cells of the rows that begin with `name`, in all tables."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [[cell.strip() for cell in row[2:-1].split(" | ")] for row in rows]


def test_the_tables_word_for_word():
    text = render(explanation())
    assert "Values: luck." in text
    tokens, alone, letters, activation, helped, hurt = cells(text, "1:7")
    assert alone[2:] == ["+0.75", "-0.5 (0.1)", "+0.5"]
    assert "2 standard errors: of 1 good neurons 0 help, 1 hurt. Value: " in text
    assert tokens[2:] == ["+2.5", "25", '" A" +2.0', r'"\|x\|\\n" -4.0, "\<b\>" -3.0']
    assert letters[2:] == ["+0.5", "-0.25", "", "0.90 (letter)"]
    assert activation[2:] == ["+0.5 (0.12; 9)", ""]
    assert helped[2:] == ["+0.75", "q_1", r"What \| is \*this\*?"]
    assert hurt[2:] == ["-0.5", "q_2", "Who?"]
    assert "| A (4) | B (5) | C (0) |" in text
    assert "Model \\<model\\>; " in text
    assert "Note: the head is \\*odd\\*." in text
    assert "All selected neurons: 1 good, 2 bad." in text
    assert [row[1:] for row in cells(text, "0") + cells(text, "1")] == [
        ["0", "2"],
        ["1", "0"],
    ]


def test_the_console_shows_what_is_promoted_by_the_usual_sign():
    # Positive on a quarter of the prompts: mostly, it promotes what the direction demotes.
    (row,) = cells(summary(explanation()), "1:7")
    assert row[2] == '" A" +2.0'


def test_reports_and_explanation_show_the_same_tokens(explained):
    """Whether a neuron promotes or demotes them: above all one that is mostly negative."""
    run, out = explained
    reported = {
        tuple(row[:2]): row[5:7] for row in rows_below(run.report.read_text(), "mostly demotes")
    }
    written = rows_below(run.explanation_text.read_text(), "mostly demotes")
    negative = [row for row in written if float(row[3]) < 50]
    assert negative
    console = {tuple(row[:2]): row[2] for row in rows_below(out, "mostly promotes")}
    for row in written:
        for column in (0, 1):
            quoted = tokens_in(reported[row[0], row[1]][column])
            assert quoted == tokens_in(row[4 + column])[: len(quoted)]
        assert tokens_in(console[row[0], row[1]]) == tokens_in(row[4])[:3]


def rows_below(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose header has this column."""
    lines = iter(text.splitlines())
    next(line for line in lines if head in line)
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def tokens_in(cell: str) -> list[str]:
    return re.findall(r'"(?:[^"\\]|\\.)*"', cell)


def test_overlaps_in_a_table():
    runs = ("first|", "second")
    known = {
        ("good", "good"): Overlap((2, 2), 1, 1 / 3, 0.125),
        ("bad", "bad"): Overlap((0, 0), 0, None, None),
        ("good", "bad"): None,
        ("bad", "good"): None,
    }
    table = overlap_table([SetOverlap(runs, sets, found) for sets, found in known.items()])
    (row,) = [line for line in table.splitlines() if "second" in line]
    expected = [r"first\|", "second", "0.33 (0.12)", "", "other weights", "other weights"]
    assert [cell.strip() for cell in row.strip("| ").split(" | ")] == expected
