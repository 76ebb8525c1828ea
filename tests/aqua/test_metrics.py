"""The metrics of AQUA tasks: by hand, against a slow oracle, and through the harness."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from neuronllm_eval.aqua import metrics as aqua_metrics
from neuronllm_eval.aqua.metrics import (
    METRICS,
    Answer,
    acc_consistent,
    acc_consistent_stderr,
    acc_majority,
    acc_majority_stderr,
    acc_stderr,
    fortuity,
    fortuity_stderr,
    position_bias,
    position_bias_stderr,
    process_results,
)
from neuronllm_eval.aqua.proxies import LETTERS, MultipleChoiceDoc, make_proxies
from neuronllm_eval.harness import tasks_dir

QUESTION_METRICS = (acc_consistent, acc_majority, fortuity)
STDERRS = (
    acc_stderr,
    acc_consistent_stderr,
    acc_majority_stderr,
    fortuity_stderr,
    position_bias_stderr,
)
NAN = float("nan")
AGGREGATIONS = (*QUESTION_METRICS, position_bias, *STDERRS)


def asked(question_id: str, pairs: str, n_proxies: int | None = None) -> list[Answer]:
    """The answers to one question of four options, of which the first is right.

    `AA BD` reads: the gold was A and A was said, then the gold was B and D was said. The options
    are shifted, so that D is two places after B and the option said is the third one.
    """
    answers = []
    for proxy, (gold, said) in enumerate(pairs.split()):
        gold_letter, said_letter = LETTERS.index(gold), LETTERS.index(said)
        answers.append(
            Answer(
                question_id=question_id,
                proxy=proxy,
                n_proxies=n_proxies or len(pairs.split()),
                gold=gold_letter,
                predicted=said_letter,
                chosen=(said_letter - gold_letter) % 4,
            )
        )
    return answers


# Right on all three; on the first alone (three options once each); on the others alone; never, with
# the same wrong option; on the first two.
FIVE = [
    *asked("known", "AA BB CC"),
    *asked("letter", "AA BA CA"),
    *asked("late", "BC CC DD"),
    *asked("wrong", "BC CD DA"),
    *asked("early", "AA BB CD"),
]


def test_questions_with_other_numbers_of_copies_count_once_each():
    # `n_proxies: all` of questions with two, three and four options.
    answers = [
        *asked("two", "AA BA"),
        *asked("three", "AA BB CC"),
        *asked("four", "AB BB CC DD"),
    ]
    assert acc_consistent(answers) == pytest.approx(1 / 3)
    # "two": each option predicted once, a tie; "four": the gold three times of four.
    assert acc_majority(answers) == pytest.approx((0.5 + 1 + 1) / 3)
    assert fortuity(answers) == pytest.approx(1 / 3)
    # Letters said less gold ones: A 0, B 0, as "two" says A for B and "four" B for A.
    assert position_bias(answers) == 0
    one_missing = answers[:-1]  # then "four" is no complete question
    assert acc_consistent(one_missing) == pytest.approx(1 / 2)


def acc(answers: Sequence[Answer]) -> float:
    return float(np.mean([answer.gold == answer.predicted for answer in answers]))


# By hand ----------------------------------------------------------------------------------------


def test_metrics_by_hand():
    assert acc(FIVE) == pytest.approx(8 / 15)
    assert acc_consistent(FIVE) == pytest.approx(1 / 5)
    # 1 + 1/3 + 1 + 0 + 1: the three options that tie in `letter` share its vote.
    assert acc_majority(FIVE) == pytest.approx((10 / 3) / 5)
    # `letter` and `early`.
    assert fortuity(FIVE) == pytest.approx(2 / 5)
    # Golds A 3, B 5, C 5, D 2; said A 6, B 2, C 4, D 3: half of 3 + 3 + 1 + 1.
    assert position_bias(FIVE) == pytest.approx(4 / 15)


def test_standard_errors_by_hand():
    # Right minus 3 * 8/15 per question: 1.4, -0.6, 0.4, -1.6, 0.4; their squares sum to 5.2.
    assert acc_stderr(FIVE) == pytest.approx(math.sqrt(5 / 4 * 5.2) / 15)
    # 1, 0, 0, 0, 0: squares about 0.2 sum to 0.8.
    assert acc_consistent_stderr(FIVE) == pytest.approx(math.sqrt(0.8 / 4 / 5))
    # 1, 1/3, 1, 0, 1: squares about 2/3 sum to 8/9.
    assert acc_majority_stderr(FIVE) == pytest.approx(math.sqrt(8 / 9 / 4 / 5))
    # 0, 1, 0, 0, 1: squares about 0.4 sum to 1.2.
    assert fortuity_stderr(FIVE) == pytest.approx(math.sqrt(1.2 / 4 / 5))


def test_standard_error_of_position_bias_by_hand():
    # A resample has the bias 0, 1/2 or 1 with the chances 1/4, 1/2 and 1/4: variance 1/8.
    two = [*asked("right", "AA"), *asked("wrong", "BA")]
    assert position_bias(two) == 0.5
    assert position_bias_stderr(two) == pytest.approx(math.sqrt(1 / 8), rel=0.1)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("AA BB CA DA", 1.0),  # the gold twice, two others once
        ("AA BB CD DA", 0.5),  # the gold twice, another twice
        ("AA BC CA DC", 0.25),  # each option once
        ("AA BC CD DB", 0.0),  # another twice, the gold once
    ],
)
def test_ties_of_the_majority_count_in_part(pairs, expected):
    assert acc_majority(asked("q", pairs)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("AA AA BB CC", 0.0),
        ("AB BA CD DC", 0.0),  # all wrong, but each letter as often as it is right
        ("AA BA CA DA", 0.75),
        ("AB AB AB AB", 1.0),
    ],
)
def test_position_bias_compares_letters_with_those_of_the_golds(said, expected):
    assert position_bias(asked("q", said)) == expected


def test_fortuity_looks_at_the_first_proxy_not_at_the_order_of_the_list():
    late = asked("q", "AB BB CC")
    assert fortuity(late) == fortuity(late[::-1]) == 0
    early = asked("q", "AA BC CC")
    assert fortuity(early) == fortuity(early[::-1]) == 1


def test_process_results_takes_the_most_likely_letter_back_to_its_option():
    question = MultipleChoiceDoc("q", "Capital of Peru?", ("Oslo", "Rome", "Lima", "Bern"), 2)
    for proxy in make_proxies(question, 4):
        doc = {**vars(proxy), "n_proxies": 4}
        for letter in range(4):
            values = process_results(doc, [(float(k == letter) - 5, False) for k in range(4)])
            chosen = question.choices.index(proxy.choices[letter])
            answer = Answer("q", proxy.proxy, 4, proxy.answer, letter, chosen)
            assert values.pop("acc") == float(proxy.choices[letter] == "Lima")
            assert set(values.values()) == {answer}
            # A metric's standard error follows it, so that it stands in the harness's place.
            names = ["acc", *values]
            assert set(names) == {*METRICS, *(f"{metric}_stderr" for metric in METRICS)}
            assert all(names.index(m) < names.index(f"{m}_stderr") for m in METRICS)


# Questions that were not asked in full ----------------------------------------------------------


def test_incomplete_questions_count_for_docs_only():
    part = asked("part", "AA BB", n_proxies=3)
    for metric in (*QUESTION_METRICS, acc_consistent_stderr, acc_majority_stderr, fortuity_stderr):
        assert metric([*FIVE, *part]) == metric(FIVE)
    assert acc_stderr([*FIVE, *part]) != acc_stderr(FIVE)
    # Its golds and answers are the same letters: 4 more of 17.
    assert position_bias([*FIVE, *part]) == pytest.approx(4 / 17)


def test_no_complete_question_is_nan_and_warns_of_nothing():
    part = [*asked("p", "AA BB", n_proxies=3), *asked("q", "AB", n_proxies=3)]
    for metric in (*QUESTION_METRICS, acc_consistent_stderr, acc_majority_stderr, fortuity_stderr):
        assert math.isnan(metric(part))
    assert math.isfinite(acc_stderr(part))
    assert position_bias(part) == pytest.approx(1 / 3)


def test_one_question_has_values_but_no_standard_errors():
    one = asked("q", "AA BA CA")
    assert [metric(one) for metric in QUESTION_METRICS] == pytest.approx([0, 1 / 3, 1])
    assert position_bias(one) == pytest.approx(2 / 3)
    assert all(math.isnan(stderr(one)) for stderr in STDERRS)


# Standard errors against the harness's and against resampling -----------------------------------


def many_answers(n_questions: int, n_proxies: int, seed: int = 0) -> list[Answer]:
    """Questions of unequal difficulty, asked of a model that prefers the letter B."""
    draw = random.Random(seed)
    answers = []
    for number in range(n_questions):
        known = draw.random()
        gold = draw.randrange(4)
        for proxy in range(n_proxies):
            place = (gold + proxy) % 4
            said = place if draw.random() < known else draw.choice([0, 1, 1, 2, 3])
            answers.append(Answer(f"q{number}", proxy, n_proxies, place, said, (said - proxy) % 4))
    return answers


def resampled(
    answers: Sequence[Answer], statistic: Callable[[Sequence[Answer]], float], n: int
) -> float:
    """Standard deviation of a statistic over resamples of whole questions, the slow way."""
    by_question = defaultdict(list)
    for answer in answers:
        by_question[answer.question_id].append(answer)
    questions = list(by_question.values())
    draw = random.Random(1)
    found = []
    for _ in range(n):
        chosen = draw.choices(questions, k=len(questions))
        found.append(statistic([answer for question in chosen for answer in question]))
    return float(np.std(found, ddof=1))


def oracle_bias(answers: Sequence[Answer]) -> float:
    difference = Counter(answer.predicted for answer in answers)
    difference.subtract(answer.gold for answer in answers)
    return sum(map(abs, difference.values())) / 2 / len(answers)


def test_standard_error_of_acc_is_the_harness_s_own_with_one_proxy_each():
    answers = many_answers(50, 1)
    plain = mean_stderr([float(answer.gold == answer.predicted) for answer in answers])
    share = acc(answers)
    # The convention of n - 1: the binomial's p (1 - p) / n is smaller by (n - 1) / n.
    assert plain == pytest.approx(math.sqrt(share * (1 - share) / 49))
    assert acc_stderr(answers) == pytest.approx(plain, rel=1e-12)


def test_standard_errors_equal_a_bootstrap_over_questions():
    answers = [*many_answers(150, 3), *asked("part", "AB", n_proxies=3)]
    clustered = acc_stderr(answers)
    assert clustered == pytest.approx(resampled(answers, acc, 2000), rel=0.05)
    # The docs are not independent: taking them so would be a fifth too sure.
    plain = mean_stderr([float(answer.gold == answer.predicted) for answer in answers])
    assert clustered > 1.15 * plain
    bias = position_bias_stderr(answers)
    assert bias == pytest.approx(resampled(answers, oracle_bias, 2000), rel=0.1)
    assert 0.005 < bias < position_bias(answers)


def test_bootstrap_is_repeatable():
    answers = many_answers(60, 3)
    first = position_bias_stderr(answers)
    position_bias_stderr(FIVE)
    assert position_bias_stderr(answers) == first


# Properties -------------------------------------------------------------------------------------


@st.composite
def answer_lists(draw: st.DrawFn, complete: bool = False) -> list[Answer]:
    """Answers to some questions of two to five options, in any order, perhaps not all."""
    answers: list[Answer] = []
    for number in range(draw(st.integers(1, 6))):
        n_options = draw(st.integers(2, 5))
        question = MultipleChoiceDoc(
            f"q{number}", "?", tuple(LETTERS[:n_options]), draw(st.integers(0, n_options - 1))
        )
        proxies = make_proxies(question, draw(st.integers(1, 5)))
        for proxy in proxies:
            said = draw(st.integers(0, n_options - 1))
            lls = [(float(k == said), False) for k in range(n_options)]
            values = process_results({**vars(proxy), "n_proxies": len(proxies)}, lls)
            answers.append(values["fortuity"])
    if not complete:
        answers = draw(st.lists(st.sampled_from(answers), min_size=1, unique=True))
    return draw(st.permutations(answers))


def values_of(answers: Sequence[Answer]) -> list[str]:
    """All aggregations; as text, since NaN equals nothing."""
    return [repr(metric(answers)) for metric in AGGREGATIONS]


def oracle(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Scores of the complete questions, by loops."""
    by_question: dict[str, dict[int, Answer]] = defaultdict(dict)
    for answer in answers:
        by_question[answer.question_id][answer.proxy] = answer
    scores: dict[str, list[float]] = {"acc_consistent": [], "acc_majority": [], "fortuity": []}
    for _, found in sorted(by_question.items()):
        if len(found) < next(iter(found.values())).n_proxies:
            continue
        right = [found[proxy].gold == found[proxy].predicted for proxy in sorted(found)]
        votes = Counter(answer.chosen for answer in found.values())
        winners = [option for option, count in votes.items() if count == max(votes.values())]
        golds = {a.chosen for a in found.values() if a.gold == a.predicted}
        scores["acc_consistent"].append(float(all(right)))
        scores["acc_majority"].append(len(golds & set(winners)) / len(winners))
        scores["fortuity"].append(float(right[0] and not all(right)))
    return scores


