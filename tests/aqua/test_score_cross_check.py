"""`orders: swap` asks what the harness's SCORE option-order tasks ask, and counts the same.

`score_option_order_robustness_mmlu_pro` and `option_order_robustness_agieval_*` put the right
option under each letter in turn by letting it change places with the option that stands there.
They have the model write "The best answer is B"; AQUA compares log-likelihoods. Here the harness
runs both on the same questions, and the same script answers, from the options as they are printed
in the prompt. What ours is compared with is the harness's own code, loaded through its YAML files.

Where the two differ, by lm-eval 0.4.13:

1. Its `options_consistency_rate` takes an answer back to the option it stands for by two `if`s in a
   row, the second of which undoes the first. The gold's own letter then always counts as the gold,
   though another option stands there in all orders but one (`test_their_consistency_rate`).
2. A question of fewer than ten options is asked in its own order for each letter that it lacks; the
   answers count for that letter, under which the gold never was
   (`test_questions_with_fewer_options_than_letters`).
3. In AGIEval no order brings the gold under E, also where there are five options; AQUA's fifth
   order does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.score.utils import calculate_consistency_rate

from neuronllm_eval.aqua.proxies import LETTERS, option_orders
from neuronllm_eval.harness import tasks_dir

SCORE = Path(lm_eval.__file__).parent / "tasks" / "score"
N_QUESTIONS = 12


# What is asked ----------------------------------------------------------------------------------


def options_of(number: int, n_options: int) -> list[str]:
    return [f"thing {number}-{k}" for k in range(n_options)]


def mmlu_pro_row(number: int, gold: int, n_options: int = 10) -> dict[str, Any]:
    """A row with the columns of TIGER-Lab/MMLU-Pro."""
    return {
        "question_id": 7000 + number,
        "question": f"Which is number {number}?",
        "options": options_of(number, n_options),
        "answer": LETTERS[gold],
        "answer_index": gold,
        "cot_content": "",
        "category": "law" if number % 3 else "physics",
        "src": "made",
    }


def agieval_row(number: int, gold: int, n_options: int = 5) -> dict[str, Any]:
    """A row with the columns of hails/agieval-aqua-rat."""
    options = [f"({LETTERS[k]}){text}" for k, text in enumerate(options_of(number, n_options))]
    return {
        "query": f"Q: Which is number {number}? Answer Choices: {' '.join(options)}\n"
        "A: Among A through E, the answer is",
        "choices": options,
        "gold": [gold],
    }


class Benchmark(NamedTuple):
    """A SCORE task, its rows, and how an AQUA task reads them."""

    config: Path
    task: str
    row: Callable[..., dict[str, Any]]
    n_options: tuple[int, ...]
    n_orders: int
    reads: dict[str, str]
    metric: str


MMLU_PRO = Benchmark(
    config=SCORE / "mmlu_pro" / "score_option_order_robustness_mmlu_pro.yaml",
    task="score_option_order_robustness_mmlu_pro",
    row=mmlu_pro_row,
    n_options=(10,),
    n_orders=10,
    reads={"choices": "options", "answer": "answer_index"},
    metric="per_option_macro_accuracy",
)
AGIEVAL = Benchmark(
    config=SCORE / "agi_eval" / "option_order_robustness_agieval_lsat_lr.yaml",
    task="option_order_robustness_agieval_lsat_lr",
    row=agieval_row,
    n_options=(5, 4),
    n_orders=4,
    reads={
        "question": "{{ query.split(' Answer Choices:')[0] | regex_replace('^Q: ') }}",
        "choices": "choices | map('regex_replace', '^[(][A-E][)]') | list",
        "answer": "gold",
    },
    metric="per_option_accuracy",
)


# Who answers ------------------------------------------------------------------------------------

# Which letter is said, given the question's number, its gold and the options in shown order.
Answerer = Callable[[int, str, Sequence[str]], int]


def knows(number: int, gold: str, shown: Sequence[str]) -> int:
    return shown.index(gold)


def says_letter(letter: str) -> Answerer:
    return lambda number, gold, shown: LETTERS.index(letter)


def says_option(option: int) -> Answerer:
    return lambda number, gold, shown: shown.index(f"thing {number}-{option}")


def erratic(number: int, gold: str, shown: Sequence[str]) -> int:
    """Anything, but the same to the same question in the same order."""
    return hashlib.sha256("|".join(shown).encode()).digest()[0] % len(shown)


class ScriptedLM(LM):
    """Answers both kinds of task from the last question of the prompt."""

    def __init__(self, golds: dict[int, str], answerers: dict[int, Answerer]) -> None:
        super().__init__()
        self.golds, self.answerers = golds, answerers

    def letter(self, prompt: str) -> str:
        asked = prompt[prompt.rindex("Which is number") :]
        number = int(re.match(r"Which is number (\d+)\?\n", asked)[1])
        # `A. thing` of AQUA, `A: thing` of SCORE.
        printed = re.findall(r"^([A-Z])[.:] (.*)$", asked, re.MULTILINE)
        assert [letter for letter, _ in printed] == list(LETTERS[: len(printed)])
        shown = [text for _, text in printed]
        return LETTERS[self.answerers[number](number, self.golds[number], shown)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(float(r.args[1] == f" {self.letter(r.args[0])}"), False) for r in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [f"Let me see. The best answer is {self.letter(r.args[0])}." for r in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError


# Running both -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


class Run(NamedTuple):
    """Rows that were asked, and what the harness made of them."""

    rows: list[dict[str, Any]]
    task: Any
    theirs: dict[str, float]
    their_samples: list[dict[str, Any]]
    ours: list[dict[str, Any]]

    def their_answers(self, number: int | None = None) -> list[tuple[Any, ...]]:
        """What their consistency rate is computed from, of one question or of all."""
        return [
            sample["options_consistency_rate"]
            for sample in self.their_samples
            if number is None or number_in(sample["doc"]["question"]) == number
        ]

    def our_samples(self, number: int) -> list[dict[str, Any]]:
        return [s for s in self.ours if number_in(s["doc"]["question"]) == number]


def number_in(question: str) -> int:
    return int(re.search(r"number (\d+)", question)[1])


def run(
    folder: Path, benchmark: Benchmark, rows: list[dict[str, Any]], answerers: dict[int, Answerer]
) -> Run:
    """Both tasks on the same rows, answered by the same script."""
    others = [benchmark.row(900 + k, 0, benchmark.n_options[0]) for k in range(4)]
    files = {}
    for split, docs in (("validation", others), ("test", rows)):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    theirs = {
        "include": str(benchmark.config),
        "task": benchmark.task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    ours = {
        "include": str(tasks_dir() / "aqua" / "_aqua.yaml"),
        "task": "aqua_swap",
        "dataset_kwargs": {
            **benchmark.reads,
            "data_files": files,
            "selection_split": "validation",
            "validation_split": "test",
        },
        "metadata": {"version": 1.0, "n_proxies": 10, "orders": "swap"},
    }
    for config in (theirs, ours):
        text = yaml.safe_dump(config)
        (folder / f"{config['task']}.yaml").write_text(text, encoding="utf-8")
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(
        [benchmark.task, "aqua_swap"]
    )
    numbered = {number_in(row.get("question") or row["query"]): row for row in rows}
    golds = {number: f"thing {number}-{gold_of(row)}" for number, row in numbered.items()}
    results = lm_eval.evaluate(ScriptedLM(golds, answerers), loaded, bootstrap_iters=0)
    return Run(
        rows=rows,
        task=loaded["tasks"][benchmark.task],
        theirs={
            name.removesuffix(",none"): value
            for name, value in results["results"][benchmark.task].items()
            if name.endswith(",none")
        },
        their_samples=results["samples"][benchmark.task],
        # AGIEval's never have the gold under E.
        ours=[
            sample
            for sample in results["samples"]["aqua_swap"]
            if sample["doc"]["answer"] < benchmark.n_orders
        ],
    )


def gold_of(row: dict[str, Any]) -> int:
    return row["answer_index"] if "answer_index" in row else row["gold"][0]


def plan(number: int) -> Answerer:
    """A third is known, a third answered by a favourite letter, a third anyhow."""
    return (knows, says_letter("C"), erratic)[number % 3]


@pytest.fixture(scope="module", params=[MMLU_PRO, AGIEVAL], ids=["mmlu_pro", "agieval"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    benchmark: Benchmark = request.param
    rows = []
    for number in range(N_QUESTIONS):
        n_options = benchmark.n_options[number % len(benchmark.n_options)]
        # Golds under every letter, also under the fifth of five.
        rows.append(benchmark.row(number, (number * 7 // 2) % n_options, n_options))
    answerers = {number: plan(number) for number in range(N_QUESTIONS)}
    return benchmark, run(tmp_path_factory.mktemp("score"), benchmark, rows, answerers)


# The same questions, answers and accuracies -----------------------------------------------------


def test_orders_are_those_of_score(both):
    """Per question and letter: the same options in the same places, the gold under that letter."""
    benchmark, found = both
    theirs = {
        (number_in(doc["question"]), doc["always_same_option"]): doc for doc in found.task.eval_docs
    }
    assert len(theirs) == len(found.task.eval_docs) == N_QUESTIONS * benchmark.n_orders
    assert len(found.ours) == len(theirs)
    for number, row in enumerate(found.rows):
        options = options_of(number, len(row.get("options") or row["choices"]))
        all_orders = option_orders(
            len(options), 10, seed=0, question_id="any", orders="swap", answer=gold_of(row)
        )
        orders = [order for order in all_orders if order.index(gold_of(row)) < benchmark.n_orders]
        for order in orders:
            place = order.index(gold_of(row))
            doc = theirs[number, LETTERS[place]]
            assert doc["options"] == [options[option] for option in order]
            assert (doc["answer_index"], doc["answer"]) == (place, LETTERS[place])
            assert doc["original_answer_index"] == gold_of(row)
        asked = {tuple(sample["doc"]["order"]) for sample in found.our_samples(number)}
        assert asked == set(orders)
        assert {order.index(gold_of(row)) for order in orders} == set(range(benchmark.n_orders))


def test_answers_are_those_of_score(both):
    _, found = both
    theirs = {
        (number_in(sample["doc"]["question"]), sample["doc"]["always_same_option"]): sample[
            "options_consistency_rate"
        ][2]
        for sample in found.their_samples
    }
    ours = {
        (number_in(sample["doc"]["question"]), LETTERS[sample["doc"]["answer"]]): LETTERS[
            sample["fortuity"].predicted
        ]
        for sample in found.ours
    }
    assert ours == theirs
    assert len(set(ours.values())) >= 4


def test_accuracies_per_letter_are_those_of_score(both):
    benchmark, found = both
    for place in range(benchmark.n_orders):
        by_category = defaultdict(list)
        for sample in found.ours:
            if sample["doc"]["answer"] == place:
                row = found.rows[number_in(sample["doc"]["question"])]
                by_category[row.get("category")].append(sample["acc"])
        expected = np.mean([np.mean(right) for right in by_category.values()])
        theirs = found.theirs[f"{benchmark.metric}_{LETTERS[place]}"]
        assert theirs == pytest.approx(expected, abs=5e-5)  # rounded to four places
    accuracies = {found.theirs[f"{benchmark.metric}_{letter}"] for letter in "ABCD"}
    assert len(accuracies) > 1


# Consistency ------------------------------------------------------------------------------------


def our_consistency(samples: Sequence[dict[str, Any]]) -> float:
    """Share of the pairs of a question's proxies in which the same option was chosen."""
    by_question = defaultdict(list)
    for sample in samples:
        by_question[sample["fortuity"].question_id].append(sample["fortuity"].chosen)
    same = [a == b for chosen in by_question.values() for a, b in combinations(chosen, 2)]
    return float(np.mean(same))


