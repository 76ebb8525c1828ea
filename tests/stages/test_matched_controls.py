"""`--match_controls activation`: every reader of a run knows the same controls by their names."""

from __future__ import annotations

import json
import shutil

import pytest

from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.masked_lm.mask_options import MaskOptions
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    copy_of,
    finished_run,
    without_the_harness_tasks,
)

FLAGS = ("--conditions", "suppress_good", "--n_random", 2, "--device", "cpu")
MATCHED = ("suppress_good.matched_0", "suppress_good.matched_1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


def test_controls_of_the_same_activation_are_validated_verified_and_masked(tmp_path):
    run = RunDirectory(tmp_path / "demo_topic")
    shutil.copytree(finished_run().path, run.path)
    code, out, err = call("validate", run.path, *FLAGS, "--match_controls", "activation")
    assert code == 0, err
    assert "Random controls match the neurons in layer and in mean size of activation." in out
    found = Run(run.path)
    assert found.docs.conditions == ("unmasked", "suppress_good", *MATCHED)
    controls = found.summaries["suppress_good"].controls
    accuracy = {name: 100 * found.docs.correct[name].mean() for name in found.docs.conditions}
    deltas = [accuracy[name] - accuracy["unmasked"] for name in MATCHED]
    assert controls is not None
    assert (controls.n_controls, controls.mean) == (2, pytest.approx(sum(deltas) / 2))
    for name in MATCHED:  # `--model neuronllm` masks the same neurons
        config = json.loads(run.result(name).read_text())["config"]
        mask = MaskOptions.read(run.path, name).section()
        assert config["neuronllm"]["mask_hash"] == mask["mask_hash"] != ""
    code, out, err = call("verify", run.path, "--device", "cpu", "--limit", 1)
    assert code == 0, out + err
    assert "validation docs recomputed under 4 conditions" in out
    run.report.unlink()  # something is left to do, so that what is there is kept, or refused
    result = call("validate", run.path, *FLAGS)
    assert_one_message(result, 2, "match_controls is 'layer', there 'activation'")


def test_a_run_without_sizes_of_activations_is_refused(tmp_path):
    run = copy_of(finished_run(), tmp_path / "demo_topic")
    values = json.loads(run.neurons.read_text())
    del values["activation_levels"]
    run.neurons.write_text(json.dumps(values))
    flags = (*FLAGS, "--match_controls", "activation")
    assert_one_message(call("validate", run.path, *flags), 1, "has no activation_levels")
    assert run.conditions.read_bytes() == finished_run().conditions.read_bytes()