@given(answer_lists())
def test_metrics_equal_a_slow_oracle(answers):
    for name, scores in oracle(answers).items():
        value = getattr(aqua_metrics, name)(answers)
        error = getattr(aqua_metrics, f"{name}_stderr")(answers)
        if scores:
            assert value == pytest.approx(np.mean(scores))
        else:
            assert math.isnan(value)
        if len(scores) > 1:
            assert error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(len(scores)))
        else:
            assert math.isnan(error)
    assert position_bias(answers) == pytest.approx(oracle_bias(answers))


@given(answer_lists(), st.randoms(use_true_random=False))
def test_order_and_ranks_do_not_matter(answers, draw):
    expected = values_of(answers)
    shuffled = draw.sample(answers, len(answers))
    assert values_of(shuffled) == expected
    for world_size in (2, 3):
        # As the harness gathers them: rank after rank, each having every so manieth doc.
        parts = [answers[rank::world_size] for rank in range(world_size)]
        gathered = [answer for part in pickle.loads(pickle.dumps(parts)) for answer in part]
        assert values_of(gathered) == expected


@given(answer_lists(), st.data())
def test_an_answer_that_comes_twice_counts_once(answers, data):
    again = data.draw(st.lists(st.sampled_from(answers)))
    assert values_of(data.draw(st.permutations([*answers, *again]))) == values_of(answers)


