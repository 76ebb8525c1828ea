"""Where the artifacts of a run are, which of them a stage replaces, and where runs are found."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from neuronllm_eval.errors import ArtifactError, TaskError
from neuronllm_eval.formats.atomic import (
    require_no_file,
    require_no_folder,
    require_no_link,
    require_writable,
    unwritable,
    write_lines,
    write_whole,
)
from neuronllm_eval.formats.digests import (
    SUMS_FILE,
    list_digests,
    missing_files,
    unlist_digests,
    unlisted_files,
)
from neuronllm_eval.formats.inert_text import redacted
from neuronllm_eval.formats.plain_files import MOST_JSON_BYTES, read_text
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE
from neuronllm_eval.neurons.scores import SCORES_FILE

logger = logging.getLogger(__name__)
SETTINGS_FILE = "run.yaml"
COMMANDS_FILE = "commands.jsonl"
PAGE_FILE = "report.html"
CARD_FILE = "README.md"
RESULTS_FOLDER = "results"
ADAPTERS_FOLDER = "adapters"
OTHERS_FOLDER = "also"
_LONGEST_NAME = 200  # of the 255 bytes that file systems allow, with room for temporary names
_MOST_NAMED = 5  # folders in a remedy
_Value = TypeVar("_Value")
Content = str | bytes | Iterable[dict[str, Any]]


class _File:
    """An attribute that is the path of a file or folder of the run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDirectory, _: type[RunDirectory]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDirectory:
    """One task's run: the folder `<output_path>/<task>/`, and the values of its files so far.

    Attributes:
        path: the folder.
        home: the run whose neurons are validated here, on another task (`on_other_task`); None if
            it is this one.
    """

    path: Path
    home: RunDirectory | None = field(default=None, compare=False, repr=False)
    _values: dict[Path, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    # Values of files ------------------------------------------------------------------------------

    def once(self, path: Path, read: Callable[[], _Value]) -> _Value:
        """The value of a file: that of `read`, called at the first request, or that of `keep`."""
        if path not in self._values:
            self._values[path] = read()
        return cast(_Value, self._values[path])

    def write(self, path: Path, content: Content, value: object = None) -> None:
        """Write a file of the run, list its digest, and remember its value.

        Args:
            path: the file.
            content: its text or bytes, or the objects of a JSON-lines file.
            value: what reading the file would give, so that it is not read back.

        Raises:
            ArtifactError: a folder has that name.
        """
        unlist_digests(self.path, [path])
        if isinstance(content, (str, bytes)):
            digest = write_whole(path, content)
        else:
            digest = write_lines(path, content)
        self.written(path, digest, value)

    def written(self, path: Path, digest: str, value: object = None) -> None:
        """The same for a file that has just been written, and has this digest."""
        list_digests(self.path, {path: digest})
        self._values.pop(path, None)
        if value is not None:
            self._values[path] = value

    # Files ----------------------------------------------------------------------------------------

    settings = _File(SETTINGS_FILE)  # resolved settings and versions
    neurons = _File(NEURONS_FILE)  # good and bad neurons
    scores = _File(SCORES_FILE)  # scores of all neurons
    questions = _File("questions.jsonl")  # the unmasked model's answers to the selection questions
    choice = _File("method_choice.json")  # what --method auto tried, and what it took
    tokens = _File("tokens.json")  # what the top neurons promote and demote
    conditions = _File("conditions.jsonl")  # per doc, option log-likelihoods under every condition
    validation = _File("validation.json")  # how many neurons were validated, and with which factors
    validation_docs = _File("validation_docs.jsonl")  # the first words of the validation docs
    perplexity = _File("perplexity.json")  # of a plain text under the conditions, if measured
    summary = _File("summary.json")  # what each condition did to the benchmark
    report = _File("report.md")  # the same, as text
    page = _File(PAGE_FILE)  # the same, as a page
    card = _File(CARD_FILE)  # the model card that the Hub shows, with the report
    explanation = _File("explain.json")  # what the top neurons do
    explanation_text = _File("explain.md")  # the same, as text
    commands = _File(COMMANDS_FILE)  # one line for each start of a stage
    identifying = _File("checkpoint/identify")  # an unfinished identification
    validating = _File("checkpoint/validate")  # an unfinished validation

    def choosing(self, half: int) -> Path:
        """checkpoint/choose_<half>: an unfinished choice of settings, by the half that selects."""
        return self.path / "checkpoint" / f"choose_{half}"

    def set_aside(self, role: str) -> Path:
        """set_aside_<role>.jsonl: questions excluded for NaN or infinity.

        Args:
            role: `selection` or `validation`.
        """
        return self.path / f"set_aside_{role}.jsonl"

    def result(self, condition: str) -> Path:
        """results/<condition>.json, as lm_eval writes it."""
        return self.path / RESULTS_FOLDER / f"{condition}.json"

    def adapter(self, condition: str) -> Path:
        """adapters/<condition>/: the condition as a PEFT IA3 adapter."""
        return self.path / ADAPTERS_FOLDER / condition

    def on_other_task(self, task: str) -> RunDirectory:
        """also/<task>/: a validation of this run's neurons on the questions of another task.

        Raises:
            TaskError: the task's name cannot be that of a folder.
        """
        path = self.path / OTHERS_FOLDER / folder_name(task)
        return self.once(path, lambda: RunDirectory(path, home=self))

    @property
    def on_other_tasks(self) -> list[RunDirectory]:
        """Those that there are, finished or not, by name."""
        files = sorted((self.path / OTHERS_FOLDER).glob(f"*/{SETTINGS_FILE}"))
        return [self.on_other_task(file.parent.name) for file in files]

    @property
    def _identified(self) -> tuple[Path, ...]:
        """The files of an identification and of its explanation."""
        results = (
            *(self.neurons, self.scores, self.questions),
            *(self.choice, self.tokens, self.settings),
        )
        explained = (self.explanation, self.explanation_text)
        return (*results, *explained, self.set_aside("selection"))

    @property
    def _validated(self) -> tuple[Path, ...]:
        """The files of a validation and its report, but for the results."""
        reports = (self.summary, self.report, self.page, self.card)
        evidence = (self.conditions, self.validation, self.validation_docs, self.perplexity)
        return (*evidence, *reports, self.set_aside("validation"))

    def finished_files(self) -> list[Path]:
        """The files that there are, without those of unfinished work."""
        named = (*self._identified, *self._validated, self.commands)
        folders = (self.path / RESULTS_FOLDER, self.path / ADAPTERS_FOLDER)
        inside = (path for folder in folders for path in sorted(folder.rglob("*")))
        # Not those that file managers leave in folders.
        files = (path for path in (*named, *inside) if not path.name.startswith("."))
        return [path for path in files if path.is_file()]

    def is_listed(self) -> bool:
        """Whether the digest of every finished file is listed, if any is.

        A command that is killed between writing a file and listing it leaves one that is not.
        """
        return not unlisted_files(self.path, self.finished_files())

    def require_listed(self, stage: Literal["identify", "validate"]) -> None:
        """Refuse a run without a file of a stage that it lists, and that figures come from.

        Raises:
            ArtifactError: names the file.
        """
        evidence = {
            "identify": (self.neurons, self.scores, self.questions, self.set_aside("selection")),
            "validate": (
                *(self.conditions, self.validation, self.perplexity),
                self.set_aside("validation"),
            ),
        }[stage]
        for name in missing_files(self.path):
            path = self.path / name
            is_result = stage == "validate" and path.parent.name == RESULTS_FOLDER
            if path in evidence or is_result:
                raise ArtifactError(
                    f"{path} is missing, though {SUMS_FILE} lists it",
                    expected="the files that were written",
                    remedy=f"restore it, or run {stage} again with --overwrite",
                )

    # What stages do to it -------------------------------------------------------------------------

    def note_command(
        self, stage: str, command: Sequence[str], n_processes: int, versions: Mapping[str, str]
    ) -> None:
        """Add a line to `commands.jsonl`, without the values of secret model arguments.

        Raises:
            ArtifactError: a folder has its name, or its lines were changed.
        """
        require_no_folder(self.commands)
        lines = ""
        if self.commands.exists():
            remedy = f"remove it and its line in {SUMS_FILE}"
            lines = read_text(self.commands, MOST_JSON_BYTES, remedy)
        line = {
            "stage": stage,
            "command": list(map(redacted, command)),
            "processes": n_processes,
            "versions": dict(versions),
        }
        self.write(self.commands, lines + json.dumps(line, separators=(",", ":")) + "\n")

    def require_writable(self) -> None:
        """Raise UsageError for a folder that cannot be made or written. Changes nothing."""
        require_writable(self.path)

    def require_places(self) -> None:
        """Raise ArtifactError for a folder named as a file of a run, the reverse, or a link.

        Changes nothing.
        """
        for path in (*self._identified, *self._validated, self.commands):
            require_no_folder(path)
        adapters, checkpoints = self.path / ADAPTERS_FOLDER, self.path / "checkpoint"
        others = self.path / OTHERS_FOLDER
        folders = (self.path / RESULTS_FOLDER, adapters, checkpoints, others)
        for path in (*folders, self.identifying, self.validating):
            require_no_file(path)
        # One by one: what a link leads to is not searched.
        for path in chain(
            *(folders, adapters.glob("*"), checkpoints.glob("*"), checkpoints.glob("*/*")),
            others.glob("*"),
        ):
            require_no_link(path)

    def start(self) -> None:
        """Make the folder, without what an earlier run left in it.

        Raises:
            UsageError: it cannot be written.
            ArtifactError: as `require_places`; then nothing is removed.
        """
        self.require_places()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in (self.path / SUMS_FILE, *self._identified, self.commands):
                path.unlink(missing_ok=True)
            for folder in (self.identifying, self.choosing(0), self.choosing(1)):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(self.path / ADAPTERS_FOLDER, ignore_errors=True)
            self.clear_validation()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._values.clear()

    def clear_validation(self) -> None:
        """Remove what an earlier validation left, so that old and new results never mix.

        Those on other tasks are of the same conditions, and removed too.

        Raises:
            ArtifactError: as `require_places`; then nothing is removed.
        """
        self.require_places()
        results = (self.path / RESULTS_FOLDER).glob("*.json")
        files = (*self._validated, *results)
        unlist_digests(self.path, files)
        for path in files:
            path.unlink(missing_ok=True)
            self._values.pop(path, None)
        shutil.rmtree(self.validating, ignore_errors=True)
        for other in self.on_other_tasks:
            other._values.clear()
        shutil.rmtree(self.path / OTHERS_FOLDER, ignore_errors=True)


def folder_name(task: str) -> str:
    """The name of a task's run directory.

    Raises:
        TaskError: the task's name cannot be that of one folder.
    """
    name = task.replace(":", "-")
    is_path = name in ("", ".", "..") or any(character in name for character in "/\\")
    if is_path or not name.isprintable() or len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise TaskError(
            f"the task is named {task!r:.100}",
            expected="a name that a folder can have: no slashes, no invisible characters, at most "
            f"{_LONGEST_NAME} bytes",
            remedy="fix `task:` in its YAML",
        )
    return name


# Finding runs -----------------------------------------------------------------------------------


def find_runs(path: Path) -> list[RunDirectory]:
    """The run at `path`, or those one level below it, by name.

    Raises:
        ArtifactError: there is none.
    """
    if (path / SETTINGS_FILE).is_file():
        return [RunDirectory(path)]
    runs = sorted(child.parent for child in path.glob(f"*/{SETTINGS_FILE}"))
    if not runs:
        raise ArtifactError(
            f"{path} holds no run",
            expected=f"a directory with {SETTINGS_FILE}, or with such directories in it",
            remedy=_remedy_near(path),
        )
    return [RunDirectory(run) for run in runs]


def runs_below(paths: Iterable[Path]) -> list[RunDirectory]:
    """The runs at and below each path, at any depth, each once; by path within each tree.

    Folders within a run, hidden folders, and folders seen under another name are not searched; a
    folder that cannot be read is warned of.

    Raises:
        ArtifactError: there is none at or below one of the paths.
    """
    runs: dict[Path, RunDirectory] = {}
    for path in paths:
        for run in _below(path) or find_runs(path):
            runs.setdefault(run.path.resolve(), run)
    return list(runs.values())


def _below(top: Path) -> list[RunDirectory]:
    def warn(error: OSError) -> None:
        logger.warning("%s is not searched: %s", error.filename, error.strerror)

    runs, seen = [], set()
    for folder, below, files in os.walk(top, onerror=warn, followlinks=True):
        path = Path(folder)
        is_run, is_seen = SETTINGS_FILE in files, path.resolve() in seen
        if is_run:
            runs.append(RunDirectory(path))
        seen.add(path.resolve())
        visible = [name for name in sorted(below) if not name.startswith(".")]
        below[:] = [] if is_run or is_seen else visible
    return runs


def folders_near(path: Path, name: str) -> list[Path]:
    """Folders with a file `name`: one or two levels below `path`; else the one `path` lies in.

    Args:
        path: need not exist.
        name: of the file.
    """
    below = [
        file.parent for levels in ("*", "*/*") for file in sorted(path.glob(f"{levels}/{name}"))
    ]
    above = [folder for folder in list(path.absolute().parents)[:2] if (folder / name).is_file()]
    return below or above[:1]


def one_of(folders: list[Path]) -> str:
    """Folders as an error's remedy names them."""
    names = [str(folder) for folder in folders[:_MOST_NAMED]]
    if len(folders) > _MOST_NAMED:
        names.append(f"{len(folders) - _MOST_NAMED} more")
    return ", ".join(names)


def _remedy_near(path: Path) -> str:
    near = folders_near(path, SETTINGS_FILE)
    if any(path in folder.parents for folder in near):  # deeper runs: the folders they lie in
        near = sorted({folder.parent for folder in near})
    if near:
        return f"pass one of: {one_of(near)}"
    return "check the path, or run `neuronllm-eval identify` first"
