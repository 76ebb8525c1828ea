"""`neuronllm-eval compare`: rival methods on the same questions, in a table of finished runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from neuronllm_eval.cli.commands import CompareSettings
from neuronllm_eval.comparison.method_comparison import as_json, compare
from neuronllm_eval.comparison.method_runs import read_compared
from neuronllm_eval.comparison.method_tables import comparison_text
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runtime.progress import bar

logger = logging.getLogger(__name__)
COMPARISON = "comparison.json"
Show = Callable[[str], object]


def compare_finished(options: CompareSettings, show: Show) -> int:
    """Print the tables of runs that are there; returns the exit code."""
    found = runs_below(options.run_dir)
    runs = [run for run in found if run.conditions.is_file()]
    for run in found:
        if run not in runs:
            what = "finish it as it was begun" if run.validating.is_dir() else "validate it first"
            logger.warning("%s is not validated, and left out: %s", run.path, what)
    if not runs:
        raise ArtifactError(
            f"no run at {' '.join(map(str, options.run_dir))} is validated",
            expected="runs that are validated",
            remedy="run `neuronllm-eval validate` on each, or again the command that was "
            "interrupted",
        )
    output = options.output_path
    write_comparison(runs, options.against, {}, output, show)
    return 0


def write_comparison(
    runs: Sequence[RunDirectory],
    against: str | None,
    seconds: dict[str, float],
    output: Path | None,
    show: Show,
) -> None:
    own = read_compared(runs)
    with bar(total=len(own), desc="compare", unit="run", leave=False) as progress:
        found = compare(own, against, progress=progress.update)
    text = comparison_text(found, seconds)
    if output is not None:
        write_whole(output / COMPARISON, dump_json(as_json(found, seconds)))
        write_whole(output / "comparison.md", text)
    show(text)
    if output is not None:
        show(f"written to {output}")
