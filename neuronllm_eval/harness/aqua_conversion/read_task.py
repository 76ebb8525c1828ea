"""The questions of a harness task, read through the task's functions.

1. A doc's prompt, choices and target are those of `doc_to_text`, `doc_to_choice` and
   `doc_to_target`.
2. The prompt is parsed (`parse_prompt`): options after labels, or the choices as texts.
3. The gold is the target; where the task scores answers by its own `process_results`, that must
   agree.
4. `HarnessSource` does so for the splits, and refuses a task none of whose docs can be read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua.cleaning import (
    DocCounts,
    RawQuestion,
    counts_from_one,
    gold_index,
    plain_answer,
)
from neuronllm_eval.aqua.dataset_source import (
    DEMONSTRATION,
    SELECTION,
    VALIDATION,
    drawn_rows,
    group_of,
)
from neuronllm_eval.errors import DocError, TaskError
from neuronllm_eval.harness.aqua_conversion.parse_prompt import (
    begins_alphabet,
    label_of,
    labelled_texts,
    labels_of,
    lettered_options,
    text_stem,
)
from neuronllm_eval.harness.aqua_conversion.prompt_cues import passage_and_question
from neuronllm_eval.harness.gold import CHECKED_DOCS, accepted_options, has_own_scoring
from neuronllm_eval.harness.tasks import (
    is_aqua,
    seed_as_lm_eval,
    validation_split,
)

# Docs of a split that are read before it is used.
_SAMPLE = 20
# Splits that a data set may have though its task does not name them.
_SPARE_SPLITS = ("train", "validation", "dev")
_NO_TEXT = ("", "None", "nan")


logger = logging.getLogger(__name__)


class HarnessSource:
    """The questions of a harness task; see `dataset_source.QuestionSource`.

    Args:
        task: a task of `output_type: multiple_choice`.
        selection_split: split that neurons are selected on; None for the first with usable docs
            of the task's training split and others that it does not evaluate. Without one, the
            validation split is halved.

    Raises:
        TaskError: the task cannot be converted; says why.
    """

    def __init__(self, task: ConfigurableTask, selection_split: str | None = None) -> None:
        _require_text_task(task)
        self.task = task
        self._processed: dict[str, Sequence[dict[str, Any]]] = {}
        self._require_readable(validation_split(task))
        self.splits: Mapping[str, str] = self._splits(selection_split)

    def _splits(self, override: str | None) -> dict[str, str]:
        config, validation = self.task.config, validation_split(self.task)
        existing = list(self.task.dataset)
        if override is not None:
            if override not in existing or override == validation:
                raise TaskError(
                    f"the selection split of {config.task} is to be {override!r}",
                    expected=f"a split other than {validation!r}, the validation split; the data "
                    "set has: " + ", ".join(existing),
                    remedy="pass another --selection_split",
                )
            self._require_readable(override)
        fewshot = config.fewshot_split
        named = (config.training_split, config.validation_split)
        spare = [split for split in _SPARE_SPLITS if split != fewshot]
        candidates = [override] if override is not None else [*named, *spare]
        usable = (
            split
            for split in candidates
            if split in existing and split != validation and self._is_usable(split, split in named)
        )
        selection = next(usable, None)
        if selection is None:
            logger.warning(
                "%s: no split but %r can be used; it is halved for selection and validation",
                config.task,
                validation,
            )
        splits = {SELECTION: selection or validation, VALIDATION: validation}
        if fewshot in existing and fewshot not in splits.values() and self._golds(fewshot):
            splits[DEMONSTRATION] = fewshot
        return splits

    def read(self, role: str, most: int | None, seed: int, counts: DocCounts) -> Iterator[Any]:
        """The docs of a role's split; see `dataset_source.QuestionSource`."""
        docs = self._docs(self.splits[role])
        for row in drawn_rows(len(docs), most, seed, counts):
            yield self._read_doc(row, docs[row])

    def _docs(self, split: str) -> Sequence[dict[str, Any]]:
        if split not in self._processed:
            docs, process_docs = self.task.dataset[split], self.task.config.process_docs
            if process_docs is not None:
                # Some shuffle options: the same way whenever the docs are read.
                seed_as_lm_eval()
                docs = process_docs(docs)
            self._processed[split] = docs
        return self._processed[split]

    def _read_doc(self, row: int, doc: dict[str, Any]) -> RawQuestion | DocError:
        try:
            return read_doc(self.task, row, doc)
        except DocError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever the task's functions raise on this doc
            return DocError(
                f"the doc cannot be read: {type(error).__name__}: {error}",
                expected="a doc in the form that the task expects",
                remedy="exclude it",
                reason="unreadable",
            )

    def _sample(self, split: str) -> list[RawQuestion | DocError]:
        docs = self._docs(split)
        return [self._read_doc(row, docs[row]) for row in range(min(_SAMPLE, len(docs)))]

    def _is_usable(self, split: str, is_named: bool) -> bool:
        """Whether a split's first docs are usable; a warning if not, and the task names it."""
        golds = self._golds(split)
        if not golds and is_named:
            logger.warning(
                "%s: its split %r is skipped, since none of its first docs can be used",
                self.task.config.task,
                split,
            )
        return bool(golds)

    def _golds(self, split: str) -> list[int]:
        """The golds of a split's first usable docs; none if it cannot be read."""
        try:
            sample = self._sample(split)
        except Exception as error:  # noqa: BLE001 - a split the task does not use may have another form
            logger.info("%s: split %r: %s", self.task.config.task, split, error)
            return []
        questions = [each for each in sample if isinstance(each, RawQuestion)]
        return [each.answer for each in questions if 0 <= each.answer < len(each.choices)]

    def _require_readable(self, split: str) -> None:
        """Refuse a task none of whose first docs can be used, before all are read."""
        sample = self._sample(split)
        errors = [each for each in sample if isinstance(each, DocError)]
        questions = [each for each in sample if isinstance(each, RawQuestion)]
        if errors and not questions:
            reason, _ = Counter(error.reason for error in errors).most_common(1)[0]
            first = next(error for error in errors if error.reason == reason)
            raise self._refusal(first.found, first.expected)
        golds = [(each.answer, len(each.choices)) for each in questions]
        if counts_from_one(golds):
            raise self._refusal("its target counts from 1", "an index that counts from 0")
        if golds and not any(0 <= gold < n for gold, n in golds):
            raise self._refusal(
                f"no doc of the split {split!r} has a gold option: the target of the "
                f"first is {golds[0][0]}",
                "the index of an option",
            )

    def _refusal(self, found: str, expected: str) -> TaskError:
        return TaskError(
            f"task {self.task.config.task} cannot be converted to an AQUA task: {found}",
            expected=expected,
            remedy="choose another task, or write an AQUA task for its data set (docs/tasks.md)",
        )


