"""`neuronllm-eval compare`: finished runs side by side, or ranked, in any format.

1. Every run at and below the directories is read; damaged ones are kept for the end.
2. The comparison is printed or written (`comparison.compare`).
3. Damaged runs are named, and the command ends with 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from neuronllm_eval.comparison.compare import compare_runs, render, require_possible
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.errors import UsageError
from neuronllm_eval.formats.atomic import require_writable, write_whole
from neuronllm_eval.formats.terminal import terminal_width

COMPARISON = "comparison.json"
SUFFIXES = {
    ".txt": "table",
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".json": "json",
}


def compare(
    asked: CompareSettings,
    show: Callable[[str], object],
    seconds: Mapping[str, float] | None = None,
) -> int:
    """Print or write the comparison of the runs at `asked.run_dir`; returns the exit code.

    Args:
        asked: the command's settings.
        show: is told what people are to read.
        seconds: by stage, what it took, where the runs were made just now.

    Raises:
        UsageError: a flag that cannot be, or filters that nothing fits.
        ArtifactError: there is no run, or none with results; after all else, some are damaged.
    """
    files = _files(asked.output_path, asked.format)
    for form in files.values() or [asked.format or "table"]:
        require_possible(asked, form)
    found = compare_runs(asked, seconds)
    if len(files) != 1:
        show(render(found, asked.format or "table", asked, terminal_width()).rstrip("\n"))
    for path, form in files.items():
        write_whole(path, render(found, form, asked))
    if files:
        show(f"written to {asked.output_path}")
    found.require_undamaged()
    return 0


def _files(output: Path | None, form: str | None) -> dict[Path, str]:
    """The files to write, with their formats."""
    if output is None:
        return {}
    if output.is_dir() or not (form or output.suffix[1:].isalpha()):  # v1.2 is a folder
        require_writable(output)
        return {output / "comparison.md": "markdown", output / COMPARISON: "json"}
    if form is None and output.suffix not in SUFFIXES:
        raise UsageError(
            f"--output_path is {output}, without --format",
            expected=f"a folder, or a file that ends with {', '.join(SUFFIXES)}",
            remedy="add such an ending, or --format",
        )
    require_writable(output.parent)
    return {output: form or SUFFIXES[output.suffix]}