def meant_consistency(answers: Sequence[tuple[Any, ...]]) -> float:
    """Their rate with the `if`s of `options_consistency_rate` made an if and an elif."""
    by_question = defaultdict(list)
    for question_id, letter, said, original, _ in answers:
        # The gold and the option under `letter` have changed places.
        back = {LETTERS[original]: letter, letter: LETTERS[original]}
        by_question[question_id].append(back.get(said, said))
    return calculate_consistency_rate(list(by_question.values()))


def test_consistency_is_the_one_that_score_means(both):
    _, found = both
    assert our_consistency(found.ours) == pytest.approx(meant_consistency(found.their_answers()))
    for number in range(N_QUESTIONS):
        ours = our_consistency(found.our_samples(number))
        assert ours == pytest.approx(meant_consistency(found.their_answers(number)))


def test_consistency_equals_score_s_unless_the_gold_s_own_letter_is_said(both):
    """That letter is the gold's in one order only; where it is said in others, theirs errs."""
    _, found = both
    rate = found.task.aggregation()["options_consistency_rate"]
    assert rate(found.their_answers()) == found.theirs["options_consistency_rate"]
    agree = []
    for number in range(N_QUESTIONS):
        answers = found.their_answers(number)
        if not any(said == LETTERS[own] != letter for _, letter, said, own, _ in answers):
            agree.append(number)
            ours = our_consistency(found.our_samples(number))
            assert rate(answers) == pytest.approx(ours), number
    assert set(range(0, N_QUESTIONS, 3)) < set(agree)  # those that are known, and others
    assert len(agree) < N_QUESTIONS


