"""`validate --perplexity`: added to what is validated, resumed, shown, compared and verified."""

from __future__ import annotations

import csv
import io
import json

import pytest

from neuronllm_eval.comparison.pooling import pool, repeats
from neuronllm_eval.comparison.rows import read_run
from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.stages import prepare, validate
from neuronllm_eval.stages.load import load_model
from neuronllm_eval.stages.verify import check_perplexity
from tests.fixtures.cli import (
    QUICK,
    SCORED,
    call,
    copy_of,
    finished_run,
    jsonl,
    list_all,
    without_the_harness_tasks,
)

FLAGS = ("--device", "cpu", *QUICK, "--perplexity")


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> RunDirectory:
    """A validated run to which the perplexity was added; not to be changed."""
    run = copy_of(finished_run(), tmp_path_factory.mktemp("measured") / "demo_topic")
    list_all(run)
    with pytest.MonkeyPatch.context() as patch:
        without_the_harness_tasks(patch)
        patch.setattr(validate, "score_conditions", None)  # no doc is scored again
        code, _, err = call("validate", run.path, *FLAGS, "--resume")
    assert code == 0, err
    return RunDirectory(run.path)


@pytest.fixture
def copied(measured, tmp_path) -> RunDirectory:
    return copy_of(measured, tmp_path / "demo_topic")


def content(run: RunDirectory) -> dict:
    return json.loads(run.perplexity.read_text())


def entries(run: RunDirectory) -> dict[str, dict]:
    return {one["name"]: one for one in json.loads(run.summary.read_text())["conditions"]}


def test_it_is_added_to_a_validation_that_is_kept(measured):
    assert measured.conditions.read_bytes() == finished_run().conditions.read_bytes()
    stored = content(measured)
    assert set(stored) == {"text_hash", "n_tokens", "perplexity"}
    assert tuple(stored["perplexity"]) == SCORED
    assert min(stored["perplexity"].values()) > 1
    assert len(set(stored["perplexity"].values())) == len(SCORED)  # every edit tells
    assert "perplexity.json" in (measured.path / "SHA256SUMS").read_text()


def test_summary_and_report_have_both_costs(measured):
    perplexity = content(measured)["perplexity"]
    lines = jsonl(measured.conditions)
    for name, entry in entries(measured).items():
        controls = [perplexity[other] for other in SCORED if other.startswith(f"{name}.random")]
        found = entry["perplexity"]
        assert (found["value"], found["n_controls"]) == (perplexity[name], len(controls))
        kl = [line["kl"][name] for line in lines]
        assert entry["kl"]["value"] == pytest.approx(sum(kl) / len(kl))
        if controls:
            assert found["controls_mean"] == pytest.approx(sum(controls) / 2)
            assert found["controls_high"] == max(controls)
        assert Run(measured.path).summaries[name].perplexity.value == perplexity[name]
    report = measured.report.read_text()
    header = "condition KL divergence (nats) random controls perplexity random controls"
    rows = [" ".join(line.replace("|", " ").split()) for line in report.splitlines()]
    start = rows.index(header)
    assert rows[start + 2].startswith("unmasked 0 ")
    assert [row.split()[0] for row in rows[start + 3 : start + 5]] == ["suppress_good", "enhance"]
    assert "Cost of the edit" in measured.page.read_text()


def test_without_it_the_table_has_the_divergence_alone():
    report = finished_run().report.read_text()
    assert "| KL divergence (nats) |" in report
    assert "erplexity" not in report
    assert entries(finished_run())["enhance"]["perplexity"] is None


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_columns_of_compare(measured, form):
    names = "condition,kl,perplexity" + (
        ",kl_controls,perplexity_controls" if form == "csv" else ""
    )
    code, out, err = call("compare", measured.path, "--columns", names, "--format", form)
    assert code == 0, err
    stored = entries(measured)["suppress_good"]
    if form == "markdown":
        assert "KL (nats), controls" in out
        assert "perplexity, controls" in out
        return
    rows = {row["condition"]: row for row in csv.DictReader(io.StringIO(out))}
    for name in ("kl", "perplexity"):
        cost, row = stored[name], rows["suppress_good"]
        assert float(row[name]) == pytest.approx(cost["value"], rel=1e-5)
        assert float(row[f"{name}_controls"]) == pytest.approx(cost["controls_mean"], rel=1e-5)
    assert rows["unmasked"]["kl"] == "0.0"
    assert rows["unmasked"]["kl_controls"] == ""


