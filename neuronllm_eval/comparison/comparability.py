"""Which runs of a task may be compared, and in words why others may not. Pure.

1. `Terms` are all that must be equal but model, method and seed: the questions, how they were
   asked, what chose the neurons, how many and how far they were turned, and the versions.
2. Results of equal terms are a set. Sets have letters; `a` is that of most runs.
3. Each other set says in what it differs from `a`.
"""

from __future__ import annotations

import dataclasses
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from neuronllm_eval.interventions.conditions import factor_text


@dataclass(frozen=True)
class Terms:
    """What must be equal in results that are compared.

    Attributes:
        split: that judged.
        n_questions: that judged.
        question_ids: digest of the ids of these, in no order.
        docs: digest of (id, gold option) of every doc, in order.
        n_proxies: how often each was asked; 1 where the task is no AQUA task.
        orders: of the options; this and the next three are empty where it is none.
        letter_style: before the options.
        n_options: to which options were cut or filled up.
        distractors: from where they were filled up.
        num_fewshot: demonstrations.
        description: digest of the role and rule line.
        system_instruction: digest.
        chat_template: "none", "the model's own", or a name.
        multiturn: whether demonstrations are turns of their own; True without a chat template.
        metadata: digest of what `--metadata` gave to the task.
        task_config: digest of the rest of the harness task's configuration.
        chosen_split: that chose the neurons.
        n_chosen_on: questions that chose them.
        chosen_at: positions at which they were chosen.
        applied_at: positions at which they were edited.
        top_k: good and bad neurons that were edited.
        suppress: factor of suppressing.
        enhance: factor of enhancing.
        lm_eval: version that judged.
        neuronllm_eval: version that judged; the one that chose where that is not known.
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


_ASKED = ("n_proxies", "orders", "n_options", "distractors")
# term -> how a difference is said, and terms whose difference says it already.
_WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "split": ("validation split {} instead of {}", ()),
    "n_questions": ("{} question{s} instead of {}", ()),
    "question_ids": ("other questions", ("split", "n_questions")),
    "docs": (
        "other orders of the questions or of their options",
        ("split", "n_questions", "question_ids", *_ASKED),
    ),
    "n_proxies": ("each asked {} time{s} instead of {}", ()),
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
    "chosen_split": ("neurons chosen on split {} instead of {}", ()),
    "n_chosen_on": ("neurons chosen on {} question{s} instead of {}", ()),
    "chosen_at": ("neurons chosen at {} positions instead of {}", ()),
    "applied_at": ("neurons edited at {} positions instead of {}", ()),
    "top_k": ("K {} instead of {}", ()),
    "suppress": ("suppressing by the factor {} instead of {}", ()),
    "enhance": ("enhancing by the factor {} instead of {}", ()),
    "lm_eval": ("lm_eval {} instead of {}", ()),
    "neuronllm_eval": ("neuronllm-eval {} instead of {}", ()),
}


def differences(terms: Terms, other: Terms) -> tuple[str, ...]:
    """In what the first terms differ from the others, in words."""
    mine, theirs = dataclasses.asdict(terms), dataclasses.asdict(other)
    differing = [name for name in _WORDS if mine[name] != theirs[name]]
    return tuple(
        _WORDS[name][0].format(
            _text(mine[name]), _text(theirs[name]), s="" if str(mine[name]) == "1" else "s"
        )
        for name in differing
        if not set(_WORDS[name][1]) & set(differing)
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return factor_text(value) if isinstance(value, float) else str(value) or "none"


@dataclass(frozen=True)
class ComparableSet:
    """Results of one task that may be compared.

    Attributes:
        task: of the harness.
        letter: a, b, ..., z, aa, ...
        n_runs: that have results in it.
        differs: in words, from the task's set `a`; empty for that one.
        terms: what its results have in common.
    """

    task: str
    letter: str
    n_runs: int
    differs: tuple[str, ...]
    terms: Terms


def comparable_sets(results: Sequence[tuple[str, str, Terms]]) -> list[ComparableSet]:
    """The sets of each task, by task, the one of most runs, then of most results, first.

    Args:
        results: (task, run, terms) of each result.
    """
    found = []
    for task in sorted({task for task, _, _ in results}):
        own = [(run, terms) for name, run, terms in results if name == task]
        n_runs = Counter(terms for _, terms in set(own))
        order = _in_order([terms for _, terms in own], n_runs)
        for number, terms in enumerate(order):
            differs = differences(terms, order[0])
            found.append(ComparableSet(task, _letters(number), n_runs[terms], differs, terms))
    return found


def _in_order(results: Sequence[Terms], n_runs: Counter[Terms]) -> list[Terms]:
    """Most runs first; then most results, as points of a sweep have fewer than whole runs."""
    n_results = Counter(results)

    def place(terms: Terms) -> tuple[object, ...]:
        return (-n_runs[terms], -n_results[terms], -terms.top_k, *dataclasses.astuple(terms))

    return sorted(n_runs, key=place)


def _letters(number: int) -> str:
    ahead, last = divmod(number, len(string.ascii_lowercase))
    return (_letters(ahead - 1) if ahead else "") + string.ascii_lowercase[last]