@pytest.mark.parametrize("benchmark", [MMLU_PRO, AGIEVAL], ids=["mmlu_pro", "agieval"])
def test_their_consistency_rate(benchmark, tmp_path):
    """Four questions with B as the gold, each answered in another way.

    With n orders, of which one differs from the rest, the rate is (n - 1 over 2) / (n over 2) =
    (n - 2) / n.
    """
    n = benchmark.n_orders
    but_one = (n - 2) / n
    rows = [benchmark.row(number, 1, benchmark.n_options[0]) for number in range(4)]
    answerers = {
        0: knows,
        # C is the third option, but for the order in which the gold stands there.
        1: says_letter("C"),
        # B is the gold in one order, and in each other the option that it changed places with.
        2: says_letter("B"),
        # The third option stands under C, but for the order in which it changed places: under B.
        3: says_option(2),
    }
    found = run(tmp_path, benchmark, rows, answerers)
    rate = found.task.aggregation()["options_consistency_rate"]
    ours = [our_consistency(found.our_samples(number)) for number in range(4)]
    theirs = [rate(found.their_answers(number)) for number in range(4)]
    assert ours == pytest.approx([1, but_one, 0, 1])
    # A letter that is always said is taken for knowledge; a wrong option always chosen is not.
    assert theirs == pytest.approx([1, but_one, 1, but_one])
    # The last of the values, a tuple of one, is not looked at.
    assert [answer[-1] for answer in found.their_answers(0)] == [(k,) for k in range(n)]


def test_questions_with_fewer_options_than_letters(tmp_path):
    """SCORE asks four options ten times, AQUA four times: the letters E to J are none of theirs."""
    found = run(tmp_path, MMLU_PRO, [mmlu_pro_row(1, 0, n_options=4)], {1: says_letter("A")})
    assert len(found.ours) == 4
    assert len(found.their_samples) == 10
    assert [sample["doc"]["answer_index"] for sample in found.their_samples] == [0, 1, 2, 3] + [
        0
    ] * 6
    # A is right where the gold is under A, and that is where it still is "under" E to J.
    accuracies = [found.theirs[f"per_option_macro_accuracy_{letter}"] for letter in LETTERS[:10]]
    assert accuracies == [1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