def test_of_two_answers_to_one_proxy_the_same_one_counts_in_any_order():
    other = [FIVE[0]._replace(predicted=3, chosen=3), *FIVE[3:]]
    assert values_of([*FIVE, *other]) == values_of([*other, *FIVE]) == values_of(FIVE)


@given(answer_lists())
def test_bounds(answers):
    assert 0 <= position_bias(answers) <= 1
    if not math.isnan(acc_consistent(answers)):
        assert 0 <= acc_consistent(answers) <= acc_majority(answers) <= 1
        assert acc_consistent(answers) + fortuity(answers) <= 1 + 1e-12


@given(answer_lists(complete=True))
def test_fortuity_and_consistency_make_up_the_accuracy_on_the_original_order(answers):
    # With the orders of `original`, the first proxy is the question as the data has it.
    original = [answer for answer in answers if answer.proxy == 0]
    assert acc_consistent(answers) + fortuity(answers) == pytest.approx(acc(original))


def test_answers_are_grouped_once_for_all_metrics():
    """All ten of 42,000 answers took 0.15 to 0.3 s, mostly for grouping and bootstrap."""
    answers = many_answers(200, 3)
    aqua_metrics._grouped.cache_clear()
    values_of(answers)
    assert aqua_metrics._grouped.cache_info().misses == 1
    assert aqua_metrics._grouped.cache_info().hits == len(AGGREGATIONS) - 1
    # Another list with the same length, and with most of the same answers in it, is another list.
    right = next(k for k, answer in enumerate(answers) if answer.gold == answer.predicted)
    answers[right] = answers[right]._replace(gold=3 - answers[right].gold)
    assert values_of(answers) != values_of(many_answers(200, 3))


