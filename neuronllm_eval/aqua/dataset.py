"""An AQUA task's data as the harness loads them (`custom_dataset: !function`, `load_aqua`).

The harness calls a task's `custom_dataset` for its splits, with `dataset_kwargs` (where questions
come from, `dataset_source`) and `metadata` (how they are prompted, `settings`). It gets

1. `validation`: the proxies of every validation question, side by side, questions in seeded order;
2. `selection`: likewise of the questions that neurons are selected on, none of the former;
3. `demonstration`: questions that are in neither, each once, to be shown with their answers.

The outcome of every doc is counted. If the task's metadata has a dict `counts`, as in the packaged
tasks, it is filled with the counts, so that the harness writes them into its result files.
"""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets

from neuronllm_eval.aqua.cleaning import DocCounts, clean_questions
from neuronllm_eval.aqua.dataset_source import (
    DEMONSTRATION,
    ROLES,
    SELECTION,
    VALIDATION,
    DatasetSource,
    QuestionSource,
    located_files,
)
from neuronllm_eval.aqua.proxies import (
    MultipleChoiceDoc,
    format_question,
    keyed_draw,
    make_proxies,
)
from neuronllm_eval.aqua.settings import AquaSettings, split_settings, with_overrides
from neuronllm_eval.errors import TaskError

logger = logging.getLogger(__name__)
PROXY_COLUMNS: tuple[str, ...] = (
    "question_id",
    "proxy",
    "n_proxies",
    "order",
    "question",
    "passage",
    "choices",
    "answer",
    "letters",
    "prompt",
    "group",
)
# The gold option at one index in so many docs is no coincidence.
_MANY_DOCS = 20
# Names in a task's metadata besides settings.
TASK_NAMES = ("counts", "overrides", "version", "config_source")


class AquaSplits(datasets.DatasetDict):
    """An AQUA task's splits `selection`, `validation` and `demonstration`.

    Attributes:
        settings: how the questions are prompted.
        counts: per split, the outcome of its docs; see `cleaning.DocCounts`.
    """

    def __init__(
        self,
        splits: dict[str, datasets.Dataset],
        settings: AquaSettings,
        counts: dict[str, dict[str, Any]],
    ) -> None:
        super().__init__(splits)
        self.settings = settings
        self.counts = counts


# Task hashes follow from the source of this function, docstring included: it must stay as it is, or
# finished runs are taken for those of another task.
def load_aqua(**values: Any) -> AquaSplits:
    """The splits of an AQUA task over any data set.

    Args:
        values: `dataset_kwargs` (the arguments of `DatasetSource`) and `metadata` (those of
            `AquaSettings`; `counts`, a dict that is filled; and `overrides`, which go before
            all else) of the task's YAML.

    Returns:
        `selection`, `validation` and `demonstration`, with the columns `PROXY_COLUMNS`.

    Raises:
        TaskError: no such split or column, or no question is left.
        UsageError: a setting is not acceptable.
        DocError: a bad doc, with `on_bad_doc: fail`.
    """
    counts, overrides = values.get("counts"), values.get("overrides") or {}
    names = [field.name for field in fields(DatasetSource)]
    values = with_overrides(values, names)
    if "choices" in overrides and "labels" not in overrides:  # instead of the task's labels
        values["labels"] = None
    settings = split_settings(values, [*names, *TASK_NAMES])
    # None stands for what is not given, so that an override can take a setting back.
    source = {name: values[name] for name in names if values.get(name) is not None}
    if "data_files" in source:
        folder = Path(str(values.get("config_source", ""))).parent
        source["data_files"] = located_files(source["data_files"], folder)
    found = _load(json.dumps(source, sort_keys=True, default=str), settings, _file_times(source))
    if isinstance(counts, dict):
        counts.update(filled_counts(found))
    return found


def filled_counts(splits: AquaSplits) -> dict[str, Any]:
    """A task's metadata once its data are read: how it prompts, and the outcome of its docs."""
    return {**splits.counts, "asked": splits.settings.model_dump()}


def _file_times(source: dict[str, Any]) -> tuple[int, ...]:
    patterns = [each for files in source.get("data_files", {}).values() for each in files]
    files = [file for pattern in patterns for file in sorted(glob.glob(pattern))]
    return tuple(Path(file).stat().st_mtime_ns for file in files if Path(file).is_file())


# The harness makes a task several times; its data do not change meanwhile.
@lru_cache(maxsize=4)
def _load(source: str, settings: AquaSettings, file_times: tuple[int, ...]) -> AquaSplits:
    values = json.loads(source)
    return build_splits(
        DatasetSource(**{**values, "labels": tuple(values.get("labels") or ())}), settings
    )