def _require_text_task(task: Any) -> None:
    """Refuse tasks whose questions are not all in doc_to_text, doc_to_choice and doc_to_target."""
    name = getattr(getattr(task, "config", None), "task", type(task).__name__)
    found = None
    if not isinstance(task, ConfigurableTask) or type(task).doc_to_text is not (
        ConfigurableTask.doc_to_text
    ):
        found = f"task {name} has its own class, {type(task).__name__}"
    elif task.config.doc_to_image or task.config.doc_to_audio:
        found = f"task {name} has images or audio"
    elif is_aqua(task):
        found = f"task {name} is an AQUA task already"
    if found is not None:
        raise TaskError(
            f"{found}; it cannot be converted to one",
            expected="a multiple-choice task of text, given by doc_to_text, doc_to_choice and "
            "doc_to_target",
            remedy="choose another task",
        )


def read_doc(task: ConfigurableTask, row: int, doc: dict[str, Any]) -> RawQuestion:
    """One doc of a harness task as a question with options as texts.

    Returns:
        The question; its answer is an index, which may be out of range (a doc without label).

    Raises:
        DocError: the prompt cannot be parsed, or not exactly one option is gold.
    """
    prompt, choices = task.doc_to_text(doc), list(map(str, task.doc_to_choice(doc)))
    if not isinstance(prompt, str):
        raise DocError(
            f"each option has its own context (doc_to_text gives {prompt!r}, not a text)",
            expected="one context, several options",
            remedy="choose another task",
            reason="a context for each option",
        )
    texts: Sequence[str] = ()
    if (labelled := labelled_texts(choices)) is not None:
        choices, texts = list(labelled[0]), labelled[1]
    labels = labels_of(choices)
    parsed = lettered_options(prompt, choices, [doc, *texts])
    if parsed is None and labels is not None and not texts and begins_alphabet(labels):
        raise DocError(
            f"the choices are the letters {', '.join(labels)}, but the prompt shows no option "
            "after each",
            expected="lines such as 'A. an option'",
            remedy="choose another task",
            reason="options not found in the prompt",
        )
    if parsed is not None and labels is not None:
        _require_options(parsed.options)
        stem, options = parsed.stem, parsed.options
        option_of = dict(zip(parsed.labels, options, strict=True))
        gold = _gold(
            task.doc_to_target(doc), choices, [option_of.get(label, "") for label in labels]
        )
        _require_one_gold(task, doc, row, len(choices), gold)
        answer = gold  # out of range
        if 0 <= gold < len(labels):
            # From the order of the choices to the order in which the prompt shows them.
            is_shown = labels[gold] in parsed.labels
            answer = parsed.labels.index(labels[gold]) if is_shown else -1
    else:
        options = tuple(choice.strip() for choice in texts or choices)
        stem = text_stem(prompt, options)
        answer = _gold(task.doc_to_target(doc), choices, options)
        _require_one_gold(task, doc, row, len(choices), answer)
    passage, question = passage_and_question(stem)
    if not question:
        raise DocError(
            f"the prompt {prompt!r} has no stem",
            expected="a question, or a text to complete, that is not itself the options",
            remedy="choose another task",
            reason="no question",
        )
    return RawQuestion(
        row=row,
        question=question,
        choices=list(options),
        answer=answer,
        passage=passage,
        group=group_of(doc),
    )


