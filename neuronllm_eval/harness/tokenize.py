"""A task's requests -> questions with token ids, exactly as `lm_eval` tokenises them.

1. Encode each (context, continuation) with the model's `_encode_pair`, and move leading tokens
   that all options share into the context (the softmax over options does not change).
2. Where a prompt is longer than the model's context, rebuild its question's prompts with fewer
   demonstrations.
3. Where even zero-shot is too long, or a doc has no usable gold or options, skip the question and
   count it, or end the run: `on_bad_doc`.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from neuronllm_eval.aqua.cleaning import counts_from_one
from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.errors import DocError, ModelError, TaskError, UsageError
from neuronllm_eval.harness.gold import (
    CHECKED_DOCS,
    has_own_scoring,
    require_same_gold,
    target_index,
)
from neuronllm_eval.harness.option_lengths import option_lengths, resolved_option_scores
from neuronllm_eval.harness.tasks import is_aqua, question_ids, validation_split
from neuronllm_eval.prompts import SUM, Prompt, Question, shared_leading_tokens

logger = logging.getLogger(__name__)
_TOO_LONG = "longer than the model's context"


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are built; the same words and defaults as `lm_eval`'s command line.

    Attributes:
        num_fewshot: demonstrations; None leaves it to the task.
        apply_chat_template: False, True, or the name of a template.
        system_instruction: put before the task's description.
        fewshot_as_multiturn: demonstrations as separate turns; only with a chat template.
        fewshot_seed: seed of the harness's demonstration sampler.
        description: role and rule line before demonstrations and question; None for the task's.
        on_bad_doc: `skip` and count docs that cannot be used, or `fail`.
        option_scores: what options are compared by, one of `prompts.OPTION_SCORES`, or `auto`
            for what the task's main metric compares.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    fewshot_seed: int = 1234
    description: str | None = None
    on_bad_doc: str = "skip"
    option_scores: str = "auto"


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one task and split, and the task with its requests built.

    Attributes:
        task: the task; its instances are those of `questions`, numbered from 0.
        split: the questions' split.
        questions: each with its prompts, in doc order.
        num_fewshot: demonstrations of each prompt that was not shortened.
        skipped: per reason, docs that are not evaluated.
        demonstrations_dropped: docs with fewer than `num_fewshot` demonstrations, to fit.
        option_scores: what their options are compared by, one of `prompts.OPTION_SCORES`.
    """

    task: ConfigurableTask
    split: str
    questions: tuple[Question, ...]
    num_fewshot: int
    skipped: dict[str, int]
    demonstrations_dropped: int
    option_scores: str = SUM

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, in doc order."""
        return tuple(prompt for question in self.questions for prompt in question.prompts)

    @property
    def doc_ids(self) -> tuple[int, ...]:
        """Indices in the task of the evaluated docs, ascending."""
        return tuple(sorted(prompt.doc_id for prompt in self.prompts))

    def without(self, question_ids: Container[str]) -> QuestionSet:
        """The same without some questions, and a copy of the task without their requests."""
        questions = tuple(each for each in self.questions if each.question_id not in question_ids)
        if len(questions) == len(self.questions):
            return self
        remaining = replace(self, questions=questions, task=copy(self.task))
        numbers = {doc_id: number for number, doc_id in enumerate(remaining.doc_ids)}
        doc_ids = self.doc_ids
        remaining.task._instances = []
        for instance in self.task.instances:
            if doc_ids[instance.doc_id] in numbers:
                instance_copy = copy(instance)  # a new Instance takes its number from its metadata
                instance_copy.doc_id = numbers[doc_ids[instance.doc_id]]
                remaining.task._instances.append(instance_copy)
        return remaining

    @property
    def counts(self) -> dict[str, Any]:
        """Docs that were skipped or shortened, for result files; empty without any."""
        counts: dict[str, Any] = {"skipped": self.skipped} if self.skipped else {}
        if self.demonstrations_dropped:
            counts["demonstrations_dropped"] = self.demonstrations_dropped
        return counts


def chat_template_text(lm: HFLM, template: bool | str) -> str | None:
    """The chat template in use; None for none.

    Args:
        lm: the harness model.
        template: whether to use the tokenizer's template, or the name of one of several.

    Raises:
        UsageError: the tokenizer has none of that name, or no default among several.
    """
    if not template:
        return None
    templates: Any = getattr(lm.tokenizer, "chat_template", None)
    names = sorted(templates) if isinstance(templates, dict) else []
    name = template if isinstance(template, str) else "default"
    if (isinstance(template, str) or names) and name not in names:
        raise UsageError(
            f"the tokenizer has no chat template of the name {name!r:.100}",
            expected=f"one of {', '.join(names)}"
            if names
            else "its only template, which has no name",
            remedy="check --apply_chat_template" + ("" if names else "; pass it without a name"),
        )
    return str(templates[name] if names else templates or "")


@cache  # once for each template
def _warn_of_dates(template: str | None) -> None:
    logger.warning(
        "the chat template writes today's date into prompts: later stages refuse the run on "
        "another day. Where the template takes a date_string, give it one: --model_args "
        '\'{"pretrained": ..., "chat_template_args": {"date_string": "1 Jan 2026"}}\''
    )


def prompt_format(lm: HFLM, settings: PromptSettings) -> dict[str, Any]:
    """How the harness formats a prompt: arguments of its functions."""
    template = chat_template_text(lm, settings.apply_chat_template)
    if isinstance(settings.apply_chat_template, str):  # lm_eval records the name and ignores it
        lm = copy(lm)
        lm.chat_template_args = {**lm.chat_template_args, "chat_template": template}
    if "strftime_now" in (template or "") and "date_string" not in lm.chat_template_args:
        _warn_of_dates(template)
    return {
        "system_instruction": settings.system_instruction,
        "apply_chat_template": template is not None,
        "fewshot_as_multiturn": settings.fewshot_as_multiturn,
        "chat_template": None if template is None else lm.apply_chat_template,
    }


@dataclass(frozen=True)
class Encoder:
    """Converts a task's instances to questions, and skips what cannot be used.

    Attributes:
        golds: by doc, its target as an index, in range or not, and the number of its options.
    """

    lm: HFLM
    task: ConfigurableTask
    settings: PromptSettings
    golds: dict[int, tuple[int, int]] = field(default_factory=dict)

    def encode(self, chosen: Sequence[int]) -> QuestionSet:
        """The questions of the docs `chosen`, whose requests the task has built."""
        built: dict[int, list[Instance]] = defaultdict(list)
        for instance in self.task.instances:
            built[chosen[instance.doc_id]].append(instance)  # numbered among the chosen
        identities = question_ids(self.task)
        requests: dict[str, dict[int, list[Instance]]] = defaultdict(dict)
        for doc_id in chosen:  # those without options have no instances
            requests[identities[doc_id]][doc_id] = built.get(doc_id, [])
        questions: list[Question] = []
        usable: dict[int, list[Instance]] = {}
        skipped: Counter[str] = Counter()
        n_shortened, first_error = 0, None
        for identity, docs in requests.items():
            try:
                prompts, by_doc, is_short = self._question(docs)
            except DocError as error:
                if self.settings.on_bad_doc == "fail":
                    raise
                first_error = first_error or error
                skipped[error.reason] += len(docs)
                continue
            n_shortened += len(docs) if is_short else 0
            questions.append(Question(identity, tuple(prompts)))
            usable.update(by_doc)
        if counts_from_one(self.golds.values()):
            raise TaskError(
                f"the target of task {self.task.config.task} counts from 1: some is the number of "
                "options, and none is 0",
                expected="an index that counts from 0",
                remedy="subtract 1 in the task's doc_to_target",
            )
        if not questions:
            assert first_error is not None  # there is at least one doc
            raise DocError(
                f"none of {len(chosen)} docs of task {self.task.config.task} can be used: "
                f"{_listed(skipped)}; the first: {first_error.found}",
                expected=first_error.expected,
                remedy=first_error.remedy
                if first_error.reason != _TOO_LONG
                else "choose another task, or a model with a longer context",
                reason=first_error.reason,
            ) from first_error
        self._require_gold([prompt for each in questions for prompt in each.prompts], usable)
        if first_error is not None:
            self._report(skipped, len(chosen), first_error)
        if n_shortened:
            logger.warning(
                "%s: %d of %d docs have fewer demonstrations, to fit the model's context of %d",
                self.task.config.task,
                n_shortened,
                len(chosen),
                self.lm.max_length,
            )
        self._keep(usable)
        return QuestionSet(
            task=self.task,
            split=validation_split(self.task),
            questions=tuple(questions),
            num_fewshot=int(self.task.config.num_fewshot or 0),
            skipped=dict(sorted(skipped.items())),
            demonstrations_dropped=n_shortened,
            option_scores=self._option_scores,
        )

    def _require_gold(self, prompts: list[Prompt], usable: dict[int, list[Instance]]) -> None:
        """Refuse a task whose scoring accepts other options than the gold; on its first docs."""
        is_own = has_own_scoring(self.task) and not is_aqua(self.task)
        first = prompts if is_own else prompts[:CHECKED_DOCS]
        golds = [
            (prompt.doc_id, prompt.gold, usable[prompt.doc_id][0].doc, len(prompt.options))
            for prompt in first
        ]
        require_same_gold(self.task, golds)

    def _question(
        self, docs: dict[int, list[Instance]]
    ) -> tuple[list[Prompt], dict[int, list[Instance]], bool]:
        """A question's prompts, their instances, and whether demonstrations were dropped.

        All proxies of a question have the same number of demonstrations.
        """
        prompts = [self._prompt(doc_id, instances) for doc_id, instances in docs.items()]
        n_shots = int(self.task.config.num_fewshot or 0)
        is_short = False
        while n_shots and any(prompt.n_tokens > self.lm.max_length for prompt in prompts):
            n_shots, is_short = n_shots - 1, True
            docs = {doc_id: self._with_shots(built, n_shots) for doc_id, built in docs.items()}
            prompts = [self._prompt(doc_id, instances) for doc_id, instances in docs.items()]
        for prompt in prompts:
            if prompt.n_tokens > self.lm.max_length:
                raise DocError(
                    f"doc {prompt.doc_id} of task {self.task.config.task} has {prompt.n_tokens} "
                    "tokens without any demonstration",
                    expected=f"at most the model's context of {self.lm.max_length}",
                    remedy="use a model with a longer context, or pass --on_bad_doc skip",
                    reason=_TOO_LONG,
                )
        return prompts, docs, is_short

    def _with_shots(self, instances: Sequence[Instance], n_shots: int) -> list[Instance]:
        """The requests of a doc, rebuilt with `n_shots` demonstrations.

        Random demonstrations are redrawn, so that neither other docs nor the number of attempts
        matters.
        """
        self.task.set_fewshot_seed(seed=self.settings.fewshot_seed)
        first, options = instances[0], prompt_format(self.lm, self.settings)
        doc = first.doc
        context = self.task.fewshot_context(
            doc, n_shots, **options, gen_prefix=self.task.doc_to_prefix(doc)
        )
        built: list[Instance] = self.task.construct_requests(
            doc=doc,
            ctx=context,
            metadata=first.metadata,
            apply_chat_template=options["apply_chat_template"],
            chat_template=options["chat_template"],
        )
        return built

    def _prompt(self, doc_id: int, instances: list[Instance]) -> Prompt:
        task = self.task
        if not instances:
            raise DocError(
                f"doc {doc_id} of task {task.config.task} has no options",
                expected="two or more",
                remedy="check doc_to_choice",
                reason="fewer than 2 options",
            )
        doc = instances[0].doc
        instances.sort(key=lambda request: request.idx)
        n_options = len(task.doc_to_choice(doc))
        gold = self._gold(doc_id, doc, task.doc_to_choice(doc))
        if n_options > len(LETTERS):
            raise DocError(
                f"doc {doc_id} of task {task.config.task} has {n_options} options",
                expected=f"at most {len(LETTERS)}, each of which reports name by a letter",
                remedy=f"use aqua:{task.config.task} with --n_options {len(LETTERS)}, which keeps "
                "the gold option and a draw of the others",
                reason=f"more than {len(LETTERS)} options",
            )
        encoded = [_encode(self.lm, *request.args[:2]) for request in instances[:n_options]]
        context = encoded[0][0]
        if any(other != context for other, _ in encoded):
            raise DocError(
                f"doc {doc_id} of task {task.config.task} has a different context for each option",
                expected="one context, several options",
                remedy="choose another task",
                reason="a context for each option",
            )
        if not context:  # tokens that the options share do not help: nothing predicts them
            raise DocError(
                f"doc {doc_id} of task {task.config.task} has an empty context",
                expected="at least one context token, since its logits decide the option",
                remedy="give the task a doc_to_text, or the tokenizer a BOS token",
                reason="empty context",
            )
        options = [list(option) for _, option in encoded]
        self._require_embedded((*context, *(token for option in options for token in option)))
        n_shared = shared_leading_tokens(options)
        return Prompt(
            doc_id,
            (*context, *options[0][:n_shared]),
            tuple(tuple(option[n_shared:]) for option in options),
            gold,
            n_shared,
            option_lengths(task.doc_to_choice(doc), self._option_scores),
        )

    @cached_property
    def _option_scores(self) -> str:
        return resolved_option_scores(self.task, self.settings.option_scores)

    def _gold(self, doc_id: int, doc: dict[str, Any], choices: Sequence[str]) -> int:
        """The index of the gold option, as the harness's scoring reads the target."""
        target = self.task.doc_to_target(doc)
        gold = target_index(target, choices)
        if isinstance(gold, int):
            self.golds[doc_id] = gold, len(choices)
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise DocError(
                f"doc {doc_id} of task {self.task.config.task} has gold {target!r}",
                expected=f"one index from 0 to {len(choices) - 1}, or the text of one option",
                remedy="check the task's doc_to_target",
                reason="several right answers"
                if isinstance(gold, list)
                else "gold missing or out of range",
            )
        return gold

    @cached_property
    def _n_embedded(self) -> int:
        """Number of tokens that the model has embeddings for."""
        return int(self.lm.model.get_input_embeddings().num_embeddings)

    def _require_embedded(self, tokens: Sequence[int]) -> None:
        """Raise ModelError for tokens that the model has no embedding for."""
        if max(tokens) >= self._n_embedded:
            raise ModelError(
                f"the tokenizer gives token {max(tokens)}, and the model has {self._n_embedded}",
                expected="the tokenizer that belongs to the model",
                remedy="check pretrained= and tokenizer= in --model_args",
            )

    def _keep(self, instances: dict[int, list[Instance]]) -> None:
        """Set the task's instances to these docs', numbered as the harness numbers them."""
        self.task._instances = []
        for number, doc_id in enumerate(sorted(instances)):
            for instance in instances[doc_id]:
                instance.doc_id = number
                self.task._instances.append(instance)

    def _report(self, skipped: Counter[str], n_docs: int, first: DocError) -> None:
        logger.warning(
            "%s: %d of %d docs cannot be used and are skipped: %s; the first: %s",
            self.task.config.task,
            skipped.total(),
            n_docs,
            _listed(skipped),
            first.found,
        )


def _listed(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())


def _encode(lm: HFLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    try:
        if context:
            return lm._encode_pair(context, continuation)
        return [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
    except Exception as error:  # whatever a tokenizer raises
        raise ModelError(
            f"the tokenizer cannot encode {context[-40:] + continuation!r}: {error}",
            expected="a tokenizer that accepts any text",
            remedy="check the tokenizer files, and tokenizer= and add_bos_token= in --model_args",
        ) from error
