"""report.html in headless Chromium: no error, no overflow, readable in both schemes, printable."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuronllm_eval.comparison.several_tasks import render_overview
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.reporting.write_reports import render_page
from tests.fixtures.cli import finished_run
from tests.fixtures.compared_runs import evaluated
from tests.fixtures.pages import HOSTILE, POINTS, a_run

pytestmark = pytest.mark.browser
# With the value 1, what would be skipped without a browser fails: `.ci/run` sets it.
REQUIRED = "CI_REQUIRES_BROWSER"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Of text against what is behind it, as WCAG 2.2 asks for (AA).
LEAST_CONTRAST = 4.5
CONTRASTS = """() => {
    const level = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const isOpaque = (colour) => (colour.match(/[\\d.]+/g)[3] ?? "1") === "1";
    const behind = (each) => {
        const colour = getComputedStyle(each).backgroundColor;
        if (isOpaque(colour)) return colour;
        return each.parentElement ? behind(each.parentElement) : "rgb(255, 255, 255)";
    };
    const found = {};
    for (const each of document.querySelectorAll("h1, p, dt, dd, a, th, td, summary, text, pre")) {
        const style = getComputedStyle(each);
        const ink = level(each.tagName === "text" ? style.fill : style.color);
        const [low, high] = [ink, level(behind(each))].sort((a, b) => a - b);
        const tag = each.tagName.toLowerCase();
        found[tag] = Math.min(found[tag] ?? Infinity, (high + 0.05) / (low + 0.05));
    }
    return found;
}"""
RUNS = {
    "one condition of one layer": {"n_layers": 1, "names": ("enhance",), "n_groups": 1},
    "fifty points and eighty layers": {
        "n_layers": 80, "names": CONDITIONS[1:] + POINTS, "each": 300, "n_options": 10,
        "n_groups": 12, "explained": True,
    },
    "points alone": {"names": POINTS, "n_options": 10},
    "texts that are markup": {"text": HOSTILE, "explained": True},
    "texts without a space": {"text": "x" * 290, "explained": True},
    "not judged": {"names": ()},
}  # fmt: skip


def found_browser() -> tuple[Any, str]:
    """Playwright and the path of Chromium; the test is skipped, or fails, without one of them."""
    missing = pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip
    try:
        sync_api = importlib.import_module("playwright.sync_api")
    except ImportError:
        missing("playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        missing("there is no Chromium: apt-get install chromium")
    return sync_api, chromium


@pytest.mark.parametrize("lacking", ["playwright", "chromium"])
def test_without_a_browser_tests_are_skipped_unless_one_is_required(lacking, monkeypatch):
    if lacking == "playwright":
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    else:
        monkeypatch.setitem(sys.modules, "playwright.sync_api", pytest)
        monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=f"(?i){lacking}"):
        found_browser()
    monkeypatch.delenv(REQUIRED)
    with pytest.raises(pytest.skip.Exception, match=f"(?i){lacking}"):
        found_browser()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sync_api, chromium = found_browser()
    with sync_api.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        started = driver.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=list(FLAGS), headless=True
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {"a real run": finished_run().page, "an overview": folder / "overview.html"}
    right = {name: 14 - number for number, name in enumerate(CONDITIONS)}
    law = evaluated("law", right | {"degrade.random_0": 13, "suppress_good.random_0": 14})
    odd = dataclasses.replace(law, facts=dataclasses.replace(law.facts, task="y" * 290))
    found["an overview"].write_text(render_overview("runs", [law, odd] * 30), encoding="utf-8")
    for number, (name, changes) in enumerate(RUNS.items()):
        found[name] = folder / f"{number}.html"
        found[name].write_text(render_page(a_run(**changes)), encoding="utf-8")
    return found


@pytest.mark.parametrize("name", ["a real run", "an overview", *RUNS])
def test_the_page_is_sound_on_phones_and_on_desks(browser, pages, name):
    said, asked = [], []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: asked.append(request.url))
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(pages[name].as_uri())
            wide = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1] == width
            contrasts = page.evaluate(CONTRASTS)
            assert {"h1", "p", "td", "text"} <= set(contrasts)
            assert min(contrasts.values()) >= LEAST_CONTRAST, (scheme, contrasts)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 23, 26)"  # the style sheet's hash is right, and dark is dark
    page.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}


@pytest.mark.parametrize(
    ("ink", "ground"), [("#bbbbbb", ""), ("#eeeeee", "#ffffff"), ("#333333", "#222222")]
)
def test_pale_text_is_seen_wherever_it_stands(browser, pages, ink, ground):
    page = browser.new_page()
    page.emulate_media(color_scheme="light")
    page.goto(pages["not judged"].as_uri())
    assert page.evaluate(CONTRASTS)["p"] >= LEAST_CONTRAST
    page.evaluate(
        """([ink, ground]) => {
            const box = document.createElement("div");
            box.style.backgroundColor = ground;
            box.append(document.createElement("p"));
            box.firstChild.style.color = ink;
            document.querySelector("main").prepend(box);
        }""",
        [ink, ground],
    )
    assert page.evaluate(CONTRASTS)["p"] < 2
    page.close()


def test_what_is_written_in_figures_stays_inside_them(browser, pages):
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    outside = """() => [...document.querySelectorAll("svg.drawing text")].filter((text) => {
        const [own, all] = [text, text.closest("svg")].map((each) => each.getBoundingClientRect());
        return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 1;
    }).map((text) => text.textContent)"""
    for name, path in pages.items():
        page.goto(path.as_uri())
        assert page.evaluate(outside) == [], name
    page.close()


def test_what_was_said_is_seen_on_phones_without_scrolling(browser, pages):
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    hidden = """(part) => [...document.querySelectorAll(`${part} .scroll`)]
        .filter((each) => each.scrollWidth > each.clientWidth)
        .map((each) => each.getAttribute("aria-label"))"""
    for name in ("texts that are markup", "texts without a space"):
        page.goto(pages[name].as_uri())
        assert page.locator("#flips td").count() > 0
        assert page.evaluate(hidden, "#flips") == []
        assert page.evaluate(hidden, "#provenance")[:-1] == []  # but for the commands
        # The question stands above what was said, over the whole width.
        question, said = page.locator("#flips tbody tr").first.locator("th, td").all()[:2]
        assert question.bounding_box()["y"] < said.bounding_box()["y"]
    page.close()


def test_all_conditions_of_an_overview_are_seen_on_desks(browser, tmp_path):
    path = tmp_path / "overview.html"
    right = {name: 14 - number for number, name in enumerate(CONDITIONS)}
    controls = {f"{name}.random_{seed}": 13 for name in CONDITIONS[1:] for seed in range(20)}
    names = ("demo_arithmetic", "demo_knowledge")
    path.write_text(render_overview("runs", [evaluated(name, right | controls) for name in names]))
    page = browser.new_page()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(path.as_uri())
    wide = "(each) => each.scrollWidth > each.clientWidth"
    tables = page.locator(".scroll").all()
    assert len(tables) == 1 + len(CONDITIONS[1:])
    assert not any(table.evaluate(wide) for table in tables)
    page.close()


def test_pages_print_as_they_are(browser, pages, tmp_path):
    page = browser.new_page()
    page.goto(pages["fifty points and eighty layers"].as_uri())
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF-")
    assert 3 < pdf.count(b"/Type /Page\n") < 30
    # On paper nothing can be scrolled or unfolded: all is there, and on the paper.
    page.set_viewport_size({"width": 688, "height": 900})
    page.emulate_media(media="print")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 688
    folded = "[...document.querySelectorAll('details td')].filter((cell) => !cell.offsetHeight)"
    assert page.evaluate(f"{folded}.length") == 0
    page.close()
