"""Harness tasks -> questions with token ids, exactly as `lm_eval` builds and tokenises them.

With `masked_lm` and `harness_results`, the only module that touches lm-eval's inner API:

1. load tasks by name, with the packaged ones known;
2. make a copy of a task whose evaluated split is the selection split;
3. let the task build its own requests (few-shot, chat template, system instruction);
4. encode each (context, continuation) with the model's `_encode_pair`, and move leading tokens
   that all options share into the context (the softmax over options does not change).
"""

from __future__ import annotations

import difflib
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import set_torch_seed

from neuronllm_eval.aqua import AquaDocs
from neuronllm_eval.errors import DocError, NeuronLLMError, TaskError, UsageError
from neuronllm_eval.prompts import Prompt, Question, shared_leading_tokens
from neuronllm_eval.tasks_path import tasks_dir

logger = logging.getLogger(__name__)
# Columns that belong to a question besides `question` and `choices`.
_PASSAGES = ("passage", "article", "context", "support", "premise", "hypothesis", "text")


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are built; the same words and defaults as `lm_eval`'s command line.

    Attributes:
        num_fewshot: demonstrations; None leaves it to the task.
        apply_chat_template: False, True, or the name of a template.
        system_instruction: put before the task's description.
        fewshot_as_multiturn: demonstrations as separate turns; only with a chat template.
        fewshot_seed: seed of the harness's demonstration sampler.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    fewshot_seed: int = 1234


@dataclass(frozen=True)
class AquaSettings:
    """Overrides of an AQUA task's shuffling; None leaves what the task's YAML says."""

    n_proxies: int | None = None
    seed: int | None = None


def load_tasks(
    names: Sequence[str], include_path: Sequence[str | Path] = (), metadata: Any = None
) -> dict[str, ConfigurableTask]:
    """Leaf tasks by name, groups and tags expanded; the packaged tasks are always known.

    Raises:
        TaskError: a name is unknown, or a task's configuration or data cannot be loaded.
        UsageError: `include_path` is not a directory.
    """
    if not names:
        raise UsageError("no task given", expected="one or more names", remedy="pass --tasks")
    for path in include_path:
        if not Path(path).is_dir():
            raise UsageError(
                f"--include_path {path} is not a directory",
                expected="a directory of task YAML files",
                remedy="check the path",
            )
    paths = [tasks_dir(), *include_path]
    # Reading the harness's thousands of YAML files takes seconds; do it only when needed.
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    if not all(name in manager.all_tasks for name in names):
        manager = TaskManager(include_path=paths, metadata=metadata)
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            inside = [known for known in manager.all_tasks if name.lower() in known.lower()]
            alike = difflib.get_close_matches(name, manager.all_tasks)
            close = list(dict.fromkeys((*alike, *inside)))[:5]
            raise TaskError(
                f"unknown task {name!r}",
                expected="the name of a task or group"
                + (f"; close to it: {', '.join(close)}" if close else ""),
                remedy="see `lm_eval ls tasks`, or pass --include_path",
            )
    try:
        _seed_as_lm_eval()
        tasks = manager.load(list(names))["tasks"]
    except NeuronLLMError:
        raise
    except Exception as error:  # whatever a YAML, its functions or the data set raise
        raise TaskError(
            f"tasks {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}",
            expected="a valid task configuration whose data set is reachable",
            remedy="try `lm_eval validate --tasks ...`",
        ) from error
    return {name: _require_multiple_choice(name, task) for name, task in tasks.items()}


def _require_multiple_choice(name: str, task: Any) -> ConfigurableTask:
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind != "multiple_choice" or getattr(task, "multiple_input", 0):
        raise TaskError(
            f"task {name} has output_type {kind}"
            + (" with one context per choice" if getattr(task, "multiple_input", 0) else ""),
            expected="output_type multiple_choice: one context, several options",
            remedy="choose a multiple-choice task",
        )
    return task


def validation_split(task: ConfigurableTask) -> str:
    """The split the harness evaluates: test, or validation if there is none."""
    config = task.config
    split = config.test_split or config.validation_split
    assert split is not None  # ConfigurableTask refuses tasks with neither
    return split


def selection_split(task: ConfigurableTask, override: str | None = None) -> str:
    """The split whose docs choose neurons: training, or validation where a test split exists.

    Raises:
        TaskError: there is no such split, or it is the one that judges.
    """
    config = task.config
    judging = validation_split(task)
    fallback = config.validation_split if config.test_split else None
    split = override or config.training_split or fallback
    known = ", ".join(task.dataset) if hasattr(task.dataset, "keys") else "unknown"
    if split is None or (override and override not in task.dataset):
        raise TaskError(
            f"task {config.task} has no split {override!r}"
            if override
            else f"task {config.task} names no training or validation split",
            expected=f"a split to choose neurons on; the data set has: {known}",
            remedy="pass --selection_split",
        )
    if split == judging:
        raise TaskError(
            f"task {config.task}: the selection split {split!r} is also the validation split",
            expected="docs that choose neurons and docs that judge them, never the same",
            remedy=f"pass another --selection_split; the data set has: {known}",
        )
    return split