def build_splits(source: QuestionSource, settings: AquaSettings) -> AquaSplits:
    """Read, clean, separate and shuffle the questions of a benchmark.

    Raises:
        TaskError: no question is left in a split.
        DocError: a bad doc, with `on_bad_doc: fail`.
    """
    counts = {role: DocCounts(split) for role, split in source.splits.items()}
    counts.setdefault(DEMONSTRATION, DocCounts(source.splits[SELECTION]))
    if source.splits[SELECTION] == source.splits[VALIDATION]:
        validation, selection = _halves(_questions(source, VALIDATION, settings, counts))
        counts[SELECTION].docs = counts[VALIDATION].docs
        counts[SELECTION].skipped = counts[VALIDATION].skipped.copy()
        counts[SELECTION].other_half = len(validation)
        counts[VALIDATION].other_half = len(selection)
        logger.info("split %s is halved for selection and validation", counts[VALIDATION].split)
    else:
        validation = _questions(source, VALIDATION, settings, counts)
        selection = _questions(source, SELECTION, settings, counts)
    selection = _without(selection, validation, counts[SELECTION])
    if DEMONSTRATION in source.splits:
        shown = _questions(source, DEMONSTRATION, settings, counts)
        shown = _without(shown, [*validation, *selection], counts[DEMONSTRATION])
    else:
        n_shown = min(settings.n_demonstrations, len(selection) // 2)
        shown, selection = selection[:n_shown], selection[n_shown:]
        selection = _without(selection, shown, counts[SELECTION])
        counts[SELECTION].demonstrations = n_shown
    if settings.orders == "auto":
        settings = settings.model_copy(update={"orders": _orders([*validation, *selection])})
    questions = {SELECTION: selection, VALIDATION: validation, DEMONSTRATION: shown}
    for role, docs in questions.items():
        counts[role].questions = len(docs)
        if counts[role].skipped:
            logger.warning(
                "split %s: %d of %d docs cannot be used and are skipped: %s",
                counts[role].split,
                counts[role].skipped.total(),
                counts[role].docs,
                ", ".join(f"{reason} ({n})" for reason, n in counts[role].skipped.most_common()),
            )
        if not docs and role != DEMONSTRATION:
            raise TaskError(
                f"no usable question among the {counts[role].docs} docs of split "
                f"{counts[role].split!r}{_why(counts[role])}",
                expected="at least one",
                remedy="check the splits, and how the task reads question, choices and answer; "
                "--on_bad_doc fail stops at the first doc that cannot be used",
            )
    return AquaSplits(
        {
            SELECTION: proxy_dataset(selection, settings),
            VALIDATION: proxy_dataset(validation, settings),
            DEMONSTRATION: proxy_dataset(shown, settings, n_proxies=1),
        },
        settings,
        {role: counts[role].to_dict() for role in ROLES},
    )


def _why(counts: DocCounts) -> str:
    """The outcome of a split's docs, as the end of a sentence."""
    reasons = [f"{number} skipped ({reason})" for reason, number in counts.skipped.most_common()]
    if counts.duplicates_dropped:
        reasons.append(f"{counts.duplicates_dropped} duplicates dropped")
    first = f"; the first: {counts.first_error}" if counts.first_error else ""
    return (": " + ", ".join(reasons) if reasons else "") + first


def _questions(
    source: QuestionSource, role: str, settings: AquaSettings, counts: dict[str, DocCounts]
) -> list[MultipleChoiceDoc]:
    """The questions of a split, in an order drawn from seed and ids, but for demonstrations."""
    most = settings.max_selection if role == SELECTION else None
    raws = source.read(role, most, settings.seed, counts[role])
    docs = clean_questions(raws, settings, counts[role])
    if role == DEMONSTRATION:
        return docs  # benchmarks use the first of such a split
    return sorted(docs, key=lambda doc: keyed_draw("question", settings.seed, doc.question_id))


def _orders(docs: Sequence[MultipleChoiceDoc]) -> str:
    """The orders that `auto` stands for."""
    indices = {doc.answer for doc in docs}
    return "drawn" if len(indices) == 1 and len(docs) >= _MANY_DOCS else "original"


def _halves(
    docs: Sequence[MultipleChoiceDoc],
) -> tuple[list[MultipleChoiceDoc], list[MultipleChoiceDoc]]:
    """Each question in one of two halves by its content, whatever the seed."""
    halves: tuple[list[MultipleChoiceDoc], list[MultipleChoiceDoc]] = ([], [])
    for doc in docs:
        halves[keyed_draw("half", doc.content) % 2].append(doc)
    return halves


def _without(
    docs: Sequence[MultipleChoiceDoc], others: Sequence[MultipleChoiceDoc], counts: DocCounts
) -> list[MultipleChoiceDoc]:
    """The questions that are not among the others.

    Neither with the same options, in any order, nor with other options but the same gold one.
    """
    keys = {key for doc in others for key in (doc.content, doc.stem)}
    distinct = [doc for doc in docs if doc.content not in keys and doc.stem not in keys]
    counts.duplicates_dropped += len(docs) - len(distinct)
    return distinct


def proxy_dataset(
    docs: Sequence[MultipleChoiceDoc], settings: AquaSettings, n_proxies: int | None = None
) -> datasets.Dataset:
    """The proxies of every question, those of a question side by side.

    Args:
        docs: the questions.
        settings: how they are prompted.
        n_proxies: copies of each, instead of the settings' number.

    Returns:
        One row per proxy with the columns `PROXY_COLUMNS`; `prompt` is the question written out.
    """
    rows: list[dict[str, Any]] = []
    for doc in docs:
        proxies = make_proxies(doc, n_proxies or settings.n_proxies, settings.seed, settings.orders)
        for proxy in proxies:
            prompt = format_question(proxy, settings.letter_style)
            rows.append({**vars(proxy), "n_proxies": len(proxies), "prompt": prompt})
    text, number = datasets.Value("string"), datasets.Value("int64")
    types = {
        "proxy": number,
        "n_proxies": number,
        "order": datasets.List(number),
        "choices": datasets.List(text),
        "answer": number,
        "letters": datasets.List(text),
    }
    columns = {name: [row[name] for row in rows] for name in PROXY_COLUMNS}
    features = datasets.Features({name: types.get(name, text) for name in PROXY_COLUMNS})
    return datasets.Dataset.from_dict(columns, features=features)
