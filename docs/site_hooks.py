"""What the site has beside `docs/`: files of the repository that its pages link to.

On GitHub a page links to `../README.md`, and the README to `docs/method.md`. In the site the README
is the first page, CHANGELOG.md and CONTRIBUTING.md stand beside the others, and whatever else a
page links to is copied. Links are rewritten accordingly; mkdocs then checks all of them.
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
        if (place := in_repository(path, file.src_uri)) and place.startswith(f"{COPIED}/")
    }
    for path in sorted(linked):
        source = ROOT / path.removeprefix("../")
        files.append(File.generated(config, f"{COPIED}/{source.relative_to(ROOT)}",
                                    abs_src_path=str(source)))  # fmt: skip
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links that lead out of `docs/`, or from the repository's pages into it."""

    def moved(link: re.Match[str]) -> str:
        place = in_repository(link[1], page.file.src_uri)
        return link[0] if place is None else f"]({place}{link[2] or ''})"

    return _LINK.sub(moved, markdown)


def in_repository(path: str, page: str) -> str | None:
    """Where the site has what a page links to; None if the link is right as it is.

    Args:
        path: as the page has it, without its anchor.
        page: of the site.
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
