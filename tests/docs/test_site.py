"""The documentation has no broken link, as a site and on GitHub."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
         *sorted((ROOT / "docs").glob("*.md")))  # fmt: skip
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_site_builds_strictly(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert {f"{path.stem}.html" for path in PAGES} - {"README.html"} < pages
    assert (tmp_path / "site" / "repository" / "examples" / "own_method.py").is_file()
    assert 'href="method.html#statistics"' in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_the_build_detects_broken_links(tmp_path):
    broken = [
        ("docs/faq.md", "nowhere.md"),
        ("docs/api.md", "method.md#nothing"),
        ("docs/demo.md", "../missing.yaml"),
        ("README.md", "docs/absent.md"),
    ]
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / path, tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name, link in broken:
        with (tmp_path / name).open("a") as page:
            page.write(f"\n[x]({link})\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for word in ("nowhere.md", "#nothing", "missing.yaml", "absent.md"):
        assert word in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_work_on_github(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for path, anchor in LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
