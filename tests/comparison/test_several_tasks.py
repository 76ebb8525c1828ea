"""The page of a folder with several runs."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from neuronllm_eval.comparison.rows import read_run
from neuronllm_eval.comparison.several_tasks import render_overview, write_overview
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import assert_one_message, call, copy_of, finished_run
from tests.fixtures.compared_runs import changed, evaluated, sharing, waiting
from tests.fixtures.pages import HOSTILE
from tests.reporting.test_report_html import Page

RIGHT = {"unmasked": 14, "degrade": 10, "degrade.random_0": 13, "degrade.random_1": 15}
EVALUATED = evaluated("law", RIGHT)
OTHER = evaluated("art", {"unmasked": 16, "degrade": 15, "degrade.random_0": 15,
                       "degrade.random_1": 16})  # fmt: skip
WAITING = waiting("history")


def rows(page: Page) -> list[list[str]]:
    """The cells of a page's tables, rows one after the other."""
    text = [text.strip() for tag, text in page.texts if tag in ("th", "td", "h3")]
    return text


def test_tasks_side_by_side():
    page = Page(render_overview("runs", [EVALUATED, OTHER, WAITING]))
    # 5 of 40 docs are lost; 2 under the first controls, and one is won under the second.
    assert page.said("p")[1].startswith(
        "Over 2 tasks, degrade changes accuracy by -12.5 points (95% -22.5 to -2.5)"
    )
    assert page.said("p")[1].endswith(
        ", beyond 2 of 2 random controls; by task from -20.0 to -5.0."
    )
    assert rows(page) == [
        "All tasks together",
        "condition", "accuracy %", "delta (points)", "95% interval", "random controls", "beyond",
        "degrade", "62.5", "-12.5", "-22.5 to -2.5", "-1.2 (-5.0 to +2.5)", "2 of 2",
        "Under degrade",
        "task", "questions", "chance %", "unmasked %", "accuracy %", "delta (points)",
        "95% interval", "random controls", "beyond",
        "law", "20", "50.0",
        "70.0", "50.0", "-20.0", "-40.0 to -5.0", "+0.0 (-5.0 to +5.0)", "2 of 2",
        "art", "20", "50.0",
        "80.0", "75.0", "-5.0", "-15.0 to +0.0", "-2.5 (-5.0 to +0.0)", "1 of 2",
        "Not validated yet", "task", "history",
        "Reports",
    ]  # fmt: skip
    links = [each["href"] for each in page.all("a")]
    assert links == ["law/report.html", "art/report.html", "history/report.html"]
    (figure,) = [each for each in page.all("svg") if each.get("role") == "img"]
    assert "law 70 to 50" in figure["aria-label"]


def test_every_condition_of_any_task_has_its_table():
    more = evaluated("more", {"unmasked": 10, "suppress_good": 9, "degrade": 8, "enhance": 12})
    page = Page(render_overview("runs", [more, EVALUATED]))
    titles = [f"Under {name}" for name in ("suppress_good", "degrade", "enhance")]
    assert page.said("h3") == ["All tasks together", *titles, "Reports"]
    assert ", without random controls that all of them have; by task" in page.said("p")[1]
    assert rows(page)[rows(page).index("Under enhance") + 10 :][:9] == [
        "more", "20", "50.0", "50.0", "60.0", "+10.0", "+0.0 to +25.0", "none", "Reports",
    ]  # fmt: skip


SHARED = {
    "model": "a/model",
    "method": "ace",
    "neurons_of_a_kind": "41",
    "factors": "0, 2",
    "positions": "scored",
}


def test_what_the_runs_share_stands_above_them():
    found = [sharing(each, **SHARED) for each in (EVALUATED, OTHER)]
    history = waiting("history", model="a/model", method="ace")
    page = Page(render_overview("runs", [history, *found]))
    assert page.said("dt") == ["Model", "Method", "Neurons of a kind", "Factors", "Positions"]
    assert page.said("dd") == ["a/model", "ace", "41", "0, 2", "scored"]
    assert "points (95%" in page.said("p")[1]


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"model": "b/model"}, "model", ("a/model", "b/model")),
        ({"method": "qrnca, threshold=0.5"}, "method", ("ace", "qrnca, threshold=0.5")),
        ({"neurons_of_a_kind": "9"}, "neurons of a kind", ("41", "9")),
        ({"factors": "0, 1.5"}, "factors", ("0, 2", "0, 1.5")),
        ({"positions": "all"}, "positions", ("scored", "all")),
    ],
)
def test_no_mean_over_runs_that_differ(change, name, values):
    found = [sharing(EVALUATED, **SHARED), sharing(OTHER, **SHARED | change)]
    page = Page(render_overview("runs", found))
    assert page.said("p")[1] == (
        "Over 2 runs, degrade changes accuracy by -20.0 to -5.0 points, in 1 of them beyond all "
        f"random controls; no mean, since they differ in {name}."
    )
    assert page.said("h3") == ["Under degrade", "Reports"]
    assert page.said("th")[1] == name
    assert (page.said("td")[0], page.said("td")[9]) == values
    assert len(page.said("dt")) == 4