# Through the harness ----------------------------------------------------------------------------

TASK = "aqua_arc_easy"
# The gold options of the questions that judge: A thrice, B and C twice, D once.
GOLDS = (0, 1, 2, 3, 0, 1, 0, 2)
N_KNOWN = 4


class ScriptedLM(LM):
    """Says the letter that a function of the prompt's last question chooses."""

    def __init__(self, answerer: Callable[[int, dict[str, str]], str]) -> None:
        super().__init__()
        self.answerer = answerer

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        found = []
        for request in requests:
            prompt, continuation = request.args
            stem, *options = prompt.split("Question: ")[-1].splitlines()[:-1]
            shown = {line[0]: line[3:] for line in options}
            said = self.answerer(int(stem.split()[-1].rstrip("?")), shown)
            found.append((0.0 if continuation == f" {said}" else -9.0, False))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError


def by_text(number: int, shown: dict[str, str]) -> str:
    return next(letter for letter, text in shown.items() if text.startswith("right"))


def always_a(number: int, shown: dict[str, str]) -> str:
    return "A"


def by_text_or_b(number: int, shown: dict[str, str]) -> str:
    return by_text(number, shown) if number < N_KNOWN else "B"


@pytest.fixture(scope="module", autouse=True)
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def arc_row(number: int, gold: int) -> dict[str, Any]:
    """A row with ARC's columns."""
    texts = [f"{'right' if k == gold else 'wrong'} {number} {k}" for k in range(4)]
    return {
        "id": f"Mercury_{number}",
        "question": f"Which is number {number}?",
        "choices": {"text": texts, "label": list("ABCD")},
        "answerKey": "ABCD"[gold],
    }