def _require_options(options: Sequence[str]) -> None:
    """Refuse a list that shows an option the doc does not have."""
    missing = [option for option in options if option in _NO_TEXT]
    if missing:
        raise DocError(
            f"an option is {missing[0]!r}",
            expected="a text for each letter",
            remedy="exclude the question",
            reason="missing option",
        )


def _gold(target: Any, choices: Sequence[str], options: Sequence[str] = ()) -> int:
    """The index in `choices` of a task's target, in range or not.

    Args:
        target: an index, a choice, a label, an option's text, or a list of one of them.
        choices: the task's answers, `[n_choices]`.
        options: their texts, where they are labels.

    Raises:
        DocError: none of these, or several.
    """
    target = plain_answer(target)
    if isinstance(target, str):
        bare = [choice.strip() for choice in choices]
        if target.strip() in bare:
            return bare.index(target.strip())
        label, labels = label_of(target), labels_of(choices) or ()
        if label is not None and label in labels:
            return labels.index(label)
        if list(options).count(target.strip()) == 1:
            return list(options).index(target.strip())
    return gold_index(target, choices)


def _require_one_gold(
    task: ConfigurableTask, doc: dict[str, Any], row: int, n_choices: int, gold: int
) -> None:
    """Check the gold against the task's scoring; where that is the harness's, on the first docs."""
    if not 0 <= gold < n_choices or not (has_own_scoring(task) or row < CHECKED_DOCS):
        return
    try:
        correct = accepted_options(task, doc, n_choices, gold)
    except TypeError:
        if has_own_scoring(task):
            raise
        correct = []
    # The harness's scoring takes only an index or a choice, so it may accept none, or fail.
    if correct == [gold] or (not correct and not has_own_scoring(task)):
        return
    if not correct:
        raise DocError(
            "the task scores answers by its own function, which does not distinguish them",
            expected="a metric that is a number for each question, higher for the correct answer",
            remedy="choose another task",
            reason="own scoring",
        )
    several = gold in correct
    raise DocError(
        f"the task's own scoring accepts {len(correct)} of {n_choices} options"
        if several
        else f"the task's own scoring accepts option {correct[0]}, its target is {gold}",
        expected="one correct option, the target",
        remedy="exclude the question; AQUA needs one gold option",
        reason="several right answers" if several else "scoring and target disagree",
    )
