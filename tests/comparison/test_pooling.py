"""Finished runs read back, and conditions over the docs of several tasks."""

from __future__ import annotations

import json

import pytest

from neuronllm_eval.comparison.pooling import over_tasks, shared_conditions
from neuronllm_eval.comparison.rows import ComparedRun, read_run
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.condition_effects import StoredSummary
from tests.fixtures.cli import change_settings, copy_of, finished_run
from tests.fixtures.compared_runs import changed, evaluated, waiting, with_docs
from tests.fixtures.doc_tables import answered


def pooled(runs: list[ComparedRun], condition: str):
    return over_tasks(runs)[condition]


# One by one ---------------------------------------------------------------------------------------


def test_what_is_read_of_a_run(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    args = {"pretrained": "a/model", "revision": "abc", "token": "hf_secret"}
    change_settings(run, model_args=args)
    found = read_run(run)
    assert found.shared == {
        "model": "a/model, revision=abc",
        "method": "ace",
        "neurons of a kind": "6",
        "factors": "0, 2",
        "positions": "scored",
    }
    assert list(found.conditions) == ["unmasked", "suppress_good", "enhance"]
    for each in StoredSummary.load(run.summary).conditions:
        assert repr(found.conditions[each.name].summary) == repr(each)
    assert found.conditions["enhance"].summary.n_controls == 2


def test_a_run_alone_is_what_its_summary_says():
    run = read_run(finished_run(), with_docs=True)
    for name, row in run.conditions.items():
        if name != "unmasked":
            alone = pooled([run], name)
            for part in ("accuracy", "confidence", "controls", "n_beyond", "mcnemar"):
                assert getattr(alone, part) == getattr(row.summary, part)


def of_other_docs(values):
    values["conditions"][1]["accuracy"]["condition"] += 1.0


def of_more_docs(values):
    values["conditions"][1]["accuracy"]["n_docs"] += 1


@pytest.mark.parametrize("damage", [of_other_docs, of_more_docs])
def test_a_summary_of_other_docs_is_refused(tmp_path, damage):
    run = copy_of(finished_run(), tmp_path / "run")
    values = json.loads(run.summary.read_text())
    damage(values)
    run.summary.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"summary.json is not of what .* hold"):
        read_run(run, with_docs=True)


def test_a_run_without_its_docs_is_refused(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    run.conditions.unlink()
    with pytest.raises(ArtifactError, match=r"there is no .*conditions.jsonl"):
        read_run(run, with_docs=True)


# Together -----------------------------------------------------------------------------------------


def test_the_mean_is_over_docs_and_not_over_tasks():
    # 14 to 10 of 20, and 8 to 7 of 10: 5 of 30 docs lost.
    law = evaluated("law", {"unmasked": 14, "degrade": 10})
    art = evaluated("art", {"unmasked": 8, "degrade": 7}, 10)
    found = pooled([law, art], "degrade").accuracy
    assert found.delta == pytest.approx(-100 * 5 / 30)
    assert found.unmasked == pytest.approx(100 * 22 / 30)
    assert (found.n_docs, found.n_questions) == (30, 30)
    assert found.low < found.delta < found.high < 0
    # Five questions of 30 fell: of all signs of these, two are as far from 0.
    assert found.p_value == pytest.approx(2 / 2**5)


def test_controls_are_pooled_by_number():
    law = evaluated(
        "law",
        {"unmasked": 14, "degrade": 12, "degrade.random_0": 10, "degrade.random_1": 14,
         "degrade.random_2": 0},
    )  # fmt: skip
    art = evaluated(
        "art", {"unmasked": 14, "degrade": 10, "degrade.random_0": 12, "degrade.random_1": 10}
    )
    found = pooled([law, art], "degrade")
    # Of 40 docs the condition loses 6, the first controls 4 and 2, which is as many, the second 4.
    assert found.accuracy.delta == pytest.approx(-15.0)
    assert (found.controls.low, found.controls.high) == (pytest.approx(-15.0), pytest.approx(-10.0))
    assert found.n_controls == 2  # the third one is not in both
    assert found.n_beyond == 1
    # Where a rise is expected, on the other side.
    raised = {"unmasked": 10, "enhance": 13, "enhance.random_0": 12, "enhance.random_1": 9}
    assert pooled([evaluated("law", raised)], "enhance").n_beyond == 2


def test_controls_are_pooled_whatever_their_seeds():
    rows = {"unmasked": 14, "degrade": 12}
    law = evaluated("law", rows | {"degrade.random_9": 14, "degrade.random_10": 10})
    art = evaluated("art", rows | {"degrade.random_0": 12, "degrade.random_1": 14})
    found = pooled([law, art], "degrade")
    # Of 40 docs the first controls lose 0 and 2, the second 4 and 0; the condition 4.
    assert (found.controls.low, found.controls.high) == (pytest.approx(-10), pytest.approx(-5))
    assert (found.n_controls, found.n_beyond) == (2, 1)


def test_a_question_that_two_runs_of_a_task_ask_is_one():
    law = evaluated("law", {"unmasked": 14, "degrade": 10})
    again = pooled([law, law], "degrade").accuracy
    assert (again.n_docs, again.n_questions) == (40, 20)
    other = pooled([law, changed(law, task="art")], "degrade").accuracy
    assert (other.n_docs, other.n_questions) == (40, 40)
    assert other.high - other.low < again.high - again.low


def test_conditions_that_all_have():
    law = evaluated("law", {"unmasked": 14, "enhance": 15, "degrade": 10})
    art = evaluated("art", {"unmasked": 14, "degrade": 10})
    assert shared_conditions([law]) == ["degrade", "enhance"]  # in the order of all conditions
    assert shared_conditions([law, art]) == ["degrade"]
    assert shared_conditions([]) == []


def test_docs_of_questions_are_drawn_together():
    docs = answered("aaabbb", unmasked="111111", degrade="000111")
    found = pooled([with_docs(waiting("law"), docs)], "degrade").accuracy
    assert (found.delta, found.low, found.high) == (-50.0, -100.0, 0.0)
    assert found.p_value == 1.0  # one question changed, and either sign of it is as far


def test_the_order_of_the_runs_does_not_matter():
    law = evaluated("law", {"unmasked": 14, "degrade": 10})
    art = evaluated("art", {"unmasked": 1, "degrade": 0}, 10)  # the first question fell
    assert pooled([law, art], "degrade") == pooled([art, law], "degrade")
