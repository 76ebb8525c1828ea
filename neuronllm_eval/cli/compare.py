"""`neuronllm-eval compare-methods` and `compare`: rival methods on the same questions, in a table.

`compare-methods` is `run_eval.py` with every method, repeated for every model and seed; `compare`
makes the table of runs that are there.
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.cli import arguments
from neuronllm_eval.comparison.method_comparison import as_json, compare
from neuronllm_eval.comparison.method_runs import read_compared
from neuronllm_eval.comparison.method_tables import comparison_text
from neuronllm_eval.errors import ArtifactError, NeuronLLMError, UsageError
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.json_files import dump_json, read_json
from neuronllm_eval.runs.directory import RunDirectory, folder_name
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runtime.distributed import own_rank
from neuronllm_eval.runtime.progress import bar

logger = logging.getLogger(__name__)
DEFAULT_OUTPUT = "runs/comparison"
COMPARISON = "comparison.json"
# Identifies, validates and reports as parsed flags say, and notes what took how many seconds; the
# directories of the runs, none of a dry run.
Evaluate = Callable[[argparse.Namespace, dict[str, float]], list[RunDirectory]]
Show = Callable[[str], object]


def add_comparing_flags(parser: argparse.ArgumentParser) -> None:
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
    """Run every method on every model, seed and task, and print the tables; returns the exit code.

    Args:
        options: parsed flags.
        evaluate: does one model and seed.
        show: is told what people are to read.
    """
    output = Path(options.output_path or DEFAULT_OUTPUT)
    options.seeds = [seed for each in options.seeds for seed in each]
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds, default=0) < 0:
        raise UsageError(
            f"seeds are {' '.join(map(str, options.seeds))}",
            expected="numbers of 0 or more, each once",
            remedy="check --seeds",
        )
    _require_against(options.against, _method_names(options.method))
    seconds: dict[str, float] = {}
    runs: list[RunDirectory] = []

    repeats = {
        str(path.relative_to(output)) if path != output else ".": own
        for path, own in _repeats(options, output)
    }

    def finish() -> None:
        if runs and not own_rank():
            known = {} if options.overwrite else _earlier_seconds(output, list(repeats))
            _write(runs, options.against, known | seconds, output, show)

    try:
        for lead, own in repeats.items():
            found: dict[str, float] = {}
            runs += evaluate(own, found)
            seconds |= {f"{lead}: {stage}": taken for stage, taken in found.items()}
    except NeuronLLMError:  # a model that fails takes nothing from those before it
        try:
            finish()
        except NeuronLLMError as error:
            logger.warning("the others are not compared: %s", error)
        raise
    finish()
    return 0


def _earlier_seconds(output: Path, leads: Sequence[str]) -> dict[str, float]:
    """What an earlier call says its stages took, of the models and seeds that are here again.

    Stages that are finished take no time any more, and would be lost with the file.
    """
    path = output / COMPARISON
    if not path.is_file():
        return {}
    try:
        found = read_json(path, "run compare-methods again")
        return {
            str(stage): float(taken)
            for stage, taken in found["seconds"].items()
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
            own.resume = own.resume or not own.overwrite  # repeated, it goes on with what is left
            yield path, own


def _model_folder(model: str) -> str:
    name = model.partition(",")[0].strip("/")
    return folder_name(re.sub(r"[^\w.-]+", "_", name) or "model")


def _require_no_pretrained(model_args: Sequence[str] | None) -> None:
    if any(part.startswith("pretrained=") for each in model_args or () for part in each.split(",")):
        raise UsageError(
            "--models and pretrained= in --model_args",
            expected="one of them",
            remedy="leave pretrained= away, and name the model under --models",
        )


def _require_against(against: str | None, methods: Sequence[str]) -> None:
    """Refuse a method that will not be among the runs, before they are made."""
    if against is not None and against.split(" ")[0] not in methods:
        raise UsageError(
            f"--against is {against!r:.100}",
            expected=f"one of the methods that are compared: {', '.join(methods)}",
            remedy="check --against and --method",
        )


def _method_names(groups: Sequence[str]) -> list[str]:
    return [name for group in groups for name in group.split(",") if name]


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compare`, beside the run directories."""
    parser.add_argument(
        "--output_path",
        "-o",
        type=arguments.a_path,
        help="folder for comparison.md and comparison.json (default: nothing is written)",
    )
    _add_against(parser)
    arguments.add_verbosity(parser)


def _add_against(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="method that the others are tested against, with settings where runs have it with "
        "several, such as 'ace ambiguous=drop' (default: ace, or the first)",
    )


def compare_finished(options: argparse.Namespace, show: Show) -> int:
    """Print the tables of runs that are there; returns the exit code."""
    found = runs_below(map(Path, options.run_dir))
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
    output = Path(options.output_path) if options.output_path else None
    _write(runs, options.against, {}, output, show)
    return 0


def _write(
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
