"""Where an AQUA task's questions come from: any data set, read by Jinja expressions of its YAML.

    dataset_kwargs:
      path: allenai/ai2_arc                 # as datasets.load_dataset takes them
      name: ARC-Easy
      question: "{{ question }}"            # a template: text with columns in it
      choices: choices.text                 # an expression: a list of texts
      answer: choices.label.index(answerKey)  # an expression: index, letter or text

Expressions name columns, or `doc` for all of them: `doc["Correct Answer"]`.

`QuestionSource` is what a benchmark must provide; `DatasetSource` does so for data sets and
`harness.aqua_conversion.read_task.HarnessSource` for tasks of the harness.
"""

from __future__ import annotations

import glob
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import jinja2
import numpy as np
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neuronllm_eval.aqua.cleaning import DocCounts, RawQuestion
from neuronllm_eval.errors import DocError, TaskError

if TYPE_CHECKING:
    import datasets


# The first of these columns with a text; AQUA docs have the first of them.
GROUP_COLUMNS = ("group", "subject", "subfamily", "category", "family", "domain")
_LONGEST_GROUP = 60  # characters


def group_of(doc: Mapping[str, Any]) -> str:
    """The family or subject of a doc; empty where it names none."""
    columns = (doc.get(name) for name in GROUP_COLUMNS)
    group = next((text for text in columns if isinstance(text, str) and text.strip()), "")
    return group if len(group) <= _LONGEST_GROUP else ""


ROLES = ("selection", "validation", "demonstration")
SELECTION, VALIDATION, DEMONSTRATION = ROLES
_WHOLE_DOC = "doc"
# Types of `data_files`. Those but parquet have no types of their own: their texts stay texts.
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_FILE_TYPES = ("json", "jsonl", "parquet", *_SEPARATORS)


class QuestionSource(Protocol):
    """What a benchmark provides."""

    @property
    def splits(self) -> Mapping[str, str]:
        """Name of the split behind each role.

        A benchmark of one split has it as both `selection` and `validation`: it is then halved.
        Without `demonstration`, demonstrations are reserved from the selection split.
        """

    def read(self, role: str, most: int | None, seed: int, counts: DocCounts) -> Iterable[Any]:
        """The docs of a role's split as `RawQuestion`s, or `DocError`s for those it cannot read.

        Args:
            role: one of `ROLES`.
            most: draw so many docs by seed; all if None.
            seed: seed of the draw.
            counts: `not_drawn` is set.
        """


def drawn_rows(n_rows: int, most: int | None, seed: int, counts: DocCounts) -> list[int]:
    """Which rows are read: all, or `most` of them drawn by seed, in order."""
    if most is None or n_rows <= most:
        return list(range(n_rows))
    counts.not_drawn = n_rows - most
    chosen = np.random.default_rng(seed).permutation(n_rows)[:most]
    return [int(row) for row in np.sort(chosen)]


def _regex_replace(text: str, pattern: str, replacement: str = "") -> str:
    return re.sub(pattern, replacement, text)


def _empty_for_none(value: Any) -> Any:
    return "" if value is None else value


# A task file's templates may call methods of texts and lists, and nothing that leads to code.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_empty_for_none
)
_ENVIRONMENT.filters["regex_replace"] = _regex_replace


def _imported(path: str) -> Callable[..., Any]:
    module, _, function = path.rpartition(".")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskError(
            f"load is {path!r}: {error}",
            expected="module.function that can be imported and returns the splits",
            remedy="fix load in the task's dataset_kwargs",
        ) from error


def as_list(files: Any) -> list[str]:
    """The files of a split: `data_files` names one or several, which may be patterns."""
    return [str(file) for file in (files if isinstance(files, (list, tuple)) else [files])]


def located_files(data_files: Any, folder: Path) -> dict[str, list[str]]:
    """The files of each split; those not in the working directory, in the YAML's folder.

    Raises:
        TaskError: not a mapping from splits to files.
    """
    if not isinstance(data_files, Mapping):
        raise TaskError(
            f"data_files is {data_files!r}",
            expected="the file of each split, such as {train: a.jsonl, test: b.jsonl}",
            remedy="name the splits",
        )
    located = {}
    for split, names in data_files.items():
        files = as_list(names)
        beside = [str(folder / file) for file in files]
        use_beside = any(map(glob.glob, beside)) and not any(map(glob.glob, files))
        located[split] = beside if use_beside else files
    return located


