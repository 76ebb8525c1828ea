"""What reports show of a run besides a `TaskReport`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.explained_tokens import NeuronTokens
from neuronllm_eval.judged_docs import JudgedDoc


@dataclass(frozen=True)
class RunDetails:
    """What is known of a run besides a `TaskReport`.

    Attributes:
        table: answers of every doc under every condition; None before validation.
        docs: [docs] what they say; empty where that was not kept.
        tokens: by kind, layer and index of a neuron; empty where neither identification nor
            `explain` could tell.
        commands: that make the run again.
    """

    table: DocTable | None = None
    docs: tuple[JudgedDoc, ...] = ()
    tokens: Mapping[tuple[str, int, int], NeuronTokens] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
