"""Harness tasks -> questions with token ids: which docs are evaluated, and how they are prompted.

1. Apply the prompt settings, and refuse demonstrations that reveal answers.
2. Choose the docs: whole questions, without the excluded ones.
3. Let the task build its requests (few-shot, chat template, system instruction).
4. Encode them as the model does (`tokenize`).

Also the first words of docs (`doc_lines`, `question_words`), for people who read a report.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import lm_eval.api.task
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from neuronllm_eval.aqua.dataset_source import group_of
from neuronllm_eval.errors import NeuronLLMError, TaskError, UsageError
from neuronllm_eval.harness.leakage import require_clean_demonstrations, without_own_answers
from neuronllm_eval.harness.tasks import is_aqua, question_ids
from neuronllm_eval.harness.tokenize import Encoder, PromptSettings, QuestionSet, prompt_format
from neuronllm_eval.harness.varied_prompts import VariedPrompts
from neuronllm_eval.runtime.process import bars_disabled

logger = logging.getLogger(__name__)
# Of excerpts.
FIRST_WORDS = 12
_QUESTION_WORDS, _QUESTION_CHARACTERS = 30, 200
_OPTION_WORDS, _OPTION_CHARACTERS = 8, 60
_MOST_OPTIONS = 26
_OPTION_COLUMNS = ("choices", "options", "endings")


def build_questions(
    lm: HFLM,
    task: ConfigurableTask,
    settings: PromptSettings,
    limit: int | None = None,
    exclude: Iterable[str] = (),
    draw_seed: int | None = None,
    hidden: Set[str] = frozenset(),
) -> QuestionSet:
    """Let the task build its requests, and encode them as the model does.

    Args:
        lm: the harness model; its tokenizer and chat template are used.
        task: a multiple-choice task; its few-shot setting and instances are set.
        settings: of the prompts.
        limit: number of questions (not proxies); None for all.
        exclude: ids of questions.
        draw_seed: draw the limited questions by this seed instead of taking the first, since
            data may be sorted by label; AQUA tasks are shuffled already.
        hidden: contents of docs (`leakage.doc_contents`) that no demonstration may have.

    Raises:
        DocError: with `on_bad_doc` `fail`, the first doc without a usable gold, with
            indistinguishable options, or longer than the model's context without demonstrations.
        TaskError: no doc can be used, or the harness cannot build the requests.
        UsageError: the limit is not positive, or no question is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"limit is {limit}", expected="1 or more questions", remedy="check --limit"
        )
    if "acc_mutual_info" in task.aggregation():
        raise TaskError(
            f"task {task.config.task} has the metric acc_mutual_info",
            expected="metrics of the options given their context; that one also needs each option "
            "without it",
            remedy="remove it from the task's metric_list",
        )
    _apply_settings(task, settings)
    require_clean_demonstrations(task)
    chosen = _choose_docs(task, limit, set(exclude), draw_seed)
    with without_own_answers(task, hidden):
        _build_requests(lm, task, settings, chosen)
        _warn_of_lost_system_turn(lm, task, settings)
        return Encoder(lm, task, settings).encode(chosen)


def _build_requests(
    lm: HFLM, task: ConfigurableTask, settings: PromptSettings, chosen: list[int]
) -> None:
    try:
        with _named_bar(str(task.config.task)):
            task.build_all_requests(
                **_selected(chosen),
                rank=0,
                world_size=1,
                **prompt_format(lm, settings),
                tokenizer_name=lm.tokenizer_name if settings.apply_chat_template else "",
            )
    except NeuronLLMError:
        raise
    except Exception as error:  # whatever templates, samplers and the task's functions raise
        raise TaskError(
            f"the harness cannot build the requests of task {task.config.task}: "
            f"{type(error).__name__}: {error}",
            expected="a chat template if one is to be applied, and enough demonstrations",
            remedy="check --apply_chat_template and --num_fewshot",
        ) from error


def _selected(chosen: list[int]) -> dict[str, Any]:
    """Docs, as arguments of the harness: the first ones by a limit, which spares it the others."""
    if chosen[-1] == len(chosen) - 1:
        return {"limit": len(chosen)}
    return {"samples": set(chosen)}  # a set: the harness looks up every doc of the split


