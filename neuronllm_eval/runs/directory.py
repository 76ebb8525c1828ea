"""Where a run's artifacts lie, and how they are written: whole files, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonlines

from neuronllm_eval.errors import ArtifactError, TaskError, UsageError
from neuronllm_eval.formats.json_files import parse_json, require_file, require_size
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE
from neuronllm_eval.neurons.scores import SCORES_FILE
from neuronllm_eval.runs.nearby import folders_near, one_of

SETTINGS_FILE = "run.yaml"
QUESTIONS_FILE = "questions.jsonl"
CONDITIONS_FILE = "conditions.jsonl"
VALIDATION_FILE = "validation.json"
SUMMARY_FILE = "summary.json"
COMMANDS_FILE = "commands.jsonl"
REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
CARD_FILE = "README.md"
JUDGED_DOCS_FILE = "validation_docs.jsonl"
TOKENS_FILE = "tokens.json"
EXPLANATION_FILE = "explain.json"
EXPLANATION_TEXT_FILE = "explain.md"
RESULTS_FOLDER = "results"
ADAPTERS_FOLDER = "adapters"
CHECKPOINT_FOLDER = "checkpoint"
# 100,000 docs under 300 conditions have about a gigabyte, in lines of 20,000 characters.
MOST_LINES_BYTES = 8 << 30
MOST_LINE_LENGTH = 16 << 20
# Model arguments that no file of a run holds.
SECRETS = ("token", "use_auth_token", "api_key")
LEFT_OUT = "..."
# `token=x` among arguments with commas or spaces between them, and `"token": "x"` in JSON.
_SECRET = re.compile(
    rf'(?<!\w)((?:{"|".join(SECRETS)})(?:=|"\s*:\s*))("(?:[^"\\]|\\.)*"|[^,\s}}]*)'
)
_LONGEST_NAME = 200  # of the 255 bytes that file systems take, with room for temporary names


def without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Model arguments without the access tokens, which no file of a run holds."""
    return {name: value for name, value in arguments.items() if name not in SECRETS}


def word_without_secrets(word: str) -> str:
    """A word of a command line with `...` for the values of secrets."""
    return _SECRET.sub(lambda found: found[1] + LEFT_OUT, word)


