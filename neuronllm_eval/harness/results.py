"""Pass option log-likelihoods to the harness: its metrics, its stderr, its result files.

1. A model that looks answers up stands in for the language model.
2. `lm_eval.evaluate` runs the task on it, with the requests built earlier.
3. `EvaluationTracker` writes the result file, as the `lm_eval` command does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info, get_commit_from_path
from lm_eval.models.huggingface import HFLM
from pydantic import ConfigDict, with_config

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.atomic import digest_of
from neuronllm_eval.formats.typed_files import parse
from neuronllm_eval.harness.tokenize import QuestionSet

# doc_id -> per option (log-likelihood in log-nats, whether greedy decoding gives it).
Answers = Mapping[int, Sequence[tuple[float, bool]]]


class DocIds(list[int]):
    """The docs of a task that the harness evaluates; it tests every doc of the split."""

    def __init__(self, doc_ids: Iterable[int]) -> None:
        super().__init__(doc_ids)
        self._set = frozenset(self)

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._set


class AnsweredLM(LM):
    """A harness model with stored answers.

    Args:
        answers: by the docs' indices in the task.
        doc_ids: the evaluated docs, which the harness numbers in its requests.
    """

    def __init__(self, answers: Answers, doc_ids: Sequence[int]) -> None:
        super().__init__()
        self.answers = answers
        self.doc_ids = doc_ids

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The stored answer to each request."""
        return [self.answers[self.doc_ids[request.doc_id]][request.idx] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not used by multiple-choice tasks."""
        raise TypeError("only multiple-choice requests are answered")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Not used by multiple-choice tasks."""
        raise TypeError("only multiple-choice requests are answered")


@contextmanager
def _built_requests(task: ConfigurableTask) -> Iterator[None]:
    """Within the context the task keeps its requests; afterwards they are unanswered.

    Their docs are not looked up in the data, which takes longer than all metrics.
    """
    docs = sorted({each.doc_id: each.doc for each in task.instances}.items())
    task.build_all_requests = lambda **_: None
    task.doc_iterator = lambda **_: iter(docs)
    try:
        yield
    finally:
        del task.build_all_requests, task.doc_iterator
        for instance in task.instances:
            instance.resps.clear()
            instance.filtered_resps.clear()


def harness_metrics(questions: QuestionSet, answers: Answers) -> dict[str, Any]:
    """What `lm_eval.evaluate` returns for these answers, stderr included."""
    doc_ids = DocIds(questions.doc_ids)
    with _built_requests(questions.task):
        results = evaluator.evaluate(
            lm=AnsweredLM(answers, doc_ids),
            task_dict={"tasks": {questions.task.task_name: questions.task}},
            samples={questions.task.task_name: doc_ids},
            log_samples=False,
        )
    assert results is not None  # one process only
    return dict(results)


def harness_loglikelihoods(lm: HFLM, questions: QuestionSet, n_prompts: int) -> list[list[float]]:
    """What the harness's model itself gives for the options of the first prompts, in log-nats."""
    requests: dict[int, list[Instance]] = defaultdict(list)
    doc_ids = questions.doc_ids
    for instance in questions.task.instances:
        requests[doc_ids[instance.doc_id]].append(instance)
    plain = copy(lm)
    plain.batch_size_per_gpu = 1  # not `auto`, which tries sizes
    answers = []
    for prompt in questions.prompts[:n_prompts]:
        instances = sorted(requests[prompt.doc_id], key=lambda instance: instance.idx)
        options = plain.loglikelihood(instances[: len(prompt.options)], disable_tqdm=True)
        answers.append([loglikelihood for loglikelihood, _ in options])
    return answers


def _git_hash() -> str | None:
    """Of the working directory's repository, as lm_eval finds it, without git's messages."""
    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, check=True)  # noqa: S607
        return done.stdout.decode().strip()
    except (subprocess.CalledProcessError, OSError):  # no repository, or no git
        commit = get_commit_from_path(os.getcwd())
        return None if commit is None else str(commit)


