"""What an export says of itself: `neuronllm.json`, in the folder of an adapter or a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.json_files import dump_json, exact_keys, read_json, require_schema
from neuronllm_eval.interventions.conditions import Scales, condition_scales, require_condition
from neuronllm_eval.neurons.neuron_set import NeuronSet, Provenance

EXPORT_FILE = "neuronllm.json"
FORMATS = ("peft", "merged")
SCHEMA_VERSION = 1
_AGAIN = "export it again"


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

    format: str
    condition: str
    top_k: int
    scales: Scales
    n_scaled: int
    n_layers: int
    width: int
    provenance: Provenance

    @classmethod
    def of(
        cls, neurons: NeuronSet, condition: str, scales: Scales, kind: str
    ) -> tuple[Export, NDArray[Any]]:
        """An export and its [layers, neurons] float32 factors.

        Args:
            neurons: those the condition uses: the first so many of a run.
            condition: its name.
            scales: the factors of its operations.
            kind: one of `FORMATS`.
        """
        factors = condition_scales(neurons, condition, scales)
        n_scaled = int((factors != 1).sum())
        shape = neurons.shape
        return cls(
            kind, condition, neurons.top_k, scales, n_scaled, *shape, neurons.provenance
        ), factors

    def to_json(self) -> str:
        """The content of `neuronllm.json`."""
        return dump_json({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Export:
        """Read the `neuronllm.json` of a folder.

        Raises:
            ArtifactError: it is missing, damaged, or of another schema.
        """
        path = folder / EXPORT_FILE
        names = {field.name for field in dataclasses.fields(cls)}
        values = exact_keys(
            read_json(path, _AGAIN), names | {"schema_version"}, path, "the file", _AGAIN
        )
        require_schema(values.pop("schema_version"), SCHEMA_VERSION, path)
        numbers = {name: values[name] for name in ("top_k", "n_scaled", "n_layers", "width")}
        odd = [name for name, value in numbers.items() if type(value) is not int or value < 0]
        if odd or values["format"] not in FORMATS:
            name = odd[0] if odd else "format"
            raise ArtifactError(
                f"{path}: {name} is {values[name]!r:.100}",
                expected="a whole number" if odd else " or ".join(FORMATS),
                remedy=_AGAIN,
            )
        values["provenance"] = Provenance.from_dict(values["provenance"], path)
        scales = exact_keys(values["scales"], {"suppress", "enhance"}, path, "scales", _AGAIN)
        try:
            require_condition(values["condition"])
            values["scales"] = Scales(**{name: float(value) for name, value in scales.items()})
        except (UsageError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: the condition or its scales cannot be read: {error}",
                expected="a condition and two numbers",
                remedy=_AGAIN,
            ) from error
        return cls(**values)