@dataclass(frozen=True)
class RunDirectory:
    """One task's run: `<output_path>/<task>/` with the artifacts of DESIGN, section 5."""

    path: Path

    @property
    def settings(self) -> Path:
        """run.yaml: resolved settings and versions."""
        return self.path / SETTINGS_FILE

    @property
    def neurons(self) -> Path:
        """neurons.json: good and bad neurons."""
        return self.path / NEURONS_FILE

    @property
    def scores(self) -> Path:
        """scores.safetensors: scores of all neurons."""
        return self.path / SCORES_FILE

    @property
    def questions(self) -> Path:
        """questions.jsonl: per question, what the unmasked model said on the selection split."""
        return self.path / QUESTIONS_FILE

    @property
    def tokens(self) -> Path:
        """tokens.json: what the top neurons promote and demote."""
        return self.path / TOKENS_FILE

    @property
    def conditions(self) -> Path:
        """conditions.jsonl: per doc, option log-likelihoods under every condition."""
        return self.path / CONDITIONS_FILE

    @property
    def validation(self) -> Path:
        """validation.json: how many neurons were judged, and with which factors."""
        return self.path / VALIDATION_FILE

    def set_aside(self, role: str) -> Path:
        """set_aside_<role>.jsonl: questions that gave NaN or infinity, and count nowhere.

        Args:
            role: `selection` or `validation`.
        """
        return self.path / f"set_aside_{role}.jsonl"

    @property
    def summary(self) -> Path:
        """summary.json: what each condition did to the benchmark."""
        return self.path / SUMMARY_FILE

    @property
    def report(self) -> Path:
        """report.md: the same, to be read."""
        return self.path / REPORT_FILE

    @property
    def page(self) -> Path:
        """report.html: the same, to be looked at."""
        return self.path / PAGE_FILE

    @property
    def card(self) -> Path:
        """README.md: the model card that the Hub shows, with the report."""
        return self.path / CARD_FILE

    @property
    def judged_docs(self) -> Path:
        """validation_docs.jsonl: what the validation docs say, in few words."""
        return self.path / JUDGED_DOCS_FILE

    @property
    def explanation(self) -> Path:
        """explain.json: what the top neurons do."""
        return self.path / EXPLANATION_FILE

    @property
    def explanation_text(self) -> Path:
        """explain.md: the same, to be read."""
        return self.path / EXPLANATION_TEXT_FILE

    @property
    def identifying(self) -> Path:
        """checkpoint/identify/: an unfinished identification."""
        return self.path / CHECKPOINT_FOLDER / "identify"

    @property
    def validating(self) -> Path:
        """checkpoint/validate/: an unfinished validation."""
        return self.path / CHECKPOINT_FOLDER / "validate"

    @property
    def commands(self) -> Path:
        """commands.jsonl: what was done here, one line for each time that a stage was started."""
        return self.path / COMMANDS_FILE

    def note_command(
        self, stage: str, command: Sequence[str], n_processes: int, versions: Mapping[str, str]
    ) -> None:
        """Add a line to `commands.jsonl`, which is written anew as a whole.

        Values of secret model arguments are left out.

        Raises:
            ArtifactError: a folder is there.
        """
        require_no_folder(self.commands)
        line = {
            "stage": stage,
            "command": list(map(word_without_secrets, command)),
            "processes": n_processes,
            "versions": dict(versions),
        }
        known = self.commands.read_text("utf-8", "replace") if self.commands.exists() else ""
        write_whole(self.commands, known + json.dumps(line, separators=(",", ":")) + "\n")

    def result(self, condition: str) -> Path:
        """results/<condition>.json, as lm_eval writes it."""
        return self.path / RESULTS_FOLDER / f"{condition}.json"

    def adapter(self, condition: str) -> Path:
        """adapters/<condition>/: the condition as a PEFT IA3 adapter."""
        return self.path / ADAPTERS_FOLDER / condition

    def require_free(self, overwrite: bool) -> None:
        """Refuse a folder that holds a run, unless it may be overwritten. Changes nothing.

        Raises:
            UsageError: it holds a run, or cannot be made.
        """
        self.require_writable()
        if self.settings.exists() and not overwrite:
            raise UsageError(
                f"{self.path} already holds a run",
                expected="a new or empty directory",
                remedy="pass another --output_path, or --overwrite",
            )

    def require_writable(self) -> None:
        """Refuse a folder that cannot be made or written. Changes nothing.

        Raises:
            UsageError: it cannot.
        """
        try:
            above = (self.path, *self.path.absolute().parents)
            nearest = next(path for path in above if path.exists())
        except OSError as error:  # a name that is too long, a working directory that is gone
            raise _unwritable(self.path, error) from error
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UsageError(
                f"{self.path} cannot be written: {nearest} is no directory that can be written",
                expected="a directory that can be written",
                remedy="pass another --output_path",
            )

    def start(self) -> None:
        """Make the folder, without what an earlier run left in it.

        Raises:
            UsageError: it cannot be written.
            ArtifactError: a folder is where a file belongs, or the other way round; then nothing
                is removed.
        """
        self.require_places()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self._identified:
                path.unlink(missing_ok=True)
            shutil.rmtree(self.identifying, ignore_errors=True)
            shutil.rmtree(self.path / ADAPTERS_FOLDER, ignore_errors=True)
            self.clear_validation()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def clear_validation(self) -> None:
        """Remove what an earlier validation left, so that old and new results never mix.

        Raises:
            ArtifactError: a folder is where a file of it belongs, or the other way round; then
                nothing is removed.
        """
        self.require_places()
        for path in self._judged:
            path.unlink(missing_ok=True)
        for path in (self.path / RESULTS_FOLDER).glob("*.json"):
            path.unlink()
        shutil.rmtree(self.validating, ignore_errors=True)

    @property
    def _judged(self) -> tuple[Path, ...]:
        """The files that a validation and its report write, but for the results."""
        aside = self.set_aside("validation")
        reports = (self.summary, self.report, self.page, self.card)
        return (self.conditions, self.validation, self.judged_docs, *reports, aside)

    @property
    def _identified(self) -> tuple[Path, ...]:
        """The files that an identification writes, and what explains it."""
        found = (self.neurons, self.scores, self.questions, self.tokens, self.settings)
        explained = (self.explanation, self.explanation_text)
        return (*found, *explained, self.commands, self.set_aside("selection"))

    def require_places(self) -> None:
        """Refuse a folder in the place of a file, or the other way round. Changes nothing.

        Raises:
            ArtifactError: a stage could not write its files and folders.
        """
        for path in (*self._identified, *self._judged):
            require_no_folder(path)
        checkpoint = self.path / CHECKPOINT_FOLDER
        folders = (self.path / RESULTS_FOLDER, self.path / ADAPTERS_FOLDER, checkpoint)
        for path in (*folders, self.identifying, self.validating):
            require_no_file(path)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be written: {error}",
        expected="a directory that can be written",
        remedy="pass another --output_path",
    )


