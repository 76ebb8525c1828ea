"""Which options the harness's own scoring counts as correct, against the gold that a task names.

A task's target says which option is gold, but its `process_results` decides what its metrics count.
Neurons must be selected and validated on the same gold as the metrics, so the two are compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua.cleaning import plain_answer
from neuronllm_eval.errors import TaskError

logger = logging.getLogger(__name__)
# Docs of a task on which the two are compared; all docs where a task scores by its own function.
CHECKED_DOCS = 20


def target_index(target: Any, choices: Sequence[str]) -> Any:
    """A task's target as the index of an option, as the harness's scoring reads it.

    Returns:
        the target itself, in Python's own types, if it is neither an index nor an option's text.
    """
    gold = plain_answer(target)
    return choices.index(gold) if isinstance(gold, str) and gold in choices else gold


def has_own_scoring(task: ConfigurableTask) -> bool:
    """Whether a task scores answers by a function of its own, which may accept anything."""
    return callable(task.config.process_results)


def accepted_options(
    task: ConfigurableTask, doc: dict[str, Any], n_options: int, gold: int
) -> list[int]:
    """The options with the best score by the first metric that distinguishes them.

    Each option in turn is given all of the probability. A metric of the task's own that is to be
    low may count errors or, as that of crows_pairs does, unwanted golds: its highest score is the
    best if the gold alone has it.

    Returns:
        indices of options; `[]` where no metric distinguishes them.
    """
    score = _own_score if has_own_scoring(task) else _score
    by_option = []
    for option in range(n_options):
        results = [(0.0, True) if i == option else (-100.0, False) for i in range(n_options)]
        by_option.append(task.process_results(doc, results))
    higher_is_better = task.higher_is_better()
    for metric in task.aggregation():
        try:
            scores = [score(values[metric], option) for option, values in enumerate(by_option)]
        except (KeyError, TypeError, ValueError):
            continue  # no number for each question
        if not all(map(math.isfinite, scores)) or len(set(scores)) == 1:
            continue
        highest, lowest = (
            [option for option in range(n_options) if scores[option] == extreme(scores)]
            for extreme in (max, min)
        )
        is_low = has_own_scoring(task) and not higher_is_better.get(metric, True)
        return lowest if is_low and highest != [gold] else highest
    return []


def _own_score(value: Any, option: int) -> float:
    return round(float(value), 6)


def _score(value: Any, option: int) -> float:
    """A value of the harness's metric; of one over pairs (gold, prediction), whether gold fits."""
    return float(value[0] == option) if isinstance(value, tuple) else float(value)


def require_same_gold(
    task: ConfigurableTask, golds: Sequence[tuple[int, int, dict[str, Any], int]]
) -> None:
    """Refuse a task whose scoring accepts other options than the gold.

    Args:
        task: as the harness evaluates it.
        golds: doc id, gold, doc and number of options, of the docs to compare.

    Raises:
        TaskError: another option, several options, or the harness cannot score the doc.
    """
    name = task.config.task
    indistinct = 0
    for doc_id, gold, doc, n_options in golds:
        try:
            accepted = accepted_options(task, doc, n_options, gold)
        except Exception as error:  # whatever the task's own function raises
            raise TaskError(
                f"the harness cannot score doc {doc_id} of task {name}: "
                f"{type(error).__name__}: {error}",
                expected="a target and a scoring function that go together",
                remedy="choose another task",
            ) from error
        if not accepted:
            indistinct += 1
            continue
        if accepted != [gold]:
            raise TaskError(
                f"task {name} has several right answers: the target of doc {doc_id} is option "
                f"{gold}, and its scoring accepts options {', '.join(map(str, accepted))}"
                if gold in accepted
                else f"task {name}: the target of doc {doc_id} is option {gold}, and its scoring "
                f"accepts {accepted[0]}",
                expected="one correct option for each doc, the same for target and scoring "
                "(options count from 0)",
                remedy=f"choose another task; aqua:{name} excludes single docs of this kind",
            )
    if indistinct:
        logger.warning(
            "%s: its own scoring does not distinguish the options of %d of %d docs; their gold is "
            "that of the target",
            name, indistinct, len(golds),
        )  # fmt: skip
