"""Settings of `compare`."""

from __future__ import annotations

from typing import Any

from neuronllm_eval.formats.settings_model import (
    FilePath,
    FilePaths,
    Names,
    Settings,
    changed,
    setting,
)
from neuronllm_eval.runs.settings import StoredRunSettings


def _pattern(what: str) -> Any:
    return setting(
        (),
        f"only those whose {what} fits, as patterns of file names, such as 'demo_*,aqua_sst2'",
        group="filters",
        metavar="PATTERNS",
        shown="all",
    )


class CompareSettings(Settings):
    """Settings of `compare`."""

    run_dir: FilePaths = changed(StoredRunSettings.model_fields["run_dir"], nargs="+")
    rank: bool = setting(
        False,
        "every run by itself, ranked within its task, condition and comparable set, in place of "
        "methods side by side with repeats of other seeds pooled",
        group="table",
    )
    against: str | None = setting(
        None,
        "method that the others are tested against, with settings where runs have it with several, "
        "such as 'ace ambiguous=drop'",
        group="table",
        metavar="METHOD",
        unset="ace, or the first",
    )
    group_by: str | None = setting(
        None,
        "a table for each",
        group="table",
        choices=("task", "model", "method"),
        unset="task with --rank, else one table for all",
    )
    format: str | None = setting(
        None,
        "csv and json have all columns and figures in full",
        group="table",
        choices=("table", "markdown", "csv", "latex", "html", "json"),
        unset="as the suffix of --output_path says, else table",
    )
    sort_by: str | None = setting(
        None,
        "a row for each condition, within each group by this column of csv, the largest first",
        group="table",
        metavar="COLUMN",
        unset="by condition, set and rank",
    )
    ascending: bool = setting(False, "the smallest of --sort_by first", group="table")
    columns: Names = setting(
        (),
        "a row for each condition with only these columns, in this order, with commas between "
        "them; csv and json have other names than the rest, and an unknown one lists them",
        group="table",
        metavar="NAMES",
        shown="all that tell something; of latex few, that fit a page",
    )
    points: bool = setting(
        False, "of single runs, a row for each point of a sweep too", group="table"
    )
    overlaps: bool = setting(
        False,
        "only how far the neurons of runs of one model overlap; csv has that only so",
        group="table",
    )
    models: Names = _pattern("name, or its last part")
    tasks: Names = _pattern("task")
    methods: Names = _pattern("method")
    conditions: Names = _pattern("condition, or a point's name")
    output_path: FilePath | None = setting(
        None,
        "file, whose suffix (.txt, .md, .csv, .tex, .html, .json) gives the format unless --format "
        "does; or a folder for comparison.md and comparison.json",
        flags=("-o",),
        unset="it is printed",
    )
