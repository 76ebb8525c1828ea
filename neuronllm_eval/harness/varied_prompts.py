"""A task as it is, with each question asked under several prompts: `--n_proxies`.

1. Each doc becomes `n_proxies` docs side by side (`VariedPrompts.eval_docs`).
2. Each has other demonstrations, and the next of the task's wordings; the first is the harness's
   own prompt. No two prompts of a question are the same text.
3. Beside the task's metrics are those by question: consistency, majority and fortuity, which
   compare options as the task's main metric does. Standard errors of means are clustered by
   question; those of other metrics, such as `mcc`, are the harness's, which takes docs as
   independent.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import datasets
import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua import metrics
from neuronllm_eval.aqua.proxies import ALL_LETTERS
from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.errors import DocError, TaskError
from neuronllm_eval.harness.gold import target_index
from neuronllm_eval.harness.option_lengths import (
    AUTO,
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


def with_varied_prompts(task: ConfigurableTask, n_proxies: int | str) -> ConfigurableTask:
    """A copy of a task that asks each question under `n_proxies` prompts, the first as it did.

    Raises:
        TaskError: its metadata have another number, or wordings that are no templates; or `all`,
            which is of letters.
    """
    if n_proxies == ALL_LETTERS:
        raise TaskError(
            f"n_proxies is {ALL_LETTERS}, and the options of task {task.config.task} have no "
            "letters for the gold option to visit",
            expected="an AQUA task, or a number of prompts",
            remedy=f"pass --tasks {PREFIX}{task.config.task}, or a number as --n_proxies",
        )
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
    for wording in wordings:
        _require_wording(task, wording)
    kind = type("VariedTask", (VariedPrompts, type(task)), {})
    return remade(task, kind, metadata=metadata)


def _require_wording(task: ConfigurableTask, wording: str) -> None:
    """Refuse a wording that the task cannot use, or that says nothing of its first doc."""
    own = type(task).doc_to_text is not ConfigurableTask.doc_to_text or task.prompt is not None
    try:
        text = "" if own else str(task.doc_to_text(task.eval_docs[0], wording)).strip()
        found = "says nothing of the first doc"
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        text, found = "", f"cannot be read: {type(error).__name__}: {error}"
    if not text:
        raise TaskError(
            f"wording {wording!r:.100} of task {task.config.task} "
            + ("is not used: a function of the task's own words its prompts" if own else found),
            expected="a template over the columns of the docs, as doc_to_text could be",
            remedy="correct wordings in the task's metadata",
        )


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
        self._own_wording = self.config.doc_to_text
        if hasattr(self, "sampler"):
            self.sampler = _Demonstrations(self.sampler)
        # By question and number of demonstrations, the prompt of each proxy.
        self._prompts: dict[tuple[int, int], dict[int, str]] = defaultdict(dict)

    @property
    def n_varied_prompts(self) -> int:
        """Prompts of each question."""
        return int(self.config.metadata[N_PROXIES])

    @cached_property
    def _docs(self) -> Any:
        docs = super().eval_docs
        index = np.arange(len(docs) * self.n_varied_prompts)
        # Not by the methods of data sets, which write every row again.
        table = docs.with_format("arrow")[:].take(index // self.n_varied_prompts)
        number = datasets.Value("int64")
        columns = {_QUESTION: index // self.n_varied_prompts, _PROXY: index % self.n_varied_prompts}
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
            DocError: there are not with the fewer demonstrations that the model has room for.
        """
        question, proxy = doc[_QUESTION], doc[_PROXY]
        plain = {name: value for name, value in doc.items() if name not in (_QUESTION, _PROXY)}
        prompts = self._prompts[question, num_fewshot]
        others = [text for other, text in prompts.items() if other != proxy]
        for attempt in range(_MOST_DRAWS if num_fewshot and proxy else 1):
            if hasattr(self, "sampler"):
                self.sampler.drawn_by = (question, proxy, attempt) if proxy else None
            with self._worded(proxy):
                prompts[proxy] = super().fewshot_context(plain, num_fewshot, **options)
            if prompts[proxy] not in others:
                return prompts[proxy]
        self._refuse(question, num_fewshot, len(others))

    def _refuse(self, question: int, num_fewshot: int, n_made: int) -> NoReturn:
        found = (
            f"question {question} of task {self.config.task} has no prompt beside the {n_made} "
            f"that were made, with {num_fewshot} demonstrations"
        )
        expected = (
            f"{self.n_varied_prompts} different ones, since --n_proxies asks each question with so "
            "many sets of demonstrations, or wordings in the task's metadata"
        )
        if num_fewshot < int(self.config.num_fewshot or 0):
            raise DocError(
                f"{found}; more do not fit the model's context",
                expected=expected,
                remedy="use a model with a longer context, or lower --n_proxies",
                reason="too few different prompts that fit the model's context",
            )
        raise TaskError(
            found,
            expected=expected,
            remedy="raise --num_fewshot (a task that fixes 0 ignores it), add wordings to the "
            "task's metadata, or lower --n_proxies",
        )

    @contextmanager
    def _worded(self, proxy: int) -> Iterator[None]:
        """Within the context question and demonstrations are worded as this proxy has them.

        Demonstrations that the task words in their own way (`fewshot_config`) are left so.
        """
        config, shots, own = self.config, self.fewshot_cfg, self._own_wording
        wordings = list(dict.fromkeys([own, *config.metadata.get(WORDINGS, [])]))
        wording = wordings[proxy % len(wordings)]
        changed = [each for each in (config, shots) if each.doc_to_text == own]
        for each in changed:
            each.doc_to_text = wording
        try:
            yield
        finally:
            for each in changed:
                each.doc_to_text = own

    def plain_text(self, doc: Mapping[str, Any]) -> Any:
        """The text of a question as the task itself words it, whatever the proxy at hand."""
        if not self.config.metadata.get(WORDINGS):  # a class of the task's own may take none
            return self.doc_to_text(doc)
        return self.doc_to_text(doc, self._own_wording)

    def process_results(self, doc: Any, results: Any) -> Any:
        """The task's metrics, and what is needed for those by question."""
        values = dict(super().process_results(doc, results))
        for metric in self._means:
            if metric in values:
                values[f"{metric}_stderr"] = doc[_QUESTION], float(values[metric])
        by = resolved_option_scores(self, self.option_scores)
        return {**values, **dict.fromkeys(_AGGREGATIONS, self._answer(doc, results, by))}

    @property
    def _means(self) -> list[str]:
        """Names of the task's own metrics that are means of a number for each doc."""
        return [name for name, combine in super().aggregation().items() if combine is mean]

    def _answer(
        self, doc: Mapping[str, Any], results: Sequence[tuple[float, bool]], option_scores: str
    ) -> metrics.Answer:
        choices = self.doc_to_choice(doc)
        scores = np.array([loglikelihood for loglikelihood, _ in results])
        with np.errstate(divide="ignore"):  # as the harness, of an option without text
            scores = scores / (option_lengths(choices, option_scores) or 1.0)
        predicted = int(np.argmax(scores))
        return metrics.Answer(
            question_id=str(doc[_QUESTION]),
            proxy=int(doc[_PROXY]),
            n_proxies=self.n_varied_prompts,
            gold=target_index(self.doc_to_target(doc), choices),
            predicted=predicted,
            chosen=predicted,
        )

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """As the task's, with metrics by question."""
        errors = {f"{name}_stderr": clustered_stderr for name in self._means}
        return {**super().aggregation(), **errors, **_AGGREGATIONS}

    def higher_is_better(self) -> dict[str, bool]:
        """As the task's, with metrics by question."""
        return {**super().higher_is_better(), **_BY_QUESTION}


def clustered_stderr(values: Sequence[tuple[int, float]]) -> float:
    """Standard error of a mean over docs, clustered by question; NaN of fewer than two questions.

    Args:
        values: of each doc its question and value.
    """
    numbers, questions = np.unique([question for question, _ in values], return_inverse=True)
    n = len(numbers)
    if n < 2:
        return math.nan
    found = np.array([value for _, value in values])
    residuals = np.bincount(questions, weights=found - found.mean())
    return float(math.sqrt(n / (n - 1) * np.square(residuals).sum()) / len(found))


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
        if name.startswith("_"):
            raise AttributeError(name)  # such as those that a copy asks for
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
        """`n` demonstrations."""
        if self.drawn_by is None:
            return self._sampler.sample(n=n, eval_doc=eval_doc, df=df, **options)
        # What a prompt may not show, its own question among it, is replaced (`harness.leakage`).
        pool = self.fewshot_docs()
        draw = random.Random(str((self._seed, *self.drawn_by)))  # noqa: S311
        return [pool[index] for index in draw.sample(range(len(pool)), n)]
