"""`neuronllm.json`: which condition an adapter or checkpoint is, and of which weights."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import PlainValidator
from torch import nn

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.formats.typed_files import Count, artifact, load, one_of
from neuronllm_eval.interventions.conditions import ConditionName, Scales, condition_scales
from neuronllm_eval.models.fingerprints import Weights
from neuronllm_eval.models.hub import Reference, fetch, is_repo_id
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance

logger = logging.getLogger(__name__)
EXPORT_FILE = "neuronllm.json"
FORMATS = ("peft", "merged")


def _all_scales(value: Any) -> Scales:
    """All factors, of which `Scales` itself may leave out any."""
    names = {field.name for field in fields(Scales)}
    is_whole = isinstance(value, dict) and value.keys() == names
    if is_whole and all(type(factor) in (int, float) for factor in value.values()):
        return Scales(**value)
    raise ValueError(f"{value!r:.100} is not a factor for each of {', '.join(sorted(names))}")


@artifact
@dataclass(frozen=True)
class Export:
    """One condition as it stands in an adapter or a merged checkpoint.

    Attributes:
        format: one of `FORMATS`.
        condition: its name, as `--condition` takes it.
        top_k: good and bad neurons it was made of.
        scales: factors of the two operations.
        n_scaled: neurons whose factor is not 1.
        n_layers: layers of the model.
        width: neurons of each layer.
        provenance: of the neurons; its `model_hash` is the base model's.
    """

    format: Annotated[str, one_of(FORMATS)]
    condition: str
    top_k: Count
    scales: Annotated[Scales, PlainValidator(_all_scales)]
    n_scaled: Count
    n_layers: Count
    width: Count
    provenance: Provenance
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        ConditionName.parse(self.condition)

    @classmethod
    def of(
        cls, neurons: NeuronSet, condition: str, scales: Scales, format_name: str
    ) -> tuple[Export, NDArray[Any]]:
        """An export and its [layers, neurons] float32 factors.

        Args:
            neurons: those the condition uses: the first `top_k` of a run.
            condition: its name.
            scales: the factors of its operations.
            format_name: one of `FORMATS`.
        """
        factors = condition_scales(neurons, condition, scales)
        return cls(
            format=format_name,
            condition=condition,
            top_k=neurons.top_k,
            scales=scales,
            n_scaled=int((factors != 1).sum()),
            n_layers=neurons.n_layers,
            width=neurons.width,
            provenance=neurons.provenance,
        ), factors

    def to_json(self) -> str:
        """The content of `neuronllm.json`."""
        return dump_json(dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Export:
        """Read the `neuronllm.json` of a folder.

        Raises:
            ArtifactError: it is missing, damaged, or of another schema.
        """
        return load(cls, folder / EXPORT_FILE, "export it again")


def warn_of_other_base(model: nn.Module, peft: str, revision: str | None, name: str) -> None:
    """Log a warning if an adapter that `export` made is on other weights than it was made for.

    Args:
        model: with the adapter.
        peft: its folder, or its name on the Hub.
        revision: its revision on the Hub.
        name: the base model's.
    """
    folder = Path(peft)
    if not folder.is_dir() and is_repo_id(peft):
        try:
            folder = fetch(Reference(peft, revision), EXPORT_FILE).path.parent
        except ArtifactError as error:
            logger.debug("the base model of %s is unknown: %s", peft, error)
    if not (folder / EXPORT_FILE).is_file():
        return
    origin = Export.load(folder).provenance
    if Weights.of_base(model).differ(origin):
        logger.warning(
            "the adapter %s was made for other weights than those of %s (for those of %s), or "
            "lm_eval has fitted the vocabulary to the tokenizer's, as it does with peft=",
            peft, name, origin.model_name,
        )  # fmt: skip
