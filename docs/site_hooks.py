"""Add files of the repository that pages link to, so that the site needs no other source.

On GitHub a page links to `../README.md`, and the README to `docs/method.md`. In the site the README
is the first page, the other `PAGES` are pages too, and whatever else a page links to is copied.
Links are rewritten accordingly; mkdocs then checks all of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "benchmarks/planted_truth/README.md": "planted-truth.md",
} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
COPIED = "repository"  # folder of the site
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and whatever they or others link to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    linked = {
        path
        for file in files.documentation_pages()
        for path, _ in _LINK.findall(file.content_string)
        if (target := in_repository(path, file.src_uri)) and target.startswith(f"{COPIED}/")
    }
    for path in sorted(linked):
        source = ROOT / path.removeprefix("../")
        files.append(File.generated(config, f"{COPIED}/{source.relative_to(ROOT)}",
                                    abs_src_path=str(source)))  # fmt: skip
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links out of `docs/`, and links from the repository's pages into it."""

    def moved(link: re.Match[str]) -> str:
        target = in_repository(link[1], page.file.src_uri)
        return link[0] if target is None else f"]({target}{link[2] or ''})"

    return _LINK.sub(moved, markdown)


def in_repository(path: str, page: str) -> str | None:
    """The path in the site of what a page links to; None if the link needs no change.

    Args:
        path: of the link, without its anchor.
        page: path of the page in the site.
    """
    name = path.removeprefix("../")
    if page in PAGES.values():  # links there are from the top of the repository
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
    elif name == path:
        return None
    if name in PAGES:
        return PAGES[name]
    return f"{COPIED}/{name}" if (ROOT / name).is_file() else None