def _read_texts(patterns: Sequence[str], file_type: str) -> datasets.Dataset:
    """The rows of csv, tsv, json or jsonl files, in which texts stay as they are written.

    `datasets` reads NA as missing, 1.50 as 1.5 and "2020-01-01" as a time.
    """
    import datasets
    import fsspec  # type: ignore[import-untyped]

    rows: list[Any] = []
    for opened in fsspec.open_files(patterns, "rt", encoding="utf-8-sig", newline=""):
        with opened as file:
            try:
                if separator := _SEPARATORS.get(file_type):
                    rows += _table_rows(file, separator)
                else:
                    rows += _json_rows(file.read())
            except ValueError as error:
                raise ValueError(f"{opened.path}: {error}") from error
    if not rows:
        raise FileNotFoundError(f"no row in {', '.join(patterns)}")
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _table_rows(file: TextIO, separator: str) -> list[Any]:
    """The rows of a csv or tsv file.

    Raises:
        ValueError: a row has more cells than the head, which pandas would take for an index.
    """
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            table = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, index_col=False
            )
        except pd.errors.ParserWarning as error:
            raise ValueError("a row has more cells than the head") from error
    return table.to_dict("records")


def _json_rows(text: str) -> list[Any]:
    """The objects of a list, or of lines."""
    try:
        value = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return value if isinstance(value, list) else [value]


def _csv_answer(answer: Any, options: Any) -> Any:
    """The gold of a row of texts: a number is an index, unless an option has this text.

    Raises:
        DocError: it is both, of different options.
    """
    text = answer.strip() if isinstance(answer, str) else ""
    number = {"true": 1, "false": 0}.get(text.lower(), int(text) if text.isdecimal() else None)
    texts = list(map(str, options)) if isinstance(options, list) else []
    if number is None or text not in texts:
        return answer if number is None else number
    if number < len(texts) and texts[number] != text:
        raise DocError(
            f"the gold {text!r} is the text of one option and the index of another",
            expected="one or the other",
            remedy="let the task say which: `answer | int`, or `[A, B].index(answer)`",
            reason="gold ambiguous",
        )
    return answer


def _as_list(choices: Any) -> Any:
    """Choices as a list; filters such as `map` return iterators."""
    return list(choices) if isinstance(choices, Iterator) else choices