def test_repeats_have_the_geometric_mean(measured, copied):
    values = content(copied)
    values["perplexity"] = {name: 4 * value for name, value in values["perplexity"].items()}
    copied.perplexity.write_text(json.dumps(values))
    both = [read_run(run, with_docs=True) for run in (measured, RunDirectory(copied.path))]
    ((key, group),) = repeats(both[:1]).items()
    other = repeats(both[1:])[key]
    rows = {row.condition: row.summary for row in pool(key, [*group, *other], 100)}
    before = content(measured)["perplexity"]["enhance"]
    assert rows["enhance"].perplexity.value == pytest.approx(2 * before)


# Again, and interrupted ---------------------------------------------------------------------------


def test_a_validation_that_is_replaced_loses_it(copied):
    code, _, err = call("validate", copied.path, "--device", "cpu", *QUICK)
    assert code == 0, err
    assert not copied.perplexity.exists()
    assert "perplexity.json" not in (copied.path / "SHA256SUMS").read_text()


def test_an_interruption_loses_nothing(measured, copied, monkeypatch, caplog):
    monkeypatch.setattr(validate, "measured_perplexity", interrupted)
    code, _, _ = call("validate", copied.path, *FLAGS, "--overwrite")
    assert code == 130
    assert (copied.path / "checkpoint" / "validate").is_dir()
    monkeypatch.undo()
    without_the_harness_tasks(monkeypatch)
    code, _, err = call("validate", copied.path, *FLAGS)
    assert code == 0, err
    assert "resuming; 4 of 4 units are finished" in caplog.text
    assert not (copied.path / "checkpoint").exists()
    for name in ("conditions.jsonl", "perplexity.json", "summary.json"):
        assert (copied.path / name).read_bytes() == (measured.path / name).read_bytes(), name


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_dry_run_counts_the_passes(copied, monkeypatch):
    read = []
    monkeypatch.setattr(prepare, "text_perplexities", lambda *given: read.append(given[1:]))
    code, _, err = call("validate", copied.path, *FLAGS, "--dry_run", "--overwrite")
    assert code == 0, err
    ((factors,),) = read
    assert len(factors) == 1
    assert call("validate", copied.path, "--device", "cpu", *QUICK, "--dry_run")[0] == 0
    assert len(read) == 1


# Verified -----------------------------------------------------------------------------------------


def verdict(run: RunDirectory, name: str) -> tuple[int, str]:
    """The exit code of `verify`, and a row of its table."""
    code, out, _ = call("verify", list_all(run).path, "--device", "cpu", "--limit", 1)
    (row,) = [line for line in out.splitlines() if name in line]
    return code, row


def test_verify_measures_it_again(copied):
    code, row = verdict(copied, "perplexity recomputed under 7 conditions")
    assert code == 0
    assert "| yes " in row


def test_verify_tells_a_changed_divergence(copied):
    lines = jsonl(copied.conditions)
    for line in lines:
        line["kl"]["enhance"] += 0.1
    copied.conditions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, row = verdict(copied, "validation docs recomputed")
    assert code == 1
    assert "| NO " in row


@pytest.mark.parametrize(
    ("text_hash", "change", "passed"),
    [(None, 1.0001, True), (None, 1.1, False), (None, None, False), ("another's", 1.1, True)],
)
def test_what_counts_as_the_same_figure(copied, text_hash, change, passed):
    values, name = content(copied), "enhance.random_1"
    before = values["perplexity"][name]
    values["perplexity"][name] = None if change is None else change * before
    values["text_hash"] = text_hash or values["text_hash"]
    copied.perplexity.write_text(json.dumps(values))
    run = Run(copied.path)
    (check,) = check_perplexity(
        load_model(run.settings), run.neurons, run.validation.scales, run.directory
    )
    assert check.passed == passed
    assert ("not compared" in check.detail) == (text_hash is not None)
