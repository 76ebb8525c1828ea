"""What edits cost, beside their random controls."""

from __future__ import annotations

import json
import math

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.edit_cost import EditCost, edit_cost, recorded_perplexity
from neuronllm_eval.runs.directory import RunDirectory
from tests.evaluation.test_condition_effects import judged
from tests.fixtures.doc_tables import LINES, the_table

VALUES = {
    "unmasked": 6.0,
    "degrade": 9.0,
    "degrade.random_0": 6.5,
    "degrade.random_3": 7.5,
    "degrade.k5": 8.0,
    "degrade.k5.random_0": 100.0,
}
# The docs' divergences under two conditions: their means are 0.25 and 0.0625.
KL = [(0.1, 0.0), (0.2, 0.05), (0.3, 0.1), (0.4, 0.1)]


def with_kl(lines=LINES, names=("degrade", "degrade.random_0")):
    rows = []
    for line, values in zip(lines, KL, strict=True):
        loglikelihoods = {**line["loglikelihoods"], names[1]: line["loglikelihoods"]["degrade"]}
        kl = {"unmasked": 0.0, **dict(zip(names, values, strict=True))}
        rows.append({**line, "loglikelihoods": loglikelihoods, "kl": kl})
    return rows


def test_a_figure_beside_its_own_controls():
    assert edit_cost(VALUES, "degrade") == EditCost(9.0, 7.0, 7.5, 2)
    assert edit_cost(VALUES, "degrade.k5") == EditCost(8.0, 100.0, 100.0, 1)
    assert edit_cost(VALUES, "enhance") is None
    alone = edit_cost(VALUES, "unmasked")
    assert (alone.value, alone.n_controls) == (6.0, 0)
    assert math.isnan(alone.controls_mean)


@pytest.mark.parametrize("broken", ["degrade.random_0", "degrade.random_3"])
def test_a_control_without_a_finite_figure_leaves_no_mean(broken):
    cost = edit_cost({**VALUES, broken: math.nan}, "degrade")
    assert math.isnan(cost.controls_mean)
    assert math.isnan(cost.controls_high)


def test_divergences_are_means_over_docs():
    table = the_table(with_kl())
    unmasked, degrade = judged(table)
    assert (unmasked.kl.value, unmasked.kl.n_controls) == (0, 0)
    assert degrade.kl.value == pytest.approx(0.25)
    assert degrade.kl.controls_mean == degrade.kl.controls_high == pytest.approx(0.0625)
    assert degrade.perplexity is None


@pytest.mark.parametrize("n_without", [1, 4])
def test_docs_of_earlier_versions_have_no_divergence(n_without):
    lines = with_kl()
    for line in lines[:n_without]:
        del line["kl"]
    assert [summary.kl for summary in judged(the_table(lines))] == [None, None]


def test_perplexities_join_the_summaries():
    _, degrade = judged(the_table(), perplexity={"unmasked": 6.0, "degrade": 9.0})
    assert degrade.perplexity.value == 9
    assert degrade.perplexity.n_controls == 0


@pytest.mark.parametrize(
    ("kl", "message"),
    [
        ({"unmasked": 0.0}, "line 1 has kl and loglikelihoods of different conditions"),
        ({"unmasked": 0.0, "degrade": 1.0, "degrade.random_0": -0.5}, "-0.5"),
        ({"unmasked": 0.0, "degrade": 1.0, "degrade.random_0": None}, "kl"),
    ],
)
def test_divergences_that_are_refused(kl, message):
    first, *rest = with_kl()
    with pytest.raises(ArtifactError, match=message):
        the_table([{**first, "kl": kl}, *rest])


# perplexity.json --------------------------------------------------------------------------------


def written(path, **values) -> RunDirectory:
    content = {"text_hash": "t", "n_tokens": 9, "perplexity": {"unmasked": 6.0}} | values
    (path / "perplexity.json").write_text(json.dumps(content))
    return RunDirectory(path)


def test_the_file_is_read_by_condition(tmp_path):
    run = written(tmp_path, perplexity={"unmasked": 6.0, "degrade": None})
    found = recorded_perplexity(run, the_table())
    assert found["unmasked"] == 6
    assert math.isnan(found["degrade"])


def test_without_a_file_there_is_none(tmp_path):
    assert recorded_perplexity(RunDirectory(tmp_path), the_table()) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"perplexity": {"unmasked": 6.0, "enhance": 7.0}}, "'enhance', which conditions.jsonl"),
        ({"perplexity": {"degrade": 7.0}}, "there is no perplexity of unmasked"),
        ({"perplexity": {"unmasked": 0.5}}, "a perplexity is 0.5, below 1"),
        ({"n_tokens": 0}, "n_tokens"),
    ],
)
def test_files_that_are_refused(tmp_path, values, message):
    with pytest.raises(ArtifactError, match=message):
        recorded_perplexity(written(tmp_path, **values), the_table())
