"""What a task's options are compared by, and the lengths that their log-likelihoods are divided by.

The harness answers a multiple-choice doc three ways: `acc` takes the option with the highest
log-likelihood, `acc_norm` divides it by the length of the option's text in characters, `acc_bytes`
in bytes. Neurons are attributed and validated by the same scores as the task's main metric, which
is the first of the three in its metric list (our reading).
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.errors import UsageError
from neuronllm_eval.harness.tasks import is_aqua
from neuronllm_eval.prompts import PER_BYTE, PER_CHARACTER, SUM

AUTO = "auto"
# By what options are compared: the harness's metric that says which share is answered correctly.
METRIC_OF = {SUM: "acc", PER_CHARACTER: "acc_norm", PER_BYTE: "acc_bytes"}


def resolved_option_scores(task: ConfigurableTask, option_scores: str) -> str:
    """What a task's options are compared by.

    Args:
        task: a multiple-choice task.
        option_scores: one of `prompts.OPTION_SCORES`, or `auto`: that of the first of the metrics
            `acc`, `acc_norm` and `acc_bytes` in its list, `sum` without any, and in AQUA tasks.

    Raises:
        UsageError: lengths are asked for in an AQUA task.
    """
    if is_aqua(task):
        if option_scores not in (AUTO, SUM):
            raise UsageError(
                f"option_scores is {option_scores}, and {task.config.task} is an AQUA task",
                expected="auto or sum: the options of AQUA tasks are letters",
                remedy="check --option_scores, or use the task as it is, without aqua:",
            )
        return SUM
    if option_scores != AUTO:
        return option_scores
    by_metric = {metric: scores for scores, metric in METRIC_OF.items()}
    return next((by_metric[name] for name in task.aggregation() if name in by_metric), SUM)


def option_lengths(choices: Sequence[str], option_scores: str) -> tuple[float, ...]:
    """The lengths of the options' texts, as the harness's `process_results` counts them.

    Args:
        choices: the texts, which the harness puts behind the context and a delimiter.
        option_scores: one of `prompts.OPTION_SCORES`.

    Returns:
        a length for each option; empty for `sum`.
    """
    if option_scores == PER_CHARACTER:
        return tuple(float(len(text)) for text in choices)
    if option_scores == PER_BYTE:
        return tuple(float(len(text.encode("utf-8"))) for text in choices)
    return ()