def on_split(task: ConfigurableTask, split: str, aqua: AquaSettings) -> ConfigurableTask:
    """A copy of a task that evaluates `split`, with other AQUA settings if given.

    Raises:
        TaskError: AQUA settings given for a task that is not an AQUA task.
    """
    # Not config.to_dict(): that would turn a process_docs that is a dataclass into a dict.
    config = {item.name: getattr(task.config, item.name) for item in fields(task.config)}
    config["test_split"] = split
    changes: dict[str, Any] = {
        name: value
        for name, value in (("n_proxies", aqua.n_proxies), ("seed", aqua.seed))
        if value is not None
    }
    if changes and is_aqua(task):
        config["process_docs"] = replace(task.config.process_docs, **changes)
    elif aqua.n_proxies not in (None, 1):
        raise TaskError(
            f"task {task.config.task} is not an AQUA task, so --n_proxies cannot apply",
            expected="process_docs: !function neuronllm_eval.aqua.aqua_docs in its YAML",
            remedy="leave out --n_proxies, or use an AQUA task",
        )
    try:
        _seed_as_lm_eval()
        return type(task)(config=config)
    except Exception as error:  # whatever the data of that split make the task raise
        raise TaskError(
            f"task {task.config.task} cannot be read on the split {split!r}: "
            f"{type(error).__name__}: {error}",
            expected="docs of the same form as in the split the task evaluates",
            remedy="pass another --selection_split, or mend the data",
        ) from error


def _seed_as_lm_eval() -> None:
    """Some tasks shuffle options when they are read; `lm_eval` seeds before, with these seeds."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


def is_aqua(task: ConfigurableTask) -> bool:
    """Whether the task asks each question under several orders of its options."""
    return isinstance(task.config.process_docs, AquaDocs)


def question_id(task: ConfigurableTask, doc_id: int, doc: dict[str, Any]) -> str:
    """The question a doc belongs to: AQUA's id, or one made from the task and the doc's index."""
    return str(doc["question_id"]) if is_aqua(task) else f"{task.config.task}-{doc_id}"


def overlapping_questions(one: ConfigurableTask, other: ConfigurableTask) -> set[str]:
    """Question ids of `one` whose content `other` has too, whatever the order of the options."""
    known = {_content(other, doc) for doc in other.eval_docs}
    return {
        question_id(one, doc_id, doc)
        for doc_id, doc in enumerate(one.eval_docs)
        if _content(one, doc) in known
    }


def _content(task: ConfigurableTask, doc: dict[str, Any]) -> str:
    """What a doc asks: its words in no order, so that the order of the options does not count."""
    if isinstance(doc.get("question"), str) and isinstance(doc.get("choices"), list):
        parts = [doc["question"], *doc["choices"], *(doc.get(name) for name in _PASSAGES)]
    else:
        parts = [task.doc_to_text(doc), *task.doc_to_choice(doc)]
    return " ".join(sorted(" ".join(map(str, parts)).lower().split()))


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one task and split, and the task with its requests built."""

    task: ConfigurableTask
    split: str
    questions: tuple[Question, ...]
    num_fewshot: int

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, in doc order."""
        return tuple(prompt for question in self.questions for prompt in question.prompts)


def build_questions(
    lm: HFLM,
    task: ConfigurableTask,
    settings: PromptSettings,
    limit: int | None = None,
    exclude: Iterable[str] = (),
    draw_seed: int | None = None,
) -> QuestionSet:
    """Let the task build its requests, and encode them as the model does.

    Args:
        lm: the harness model; its tokenizer and chat template are used.
        task: a multiple-choice task; its few-shot setting and instances are set.
        settings: how prompts are built.
        limit: number of questions (not proxies), from the front; None for all.
        exclude: question ids to leave out.
        draw_seed: draw the limited questions by this seed instead of taking the first, since
            data may be sorted by label. AQUA tasks are shuffled already.

    Raises:
        DocError: a doc without a usable gold, with indistinguishable options, or longer than the
            model's context.
        UsageError: the limit is not positive, or no question is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"limit is {limit}", expected="1 or more questions", remedy="check --limit"
        )
    if "acc_mutual_info" in task.aggregation():
        raise TaskError(
            f"task {task.config.task} has the metric acc_mutual_info",
            expected="metrics of the options given their context; that one also asks for each "
            "option without it",
            remedy="leave it out of the task's metric_list",
        )
    _apply_fewshot(task, settings)
    _require_clean_demonstrations(task)
    chosen = _choose_docs(task, limit, set(exclude), draw_seed)
    try:
        task.build_all_requests(
            samples=set(chosen),  # a set: the harness looks every doc of the split up in it
            rank=0,
            world_size=1,
            system_instruction=settings.system_instruction,
            apply_chat_template=bool(settings.apply_chat_template),
            fewshot_as_multiturn=settings.fewshot_as_multiturn,
            chat_template=lm.apply_chat_template if settings.apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if settings.apply_chat_template else "",
        )
    except Exception as error:  # whatever templates, samplers and the task's functions raise
        raise TaskError(
            f"the harness cannot build the requests of task {task.config.task}: "
            f"{type(error).__name__}: {error}",
            expected="a chat template if one is to be applied, and enough demonstrations",
            remedy="check --apply_chat_template and --num_fewshot",
        ) from error
    instances = defaultdict(list)
    for instance in task.instances:
        instances[chosen[instance.doc_id]].append(instance)  # the harness counts the chosen ones
    grouped: dict[str, list[Prompt]] = defaultdict(list)
    for doc_id, requests in instances.items():
        doc = requests[0].doc
        requests.sort(key=lambda request: request.idx)
        grouped[question_id(task, doc_id, doc)].append(_encode_doc(lm, task, doc_id, doc, requests))
    return QuestionSet(
        task=task,
        split=validation_split(task),
        questions=tuple(
            Question(identity, tuple(prompts)) for identity, prompts in grouped.items()
        ),
        num_fewshot=int(task.config.num_fewshot or 0),
    )


