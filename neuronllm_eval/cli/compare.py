"""`neuronllm-eval compare`: finished runs side by side, or ranked, in any format.

1. Every run at and below the directories is read; damaged ones are left for the end.
2. The comparison is printed or written (`comparison.compare`).
3. Damaged runs are named, and the command ends with 1.

`neuronllm-eval compare-methods` first makes the runs, as `run_eval.py` does: with every method, for
every model and seed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config

from neuronllm_eval.cli.commands import CompareMethodsSettings, ModelTypeSettings
from neuronllm_eval.cli.evaluate import announce
from neuronllm_eval.comparison.compare import compare_runs, render, require_possible
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.errors import ArtifactError, NeuronLLMError, UsageError
from neuronllm_eval.formats.atomic import require_writable, write_whole
from neuronllm_eval.formats.settings_model import parse_pairs
from neuronllm_eval.formats.terminal import terminal_width
from neuronllm_eval.formats.typed_files import load
from neuronllm_eval.runs.directory import RunDirectory, folder_name
from neuronllm_eval.runs.settings import EvaluateSettings, LaunchSettings
from neuronllm_eval.runtime.process import own_rank
from neuronllm_eval.stages.evaluate import identify_runs

logger = logging.getLogger(__name__)
Show = Callable[[object], object]

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
    show: Show,
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
    comparison = compare_runs(asked, seconds)
    if len(files) != 1:
        show(render(comparison, asked.format or "table", asked, terminal_width()).rstrip("\n"))
    texts = {path: render(comparison, form, asked) for path, form in files.items()}
    for path, text in texts.items():
        write_whole(path, text)
    if files:
        show(f"written to {asked.output_path}")
    comparison.require_undamaged()
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


# Runs of rival methods --------------------------------------------------------------------------


def compare_methods(
    asked: CompareMethodsSettings, how: LaunchSettings, _model: ModelTypeSettings, show: Show
) -> int:
    """Run every method on every model, seed and task, and print the tables."""
    _require_possible(asked)
    # The runs' own reports are not shown; what they would take is.
    show_runs: Show = show if how.dry_run else lambda _: None
    # Repeated, it completes what is left.
    how = how.model_copy(update={"resume": not how.overwrite})
    repeats = dict(_repeats(asked))
    seconds: dict[str, float] = {}
    runs: list[RunDirectory] = []
    failure: NeuronLLMError | None = None
    for lead, settings in repeats.items():
        taken: dict[str, float] = {}
        try:
            runs += identify_runs(settings, how, show_runs, announce, seconds=taken)
        except NeuronLLMError as error:  # a model that fails takes nothing from those before it
            failure = error
            break
        seconds |= {f"{lead}: {stage}": each for stage, each in taken.items()}
    if runs and not own_rank():
        earlier = {} if how.overwrite else _earlier_seconds(asked.output_path, list(repeats))
        try:
            asked.output_path.mkdir(parents=True, exist_ok=True)  # a folder, whatever its name
            comparison = CompareSettings(
                run_dir=tuple(run.path for run in runs),
                output_path=asked.output_path,
                against=asked.against,
                points=True,
            )
            compare(comparison, show, earlier | seconds)
        except NeuronLLMError as error:
            if failure is None:
                raise
            logger.warning("the others are not compared: %s", error)
    if failure is not None:
        raise failure
    return 0


def _require_possible(asked: CompareMethodsSettings) -> None:
    """Refuse what cannot be compared, before any run is made."""
    if len(set(asked.seeds)) < len(asked.seeds) or min(asked.seeds, default=0) < 0:
        raise UsageError(
            f"seeds are {' '.join(map(str, asked.seeds))}",
            expected="numbers of 0 or more, each once",
            remedy="check --seeds",
        )
    if asked.models and "pretrained" in (asked.model_args or {}):
        raise UsageError(
            "--models and pretrained= in --model_args",
            expected="one of them",
            remedy="leave pretrained= away, and name the model under --models",
        )
    if asked.against is not None and asked.against.split(" ")[0] not in asked.method:
        raise UsageError(
            f"--against is {asked.against!r:.100}",
            expected=f"one of the methods that are compared: {', '.join(asked.method)}",
            remedy="check --against and --method",
        )


def _repeats(asked: CompareMethodsSettings) -> Iterator[tuple[str, EvaluateSettings]]:
    """Every model and seed: its folder below the output, and its settings."""
    shared = {name: getattr(asked, name) for name in EvaluateSettings.model_fields}
    for model in asked.models or [None]:
        for seed in asked.seeds or [None]:
            changes: dict[str, Any] = {}
            folder = Path()
            if model is not None:
                folder /= _model_folder(model)
                own = parse_pairs(f"pretrained={model}")
                changes["model_args"] = {**own, **(asked.model_args or {})}
            if seed is not None:
                folder /= f"seed_{seed}"
                changes["seed"] = seed
            changes["output_path"] = asked.output_path / folder
            yield str(folder), EvaluateSettings.model_construct(**{**shared, **changes})


def _model_folder(model: str) -> str:
    name = model.partition(",")[0].strip("/")
    return folder_name(re.sub(r"[^\w.-]+", "_", name) or "model")


@with_config(ConfigDict(strict=True, extra="ignore"))
@dataclass(frozen=True)
class _Seconds:
    """The part of `comparison.json` that is read back."""

    seconds: dict[str, float]


def _earlier_seconds(output: Path, leads: Sequence[str]) -> dict[str, float]:
    """How long an earlier call's stages took, of the models and seeds that are run again.

    Stages that are finished take no time any more, and would be lost with the file.
    """
    path = output / COMPARISON
    if not path.is_file():
        return {}
    try:
        seconds = load(_Seconds, path, "run compare-methods again").seconds
    except ArtifactError as error:
        logger.warning("%s: what stages took before is not known: %s", path, error)
        return {}
    return {stage: taken for stage, taken in seconds.items() if stage.partition(": ")[0] in leads}
