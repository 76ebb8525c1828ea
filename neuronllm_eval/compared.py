"""What a comparison of methods is made of: a run's outcomes at one number of neurons. Pure.

Runs that differ only in their seed are repeats of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.edited_neurons import Edited


class Key(NamedTuple):
    """What repeats have in common.

    Attributes:
        model: name and weights' digest.
        task: of the harness.
        split: that judged.
        terms: names and values of all else that has to be equal where methods are compared, the
            seed and what it changes aside (`comparability.Terms`), and how many questions were
            asked for (`limit`).
        top_k: good and bad neurons that were asked for.
        method: that scored the neurons.
        settings: names and values of what the method was set to (`run_terms.method_settings`).
    """

    model: tuple[str, str]
    task: str
    split: str
    terms: tuple[tuple[str, str], ...]
    top_k: int
    method: str
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Compared:
    """What a run's first `top_k` neurons did.

    Attributes:
        key: see `Key`.
        seed: of the run's questions.
        n_good: good neurons that there were; a method may find fewer than asked for.
        n_bad: bad ones.
        table: right or wrong and confidence of every doc.
        names: what the table calls each condition.
        edited: by condition, how many neurons it edits; `same_as` is a condition too.
        controls: by condition, what the table calls each random control, in order.
    """

    key: Key
    seed: int
    n_good: int
    n_bad: int
    table: DocTable
    names: dict[str, str]
    edited: dict[str, Edited]
    controls: dict[str, list[str]]

    @property
    def judged(self) -> list[str]:
        """The conditions that edit something."""
        return [name for name in self.names if self.edited[name].n_neurons]