def test_without_controls_it_says_so():
    bare = evaluated("law", {"unmasked": 14, "degrade": 10})
    page = Page(render_overview("runs", [bare, changed(bare, task="art")]))
    assert ", without random controls; by task" in page.said("p")[1]
    assert "none" in page.said("td")
    other = sharing(bare, method="x")
    page = Page(render_overview("runs", [sharing(bare, method="y"), other]))
    assert "points, without random controls; no mean" in page.said("p")[1]


def test_before_validation():
    page = Page(render_overview("runs", [WAITING, WAITING]))
    assert page.said("p")[1] == "2 tasks."
    assert rows(page) == ["Not validated yet", "task", "history", "history", "Reports"]


def test_both_marks_are_seen_where_nothing_changed():
    same = evaluated("law", {"unmasked": 14, "degrade": 14})
    page = Page(render_overview("runs", [same, same]))
    ring = [each for each in page.all("circle") if each["class"] == "before"][1]
    corners = [each for each in page.all("polygon") if each["class"] == "mark"][1]["points"]
    across = [float(corner.split(",")[0]) for corner in corners.split()]
    assert max(across) - min(across) < 2 * float(ring["r"]) - 4


def test_names_are_no_markup():
    odd = changed(EVALUATED, task=HOSTILE, path='runs/a"b&c<d> é')
    page = Page(render_overview("runs", [odd, odd]))
    assert page.all("script") == page.all("img") == []
    assert page.all("a")[0]["href"] == "a%22b%26c%3Cd%3E%20%C3%A9/report.html"


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        copy_of(finished_run(), tmp_path / name)
    return tmp_path


def test_report_writes_it_where_there_are_several_runs(folder):
    assert call("report", folder, "--yes")[0] == 0
    page = Page((folder / "report.html").read_text())
    assert [each["href"] for each in page.all("a")] == ["one/report.html", "two/report.html"]
    before = (folder / "report.html").read_bytes()
    write_overview(folder)
    assert (folder / "report.html").read_bytes() == before
    shutil.rmtree(folder / "two")
    assert call("report", folder, "--yes")[0] == 0
    assert not (folder / "report.html").exists()


def test_one_run_refreshes_the_page_that_is_there_already(folder):
    assert call("report", folder / "one")[0] == 0
    assert not (folder / "report.html").exists()
    assert call("report", folder, "--yes")[0] == 0
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
    result = call("report", folder, "--yes")
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
    result = call("report", folder, "--yes")
    assert_one_message(result, 1, f"{full.path} (No space left on device)", "one/scores")


def test_pages_of_others_stay(folder):
    page = folder / "report.html"
    for theirs in ("my own page", (folder / "two" / "report.html").read_text()):
        page.write_text(theirs)
        assert call("report", folder / "one")[0] == 0
        assert page.read_text() == theirs
    shutil.rmtree(folder / "two")
    assert call("report", folder, "--yes")[0] == 0
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
        read_run(run, with_docs=True)
    write_overview(folder)  # of the other alone there is none
    assert not (folder / "report.html").exists()
    assert "one is left out of" in caplog.text


def test_runs_are_found_at_any_depth_and_nothing_is_written_above(tmp_path):
    top = tmp_path / "all" / "deep"
    for name in ("one", "two"):
        copy_of(finished_run(), top / "er" / name)
    code, out, err = call("report", top, "--yes")
    assert code == 0, err
    assert out.count("## demo_topic") == 2
    pages = {path.parent for path in tmp_path.rglob("report.html")}
    assert pages == {top / "er" / "one", top / "er" / "two", top / "er"}


def test_reports_of_several_runs_are_rewritten_with_consent_alone(folder):
    before = {path: path.read_bytes() for path in folder.rglob("report.md")}
    assert len(before) == 2
    result = call("report", folder)
    assert_one_message(result, 2, "contains 2 runs: ", str(folder / "one"), "--yes")
    assert {path: path.read_bytes() for path in folder.rglob("report.md")} == before