@dataclass(frozen=True)
class ResultContext:
    """What a result file contains besides metrics; gathered once per run."""

    model_args: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    system_instruction: str | None
    chat_template: str | None
    fewshot_as_multiturn: bool

    @classmethod
    def gather(cls, lm: Any, config: dict[str, Any], **settings: Any) -> ResultContext:
        """Read machine and tokenizer, which takes a second or two."""
        environment: dict[str, Any] = {"git_hash": _git_hash(), "date": time.time()}
        add_env_info(environment)
        add_tokenizer_info(environment, lm)
        return cls(config=config, environment=environment, **settings)


@with_config(ConfigDict(strict=True, extra="ignore"))
@dataclass(frozen=True)
class ResultFile:
    """The parts of an lm_eval result file that this package reads.

    Attributes:
        results: by task, its metrics; NaN is possible.
        configs: by task, its configuration.
        config: of the evaluation.
        lm_eval_version: of the harness.
    """

    results: dict[str, dict[str, Any]]
    configs: dict[str, dict[str, Any]]
    config: dict[str, Any]
    lm_eval_version: str | None = None

    def metrics(self, task: str, path: Path) -> dict[str, float]:
        """A task's metrics without their standard errors; those that are numbers.

        Args:
            task: its name.
            path: the file, for error messages.

        Raises:
            ArtifactError: the file has no results of the task.
        """
        if task not in self.results:
            raise ArtifactError(
                f"{path} has no results of task {task}",
                expected="a result file that this package wrote",
                remedy="run validate again",
            )
        numbers = {}
        for key, value in self.results[task].items():
            name, comma, _ = key.partition(",")
            # An integer may have more digits than a float can hold.
            is_number = isinstance(value, float) or (type(value) is int and abs(value) < 1 << 53)
            if comma and is_number and not name.endswith("_stderr"):
                numbers[name] = float(value)
        return numbers


def write_result(
    path: Path,
    metrics: dict[str, Any],
    context: ResultContext,
    arguments: dict[str, Any],
    section: dict[str, Any],
) -> tuple[ResultFile, str]:
    """Write one condition's result file, with the mask's identity in its config section.

    Returns what it holds, and its SHA-256 digest.

    Args:
        path: the file.
        metrics: what `harness_metrics` returned.
        context: see `ResultContext`.
        arguments: those of the masked model that make the mask.
        section: its description in result files (`masked_lm.mask_options.MaskOptions.section`).

    Raises:
        ArtifactError: the harness could not write it.
    """
    model_args = {**context.model_args, **arguments}
    results = {
        **metrics,
        "config": {
            **context.config,
            "model": "neuronllm",
            "model_args": model_args,
            "neuronllm": section,
        },
        **context.environment,
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}.json")
    tracker = EvaluationTracker(output_path=str(draft))
    tracker.general_config_tracker.log_experiment_args(
        model_source="neuronllm",
        model_args=model_args,
        system_instruction=context.system_instruction,
        chat_template=context.chat_template,
        fewshot_as_multiturn=context.fewshot_as_multiturn,
    )
    try:
        tracker.save_results_aggregated(results=results)
        # The tracker adds a date to the name. It only logs a failure, and may leave half a file.
        dated = draft.with_name(f"{draft.stem}_{getattr(tracker, 'date_id', '')}.json")
        result = parse(ResultFile, dated.read_text(encoding="utf-8"), str(dated), "")
        digest = digest_of(dated)
        dated.replace(path)
        return result, digest
    except (OSError, ValueError, ArtifactError) as error:
        raise ArtifactError(
            f"{path} could not be written",
            expected="a directory that can be written, on a disk with room",
            remedy="make room, then repeat the command, which resumes; --verbosity INFO shows the "
            "harness's reason",
        ) from error
    finally:
        for left in path.parent.glob(f"{draft.stem}_*"):
            left.unlink()
