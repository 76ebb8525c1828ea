"""The functions that task YAML files name: `!function neuronllm_eval.task_functions.NAME`.

This is their one public home; where they are defined may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuronllm_eval.aqua.dataset import load_aqua
from neuronllm_eval.aqua.metrics import (
    acc_consistent,
    acc_consistent_stderr,
    acc_majority,
    acc_majority_stderr,
    acc_stderr,
    fortuity,
    fortuity_stderr,
    position_bias,
    position_bias_stderr,
    process_results,
)
from neuronllm_eval.harness.tasks import AquaTask

if TYPE_CHECKING:
    from neuronllm_eval.aqua.dataset import AquaSplits

__all__ = [
    "AquaTask",
    "acc_consistent",
    "acc_consistent_stderr",
    "acc_majority",
    "acc_majority_stderr",
    "acc_stderr",
    "fortuity",
    "fortuity_stderr",
    "load_aqua",
    "load_converted",
    "position_bias",
    "position_bias_stderr",
    "process_results",
]


def load_converted(**values: Any) -> AquaSplits:
    """The splits of an `aqua:NAME` task; see `harness.aqua_conversion.convert.load_converted`."""
    from neuronllm_eval.harness.aqua_conversion.convert import load_converted as load

    return load(**values)