def _as_id(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True)
class DatasetSource:
    """A data set of the Hub or of local files, whose docs are read by Jinja expressions.

    Args:
        question: template of the stem.
        choices: expression of the list of options; left out where `labels` is given.
        answer: expression of the gold: index, letter or the option's text.
        selection_split: split that neurons are selected on; the validation split's name for one
            that is to be halved, with `halve`.
        validation_split: split that they are validated on.
        demonstration_split: split of the demonstrations, if any.
        labels: names of the classes, the options of every question.
        passage: template of the text before the question.
        id: expression of the question's id.
        halve: whether one split serves as both, each question in one half by its content.
        path: as `datasets.load_dataset`.
        name: as `datasets.load_dataset`.
        dataset_revision: `revision` of `datasets.load_dataset`. The harness passes the model's
            arguments too, and `revision` is among them.
        data_dir: as `datasets.load_dataset`.
        data_files: file or files of each split, json, jsonl, parquet, csv or tsv, instead of
            `path`.
        load: instead of `path`, `module.function` that returns the splits.
        load_kwargs: arguments of that function.

    Raises:
        TaskError: splits or expressions are missing, or do not go together.
    """

    question: str = "{{ question }}"
    choices: str = "choices"
    answer: str = "answer"
    selection_split: str = "train"
    validation_split: str = "test"
    demonstration_split: str | None = None
    labels: tuple[str, ...] = ()
    passage: str = ""
    id: str | None = None
    halve: bool = False
    path: str | None = None
    name: str | None = None
    dataset_revision: str | None = None
    data_dir: str | None = None
    data_files: Mapping[str, Any] | None = None
    load: str | None = None
    load_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("question", "choices", "answer", "passage", "id"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "id" and value is None):
                raise TaskError(
                    f"{name} is {value!r}",
                    expected='Jinja in quotes, such as choices: "[right, wrong]"',
                    remedy="put it in quotes in the task's dataset_kwargs",
                )
        if not (self.path or self.data_files or self.load):
            raise TaskError(
                "the task names no data",
                expected="path, data_files or load in its dataset_kwargs",
                remedy="add path: NAME_ON_THE_HUB, say",
            )
        is_one = self.selection_split == self.validation_split
        if is_one and not self.halve:
            raise TaskError(
                f"the selection split {self.selection_split!r} is also the validation split",
                expected="different docs to select neurons on and to validate them",
                remedy="pass another --selection_split, or set halve: true in the task",
            )
        if self.halve and not is_one:
            raise TaskError(
                f"halve is set, but selection_split is {self.selection_split!r} and "
                f"validation_split {self.validation_split!r}",
                expected="one split to halve",
                remedy="remove halve, or name the same split twice",
            )

    @property
    def splits(self) -> Mapping[str, str]:
        """Name of the split behind each role."""
        splits = {SELECTION: self.selection_split, VALIDATION: self.validation_split}
        if self.demonstration_split is not None:
            splits[DEMONSTRATION] = self.demonstration_split
        return splits

    def read(self, role: str, most: int | None, seed: int, counts: DocCounts) -> Iterator[Any]:
        """The docs of a role's split; see `QuestionSource`.

        Raises:
            TaskError: no such split, or an expression names an unknown column.
        """
        dataset = self._split(self.splits[role])
        parse, columns = self._reader(dataset.column_names)
        rows = drawn_rows(len(dataset), most, seed, counts)
        # Only the columns that are read: others may be long, or pictures.
        needed = dataset.select_columns(sorted(columns))
        chosen = needed if len(rows) == len(dataset) else needed.select(rows)
        for row, doc in zip(rows, chosen, strict=True):
            yield parse(row, doc)

    def _split(self, split: str) -> datasets.Dataset:
        try:
            data = self._data
        except TaskError:
            raise
        except Exception as error:  # whatever the Hub, a loading function or a file raises
            cause = f"; {error.__cause__}" if error.__cause__ else ""
            raise TaskError(
                f"the data cannot be loaded: {type(error).__name__}: {error}{cause}",
                expected="a data set of the Hub that can be reached, or files that can be read",
                remedy="check path, name and data_files (relative to the working directory, or to "
                "the YAML); offline, give data_files as in docs/tasks.md",
            ) from error
        if split not in data:
            raise TaskError(
                f"the data set has no split {split!r}",
                expected=f"one of {', '.join(data)}",
                remedy="fix selection_split, validation_split or demonstration_split",
            )
        return data[split]

    @cached_property
    def _data(self) -> Mapping[str, datasets.Dataset]:
        import datasets

        if self.load is not None:
            return _imported(self.load)(**(self.load_kwargs or {}))
        if self.data_files is not None:
            files = {name: as_list(names) for name, names in self.data_files.items()}
            if self._file_type == "parquet":
                return datasets.load_dataset("parquet", data_files=files)
            return {split: _read_texts(names, self._file_type) for split, names in files.items()}
        return datasets.load_dataset(
            self.path, name=self.name, revision=self.dataset_revision, data_dir=self.data_dir
        )

    @property
    def _file_type(self) -> str:
        """The type of `data_files`; empty without any.

        Raises:
            TaskError: they are of several types, or of one that is not read.
        """
        files = [file for names in (self.data_files or {}).values() for file in as_list(names)]
        suffixes = {Path(file).suffix.lstrip(".") for file in files}
        if self.data_files is not None and not (len(suffixes) == 1 and suffixes <= {*_FILE_TYPES}):
            raise TaskError(
                f"data_files has files of the types {', '.join(sorted(suffixes)) or 'none'}",
                expected=f"all of one type: {', '.join(_FILE_TYPES)}",
                remedy="convert the files",
            )
        return next(iter(suffixes), "")

    def _reader(
        self, columns: list[str]
    ) -> tuple[Callable[[int, dict[str, Any]], RawQuestion | DocError], set[str]]:
        """A function of (row, doc), and the columns that it reads."""
        choices = None if self.labels else self.choices
        expressions = [text for text in (choices, self.answer, self.id) if text]
        used = set(GROUP_COLUMNS) & set(columns)
        for source in (self.question, self.passage, *(f"{{{{ {e} }}}}" for e in expressions)):
            try:
                names = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            except jinja2.TemplateError as error:
                raise TaskError(
                    f"{source!r} is not valid Jinja: {error.message}",
                    expected="a template for question and passage, expressions for choices, "
                    "answer and id",
                    remedy="fix the task's dataset_kwargs",
                ) from error
            if _WHOLE_DOC in names - set(columns):
                names = (names - {_WHOLE_DOC}) | set(columns)
            unknown = sorted(names - set(columns))
            if unknown:
                raise TaskError(
                    f"no column {unknown[0]!r} among the data set's columns {', '.join(columns)}",
                    expected=f"the columns that {source!r} names",
                    remedy="fix question, passage, choices, answer or id in the task's "
                    "dataset_kwargs",
                )
            used |= names
        question = _ENVIRONMENT.from_string(self.question)
        passage = _ENVIRONMENT.from_string(self.passage)
        is_csv = self._file_type in _SEPARATORS
        compiled = {
            text: _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
            for text in expressions
        }

        def parse(row: int, doc: dict[str, Any]) -> RawQuestion | DocError:
            try:
                doc = {_WHOLE_DOC: doc, **doc}
                values = {text: expression(**doc) for text, expression in compiled.items()}
                options = list(self.labels) if choices is None else _as_list(values[choices])
                answer = values[self.answer]
                return RawQuestion(
                    row=row,
                    question=question.render(doc),
                    choices=options,
                    answer=_csv_answer(answer, options) if is_csv else answer,
                    passage=passage.render(doc),
                    id=_as_id(values[self.id]) if self.id else None,
                    is_label=bool(self.labels),
                    group=group_of(doc),
                )
            except DocError as error:
                return error
            except Exception as error:  # noqa: BLE001 - whatever an expression raises on this doc's values
                return DocError(
                    f"row {row} cannot be read: {type(error).__name__}: {error}",
                    expected="values that the task's expressions can use",
                    remedy="fix question, passage, choices, answer or id in dataset_kwargs; "
                    "columns of csv files are texts: `answer | int`",
                    reason="unreadable",
                )

        return parse, used
