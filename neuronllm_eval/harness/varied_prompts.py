"""A task as it is, with each question asked under several prompts: `--n_proxies`.

1. Each doc becomes `n_proxies` docs side by side (`VariedPrompts.eval_docs`).
2. Each has other demonstrations, and the next of the task's wordings; the first is the harness's
   own prompt. No two prompts of a question are the same text.
3. Beside the task's metrics are those by question: consistency, majority and fortuity, which
   compare options as the task's main metric does; standard errors are clustered by question.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua import metrics
from neuronllm_eval.errors import TaskError
from neuronllm_eval.harness.gold import target_index
from neuronllm_eval.harness.option_lengths import (
    AUTO,
    METRIC_OF,
    option_lengths,
    resolved_option_scores,
)
from neuronllm_eval.harness.tasks import remade

# In a task's metadata: prompts of each question, and templates in place of doc_to_text.
N_PROXIES, WORDINGS = "n_proxies", "wordings"
_QUESTION, _PROXY = "neuronllm_question", "neuronllm_proxy"
# Draws of demonstrations until one makes a prompt that the question has not had.
_MOST_DRAWS = 100
# Metrics by question, and whether high values are good.
_BY_QUESTION = {"acc_consistent": True, "acc_majority": True, "fortuity": False}
_AGGREGATIONS = {
    name: getattr(metrics, name)
    for metric in _BY_QUESTION
    for name in (metric, f"{metric}_stderr")  # after its metric, for which the harness writes one
}


def with_varied_prompts(task: ConfigurableTask, n_proxies: int) -> ConfigurableTask:
    """A copy of a task that asks each question under `n_proxies` prompts, the first as it did.

    Raises:
        TaskError: its metadata have another number, or wordings that are no templates.
    """
    metadata = {**(task.config.metadata or {}), N_PROXIES: n_proxies}
    wordings = metadata.get(WORDINGS, [])
    for name, is_fine, expected in (
        (N_PROXIES, type(n_proxies) is int and n_proxies >= 1, "a whole number, 1 or more"),
        (
            WORDINGS,
            isinstance(wordings, list) and all(isinstance(each, str) for each in wordings),
            "a list of templates, each as doc_to_text could be",
        ),
    ):
        if not is_fine:
            raise TaskError(
                f"metadata of task {task.config.task} has {name} {metadata[name]!r:.100}",
                expected=expected,
                remedy="correct the task's YAML, or --metadata",
            )
    kind = type("VariedTask", (VariedPrompts, type(task)), {})
    return remade(task, kind, metadata=metadata)


class VariedPrompts(ConfigurableTask):
    """What a task is, with several prompts for each question; see the module.

    Attributes:
        option_scores: what the metrics by question compare options by, one of
            `prompts.OPTION_SCORES`, or `auto`.
    """

    option_scores = AUTO
    sampler: ContextSampler

    def __init__(self, config: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(config=config, **options)
        if hasattr(self, "sampler"):
            self.sampler = _Demonstrations(self.sampler)
        self._prompts: dict[int, dict[int, str]] = defaultdict(dict)

    @property
    def n_proxies(self) -> int:
        """Prompts of each question."""
        return int(self.config.metadata[N_PROXIES])

    @cached_property
    def _docs(self) -> Any:
        docs = super().eval_docs
        index = np.arange(len(docs) * self.n_proxies)
        # Not by the methods of data sets, which write every row again.
        table = docs.with_format("arrow")[:].take(index // self.n_proxies)
        number = datasets.Value("int64")
        columns = {_QUESTION: index // self.n_proxies, _PROXY: index % self.n_proxies}
        for name, column in columns.items():
            table = table.append_column(name, [column])
        features = datasets.Features({**docs.features, **dict.fromkeys(columns, number)})
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))

    @property
    def eval_docs(self) -> Any:
        """Each doc `n_proxies` times, side by side."""
        return self._docs

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, **options: Any) -> Any:
        """The prompt of one proxy, which no other proxy of its question has.

        Raises:
            TaskError: there are not as many.
        """
        question, proxy = doc[_QUESTION], doc[_PROXY]
        plain = {name: value for name, value in doc.items() if name not in (_QUESTION, _PROXY)}
        prompts = self._prompts[question]
        others = [text for other, text in prompts.items() if other != proxy]
        for attempt in range(_MOST_DRAWS if num_fewshot and proxy else 1):
            if hasattr(self, "sampler"):
                self.sampler.drawn_by = (question, proxy, attempt) if proxy else None
            with self._worded(proxy):
                prompts[proxy] = super().fewshot_context(plain, num_fewshot, **options)
            if prompts[proxy] not in others:
                return prompts[proxy]
        raise TaskError(
            f"question {question} of task {self.config.task} has no prompt beside the "
            f"{len(others)} that were made, with {num_fewshot} demonstrations",
            expected=f"{self.n_proxies} different ones, since --n_proxies asks each question with "
            "so many sets of demonstrations, or wordings in the task's metadata",
            remedy="raise --num_fewshot, or lower --n_proxies",
        )

    @contextmanager
    def _worded(self, proxy: int) -> Iterator[None]:
        """Within the context question and demonstrations are worded as this proxy has them."""
        config, shots = self.config, self.fewshot_cfg
        own = config.doc_to_text
        wordings = [own, *config.metadata.get(WORDINGS, [])]
        wording = wordings[proxy % len(wordings)]
        changed = [each for each in (config, shots) if each.doc_to_text == own]
        for each in changed:
            each.doc_to_text = wording
        try:
            yield
        finally:
            for each in changed:
                each.doc_to_text = own

    def process_results(self, doc: Any, results: Any) -> Any:
        """The task's metrics, and what is needed for those by question."""
        values = dict(super().process_results(doc, results))
        for option_scores, metric in METRIC_OF.items():
            if metric in values:
                values[f"{metric}_stderr"] = self._answer(doc, results, option_scores)
        by = resolved_option_scores(self, self.option_scores)
        return {**values, **dict.fromkeys(_AGGREGATIONS, self._answer(doc, results, by))}

    def _answer(
        self, doc: Mapping[str, Any], results: Sequence[tuple[float, bool]], option_scores: str
    ) -> metrics.Answer:
        choices = self.doc_to_choice(doc)
        lengths = option_lengths(choices, option_scores) or (1.0,) * len(choices)
        pairs = zip(results, lengths, strict=True)
        predicted = int(np.argmax([loglikelihood / length for (loglikelihood, _), length in pairs]))
        return metrics.Answer(
            question_id=str(doc[_QUESTION]),
            proxy=int(doc[_PROXY]),
            n_proxies=self.n_proxies,
            gold=target_index(self.doc_to_target(doc), choices),
            predicted=predicted,
            chosen=predicted,
        )

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """As the task's, with metrics by question."""
        own = super().aggregation()
        errors = {
            f"{name}_stderr": metrics.acc_stderr for name in METRIC_OF.values() if name in own
        }
        return {**own, **errors, **_AGGREGATIONS}

    def higher_is_better(self) -> dict[str, bool]:
        """As the task's, with metrics by question."""
        return {**super().higher_is_better(), **_BY_QUESTION}


class _Demonstrations(ContextSampler):
    """Demonstrations as the task's sampler draws them, and other draws for further proxies.

    Attributes:
        drawn_by: what further draws depend on; None for the sampler's own.
    """

    def __init__(self, sampler: ContextSampler) -> None:
        self._sampler = sampler
        self._seed: int | None = None
        self.drawn_by: tuple[int, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def set_rnd(self, rnd: int | None) -> _Demonstrations:
        """Seed all draws."""
        self._seed = rnd
        self._sampler.set_rnd(rnd)
        return self

    def fewshot_docs(self) -> Any:
        """All demonstrations."""
        return self._sampler.fewshot_docs()

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **options: Any) -> Any:
        """`n` demonstrations, without the question itself."""
        if self.drawn_by is None:
            return self._sampler.sample(n=n, eval_doc=eval_doc, df=df, **options)
        pool = self.fewshot_docs()
        draw = random.Random(str((self._seed, *self.drawn_by)))  # noqa: S311
        order = draw.sample(range(len(pool)), min(n + 1, len(pool)))
        return [pool[index] for index in order if pool[index] != eval_doc][:n]