def _apply_fewshot(task: ConfigurableTask, settings: PromptSettings) -> None:
    # As lm_eval.simple_evaluate: a task that fixes 0 demonstrations keeps them.
    if settings.num_fewshot and task.config.num_fewshot == 0:
        logger.warning("%s: fixes 0 demonstrations; --num_fewshot is ignored", task.config.task)
    elif settings.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=settings.fewshot_seed)


def _require_clean_demonstrations(task: ConfigurableTask) -> None:
    """Refuse an AQUA task whose demonstrations may be proxies of the question asked.

    The harness leaves out only a demonstration that equals the doc, which a proxy does not.
    """
    if not is_aqua(task) or not task.config.num_fewshot:
        return
    asked = {_content(task, doc) for doc in task.eval_docs}
    shared = sum(_content(task, doc) in asked for doc in task.fewshot_docs())
    if shared:
        raise TaskError(
            f"task {task.config.task}: {shared} of its demonstrations are questions that it asks, "
            "so a question could be shown with its answer",
            expected="demonstrations from a split of their own",
            remedy="name one as fewshot_split, with fewshot_config: {sampler: first_n, "
            "process_docs: !function neuronllm_eval.aqua.demonstration_docs}, or pass "
            "--num_fewshot 0",
        )


def _choose_docs(
    task: ConfigurableTask, limit: int | None, excluded: set[str], draw_seed: int | None
) -> list[int]:
    """Indices of the docs of the first, or of the drawn, `limit` questions, in order.

    Raises:
        UsageError: no question is left.
    """
    docs_of: dict[str, list[int]] = defaultdict(list)
    for doc_id, doc in enumerate(task.eval_docs):
        docs_of[question_id(task, doc_id, doc)].append(doc_id)
    questions = [question for question in docs_of if question not in excluded]
    if not questions:
        raise UsageError(
            f"no question is left of task {task.config.task}",
            expected="at least one",
            remedy="check the splits and --overlap",
        )
    if limit is not None:
        if draw_seed is not None and not is_aqua(task):
            random.Random(draw_seed).shuffle(questions)
        questions = questions[:limit]
    return sorted(doc_id for question in questions for doc_id in docs_of[question])


def _encode_doc(
    lm: HFLM, task: ConfigurableTask, doc_id: int, doc: dict[str, Any], requests: Sequence[Any]
) -> Prompt:
    n_options = len(task.doc_to_choice(doc))
    gold = _gold_index(task, doc_id, doc, n_options)
    encoded = [_encode(lm, *request.args[:2]) for request in requests[:n_options]]
    context = encoded[0][0]
    if any(other != context for other, _ in encoded):
        raise DocError(
            f"doc {doc_id} of task {task.config.task} has a different context for each option",
            expected="one context, several options",
            remedy="choose another task",
        )
    options = [list(option) for _, option in encoded]
    n_shared = shared_leading_tokens(options)
    prompt = Prompt(
        doc_id,
        (*context, *options[0][:n_shared]),
        tuple(tuple(option[n_shared:]) for option in options),
        gold,
        n_shared,
    )
    if prompt.n_tokens > lm.max_length:
        raise DocError(
            f"doc {doc_id} of task {task.config.task} has {prompt.n_tokens} tokens",
            expected=f"at most the model's context of {lm.max_length}",
            remedy="use fewer demonstrations (--num_fewshot) or a model with a longer context",
        )
    return prompt


def _encode(lm: HFLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    if context:
        return lm._encode_pair(context, continuation)
    return [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)


def _gold_index(task: ConfigurableTask, doc_id: int, doc: dict[str, Any], n_options: int) -> int:
    gold = task.doc_to_target(doc)
    if isinstance(gold, str) and gold in (choices := task.doc_to_choice(doc)):
        gold = choices.index(gold)
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < n_options:
        raise DocError(
            f"doc {doc_id} of task {task.config.task} has gold {gold!r}",
            expected=f"one index from 0 to {n_options - 1}, or the text of one option",
            remedy="check the task's doc_to_target",
        )
    return gold
