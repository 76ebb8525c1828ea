"""Which rows of a task may be compared, and in words why others may not.

1. `Terms` are all that must be equal except model, method and seed: the questions and their
   prompts, what the neurons were selected on, how many were edited and by which factors, and the
   versions.
2. Rows of equal terms are a set. Sets have letters; `a` is the set of most runs.
3. Every other set says in what it differs from `a`.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_table import EvaluatedDocs
from neuronllm_eval.interventions.conditions import OPERATIONS, UNMASKED, Scales, factor_text
from neuronllm_eval.models.fingerprints import digest, task_hash
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import (
    ValidationRecord,
    load_commands,
    load_result,
    validation_limit,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings

# Settings of a run that decide its neurons besides the method's own; only attribution along a path
# has the first ones.
_PATH_SETTINGS = ("quadrature", "n_steps")
_SELECTION_SETTINGS = ("top_z", "ambiguous", "attribution_dtype")
_TEMPLATES = {False: "none", True: "the model's own"}


def _term(words: str, *implied_by: str) -> Any:
    """A term: a difference in words, and the terms whose difference implies it."""
    return dataclasses.field(metadata={"words": words, "implied_by": implied_by})


@dataclass(frozen=True)
class Terms:
    """What must be equal in rows that are compared.

    Texts that are too long to be shown are digests, as are the ids of questions (in no order) and
    the (id, gold option) of the docs in order. Texts about prompts are empty where a task is no
    AQUA task. In pooled rows, ids and docs are empty, K is 0 as it is a column, and the numbers of
    questions are at most how many, 0 for all.
    """

    split: str = _term("validation split {} instead of {}")
    n_questions: int = _term("{} question{s} instead of {}")
    question_ids: str = _term("other questions", "split", "n_questions")
    docs: str = _term(
        "other orders of the questions or of their options",
        *("split", "n_questions", "question_ids", "n_proxies", "orders", "n_options"),
        "distractors",
    )
    n_proxies: str = _term("{} prompt{s} of each question instead of {}")
    orders: str = _term("orders {} instead of {}")
    letter_style: str = _term("letter style {} instead of {}")
    n_options: str = _term("number of options {} instead of {}")
    distractors: str = _term("distractors {} instead of {}")
    num_fewshot: str = _term("{} demonstration{s} instead of {}")
    description: str = _term("other description")
    system_instruction: str = _term("other system instruction")
    chat_template: str = _term("chat template: {} instead of {}")
    multiturn: bool = _term("demonstrations as turns: {} instead of {}", "chat_template")
    metadata: str = _term("other --metadata")
    task_config: str = _term("other definition of the task", "lm_eval", "neuronllm_eval")
    chosen_split: str = _term("neurons selected on split {} instead of {}")
    n_chosen_on: int = _term("neurons selected on {} question{s} instead of {}")
    chosen_at: str = _term("neurons selected at {} positions instead of {}")
    applied_at: str = _term("neurons edited at {} positions instead of {}")
    option_scores: str = _term("option scores {} instead of {}")
    top_k: int = _term("K {} instead of {}")
    scales: Scales = _term("{operation} by the factor {} instead of {}")  # noqa: RUF009
    lm_eval: str = _term("lm_eval {} instead of {}")
    neuronllm_eval: str = _term("neuronllm-eval {} instead of {}")

    def values(self) -> dict[str, Any]:
        """The terms by name, with a factor for each operation in place of `scales`."""
        values = dataclasses.asdict(self)
        return values | values.pop("scales")

    def of_repeats(self, n_selected_on: int | None, n_evaluated: int | None) -> Terms:
        """The terms without what another seed may change.

        Args:
            n_selected_on: `--limit` of the selection; None for all questions.
            n_evaluated: `--limit` of the validation. Another seed may lose a few questions, whose
                prompts are too long in its orders, so that repeats have the limits in common.
        """
        return dataclasses.replace(
            self,
            question_ids="",
            docs="",
            n_questions=n_evaluated or 0,
            n_chosen_on=n_selected_on or 0,
            top_k=0,
        )


def differences(terms: Terms, other: Terms) -> tuple[str, ...]:
    """In what the first terms differ from the others, in words."""
    values, others = terms.values(), other.values()
    sentences = []
    for field in dataclasses.fields(Terms):
        if any(getattr(terms, n) != getattr(other, n) for n in field.metadata["implied_by"]):
            continue
        names = dataclasses.asdict(terms.scales) if field.name == "scales" else (field.name,)
        sentences += [
            field.metadata["words"].format(
                _text(name, values[name]),
                _text(name, others[name]),
                s="" if str(values[name]) == "1" else "s",
                operation=OPERATIONS[name].verb if name in OPERATIONS else "",
            )
            for name in names
            if values[name] != others[name]
        ]
    return tuple(sentences)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("n_questions", "n_chosen_on"):
        return str(value or "all")
    return factor_text(value) if isinstance(value, float) else str(value) or "none"


@dataclass(frozen=True)
class ComparableSet:
    """Rows of one task that may be compared.

    Attributes:
        task: of the harness.
        letter: a, b, ..., z, aa, ...
        n_runs: that have rows in it.
        differs: in words, from the task's set `a`; empty for that one.
        terms: what its rows have in common.
    """

    task: str
    letter: str
    n_runs: int
    differs: tuple[str, ...]
    terms: Terms


def comparable_sets(results: Sequence[tuple[str, str, Terms]]) -> list[ComparableSet]:
    """The sets of each task, by task, the one of most runs, then of most rows, first.

    Args:
        results: (task, run, terms) of each row.
    """
    sets = []
    for task in sorted({task for task, _, _ in results}):
        of_task = [(run, terms) for name, run, terms in results if name == task]
        n_runs = Counter(terms for _, terms in set(of_task))
        n_rows = Counter(terms for _, terms in of_task)  # points of a sweep are fewer than runs

        def order(terms: Terms) -> tuple[Any, ...]:
            values = dataclasses.astuple(terms)
            return -n_runs[terms], -n_rows[terms], -terms.top_k, *values  # noqa: B023

        first, *others = sorted(n_runs, key=order)
        for number, terms in enumerate((first, *others)):
            differs = differences(terms, first)
            sets.append(ComparableSet(task, _letters(number), n_runs[terms], differs, terms))
    return sets


def _letters(number: int) -> str:
    ahead, last = divmod(number, len(string.ascii_lowercase))
    return (_letters(ahead - 1) if ahead else "") + string.ascii_lowercase[last]


def run_terms(
    run: RunDirectory,
    settings: RunSettings,
    neurons: NeuronSet,
    record: ValidationRecord,
    docs: EvaluatedDocs,
) -> tuple[Terms, Terms]:
    """The terms of a run's conditions, and those that its repeats with other seeds share.

    Points of a sweep have another K and other factors.

    Raises:
        ArtifactError: the result file of the unmasked run, or `commands.jsonl`, is damaged.
    """
    origin, prompts = neurons.provenance, record.docs.get("asked", {})
    result = load_result(run, UNMASKED)
    if settings.task not in result.configs:
        raise ArtifactError(
            f"{run.result(UNMASKED)} has no configuration of task {settings.task}",
            expected="a result file that this package wrote",
            remedy="run validate again",
        )
    config = dict(result.configs[settings.task])
    versions = [line.versions for line in load_commands(run) if line.stage == "validate"]
    version = versions[-1].get("neuronllm-eval", "") if versions else ""
    template = settings.apply_chat_template
    terms = Terms(
        split=docs.split,
        n_questions=len(docs.questions),
        question_ids=digest(json.dumps(sorted(docs.questions))),
        docs=digest(json.dumps(docs.docs)),
        n_proxies=str(prompts.get("n_proxies") or 1),
        orders=str(prompts.get("orders") or ""),
        letter_style=str(prompts.get("letter_style") or ""),
        n_options=str(prompts.get("n_options") or ""),
        distractors=str(prompts.get("distractors") or ""),
        num_fewshot=str(config.pop("num_fewshot", None) or 0),
        description=digest(str(config.pop("description", None) or "")),
        system_instruction=digest(settings.system_instruction or ""),
        chat_template=template if isinstance(template, str) else _TEMPLATES[template],
        multiturn=settings.fewshot_as_multiturn or not template,
        metadata=digest(json.dumps(settings.metadata, sort_keys=True, default=str)),
        task_config=task_hash(config),
        chosen_split=origin.split,
        n_chosen_on=origin.n_questions,
        chosen_at=origin.positions,
        applied_at=record.positions,
        option_scores=origin.option_scores,
        top_k=record.top_k,
        scales=record.scales,
        lm_eval=str(result.lm_eval_version),
        neuronllm_eval=version or origin.tool_version,
    )
    return terms, terms.of_repeats(settings.limit, validation_limit(run, settings))


def method_settings(settings: RunSettings) -> dict[str, Any]:
    """A method's own settings, and those of the run that decide its neurons."""
    method = METHODS.get(settings.method)  # None for a user's own method
    along_path = method is None or (method.quantity is not None and method.quantity.path)
    names = (*(_PATH_SETTINGS if along_path else ()), *_SELECTION_SETTINGS)
    return {name: getattr(settings, name) for name in names} | dict(settings.method_args)
