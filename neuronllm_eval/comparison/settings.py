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
        f"only those whose {what} matches one of these patterns, such as 'demo_*,aqua_sst2'",
        group="filters",
        metavar="PATTERNS",
        shown="all",
    )


class CompareSettings(Settings):
    """Settings of `compare`."""

    run_dir: FilePaths = changed(StoredRunSettings.model_fields["run_dir"], nargs="+")
    rank: bool = setting(
        False,
        "rank every run by itself, within its task, condition and comparable set; without it, "
        "methods stand side by side and repeats with other seeds are pooled",
        group="table",
    )
    against: str | None = setting(
        None,
        "method that the others are tested against; with its settings, such as 'ace "
        "ambiguous=drop', if runs differ in them",
        group="table",
        metavar="METHOD",
        unset="ace, or the first",
    )
    group_by: str | None = setting(
        None,
        "one table for each of these",
        group="table",
        choices=("task", "model", "method"),
        unset="task with --rank, else one table for all",
    )
    format: str | None = setting(
        None,
        "form of the output; csv and json have all columns, unrounded",
        group="table",
        choices=("table", "markdown", "csv", "latex", "html", "json"),
        unset="as the suffix of --output_path says, else table",
    )
    sort_by: str | None = setting(
        None,
        "one row per condition, sorted within its group by this column of csv, largest first",
        group="table",
        metavar="COLUMN",
        unset="by condition, set and rank",
    )
    ascending: bool = setting(False, "smallest first with --sort_by", group="table")
    columns: Names = setting(
        (),
        "one row per condition, with only these columns in this order, separated by commas; names "
        "of csv and json differ from those of other formats; an unknown name lists them",
        group="table",
        metavar="NAMES",
        shown="all that are not constant or empty; in latex those that fit a page",
    )
    points: bool = setting(False, "show points of sweeps too (of single runs)", group="table")
    overlaps: bool = setting(
        False,
        "show only how the neurons of runs of one model overlap; csv has overlaps only this way",
        group="table",
    )
    models: Names = _pattern("name, or its last part")
    tasks: Names = _pattern("task")
    methods: Names = _pattern("method")
    conditions: Names = _pattern("condition, or a point's name")
    output_path: FilePath | None = setting(
        None,
        "file to write, whose suffix (.txt, .md, .csv, .tex, .html, .json) is the format unless "
        "--format is given; or a folder for comparison.md and comparison.json",
        flags=("-o",),
        unset="it is printed",
    )
