"""No doc is prompted with its own answer, and none selects neurons that it also validates.

1. Docs are compared by their prompts (`doc_contents`), so that another passage is another doc.
2. What the selection split shares with the validation split is found (`overlapping_questions`).
3. A demonstration that is the doc at hand, or in the selection a doc of the validation split, is
   replaced by another (`without_own_answers`). AQUA tasks have separate demonstrations; those that
   do not are refused (`require_clean_demonstrations`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cache
from typing import Any

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua.proxies import content_key
from neuronllm_eval.errors import TaskError
from neuronllm_eval.harness.tasks import is_aqua, question_ids

logger = logging.getLogger(__name__)


def _content(task: ConfigurableTask, doc: dict[str, Any]) -> str:
    """The words of a doc's prompt and options, sorted: their order is no matter."""
    text = getattr(task, "plain_text", task.doc_to_text)  # other wordings by `varied_prompts`
    return content_key(*map(str, (text(doc), *task.doc_to_choice(doc))))


def doc_contents(task: ConfigurableTask) -> list[str]:
    """What tells the docs of the split that a task evaluates apart, by doc."""
    # To a list first: row by row, a data set is ten times slower.
    return [_content(task, doc) for doc in task.eval_docs.to_list()]


def overlapping_questions(task: ConfigurableTask, contents: Set[str]) -> set[str]:
    """Ids of a task's questions that are among `contents`, whatever the order of the options."""
    pairs = zip(question_ids(task), doc_contents(task), strict=True)
    return {question for question, content in pairs if content in contents}


def require_clean_demonstrations(task: ConfigurableTask) -> None:
    """Refuse an AQUA task whose demonstrations may be proxies of the question at hand.

    The harness leaves out only a demonstration that equals the doc, which a proxy does not.
    """
    if not is_aqua(task) or not task.config.num_fewshot:
        return
    contents = set(doc_contents(task))
    shared = sum(_content(task, doc) in contents for doc in task.fewshot_docs())
    if shared:
        raise TaskError(
            f"task {task.config.task}: {shared} of its demonstrations are also questions, so "
            "one could be shown with its answer",
            expected="demonstrations from another split",
            remedy="let the task's fewshot_split be demonstration, or pass --num_fewshot 0",
        )


@contextmanager
def without_own_answers(task: ConfigurableTask, hidden: Set[str]) -> Iterator[None]:
    """Within the context no prompt has its own doc, or a hidden one, among its demonstrations.

    The harness excludes a doc from its demonstrations only where both are of one named split. What
    it draws is kept but for such docs, which others of the same pool replace, drawn by the doc; a
    selection may also draw from its own split.

    Args:
        task: whose prompts are built.
        hidden: contents of docs that are never shown; in a selection, the validation split's.
    """
    if is_aqua(task) or not task.config.num_fewshot or not hasattr(task, "sampler"):
        yield
        return
    # By identity, which lasts as long as the demonstration: a sampler may make new ones.
    known: dict[int, tuple[dict[str, Any], str]] = {}
    harness_context, harness_sample = task.fewshot_context, task.sampler.sample
    asked, n_replaced = "", 0
    unread: list[str] = []

    def content(demonstration: dict[str, Any]) -> str:
        if id(demonstration) not in known:
            try:
                words = _content(task, demonstration)
            except Exception as error:  # noqa: BLE001 - they may have other columns than docs
                words = ""
                unread.append(f"{type(error).__name__}: {error}")
            known[id(demonstration)] = demonstration, words
        return known[id(demonstration)][1]

    @cache
    def own_split() -> list[dict[str, Any]]:
        docs: list[dict[str, Any]] = task.eval_docs.to_list()
        return docs

    def may_show(demonstration: dict[str, Any]) -> bool:
        return content(demonstration) != asked and content(demonstration) not in hidden

    def fewshot_context(doc: dict[str, Any], *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked = _content(task, doc)
        return harness_context(doc, *args, **options)

    def sample(n: int, **options: Any) -> Sequence[dict[str, Any]]:
        nonlocal n_replaced
        drawn = list(harness_sample(n=n, **options))
        shown = [demonstration for demonstration in drawn if may_show(demonstration)]
        if len(shown) == len(drawn):
            return drawn
        n_replaced += 1
        shown_contents = set(map(content, shown))
        drawn_by = getattr(task.sampler, "drawn_by", None)  # proxies have other demonstrations
        seed = f"{asked}{drawn_by or ''}"
        for pool in (task.sampler.fewshot_docs(), own_split() if hidden else []):
            for index in random.Random(seed).sample(range(len(pool)), len(pool)):  # noqa: S311
                if len(shown) == len(drawn):
                    return shown
                if may_show(pool[index]) and content(pool[index]) not in shown_contents:
                    shown.append(pool[index])
                    shown_contents.add(content(pool[index]))
        if len(shown) < len(drawn):
            raise TaskError(
                f"task {task.config.task}: only {len(shown)} demonstrations are neither the "
                "question itself nor a question of the validation split",
                expected=f"{len(drawn)} of them",
                remedy="pass a smaller --num_fewshot",
            )
        return shown

    task.fewshot_context, task.sampler.sample = fewshot_context, sample
    try:
        yield
    finally:
        del task.fewshot_context, task.sampler.sample
    if unread:
        logger.warning(
            "%s: %d demonstrations cannot be read as docs of the task, so it is not known whether "
            "they are among those that are evaluated (%s)",
            task.config.task, len(unread), unread[0],
        )  # fmt: skip
    if n_replaced:
        logger.warning(
            "%s: %d prompts had their own question%s among their demonstrations; others replace "
            "them",
            task.config.task,
            n_replaced,
            " or one of the validation split" if hidden else "",
        )