@pytest.fixture(scope="module")
def arc_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("arc")
    splits = {
        "train": [arc_row(100 + k, k % 4) for k in range(4)],
        "test": [arc_row(number, gold) for number, gold in enumerate(GOLDS)],
        "validation": [arc_row(200 + k, k % 4) for k in range(2)],
    }
    files = {split: str(folder / f"{split}.jsonl") for split in splits}
    for split, rows in splits.items():
        Path(files[split]).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return files


def manager(files: dict[str, str], **settings: Any) -> TaskManager:
    return TaskManager(
        include_path=str(tasks_dir()),
        include_defaults=False,
        metadata={"overrides": {"data_files": files}, **settings},
    )


def run(
    files: dict[str, str],
    answerer: Callable[[int, dict[str, str]], str],
    limit: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Harness results of one task, and its samples."""
    tasks = manager(files, **settings).load([TASK])
    return lm_eval.evaluate(ScriptedLM(answerer), tasks, limit=limit)


def scores(results: dict[str, Any], task: str = TASK) -> list[float]:
    return [results["results"][task][f"{metric},none"] for metric in METRICS]


def errors(results: dict[str, Any], task: str = TASK) -> list[float]:
    return [results["results"][task][f"{metric}_stderr,none"] for metric in METRICS]


def saved(results: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the harness's own writer leaves on disk: results and samples of the task."""
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("scripted", "", "", "", False)
    results = copy.copy(results)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    tracker.save_results_samples(TASK, samples[TASK])
    (aggregated,) = folder.rglob("results_*.json")
    (lines,) = folder.rglob("samples_*.jsonl")
    read = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    return json.loads(aggregated.read_text(encoding="utf-8")), read


def test_model_that_knows_half_and_prefers_b_otherwise(arc_files, tmp_path):
    """Each question is asked under all four shifts, so that everything is known by hand."""
    results = lm_eval.simple_evaluate(
        model=ScriptedLM(by_text_or_b),
        tasks=[TASK],
        task_manager=manager(arc_files, n_proxies=4),
        log_samples=True,
    )
    # Of 8 questions 4 are known; B is right once on each of the others, on one of them where the
    # options stand as in the data. B is said 4 + 16 times, and right 8 times of 32.
    assert scores(results) == pytest.approx([20 / 32, 4 / 8, (4 + 4 / 4) / 8, 1 / 8, 12 / 32])
    # acc: 4 or 1 right where 2.5 are expected; majority: the same, in shares of a question.
    # position_bias: 3/4 of the share of questions not known, which is binomial.
    assert errors(results)[:4] == pytest.approx(
        [
            math.sqrt(8 / 7 * 8 * 1.5**2) / 32,
            math.sqrt(0.5 * 0.5 / 7),
            math.sqrt(8 * 0.375**2 / 7 / 8),
            math.sqrt(1 / 8 * 7 / 8 / 7),
        ]
    )
    assert errors(results)[4] == pytest.approx(0.75 * math.sqrt(0.5 * 0.5 / 8), rel=0.1)
    assert results["results"][TASK]["sample_len"] == 32

    rows = [[cell.strip() for cell in row.split("|")] for row in make_table(results).splitlines()]
    shown = {row[5]: row[6:10] for row in rows[2:]}
    assert list(shown) == sorted(METRICS)
    for metric, value, error in zip(METRICS, scores(results), errors(results), strict=True):
        assert [float(shown[metric][1]), float(shown[metric][3])] == pytest.approx(
            [value, error], abs=6e-5
        )
        assert shown[metric][2] == "±"
    assert "".join(shown[metric][0] for metric in METRICS) == "↑↑↑↓↓"

    aggregated, samples = saved(results, tmp_path)
    assert aggregated["results"][TASK] == results["results"][TASK]
    assert len(samples) == 32
    # What a sample file says of a proxy is enough to compute everything again.
    assert [
        metric([Answer(*sample["fortuity"]) for sample in samples]) for metric in QUESTION_METRICS
    ] == scores(results)[1:4]


def test_model_that_always_says_a(arc_files):
    results = run(arc_files, always_a)
    golds = [sample["doc"]["answer"] for sample in results["samples"][TASK]]
    share = golds.count(0) / len(golds)
    assert len(golds) == 3 * len(GOLDS)
    # Each question is right at most once, and then ties with two others. Three golds are A.
    assert scores(results) == pytest.approx([share, 0, share, 3 / 8, 1 - share])
    assert errors(results)[1] == 0


def test_model_that_knows_everything(arc_files):
    results = run(arc_files, by_text)
    assert scores(results) == [1, 1, 1, 0, 0]
    assert errors(results) == [0] * 5


@pytest.mark.parametrize(("limit", "n_complete"), [(7, 2), (4, 1), (3, 1), (2, 0), (1, 0)])
def test_limit_that_cuts_a_question_in_two(arc_files, tmp_path, limit, n_complete):
    results = run(arc_files, by_text_or_b, limit)
    answers = [sample["fortuity"] for sample in results["samples"][TASK]]
    assert len(answers) == limit
    assert results["results"][TASK]["acc,none"] == pytest.approx(acc(answers))
    for metric, found in oracle(answers).items():
        assert len(found) == n_complete
        value = results["results"][TASK][f"{metric},none"]
        error = results["results"][TASK][f"{metric}_stderr,none"]
        assert value == pytest.approx(sum(found) / len(found) if found else NAN, nan_ok=True)
        assert math.isnan(error) == (n_complete < 2)
    # Up to three docs are of one question.
    assert math.isnan(errors(results)[0]) == math.isnan(errors(results)[4]) == (limit <= 3)
    aggregated, _ = saved(results, tmp_path)
    assert repr(aggregated["results"]) == repr(results["results"])
    assert "fortuity" in make_table(results)


def test_groups_aggregate(arc_files, tmp_path):
    common = yaml.safe_load((tasks_dir() / "aqua" / "aqua_arc_easy.yaml").read_text())
    half = tmp_path / "half.jsonl"
    lines = Path(arc_files["test"]).read_text(encoding="utf-8").splitlines()
    # Questions 2 to 5: two of them known, one of the others with B as its gold.
    half.write_text("\n".join(lines[2:6]), encoding="utf-8")
    for name, test in (("first", arc_files["test"]), ("second", str(half))):
        kwargs = {k: v for k, v in common["dataset_kwargs"].items() if k not in ("path", "name")}
        task = {
            "include": str(tasks_dir() / "aqua" / "_aqua.yaml"),
            "task": f"aqua_{name}",
            "dataset_kwargs": {**kwargs, "data_files": {**arc_files, "test": test}},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    group = {
        "group": "aqua_both",
        "task": ["aqua_first", "aqua_second"],
        "aggregate_metric_list": [{"metric": m, "aggregation": "mean"} for m in METRICS],
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    tasks = TaskManager(
        include_path=str(tmp_path), include_defaults=False, metadata={"n_proxies": 4}
    )
    results = lm_eval.evaluate(ScriptedLM(by_text_or_b), tasks.load(["aqua_both"]))

    assert scores(results, "aqua_second") == pytest.approx([10 / 16, 1 / 2, 2.5 / 4, 1 / 4, 6 / 16])
    # Twelve questions, six of them known.
    expected = [30 / 48, 6 / 12, 7.5 / 12, 2 / 12, 18 / 48]
    assert scores(results, "aqua_both") == pytest.approx(expected)
    both = errors(results, "aqua_both")
    parts = zip(errors(results, "aqua_first"), errors(results, "aqua_second"), strict=True)
    for pooled, (first, second) in zip(both, parts, strict=True):
        # The error of a mean of parts, 8 and 4 questions; the harness pools a little differently.
        assert pooled == pytest.approx(math.hypot(8 * first, 4 * second) / 12, rel=0.03)
    assert [row.split("|")[1].strip() for row in make_table(results).splitlines()][2] == "aqua_both"


# Several processes ------------------------------------------------------------------------------


class Meeting:
    """Where the ranks of one run, which are threads here, hand over what they gather."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.brought: list[Any] = [None] * world_size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = pickle.dumps(value)
        self.barrier.wait()
        found = [pickle.loads(part) for part in self.brought]
        self.barrier.wait()
        return found


class RankLM(ScriptedLM):
    """One of several data-parallel copies; what they exchange goes through pickle."""

    def __init__(self, answerer: Any, rank: int, world_size: int, meeting: Meeting) -> None:
        super().__init__(answerer)
        self._rank, self._world_size, self.meeting = rank, world_size, meeting
        self._device = "cpu"
        self.n_requests = 0

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        self.n_requests = len(requests)
        return super().loglikelihood(requests)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.meeting.gather(self.rank, tensor))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        found = self.meeting.gather(self.rank, obj)
        return found if self.rank == dst else None

    def barrier(self) -> None:
        self.meeting.barrier.wait()


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_agree_with_one(arc_files, world_size):
    """The harness's own sharding, padding and gathering: no two proxies of a question on a rank."""
    alone = run(arc_files, by_text_or_b, limit=20)
    meeting = Meeting(world_size)
    models = [RankLM(by_text_or_b, rank, world_size, meeting) for rank in range(world_size)]
    tasks = [manager(arc_files).load([TASK]) for _ in models]
    returned: list[dict[str, Any] | None] = [None] * world_size

    def work(rank: int) -> None:
        returned[rank] = lm_eval.evaluate(models[rank], tasks[rank], limit=20)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    together, *others = returned
    assert together is not None
    assert others == [None] * (world_size - 1)
    # 20 docs of four options: shared, and filled up to the same number on every rank.
    assert [model.n_requests for model in models] == [4 * math.ceil(20 / world_size)] * world_size
    assert [s["doc_id"] for s in together["samples"][TASK][:3]] == [0, world_size, 2 * world_size]
    assert scores(together) == pytest.approx(scores(alone))
    assert errors(together) == pytest.approx(errors(alone))
