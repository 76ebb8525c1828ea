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
from neuronllm_eval.evaluation.validation_docs import EvaluatedDocs
from neuronllm_eval.harness.results import ResultFile
from neuronllm_eval.interventions.conditions import UNMASKED, factor_text
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


@dataclass(frozen=True)
class Terms:
    """What must be equal in rows that are compared.

    Attributes:
        split: validation split.
        n_questions: evaluated; of pooled rows at most how many, 0 for all.
        question_ids: digest of their ids, in no order; empty in pooled rows.
        docs: digest of (id, gold option) of every doc, in order; empty in pooled rows.
        n_proxies: prompts of a question; 1 where the task is no AQUA task.
        orders: of the options; this and the next three are empty where it is no AQUA task.
        letter_style: of the letters before the options.
        n_options: to which options were cut or filled up.
        distractors: source of the options that were filled in.
        num_fewshot: demonstrations.
        description: digest of the role and rule line.
        system_instruction: digest.
        chat_template: "none", "the model's own", or a name.
        multiturn: whether demonstrations are separate turns; True without a chat template.
        metadata: digest of what `--metadata` gave to the task.
        task_config: digest of the rest of the harness task's configuration.
        chosen_split: the neurons were selected on.
        n_chosen_on: questions that they were selected on; as `n_questions` in pooled rows.
        chosen_at: positions at which they were selected.
        applied_at: positions at which they were edited.
        top_k: good and bad neurons that were edited; 0 in pooled rows, where K is a column.
        suppress: factor of suppressing.
        enhance: factor of enhancing.
        lm_eval: version that evaluated.
        neuronllm_eval: version that evaluated, or else identified.
    """

    split: str
    n_questions: int
    question_ids: str
    docs: str
    n_proxies: str
    orders: str
    letter_style: str
    n_options: str
    distractors: str
    num_fewshot: str
    description: str
    system_instruction: str
    chat_template: str
    multiturn: bool
    metadata: str
    task_config: str
    chosen_split: str
    n_chosen_on: int
    chosen_at: str
    applied_at: str
    top_k: int
    suppress: float
    enhance: float
    lm_eval: str
    neuronllm_eval: str

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


_PROMPTS = ("n_proxies", "orders", "n_options", "distractors")
# term -> a difference in words, and terms whose difference implies it.
_WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "split": ("validation split {} instead of {}", ()),
    "n_questions": ("{} question{s} instead of {}", ()),
    "question_ids": ("other questions", ("split", "n_questions")),
    "docs": (
        "other orders of the questions or of their options",
        ("split", "n_questions", "question_ids", *_PROMPTS),
    ),
    "n_proxies": ("{} prompt{s} of each question instead of {}", ()),
    "orders": ("orders {} instead of {}", ()),
    "letter_style": ("letter style {} instead of {}", ()),
    "n_options": ("number of options {} instead of {}", ()),
    "distractors": ("distractors {} instead of {}", ()),
    "num_fewshot": ("{} demonstration{s} instead of {}", ()),
    "description": ("other description", ()),
    "system_instruction": ("other system instruction", ()),
    "chat_template": ("chat template: {} instead of {}", ()),
    "multiturn": ("demonstrations as turns: {} instead of {}", ("chat_template",)),
    "metadata": ("other --metadata", ()),
    "task_config": ("other definition of the task", ("lm_eval", "neuronllm_eval")),
    "chosen_split": ("neurons selected on split {} instead of {}", ()),
    "n_chosen_on": ("neurons selected on {} question{s} instead of {}", ()),
    "chosen_at": ("neurons selected at {} positions instead of {}", ()),
    "applied_at": ("neurons edited at {} positions instead of {}", ()),
    "top_k": ("K {} instead of {}", ()),
    "suppress": ("suppressing by the factor {} instead of {}", ()),
    "enhance": ("enhancing by the factor {} instead of {}", ()),
    "lm_eval": ("lm_eval {} instead of {}", ()),
    "neuronllm_eval": ("neuronllm-eval {} instead of {}", ()),
}


def differences(terms: Terms, other: Terms) -> tuple[str, ...]:
    """In what the first terms differ from the others, in words."""
    values, others = dataclasses.asdict(terms), dataclasses.asdict(other)
    differing = [name for name in _WORDS if values[name] != others[name]]
    return tuple(
        _WORDS[name][0].format(
            _text(name, values[name]),
            _text(name, others[name]),
            s="" if str(values[name]) == "1" else "s",
        )
        for name in differing
        if not set(_WORDS[name][1]) & set(differing)
    )


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
        order = sorted(
            n_runs,
            key=lambda terms: (
                -n_runs[terms],
                -n_rows[terms],
                -terms.top_k,
                *dataclasses.astuple(terms),
            ),
        )
        for number, terms in enumerate(order):
            differs = differences(terms, order[0])
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
    asked: EvaluatedDocs,
) -> tuple[Terms, Terms]:
    """The terms of a run's conditions, and those that its repeats with other seeds share.

    Points of a sweep have another K and other factors.

    Raises:
        ArtifactError: the result file of the unmasked run, or `commands.jsonl`, is damaged.
    """
    origin, prompts = neurons.provenance, record.docs.get("asked", {})
    result, config = _harness_results(run, settings.task)
    template = settings.apply_chat_template
    terms = Terms(
        split=asked.split,
        n_questions=len(asked.questions),
        question_ids=digest(json.dumps(sorted(asked.questions))),
        docs=digest(json.dumps(asked.docs)),
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
        top_k=record.top_k,
        suppress=float(record.scales.suppress),
        enhance=float(record.scales.enhance),
        lm_eval=str(result.lm_eval_version),
        neuronllm_eval=_version(run) or origin.tool_version,
    )
    return terms, terms.of_repeats(settings.limit, validation_limit(run, settings))


def method_settings(settings: RunSettings) -> dict[str, Any]:
    """A method's own settings, and those of the run that decide its neurons."""
    method = METHODS.get(settings.method)  # None for a user's own method
    along_path = method is None or (method.quantity is not None and method.quantity.path)
    names = (*(_PATH_SETTINGS if along_path else ()), *_SELECTION_SETTINGS)
    return {name: getattr(settings, name) for name in names} | dict(settings.method_args)


def _harness_results(run: RunDirectory, task: str) -> tuple[ResultFile, dict[str, Any]]:
    """The result file of the unmasked run, and the task's configuration in it."""
    result = load_result(run, UNMASKED)
    if task not in result.configs:
        raise ArtifactError(
            f"{run.result(UNMASKED)} has no configuration of task {task}",
            expected="a result file that this package wrote",
            remedy="run validate again",
        )
    return result, dict(result.configs[task])


def _version(run: RunDirectory) -> str:
    """This package's version at the last validation; empty where the run does not record it."""
    versions = [each.versions for each in load_commands(run) if each.stage == "validate"]
    return versions[-1].get("neuronllm-eval", "") if versions else ""
