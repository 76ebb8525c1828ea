"""Good and bad neurons, with where they come from: the content of `neurons.json`.

Saving, loading and saving again gives the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.formats.typed_files import PositiveCount, artifact, load, one_of

SCHEMA_VERSION: Final = 3
NEURONS_FILE = "neurons.json"
AMBIGUOUS = ("keep", "drop")
# Ten times the neurons of the largest dense models; more is no model but a damaged file.
MOST_NEURONS = 1 << 26
REMEDY = "run identify again with this version of neuronllm_eval"


@dataclass(frozen=True)
class Neuron:
    """Coordinate `index` of the input of layer `layer`'s FFN down-projection, with its score."""

    layer: int
    index: int
    score: float

    @property
    def location(self) -> tuple[int, int]:
        """(layer, index)."""
        return self.layer, self.index


@dataclass(frozen=True)
class Provenance:
    """Where scores come from: enough to repeat the run and to refuse a foreign model.

    `model_hash` is a digest of the model's weights, `tokenizer_hash` of its tokenizer, `task_hash`
    of the harness task's configuration. `dtype` is that of the weights as loaded,
    `attribution_dtype` the one they had while neurons were attributed. `batch_size` is the number
    of prompts per batch, also where `auto` was requested. `asked` is JSON: how an AQUA task builds
    its prompts (`aqua.settings.AquaSettings`), {} for other tasks; `method_args` is JSON too: the
    method's settings. `positions` is where neurons were attributed (`prompts.POSITIONS`). The
    completeness gaps are None where they were not measured.
    """

    tool_version: str
    lm_eval_version: str
    transformers_version: str
    torch_version: str
    model: str
    model_revision: str
    model_hash: str
    tokenizer_hash: str
    dtype: str
    attribution_dtype: str
    device: str
    task: str
    task_hash: str
    split: str
    n_questions: int
    n_prompts: int
    n_proxies: int
    num_fewshot: int
    chat_template_hash: str
    system_instruction: str
    method: str
    method_args: str
    quadrature: str
    n_steps: int
    top_z: int
    positions: str
    seed: int
    asked: str
    engine: str
    batch_size: int
    completeness_gap_max: float | None
    completeness_gap_mean: float | None
    completeness_gap_share: float | None


@artifact
@dataclass(frozen=True)
class NeuronSet:
    """Good and bad neurons, best first, with the scores they were selected by.

    Attributes:
        n_layers: layers of the model they belong to.
        width: neurons per layer of that model.
        good: neurons that push towards the gold option, highest score first.
        bad: neurons that push against it, lowest score first.
        top_k: requested number of each (there are fewer if fewer scores have that sign).
        ambiguous: `keep` or `drop`, the rule for neurons that are in some G_e and some B_e.
        provenance: where they come from.
    """

    n_layers: PositiveCount
    width: PositiveCount
    good: tuple[Neuron, ...]
    bad: tuple[Neuron, ...]
    top_k: PositiveCount
    ambiguous: Annotated[str, one_of(AMBIGUOUS)]
    provenance: Provenance
    schema_version: Literal[3] = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.n_layers * self.width > MOST_NEURONS:
            raise ValueError(f"{self.n_layers} layers of {self.width} neurons are no model")
        for valence, neurons in (("good", self.good), ("bad", self.bad)):
            if len(neurons) > self.top_k:
                raise ValueError(f"{len(neurons)} {valence} neurons with top_k={self.top_k}")
            for neuron in neurons:
                if not (0 <= neuron.layer < self.n_layers and 0 <= neuron.index < self.width):
                    raise ValueError(
                        f"{valence} neuron (layer {neuron.layer}, index {neuron.index}) is not in "
                        f"a model of {self.n_layers} layers of {self.width} neurons"
                    )
        locations = Counter(neuron.location for neuron in self.good + self.bad)
        if repeated := [location for location, count in locations.items() if count > 1]:
            raise ValueError(f"neurons listed twice: {repeated[:5]}")

    @property
    def shape(self) -> tuple[int, int]:
        """[layers, neurons]."""
        return self.n_layers, self.width

    def top(self, k: int) -> NeuronSet:
        """The first `k` good and the first `k` bad neurons.

        Raises:
            ArtifactError: `k` exceeds `top_k`.
        """
        if not 1 <= k <= self.top_k:
            raise ArtifactError(
                f"top_k={k} of a set selected with top_k={self.top_k}",
                expected=f"1 to {self.top_k}",
                remedy="run `neuronllm-eval identify` with a larger --top_k",
            )
        return dataclasses.replace(self, good=self.good[:k], bad=self.bad[:k], top_k=k)

    def to_json(self) -> str:
        """The content of `neurons.json`."""
        return dump_json(dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> NeuronSet:
        """Read a `neurons.json`, or the one in a run directory.

        Raises:
            ArtifactError: the file is missing, damaged, or of another schema.
        """
        path = Path(path)
        return load(cls, path if path.suffix and not path.is_dir() else path / NEURONS_FILE, REMEDY)
