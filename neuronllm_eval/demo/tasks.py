"""The demo's questions as the harness loads them (`custom_dataset` of `tasks/demo/_demo.yaml`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuronllm_eval.demo import FAMILIES, SPLITS, load_questions
from neuronllm_eval.errors import TaskError

if TYPE_CHECKING:
    import datasets


def load_family(family: str = "", **_: Any) -> datasets.DatasetDict:
    """One family's questions, in the form the harness calls for.

    Args:
        family: which family, from the task's `dataset_kwargs`.
        _: the task's metadata and the harness's own arguments, which do not matter here.

    Returns:
        The splits selection, validation and demonstration, each with the columns id, question,
        choices, answer and subfamily.

    Raises:
        TaskError: if there is no such family.
    """
    import datasets

    if family not in FAMILIES:
        raise TaskError(
            f"the demo has no family {family!r}",
            expected=f"one of {', '.join(FAMILIES)}",
            remedy="set dataset_kwargs: {family: ...} in the task's YAML",
        )
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(load_questions(family, split)) for split in SPLITS}
    )
