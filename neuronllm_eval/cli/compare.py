"""`neuronllm-eval compare`: finished runs in one table. `compare-methods` makes the runs before.

1. Every run at and below the directories is read; damaged ones are kept for the end.
2. Patterns choose runs and conditions.
3. Methods side by side, or with `--rank` every run ranked, in the format that is asked for.
4. Damaged runs are named, and the command ends with 1.

`compare-methods` is `run_eval.py` with every method, repeated for every model and seed.
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.cli import arguments
from neuronllm_eval.errors import ArtifactError, NeuronLLMError, UsageError
from neuronllm_eval.formats.json_files import read_json
from neuronllm_eval.formats.terminal import terminal_width
from neuronllm_eval.runs.directory import RunDirectory, folder_name, write_whole
from neuronllm_eval.runtime.distributed import own_rank

logger = logging.getLogger(__name__)
DEFAULT_OUTPUT = "runs/comparison"
COMPARISON = "comparison.json"
SUFFIXES = {
    ".txt": "table",
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".json": "json",
}
FILTERS = (
    ("models", "name, or its last part"),
    ("tasks", "task"),
    ("methods", "method"),
    ("conditions", "condition, or a point's name"),
)
# Identifies, validates and reports as parsed flags say, and notes what took how many seconds; the
# directories of the runs, none of a dry run.
Evaluate = Callable[[argparse.Namespace, dict[str, float]], list[RunDirectory]]
Show = Callable[[str], object]


# compare ----------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compare`, beside the run directories."""
    table = parser.add_argument_group("table")
    table.add_argument(
        "--rank",
        action="store_true",
        help="every run by itself, ranked within its task, condition and comparable set (default: "
        "methods side by side, with repeats of other seeds pooled)",
    )
    _add_against(table)
    table.add_argument(
        "--group_by",
        choices=("task", "model", "method"),
        help="a table for each (default: task with --rank, else one for all)",
    )
    table.add_argument(
        "--format",
        choices=tuple(SUFFIXES.values()),
        help="csv and json have all columns and figures in full (default: as the suffix of "
        "--output_path says, else table)",
    )
    table.add_argument(
        "--sort_by",
        metavar="COLUMN",
        help="a row for each condition, by this column of csv, the largest first (default: by "
        "condition, set and rank)",
    )
    table.add_argument("--ascending", action="store_true", help="the smallest of --sort_by first")
    table.add_argument(
        "--columns",
        type=arguments.some_names,
        default=[],
        metavar="NAMES",
        help="a row for each condition, with only these columns, in this order, with commas "
        "between them; csv and json have other names than the rest, and an unknown one lists them",
    )
    table.add_argument(
        "--points", action="store_true", help="with --rank, a row for each point of a sweep too"
    )
    table.add_argument(
        "--overlaps",
        action="store_true",
        help="only how far the neurons of runs of one model overlap; csv has that only so",
    )
    patterns = parser.add_argument_group(
        "filters", "patterns as of file names, with commas between them, such as 'demo_*,aqua_sst2'"
    )
    for name, what in FILTERS:
        patterns.add_argument(
            f"--{name}",
            type=arguments.some_names,
            default=[],
            metavar="PATTERNS",
            help=f"only those whose {what} fits (default: all)",
        )
    parser.add_argument(
        "--output_path",
        "-o",
        type=arguments.a_path,
        help="file, whose suffix (.txt, .md, .csv, .tex, .html, .json) gives the format unless "
        "--format does; or a folder for comparison.md and comparison.json (default: it is printed)",
    )
    arguments.add_verbosity(parser)


def _add_against(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="method that the others are tested against, with settings where runs have it with "
        "several, such as 'ace ambiguous=drop' (default: ace, or the first)",
    )


def compare(
    options: argparse.Namespace, show: Show, seconds: Mapping[str, float] | None = None
) -> int:
    """Print or write the comparison of the runs at `options.run_dir`; returns the exit code.

    Args:
        options: parsed flags.
        show: is told what people are to read.
        seconds: by stage, what it took.

    Raises:
        UsageError: a flag that cannot be, or filters that nothing fits.
        ArtifactError: there is no run, or none with results; after all else, some are damaged.
    """
    from neuronllm_eval.comparison.compare import View, compare_runs, render

    output = Path(options.output_path) if options.output_path else None
    files = _files(output, options.format)
    same = ("rank", "against", "group_by", "sort_by", "ascending", "points", "overlaps")
    view = View(
        **{name: getattr(options, name) for name in same},
        columns=tuple(dict.fromkeys(options.columns)),
        patterns={name: getattr(options, name) for name, _ in FILTERS},
    )
    for form in files.values() or [options.format or "table"]:
        view.require(form)
    found = compare_runs(map(Path, options.run_dir), view, seconds)
    if len(files) != 1:
        show(render(found, options.format or "table", view, terminal_width()).rstrip("\n"))
    for path, form in files.items():
        write_whole(path, render(found, form, view))
    if output is not None:
        show(f"written to {output}")
    found.require_undamaged()
    return 0


