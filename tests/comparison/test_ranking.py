"""Comparable sets, ranks, order, filters and overlaps, worked out by hand."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from neuronllm_eval.comparison.comparability import comparable_sets, differences
from neuronllm_eval.comparison.neuron_overlap import MOST_COMPARED, overlaps
from neuronllm_eval.comparison.ranking import COLUMNS, in_order, ranked, wanted
from neuronllm_eval.errors import UsageError
from neuronllm_eval.interventions.conditions import Scales
from tests.fixtures.compared_runs import TERMS, row, run_of


def framed(rows, group_by="task", **how):
    return in_order(ranked(rows).frame, group_by, **how)


def changed(**changes):
    return dataclasses.replace(TERMS, **changes)


# Sets ---------------------------------------------------------------------------------------------

CHANGES = {
    "split": ("dev", "validation split dev instead of test"),
    "n_questions": (1, "1 question instead of 60"),
    "question_ids": ("other", "other questions"),
    "docs": ("other", "other orders of the questions or of their options"),
    "n_proxies": ("1", "1 prompt of each question instead of 3"),
    "orders": ("drawn", "orders drawn instead of original"),
    "letter_style": ("(A)", "letter style (A) instead of A."),
    "n_options": ("3", "number of options 3 instead of none"),
    "distractors": ("random", "distractors random instead of none"),
    "num_fewshot": ("5", "5 demonstrations instead of 1"),
    "description": ("y", "other description"),
    "system_instruction": ("y", "other system instruction"),
    "chat_template": ("the model's own", "chat template: the model's own instead of none"),
    "multiturn": (False, "demonstrations as turns: no instead of yes"),
    "metadata": ("y", "other --metadata"),
    "task_config": ("y", "other definition of the task"),
    "chosen_split": ("dev", "neurons selected on split dev instead of train"),
    "n_chosen_on": (60, "neurons selected on 60 questions instead of 120"),
    "chosen_at": ("all", "neurons selected at all positions instead of scored"),
    "applied_at": ("all", "neurons edited at all positions instead of scored"),
    "option_scores": ("per_character", "option scores per_character instead of sum"),
    "top_k": (20, "K 20 instead of 41"),
    "scales": (Scales(suppress=0.5), "suppressing by the factor 0.5 instead of 0"),
    "lm_eval": ("0.5.0", "lm_eval 0.5.0 instead of 0.4.13"),
    "neuronllm_eval": ("0.2.0", "neuronllm-eval 0.2.0 instead of 0.1.0"),
}


def test_every_term_parts_results_and_says_so():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(TERMS)}
    for name, (value, words) in CHANGES.items():
        other = changed(**{name: value})
        assert differences(other, TERMS) == (words,)
        found = comparable_sets([("t", "r1", TERMS), ("t", "r2", TERMS), ("t", "r3", other)])
        assert [(each.letter, each.n_runs, each.differs) for each in found] == [
            ("a", 2, ()),
            ("b", 1, (words,)),
        ]


def test_what_follows_from_another_difference_is_not_said_again():
    other = changed(split="dev", n_questions=80, question_ids="p", docs="e", num_fewshot="5")
    assert differences(other, TERMS) == (
        "validation split dev instead of test",
        "80 questions instead of 60",
        "5 demonstrations instead of 1",
    )
    assert differences(changed(n_proxies="1", docs="e"), TERMS) == (
        "1 prompt of each question instead of 3",
    )


def test_every_factor_that_differs_is_said():
    assert differences(changed(scales=Scales(0.5, 3.0)), TERMS) == (
        "suppressing by the factor 0.5 instead of 0",
        "enhancing by the factor 3 instead of 2",
    )


def test_the_first_set_has_most_runs_then_most_results():
    # Two runs with a point each: as many runs, but fewer results, though it sorts before.
    point = changed(scales=Scales(suppress=-1.0))
    results = [("t", run, terms) for run in ("r1", "r2") for terms in (TERMS, TERMS, point)]
    few = changed(top_k=99)
    found = comparable_sets([("t", "r3", few), *results, ("u", "r4", few)])
    assert [(each.task, each.letter, each.terms) for each in found] == [
        ("t", "a", TERMS),
        ("t", "b", point),
        ("t", "c", few),
        ("u", "a", few),
    ]


def test_letters_go_on_after_z():
    results = [("t", f"r{k}", changed(top_k=k)) for k in range(1, 30)]
    letters = [each.letter for each in comparable_sets(results)]
    assert letters[24:] == ["y", "z", "aa", "ab", "ac"]
    entries = [row(run=run, terms={"top_k": terms.top_k}) for _, run, terms in results]
    assert list(framed(entries)["set"]) == letters


# Ranks --------------------------------------------------------------------------------------------


def ranks(entries, **how):
    frame = framed(entries, **how)
    return {
        (row.task, row.set, row.condition, row.method): (row.rank, row.n_ranked)
        for row in frame.itertuples()
    }


def test_ranks_are_in_the_conditions_direction_and_ties_share():
    entries = [
        row("suppress_good", -10.0, method="ace"),
        row("suppress_good", -20.0, method="kn"),
        row("suppress_good", +3.0, method="tn"),
        row("suppress_good", -10.0, method="random"),
        row("enhance", -1.0, method="ace"),
        row("enhance", +2.0, method="kn"),
    ]
    assert ranks(entries) == {
        ("demo", "a", "suppress_good", "kn"): (1, 4),
        ("demo", "a", "suppress_good", "ace"): (2, 4),
        ("demo", "a", "suppress_good", "random"): (2, 4),
        ("demo", "a", "suppress_good", "tn"): (4, 4),
        ("demo", "a", "enhance", "kn"): (1, 2),
        ("demo", "a", "enhance", "ace"): (2, 2),
    }


def test_ranks_never_cross_sets_or_tasks():
    entries = [
        row(delta=-10.0, method="ace", run="r1"),
        row(delta=-15.0, method="kn", run="r2"),
        row(delta=-50.0, method="tn", run="r3", terms={"top_k": 102}),
        row(delta=-90.0, method="ace", run="r4", task="other"),
    ]
    assert ranks(entries) == {
        ("demo", "a", "suppress_good", "kn"): (1, 2),
        ("demo", "a", "suppress_good", "ace"): (2, 2),
        ("demo", "b", "suppress_good", "tn"): (1, 1),
        ("other", "a", "suppress_good", "ace"): (1, 1),
    }


def test_the_unmasked_model_has_no_rank():
    frame = framed([row("unmasked"), row("unmasked", method="kn")])
    assert frame["rank"].isna().all()
    assert frame["n_ranked"].isna().all()


def test_a_point_ranks_with_whole_runs_of_its_number():
    point = row(delta=-4.0, name="suppress_good.k20.x0", run="r1", terms={"top_k": 20})
    whole = row(delta=-6.0, run="r2", terms={"top_k": 20})
    frame = framed([row(run="r1"), point, whole])
    assert list(zip(frame["run"], frame["set"], frame["rank"], strict=True)) == [
        ("r2", "a", 1),
        ("r1", "a", 2),
        ("r1", "b", 1),
    ]


# Order --------------------------------------------------------------------------------------------


def column(entries, name, **how):
    return list(framed(entries, **how)[name])


def test_the_usual_order_is_by_condition_set_and_rank():
    entries = [
        row("enhance", 1.0),
        row("suppress_good", -1.0, method="kn"),
        row("suppress_good", -9.0, method="ace"),
        row("unmasked"),
        row("suppress_good", -90.0, method="tn", run="r2", terms={"top_k": 9}),
    ]
    assert column(entries, "method") == ["ace", "ace", "kn", "tn", "ace"]
    assert column(entries, "condition") == ["unmasked", *["suppress_good"] * 3, "enhance"]


def test_sorted_within_groups_and_missing_last():
    entries = [
        row("unmasked", method="z", task="b"),
        row("suppress_good", -1.0, task="b"),
        row("suppress_good", -3.0, task="a"),
        row("enhance", 5.0, task="a"),
        row("unmasked", task="a"),
    ]
    assert column(entries, "task", sort_by="delta") == ["a", "a", "a", "b", "b"]
    of_a = column(entries, "delta", sort_by="delta")[:3]
    assert of_a[:2] == [5.0, -3.0]
    assert pd.isna(of_a[2])
    assert column(entries, "delta", sort_by="delta", ascending=True)[:2] == [-3.0, 5.0]
    assert column(entries, "method", group_by="method", sort_by="accuracy")[-1] == "z"


def test_models_stand_together_by_their_weights():
    entries = [
        row(model="a/x", model_hash="h1"),
        row(model="b/y", model_hash="h2"),
        row(model="elsewhere/x", model_hash="h1", task="z"),
    ]
    assert column(entries, "model_hash", group_by="model") == ["h1", "h1", "h2"]


def test_no_such_column():
    with pytest.raises(UsageError, match=r"(?s)no column 'luck'.*accuracy.*--sort_by"):
        framed([row()], sort_by="luck")


def test_columns_keep_their_names_and_types():
    frame = framed([row("unmasked")])
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS


# Filters ------------------------------------------------------------------------------------------

RUNS = [
    run_of("r1", row(), row("enhance"), model="org/Big-7B", task="demo_a"),
    run_of("r2", row(), row("enhance"), model="other/Big-7B", task="demo_b", method="kn"),
    run_of("r3", model="small", task="law"),
]


def kept(**patterns):
    fitting = wanted(RUNS, patterns)
    return {run.facts.path: [each.condition for each in run.rows] for run in fitting}


def test_patterns_keep_what_fits_one_of_them():
    both = ["suppress_good", "enhance"]
    assert kept() == {"r1": both, "r2": both, "r3": []}
    assert list(kept(models=["Big*"])) == ["r1", "r2"]
    assert list(kept(models=["org/*", "small"])) == ["r1", "r3"]
    assert list(kept(tasks=["demo_?"], methods=["a*"])) == ["r1"]
    assert kept(conditions=["suppress_*"])["r1"] == ["suppress_good"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"tasks": ["demo_*", "typo"]}, "no run has tasks that fit 'typo'.*demo_a, demo_b, law"),
        ({"models": ["GPT*"]}, "no run has models that fit 'GPT.*Big-7B, small.*--models"),
        ({"methods": ["luck"]}, "no run has methods that fit 'luck'.*ace, kn"),
        ({"conditions": ["degrade"]}, "conditions that fit 'degrade'.*enhance.*--points"),
        ({"tasks": ["law"], "methods": ["kn"]}, "no run fits --models, --tasks and --methods"),
    ],
)
def test_patterns_that_nothing_fits(patterns, message):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        kept(**patterns)


# Overlaps -----------------------------------------------------------------------------------------


def test_overlaps_of_runs_of_one_model():
    runs = [
        run_of("r1", good=(0, 1)),
        run_of("r2", good=(1, 2), method="kn", seed=3),
        run_of("r3", model="other", model_hash="h2"),
        run_of("r4", good=(7,), bad=6, task="law"),
    ]
    found, left_out = overlaps(runs)
    assert left_out == []
    assert len(found) == 3 * 4
    by_pair = found.set_index(["run", "other_run", "neurons", "other_neurons"])
    good = by_pair.loc["r1", "r2", "good", "good"]
    assert (good["shared"], good["size"], good["other_size"], good["jaccard"]) == (1, 2, 2, 1 / 3)
    # 2 of 8 and 2 of 8: 0, 1, 2 shared in 15, 12, 1 of 28 cases.
    assert good["chance"] == pytest.approx((12 / 3 + 1) / 28)
    assert (good["method"], good["other_method"], good["other_seed"]) == ("ace", "kn", 3)
    assert by_pair.loc["r1", "r2", "bad", "bad"]["jaccard"] == 1
    assert by_pair.loc["r1", "r4", "bad", "good"]["shared"] == 1
    assert by_pair.loc["r1", "r4", "good", "good"]["shared"] == 0


def test_overlaps_are_bounded_and_say_so():
    runs = [run_of(f"r{number:03}", seed=number) for number in range(MOST_COMPARED + 2)]
    found, (sentence,) = overlaps(runs)
    assert len(found) == 4 * MOST_COMPARED * (MOST_COMPARED - 1) // 2
    assert f"{MOST_COMPARED + 2} runs of org/model: only the first {MOST_COMPARED}" in sentence
