"""The page of a folder with several runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.overview import TaskResult, read_result, render_overview, write_overview
from neuronllm_eval.run_directory import RunDirectory
from tests.cli_fixtures import assert_one_message, call, change_settings, copy_of, finished_run
from tests.page_fixtures import HOSTILE
from tests.test_report_page import Page

JUDGED = TaskResult(
    "law", "law", 20, {"unmasked": 70.0, "degrade": 50.0}, {"degrade": "-20.0 (-25.0 to -15.0)"}
)
OTHER = TaskResult(
    "art", "art", 20, {"unmasked": 80.0, "degrade": 76.0}, {"degrade": "-4.0 (-9.0 to +1.0)"}
)
WAITING = TaskResult("history", "history", 0, {}, {})


def test_tasks_side_by_side():
    page = Page(render_overview("runs", [JUDGED, OTHER, WAITING]))
    assert page.said("p")[1] == (
        "Over 2 tasks, degrade changes accuracy by -12.0 points on average, from -20.0 to -4.0."
    )
    assert page.said("th") == ["task", "questions", "unmasked %", "degrade, points", "law", "art",
                               "history"]  # fmt: skip
    assert page.said("td") == ["20", "70.0", "-20.0 (-25.0 to -15.0)", "20", "80.0",
                               "-4.0 (-9.0 to +1.0)", "not judged yet"]  # fmt: skip
    links = [each["href"] for each in page.all("a")]
    assert links == ["law/report.html", "art/report.html", "history/report.html"]
    (figure,) = [each for each in page.all("svg") if each.get("role") == "img"]
    assert "law 70 to 50" in figure["aria-label"]


SHARED = {"model": "a/model", "method": "ace", "top_k": 41}


def test_what_the_runs_share_stands_above_them():
    found = [dataclasses.replace(each, **SHARED) for each in (JUDGED, OTHER)]
    waiting = dataclasses.replace(WAITING, model="a/model", method="ace")
    page = Page(render_overview("runs", [waiting, *found]))
    assert page.said("dt") == ["Model", "Method", "Neurons of a kind"]
    assert page.said("dd") == ["a/model", "ace", "41"]
    assert "on average" in page.said("p")[1]


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"model": "b/model"}, "model", ("a/model", "b/model")),
        ({"method": "qrnca, threshold=0.5"}, "method", ("ace", "qrnca, threshold=0.5")),
        ({"top_k": 9}, "neurons of a kind", ("41", "9")),
    ],
)
def test_no_mean_over_runs_that_differ(change, name, values):
    found = [dataclasses.replace(JUDGED, **SHARED), dataclasses.replace(OTHER, **SHARED | change)]
    page = Page(render_overview("runs", found))
    assert page.said("p")[1] == (
        "Over 2 runs, degrade changes accuracy by -20.0 to -4.0 points; no mean, since they "
        f"differ in {name}."
    )
    assert page.said("th")[1] == name
    assert tuple(page.said("td")[:1] + page.said("td")[4:5]) == values
    assert len(page.said("dt")) == 2


def test_what_is_read_of_a_run(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    args = {"pretrained": "a/model", "revision": "abc", "token": "hf_secret"}
    change_settings(run, model_args=args)
    found = read_result(run)
    assert (found.model, found.method, found.top_k) == ("a/model, revision=abc", "ace", 6)


def test_before_validation():
    page = Page(render_overview("runs", [WAITING, WAITING]))
    assert page.said("p")[1] == "2 tasks."
    assert page.said("td") == ["not judged yet"] * 2


def test_names_are_no_markup():
    odd = dataclasses.replace(JUDGED, task=HOSTILE, folder='a"b&c<d> é')
    page = Page(render_overview("runs", [odd, odd]))
    assert page.all("script") == page.all("img") == []
    assert page.all("a")[0]["href"] == "a%22b%26c%3Cd%3E%20%C3%A9/report.html"


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        copy_of(finished_run(), tmp_path / name)
    return tmp_path


def test_report_writes_it_where_there_are_several_runs(folder):
    assert call("report", folder)[0] == 0
    page = Page((folder / "report.html").read_text())
    assert [each["href"] for each in page.all("a")] == ["one/report.html", "two/report.html"]
    before = (folder / "report.html").read_bytes()
    write_overview(folder)
    assert (folder / "report.html").read_bytes() == before
    shutil.rmtree(folder / "two")
    assert call("report", folder)[0] == 0
    assert not (folder / "report.html").exists()


def test_one_run_refreshes_the_page_that_is_there_already(folder):
    assert call("report", folder / "one")[0] == 0
    assert not (folder / "report.html").exists()
    assert call("report", folder)[0] == 0
    before = (folder / "report.html").read_bytes()
    copy_of(finished_run(), folder / "three")
    assert call("report", folder / "one")[0] == 0
    page = Page((folder / "report.html").read_text())
    assert "three/report.html" in [each["href"] for each in page.all("a")]
    shutil.rmtree(folder / "three")
    assert call("validate", folder / "two", "--conditions", "enhance", "--n_random", 0)[0] == 0
    assert (folder / "report.html").read_bytes() != before  # no condition but that one is in both
    shutil.rmtree(folder / "two")
    assert call("report", folder / "one")[0] == 0
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_a_damaged_run_keeps_no_other_from_its_report(folder, n_damaged):
    copy_of(finished_run(), folder / "more")
    damaged = [RunDirectory(folder / name) for name in ("more", "one")[:n_damaged]]
    for run in damaged:
        run.scores.write_bytes(b"nothing")
    RunDirectory(folder / "two").page.unlink()
    result = call("report", folder)
    assert_one_message(result, 1, *(str(run.scores) for run in damaged))
    assert result[1].count("## demo_topic") == 3 - n_damaged
    assert RunDirectory(folder / "two").page.exists()
    page = Page((folder / "report.html").read_text())
    assert [each["href"] for each in page.all("a")][-1] == "two/report.html"


def test_damaged_runs_and_full_disks_are_named_together(folder, monkeypatch):
    full = RunDirectory(folder / "two")
    RunDirectory(folder / "one").scores.write_bytes(b"nothing")
    write = Path.write_bytes

    def written(path: Path, content: bytes) -> int:
        if path.parent == full.path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", written)
    result = call("report", folder)
    assert_one_message(result, 1, f"{full.path} (No space left on device)", "one/scores")


def test_pages_of_others_stay(folder):
    page = folder / "report.html"
    for theirs in ("my own page", (folder / "two" / "report.html").read_text()):
        page.write_text(theirs)
        assert call("report", folder / "one")[0] == 0
        assert page.read_text() == theirs
    shutil.rmtree(folder / "two")
    assert call("report", folder)[0] == 0
    assert page.read_text() == theirs


def test_a_single_run_has_its_own_page_alone(tmp_path):
    run = copy_of(finished_run(), tmp_path / "run")
    before = run.page.read_bytes()
    write_overview(run.path)
    assert run.page.read_bytes() == before


def without_unmasked(values):
    del values["conditions"][0]


def of_more_than_all(values):
    values["conditions"][1]["accuracy"]["condition"] = 1e9


def without_conditions(values):
    values["conditions"] = None


@pytest.mark.parametrize("damage", [without_unmasked, of_more_than_all, without_conditions])
def test_a_damaged_summary_is_refused(folder, damage, caplog):
    run = RunDirectory(folder / "one")
    values = json.loads(run.summary.read_text())
    damage(values)
    run.summary.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        read_result(run)
    write_overview(folder)  # of the other alone there is none
    assert not (folder / "report.html").exists()
    assert "one is left out of" in caplog.text


def test_runs_are_found_at_any_depth_and_nothing_is_written_above(tmp_path):
    top = tmp_path / "all" / "deep"
    for name in ("one", "two"):
        copy_of(finished_run(), top / "er" / name)
    code, out, err = call("report", top)
    assert code == 0, err
    assert out.count("## demo_topic") == 2
    pages = {path.parent for path in tmp_path.rglob("report.html")}
    assert pages == {top / "er" / "one", top / "er" / "two", top / "er"}