def _files(output: Path | None, form: str | None) -> dict[Path, str]:
    """The files to write, with their formats."""
    if output is None:
        return {}
    if output.is_dir() or not (form or output.suffix):
        RunDirectory(output).require_writable()
        return {output / "comparison.md": "markdown", output / COMPARISON: "json"}
    if form is None and output.suffix not in SUFFIXES:
        raise UsageError(
            f"--output_path is {output}, without --format",
            expected=f"a folder, or a file that ends with {', '.join(SUFFIXES)}",
            remedy="add such an ending, or --format",
        )
    RunDirectory(output.parent).require_writable()
    return {output: form or SUFFIXES[output.suffix]}


# compare-methods --------------------------------------------------------------------------------


def add_methods_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compare-methods`."""
    arguments.add_identify_flags(parser)
    arguments.add_validation_flags(parser)
    arguments.add_model_flags(parser)
    arguments.add_run_flags(parser)
    group = parser.add_argument_group("repeats")
    group.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME_OR_PATH",
        help="compare on each of these; --model_args then has what they have in common, and what "
        "one needs beside follows its name, as in NAME,revision=main",
    )
    group.add_argument(
        "--seeds",
        nargs="+",
        type=_numbers,
        default=[],
        metavar="SEED",
        help="repeat with each of these in place of --seed",
    )
    _add_against(parser)
    parser.set_defaults(method=[",".join(METHODS)], n_random=0)


def compare_methods(options: argparse.Namespace, evaluate: Evaluate, show: Show) -> int:
    """Run every method on every model, seed and task, and compare; returns the exit code.

    Args:
        options: parsed flags.
        evaluate: does one model and seed.
        show: is told what people are to read.
    """
    output = Path(options.output_path or DEFAULT_OUTPUT)
    _require_repeats(options)
    seconds: dict[str, float] = {}
    runs: list[RunDirectory] = []
    repeats = {
        str(path.relative_to(output)) if path != output else ".": of_repeat
        for path, of_repeat in _repeats(options, output)
    }

    def finish() -> None:
        if runs and not own_rank():
            earlier = {} if options.overwrite else _earlier_seconds(output, list(repeats))
            parser = argparse.ArgumentParser()
            add_flags(parser)
            own = parser.parse_args(["--points", "--output_path", str(output)])
            own.run_dir, own.against = [run.path for run in runs], options.against
            output.mkdir(parents=True, exist_ok=True)  # a folder, whatever its name
            compare(own, show, earlier | seconds)

    try:
        for lead, of_repeat in repeats.items():
            taken: dict[str, float] = {}
            runs += evaluate(of_repeat, taken)
            seconds |= {f"{lead}: {stage}": value for stage, value in taken.items()}
    except NeuronLLMError:  # a model that fails takes nothing from those before it
        try:
            finish()
        except NeuronLLMError as error:
            logger.warning("the others are not compared: %s", error)
        raise
    finish()
    return 0


def _require_repeats(options: argparse.Namespace) -> None:
    """Refuse seeds, and a method to hold against, that cannot be, before any run."""
    options.seeds = [seed for seeds in options.seeds for seed in seeds]
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds, default=0) < 0:
        raise UsageError(
            f"seeds are {' '.join(map(str, options.seeds))}",
            expected="numbers of 0 or more, each once",
            remedy="check --seeds",
        )
    methods = [name for group in options.method for name in group.split(",") if name]
    if options.against is not None and options.against.split(" ")[0] not in methods:
        raise UsageError(
            f"--against is {options.against!r:.100}",
            expected=f"one of the methods that are compared: {', '.join(methods)}",
            remedy="check --against and --method",
        )


def _earlier_seconds(output: Path, leads: Sequence[str]) -> dict[str, float]:
    """What stages of these models and seeds took in an earlier call.

    Stages that are finished take no time any more, and would be lost with the file.
    """
    path = output / COMPARISON
    if not path.is_file():
        return {}
    try:
        stages = read_json(path, "run compare-methods again")["seconds"]
        return {
            str(stage): float(taken)
            for stage, taken in stages.items()
            if stage.partition(": ")[0] in leads
        }
    except (ArtifactError, AttributeError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s: what stages took before is not known: %s", path, error)
        return {}


def _repeats(
    options: argparse.Namespace, output: Path
) -> Iterator[tuple[Path, argparse.Namespace]]:
    """Every model and seed: its folder, and its flags."""
    for model in options.models or [None]:
        for seed in options.seeds or [None]:
            own = copy.copy(options)
            path = output
            if model is not None:
                path /= _model_folder(model)
                own.model_args = [f"pretrained={model}", *(options.model_args or [])]
                _require_no_pretrained(options.model_args)
            if seed is not None:
                path /= f"seed_{seed}"
                own.seed = seed
            own.output_path = str(path)
            own.resume = own.resume or not own.overwrite  # repeated, it resumes what is left
            yield path, own


def _model_folder(model: str) -> str:
    name = model.partition(",")[0].strip("/")
    return folder_name(re.sub(r"[^\w.-]+", "_", name) or "model")


def _require_no_pretrained(model_args: Sequence[str] | None) -> None:
    if any(part.startswith("pretrained=") for arg in model_args or () for part in arg.split(",")):
        raise UsageError(
            "--models and pretrained= in --model_args",
            expected="one of them",
            remedy="leave pretrained= away, and name the model under --models",
        )


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]
