"""A figure that several files and tables show is the same in all of them."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache

import pytest

from neuronllm_eval.evaluation.finished_run import Run
from neuronllm_eval.interventions.conditions import UNMASKED
from tests.fixtures.cli import call, finished_run

NAMES = (UNMASKED, "suppress_good", "enhance")


@cache
def compared() -> dict[str, dict[str, str]]:
    """The rows of `compare`, by condition."""
    code, out, err = call("compare", finished_run().path, "--format", "csv")
    assert code == 0, err
    return {row["name"]: row for row in csv.DictReader(io.StringIO(out))}


@cache
def stored() -> dict:
    return json.loads(finished_run().summary.read_text())


def cells(text: str, name: str) -> list[list[str]]:
    """The rows of `report.md` that begin with a name."""
    rows = [line for line in text.splitlines() if re.match(rf"\| {name} ", line)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_and_its_change(name):
    """In summary.json, the Python value, lm_eval's result file, compare, and both reports."""
    run = Run(finished_run().path)
    summary = run.summaries[name]
    (entry,) = [each for each in stored()["conditions"] if each["name"] == name]
    row, accuracy = compared()[name], summary.accuracy
    assert entry["accuracy"]["condition"] == accuracy.condition
    assert 100 * run.metrics(name)["acc"] == pytest.approx(accuracy.condition, abs=1e-9)
    assert float(row["accuracy"]) == pytest.approx(accuracy.condition, abs=1e-9)
    assert (int(row["n_questions"]), int(row["n_docs"])) == (
        accuracy.n_questions,
        accuracy.n_docs,
    )
    shown = [f"{accuracy.condition:.1f}"]
    if name != UNMASKED:
        for key, column in (("delta", "delta"), ("low", "low"), ("high", "high")):
            value = getattr(accuracy, key)
            assert entry["accuracy"][key] == value
            assert float(row[column]) == pytest.approx(value, abs=1e-9)
        assert float(row["p_holm"]) == entry["corrected"]["p_value"]
        flips = (summary.mcnemar.n_lost, summary.mcnemar.n_gained)
        assert (int(row["n_lost"]), int(row["n_gained"])) == flips
        shown += [f"{accuracy.delta:+.1f}", f"{accuracy.low:+.1f} to {accuracy.high:+.1f}"]
    assert cells(run.report, name)[0][1 : 1 + len(shown)] == shown
    page = finished_run().page.read_text()
    for text in shown:
        assert f">{text}<" in page


@pytest.mark.parametrize("name", NAMES)
def test_effects_without_moving_answers(name):
    """In summary.json, the Python value, compare and report.md."""
    summary, row = Run(finished_run().path).summaries[name], compared()[name]
    (entry,) = [each for each in stored()["conditions"] if each["name"] == name]
    assert entry["collapsed"] == summary.collapsed == (summary.top_answer >= 90)
    assert row["collapsed"] == str(summary.collapsed)
    assert float(row["chance"]) == entry["chance"] == 25.0
    assert float(row["option_mass"]) == pytest.approx(entry["option_mass"]["mean"])
    assert float(row["option_mass_relative"]) == pytest.approx(entry["option_mass"]["relative"])
    shown = []
    for measure in ("calibrated", "balanced"):
        change, values = getattr(summary, measure), entry[measure]
        assert values["condition"] == change.condition
        assert float(row[measure]) == pytest.approx(change.condition, abs=1e-9)
        shown.append(f"{change.condition:.1f}")
        if name != UNMASKED:
            assert float(row[f"{measure}_delta"]) == pytest.approx(values["delta"], abs=1e-9)
            assert float(row[f"{measure}_low"]) == pytest.approx(values["low"], abs=1e-9)
            assert float(row[f"{measure}_p_holm"]) == pytest.approx(values["p_holm"], abs=1e-9)
            shown.append(f"{change.delta:+.1f} ({change.low:+.1f} to {change.high:+.1f})")
    report = finished_run().report.read_text()
    (cells_of,) = [row for row in cells(report, name) if len(row) == 9 and row[1] == shown[0]]
    assert set(shown) <= set(cells_of)


def test_counts_of_docs():
    report = finished_run().report.read_text()
    accuracy = Run(finished_run().path).summaries[UNMASKED].accuracy
    (sentence,) = re.findall(r"Evaluated on (\d+) questions \((\d+) docs\)", report)
    assert sentence == (str(accuracy.n_questions), str(accuracy.n_docs))
    (row,) = cells(report, "validation")
    assert f"({sentence[0]} questions, {sentence[1]} docs)" in row[1].replace("\\", "")


def test_stability_and_completeness_gap():
    run = Run(finished_run().path)
    report, half = run.report, run.split_half
    assert stored()["split_half"]["rank_correlation"] == half.rank_correlation
    correlation = f"{half.rank_correlation:.2f}"
    assert f"Split-half rank correlation of the scores {correlation};" in report
    assert [row[1] for row in cells(report, str(half.k))] == [correlation]
    assert f"rank correlation {correlation}" in finished_run().page.read_text()
    largest, mean, share = re.search(
        r"completeness gap at most (.*?) log-nats, (.*?) on average, (.*?) of the total change",
        report,
    ).groups()
    row = [f"{largest} log-nats", f"{mean} log-nats", share]
    assert row in cells(report, re.escape(row[0]))
    assert largest == f"{run.neurons.provenance.completeness_gap_max:.2g}"
