"""What an export says of itself: `neuronllm.json`, in the folder of an adapter or a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray

from neuronllm_eval.formats.json_files import dump_json
from neuronllm_eval.formats.typed_files import Count, artifact, load, one_of
from neuronllm_eval.interventions.conditions import ConditionName, Scales, condition_scales
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance

EXPORT_FILE = "neuronllm.json"
FORMATS = ("peft", "merged")


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
    scales: Scales
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
