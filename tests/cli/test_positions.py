"""`--positions` of the commands: what is chosen and applied where, on disk and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from neuronllm_eval.cli import main as cli
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    change_settings,
    copy_of,
    identify,
    jsonl,
    list_all,
    without_the_harness_tasks,
)

QUICK = ("--n_random", 1, "--conditions", "suppress_good,degrade")
TOP_K = ("--top_k", 6, "--method", "gradxact")
TASK = "demo_topic"


@pytest.fixture(autouse=True)
def quick_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> dict[str, Path]:
    """A run of each of the positions, with neurons and nothing else."""
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        for where in ("scored", "all"):
            output = outputs[where] = tmp_path_factory.mktemp(where)
            result = call(*identify(output, *TOP_K, "--positions", where))
            assert result[0] == 0, result[2]
    return outputs


def copy(chosen: dict[str, Path], where: str, path: Path) -> RunDirectory:
    return copy_of(RunDirectory(chosen[where] / TASK), path / where / TASK)


def validated(run: RunDirectory, *flags: object) -> str:
    code, out, err = call("validate", run.path, *QUICK, *flags)
    assert code == 0, err
    return out


def test_scores_of_both_are_told_apart(chosen):
    scored, everywhere = (NeuronScores.load(path / TASK) for path in chosen.values())
    assert not np.allclose(scored.score, everywhere.score, atol=1e-3)
    assert [each.provenance.positions for each in (scored, everywhere)] == ["scored", "all"]
    for provenance in (scored.provenance, everywhere.provenance):
        assert provenance.completeness_gap_max is None
        assert (provenance.quadrature, provenance.n_steps) == ("right_riemann", 1)
    run = RunDirectory(chosen["all"] / TASK)
    assert yaml.safe_load(run.settings.read_text())["settings"]["positions"] == "all"
    assert {line["completeness_gap"] for line in jsonl(run.questions)} == {None}
    assert "completeness gap not measured" in run.report.read_text()
    assert "bad neurons of 96, at all positions." in run.report.read_text()


def test_a_run_of_one_is_not_gone_on_with_as_the_other(chosen, tmp_path):
    run = copy(chosen, "all", tmp_path)
    result = call(*identify(run.path.parent, *TOP_K, "--resume"))
    assert_one_message(result, 2, "positions", "'scored'", "'all'")
    change_settings(run, positions="scored")
    assert_one_message(call("validate", run.path, *QUICK), 1, "has positions 'all'")
    change_settings(run, positions="everywhere")
    assert_one_message(call("report", run.path), 1, "positions is 'everywhere'", "scored or all")


def test_validation_acts_where_neurons_were_chosen_or_where_it_is_told(chosen, tmp_path, caplog):
    run = list_all(copy(chosen, "all", tmp_path))
    out = validated(run)
    assert "each of 5 conditions takes a full pass" in caplog.text
    assert json.loads(run.validation.read_text())["positions"] == "all"
    assert json.loads(run.summary.read_text())["positions"] == {
        "chosen_at": "all",
        "applied_at": "all",
    }
    assert "(Neurons selected at all positions, conditions applied at all positions.)" in out
    everywhere = [line["loglikelihoods"] for line in jsonl(run.conditions)]
    mask = json.loads(run.result("degrade").read_text())["config"]["model_args"]
    assert mask["positions"] == "all"
    # What is there is not taken for a validation at other positions.
    result = call("validate", run.path, *QUICK, "--resume", "--positions", "scored")
    assert_one_message(result, 2, "positions", "'scored'", "'all'")
    out = validated(run, "--positions", "scored")
    assert json.loads(run.validation.read_text())["positions"] == "scored"
    footer = "Neurons selected at all positions, conditions applied at scored positions."
    assert footer in out
    scored = [line["loglikelihoods"] for line in jsonl(run.conditions)]
    gaps = {
        name: max(
            abs(np.subtract(one[name], other[name])).max()
            for one, other in zip(everywhere, scored, strict=True)
        )
        for name in ("unmasked", "degrade")
    }
    assert gaps["unmasked"] < 1e-4 < 1e-2 < gaps["degrade"]
    assert call("verify", run.path, "--limit", 4)[0] == 0


def test_all_at_once_and_verified(tmp_path):
    arguments = identify(tmp_path, *TOP_K, *QUICK, "--positions", "all")[1:]
    code, out, err = call(*arguments, entry=cli.run_eval_main)
    assert code == 0, err
    run = RunDirectory(tmp_path / TASK)
    assert "Neurons selected at all positions, conditions applied at all positions." in out
    assert NeuronSet.load(run.neurons).provenance.positions == "all"
    code, out, err = call("verify", tmp_path, "--limit", 4)
    assert code == 0, (out, err)
    assert "scores recomputed" in out


def test_integrating_at_all_positions_says_that_it_is_slow(tmp_path, caplog):
    flags = ("--limit", 1, "--method", "ace", "--n_steps", 2, "--positions", "all")
    code, _, err = call(*identify(tmp_path, "--top_k", 6, *flags))
    assert code == 0, err
    assert "full passes for each of 2 layers" in caplog.text
    found = NeuronSet.load(tmp_path / TASK).provenance
    assert (found.positions, found.engine) == ("all", "replay")
    assert found.completeness_gap_max > 0


def test_fan_out_at_all_positions_is_refused(tmp_path):
    result = call(*identify(tmp_path, *TOP_K, "--positions", "all", "--engine", "fan_out"))
    assert_one_message(result, 2, "the fan-out engine with positions=all", "--engine auto")
    assert not (tmp_path / TASK).exists()


def test_in_a_shared_pass_what_needs_no_path_has_one_node_and_no_gap(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    methods = ("ace", "gradxact", "activation")
    assert call(*identify(tmp_path, *TOP_K, "--method", ",".join(methods)))[0] == 0
    for name in methods:
        run = RunDirectory(tmp_path / name / TASK)
        provenance = NeuronScores.load(run.path).provenance
        integrates = name == "ace"
        assert bool(provenance.layer_nodes) == integrates
        assert bool(provenance.completeness_gap_layers) == integrates
        assert (provenance.completeness_gap_max is None) != integrates
        measured = {line["completeness_gap"] is not None for line in jsonl(run.questions)}
        assert measured == {integrates}
        text = run.report.read_text()
        assert ("completeness gap not measured" in text) != integrates
        assert ("1 node of right" in text) != integrates