def require_no_folder(path: Path) -> None:
    """Raise ArtifactError if a folder is where a file is to be written."""
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder",
            expected="a file, or nothing, in its place",
            remedy="move the folder away",
        )


def require_no_file(path: Path) -> None:
    """Raise ArtifactError if a file is where a folder is to be made."""
    if path.is_file():
        raise ArtifactError(
            f"{path} is no folder",
            expected="a folder, or nothing, in its place",
            remedy="move the file away",
        )


def folder_name(task: str) -> str:
    """The name of a task's run directory: a folder of that name, and nowhere else.

    Raises:
        TaskError: the task's name cannot be that of one folder.
    """
    name = task.replace(":", "-")
    is_path = name in ("", ".", "..") or any(sign in name for sign in "/\\")
    if is_path or not name.isprintable() or len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise TaskError(
            f"the task is named {task!r:.100}",
            expected="a name that a folder can have: no slashes, no signs that cannot be seen, at "
            f"most {_LONGEST_NAME} bytes",
            remedy="mend `task:` in its YAML",
        )
    return name


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


def _remedy_near(path: Path) -> str:
    near = folders_near(path, SETTINGS_FILE)
    if any(path in folder.parents for folder in near):  # of runs that are deeper, what holds them
        near = sorted({folder.parent for folder in near})
    if near:
        return f"pass one of: {one_of(near)}"
    return "check the path, or run `neuronllm-eval identify` first"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is whole or not there."""
    require_no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def line_writer(path: Path) -> Iterator[jsonlines.Writer]:
    """A jsonlines writer whose file gets its name only when all lines are written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with jsonlines.open(temporary, "w", compact=True) as writer:
            yield writer
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a jsonlines file.

    Raises:
        ArtifactError: the file is missing or too large, or a line is damaged.
    """
    remedy = "run validate again"
    require_file(path)
    require_size(path, MOST_LINES_BYTES, remedy)
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            # A line without end is not read whole.
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_LENGTH), ""), 1):
                values = parse_json(line, f"{path}, line {number},", remedy)
                if not isinstance(values, dict) or not line.endswith("\n"):
                    raise ValueError(f"line {number} is not whole, or no JSON object")
                found.append(values)
        return found
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}",
            expected="a file written by `neuronllm-eval validate`",
            remedy=remedy,
        ) from error


def set_aside_ids(run: RunDirectory, role: str) -> set[str]:
    """The questions of a split that were set aside for NaN or infinity.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = run.set_aside(role)
    return {str(line.get("question_id")) for line in read_lines(path)} if path.is_file() else set()