@contextmanager
def _named_bar(task: str) -> Iterator[None]:
    """Within the context the harness's bar of request building names the task."""
    before = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = functools.partial(
        before, disable=bars_disabled(), desc=f"prompts of {task}", unit="doc", leave=False
    )
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = before


def _apply_settings(task: ConfigurableTask, settings: PromptSettings) -> None:
    # As lm_eval.simple_evaluate: a task that fixes 0 demonstrations keeps them.
    if settings.num_fewshot and task.config.num_fewshot == 0:
        logger.warning("%s: fixes 0 demonstrations; --num_fewshot is ignored", task.config.task)
    elif settings.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    if settings.description is not None:
        task.set_config(key="description", value=settings.description)
    if isinstance(task, VariedPrompts):
        task.option_scores = settings.option_scores
    task.set_fewshot_seed(seed=settings.fewshot_seed)


def _warn_of_lost_system_turn(lm: HFLM, task: ConfigurableTask, settings: PromptSettings) -> None:
    """Warn where the chat template takes no system turn, which the harness then leaves out."""
    if not settings.apply_chat_template:
        return
    lost = [
        what
        for what, text in (
            ("system instruction", settings.system_instruction),
            ("description", task.config.description),
        )
        if text
    ]
    marker = "SYSTEM-TURN"
    turns = [{"role": "system", "content": marker}, {"role": "user", "content": "?"}]
    if lost and marker not in prompt_format(lm, settings)["chat_template"](turns):
        logger.warning(
            "%s: the chat template takes no system turn, so the prompts are without the %s",
            task.config.task,
            " and the ".join(lost),
        )


def _choose_docs(
    task: ConfigurableTask, limit: int | None, excluded: set[str], draw_seed: int | None
) -> list[int]:
    """Indices of the docs of the first, or of the drawn, `limit` questions, in order.

    Raises:
        UsageError: no question is left.
    """
    docs_of: dict[str, list[int]] = defaultdict(list)
    for doc_id, question in enumerate(question_ids(task)):
        docs_of[question].append(doc_id)
    questions = [question for question in docs_of if question not in excluded]
    if not questions:
        raise UsageError(
            f"no question is left of task {task.config.task}",
            expected="at least one",
            remedy="check the splits and --overlap",
        )
    if limit is not None:
        if draw_seed is not None and not is_aqua(task):
            random.Random(draw_seed).shuffle(questions)  # noqa: S311
        questions = questions[:limit]
    return sorted(doc_id for question in questions for doc_id in docs_of[question])


# Excerpts ---------------------------------------------------------------------------------------


def doc_lines(questions: QuestionSet) -> Iterator[dict[str, Any]]:
    """A line of `validation_docs.jsonl` for every doc, in doc order."""
    docs = questions.task.eval_docs
    for prompt in questions.prompts:
        doc = docs[prompt.doc_id]
        yield {
            "doc_id": prompt.doc_id,
            "question": question_words(questions.task, doc, _QUESTION_WORDS),
            "options": _options(questions.task, doc, len(prompt.options)),
            "group": group_of(doc),
        }


def question_words(task: ConfigurableTask, doc: Mapping[str, Any], most: int = FIRST_WORDS) -> str:
    """The first words of a doc's question, or of its prompt if the data have no such column."""
    question = doc.get("question")
    text = question if isinstance(question, str) else task.doc_to_text(doc)
    return _cut(str(text), most, _QUESTION_CHARACTERS)


def _options(task: ConfigurableTask, doc: Mapping[str, Any], n_options: int) -> list[str]:
    """The first words of each option, in the order shown."""
    columns = (doc.get(name) for name in _OPTION_COLUMNS)
    options: Any = next((column for column in columns if column), None)
    if isinstance(options, Mapping):  # as ARC has them
        options = options.get("text")
    if not isinstance(options, (list, tuple)) or len(options) != n_options:
        options = task.doc_to_choice(doc)
    return [_cut(str(text), _OPTION_WORDS, _OPTION_CHARACTERS) for text in options[:_MOST_OPTIONS]]


def _cut(text: str, most_words: int, most_characters: int) -> str:
    words = text.split()
    short = " ".join(words[:most_words])
    if len(short) > most_characters:  # a script without spaces, for example
        return f"{short[:most_characters]}..."
    return short + ("..." if len(words) > most_words else "")
