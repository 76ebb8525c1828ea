"""Good and bad neurons, with where they come from: the content of `neurons.json`.

Saving, loading and saving again gives the same bytes. `overlap` compares two
sets, and says what random sets with as many neurons in each layer would have in common.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.formats.typed_files import PositiveCount, artifact, load, one_of
from neuronllm_eval.prompts import OPTION_SCORES, SUM

SCHEMA_VERSION: Final = 3
NEURONS_FILE = "neurons.json"
AMBIGUOUS = ("keep", "drop")
# Ten times the neurons of the largest dense models; more is no model but a damaged file.
MOST_NEURONS = 1 << 26
_NEGLIGIBLE = 1e-20  # a probability
# Numbers of nodes, and after @ the scale of their grading, with spaces between layers.
_NODES = r"[1-9]\d{0,3}(@\d[\d.]*(e-\d+)?)?"
_LAYER_NODES = rf"^({_NODES}( {_NODES})*)?$"
# Of two runs: sets that agree, and sets that contradict each other.
COMPARED = (("good", "good"), ("bad", "bad"), ("good", "bad"), ("bad", "good"))
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

    `model_hash` is a digest of the model's weights, `weights_sample` a few of them in bfloat16
    (`models.fingerprints.Weights`; empty in runs of earlier versions), `tokenizer_hash` of its
    tokenizer, `task_hash` of the harness task's configuration. `dtype` is that of the weights as
    loaded, `attribution_dtype` the one they had while neurons were attributed. `batch_size` is the
    number of prompts per batch, also where `auto` was requested. `asked` is JSON: how an AQUA task
    builds its prompts (`aqua.settings.AquaSettings`), {} for other tasks; `method_args` is JSON
    too: the method's settings. `positions` is where neurons were attributed (`prompts.POSITIONS`),
    `option_scores` what options were compared by (`prompts.OPTION_SCORES`).
    `layer_nodes` is the rule of every layer (`attribution.quadrature.LayerRule`) where layers have
    their own; `n_steps` is the mean number of nodes then, rounded up.
    The completeness gaps are None where they were not measured; `completeness_gap_layers` is each
    layer's share of its own change, empty if not measured. `gguf_file` is the file in `model`
    that holds the weights of a GGUF model, empty for another. `priors` are the options' (log-nats,
    `Prompt.priors`), of methods with a calibrated target.
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
    weights_sample: Annotated[str, Field(pattern="^([0-9a-f]{4})*$")] = ""
    option_scores: Annotated[str, one_of(OPTION_SCORES)] = SUM
    gguf_file: str = ""
    priors: tuple[float, ...] = ()
    layer_nodes: Annotated[str, Field(pattern=_LAYER_NODES)] = ""
    completeness_gap_layers: tuple[float, ...] = ()

    @property
    def model_name(self) -> str:
        """The model as messages and pages name it: `model`, with its GGUF file."""
        return f"{self.model}/{self.gguf_file}" if self.gguf_file else self.model


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
        activation_levels: [layers] the size of every neuron's activation, as `activation_levels`
            writes it; empty in files of earlier versions.
    """

    n_layers: PositiveCount
    width: PositiveCount
    good: tuple[Neuron, ...]
    bad: tuple[Neuron, ...]
    top_k: PositiveCount
    ambiguous: Annotated[str, one_of(AMBIGUOUS)]
    provenance: Provenance
    activation_levels: tuple[Annotated[str, Field(pattern="^[0-9A-Za-z_-]+$")], ...] = ()
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
        lengths = [len(layer) for layer in self.activation_levels]
        if lengths and lengths != [self.width] * self.n_layers:
            raise ValueError(f"activation_levels are of {len(lengths)} layers, or of other widths")
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


# Overlap ------------------------------------------------------------------------------------------


def layer_counts(neurons: Sequence[Neuron], n_layers: int) -> list[int]:
    """[layers] number of the neurons in each layer."""
    counts = Counter(neuron.layer for neuron in neurons)
    return [counts[layer] for layer in range(n_layers)]


@dataclass(frozen=True)
class Overlap:
    """Two sets of neurons of one model.

    Attributes:
        sizes: of the two sets.
        shared: number of neurons in both.
        jaccard: shared over the number in either, 0 to 1; None if both sets are empty.
        chance: the expected Jaccard index of random sets with as many neurons in each layer; None
            if both sets are empty.
    """

    sizes: tuple[int, int]
    shared: int
    jaccard: float | None
    chance: float | None


@dataclass(frozen=True)
class Locations:
    """Where the neurons of a set are, to compare one set with many others.

    Attributes:
        locations: (layer, index) of each neuron.
        by_layer: [layers] number of neurons in each.
    """

    locations: frozenset[tuple[int, int]]
    by_layer: tuple[int, ...]

    @classmethod
    def of(cls, neurons: Sequence[Neuron], n_layers: int) -> Locations:
        """The locations of distinct neurons of a model with `n_layers` layers."""
        locations = frozenset(neuron.location for neuron in neurons)
        return cls(locations, tuple(layer_counts(neurons, n_layers)))

    def overlap(self, other: Locations, width: int) -> Overlap:
        """The overlap with another set of the same model, whose layers have `width` neurons."""
        sizes = (len(self.locations), len(other.locations))
        shared = len(self.locations & other.locations)
        if not any(sizes):
            return Overlap(sizes, shared, None, None)
        chance = _chance_of_shared(self.by_layer, other.by_layer, width)
        possible = np.arange(len(chance))
        return Overlap(
            sizes,
            shared,
            shared / (sum(sizes) - shared),
            float((chance * possible / (sum(sizes) - possible)).sum()),
        )


def overlap(first: Sequence[Neuron], second: Sequence[Neuron], shape: tuple[int, int]) -> Overlap:
    """The overlap of two sets of distinct neurons of a model of shape [layers, neurons]."""
    n_layers, width = shape
    return Locations.of(first, n_layers).overlap(Locations.of(second, n_layers), width)


def _chance_of_shared(
    first: Sequence[int], second: Sequence[int], width: int
) -> NDArray[np.float64]:
    """Probabilities that 0, 1, ... neurons are shared by two random sets.

    Args:
        first: [layers] neurons of the first set.
        second: [layers] neurons of the second.
        width: neurons of a layer.
    """
    chance = np.ones(1)
    for one, two in zip(first, second, strict=True):
        if one and two:
            chance = np.convolve(chance, _chance_in_a_layer(width, *sorted((one, two))))
    return chance


@lru_cache(maxsize=1 << 14)
def _chance_in_a_layer(width: int, one: int, two: int) -> NDArray[np.float64]:
    """Probabilities that 0, 1, ... neurons of one layer are shared, up to where they vanish.

    The hypergeometric distribution; scipy's own takes milliseconds for sets of hundreds.
    """
    shared = np.arange(min(one, two) + 1)
    logs = _log_choose(one, shared) + _log_choose(width - one, two - shared)
    chance: NDArray[np.float64] = np.exp(logs - _log_choose(width, two))
    return chance[: np.flatnonzero(chance > _NEGLIGIBLE)[-1] + 1]


def _log_choose(n: int, k: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of binomial coefficients; -inf where k exceeds n."""
    from scipy.special import gammaln  # takes a fifth of a second, and few commands need it

    k = np.asarray(k, dtype=np.float64)
    logs: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1)
    return np.where(k <= n, logs - gammaln(np.maximum(n - k, 0) + 1), -np.inf)
