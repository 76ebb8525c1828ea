"""What was found: neurons, their scores, and where they come from. Saved without pickle.

`scores.safetensors` holds a `NeuronScores`, `neurons.json` a `NeuronSet`; both carry the same
provenance. Saving, loading and saving again gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.json_files import (
    dump_json,
    exact_keys,
    naming,
    parse_json,
    read_json,
    require_schema,
)
from neuronllm_eval.neurons.scores_file import (
    DTYPES,
    METADATA,
    MOST_NEURONS,
    read_tensors,
    require_shapes,
    require_size_of_model,
)

SCHEMA_VERSION = 3
NEURONS_FILE = "neurons.json"
SCORES_FILE = "scores.safetensors"
AMBIGUOUS = ("keep", "drop")
_KINDS: dict[Any, str] = {
    str: "a text",
    int: "an integer",
    (int, float): "a finite number",
    (int, float, type(None)): "a finite number or null",
}


@dataclass(frozen=True)
class Neuron:
    """Coordinate `index` of the input of layer `layer`'s FFN down-projection, with its score."""

    layer: int
    index: int
    score: float

    @property
    def place(self) -> tuple[int, int]:
        """(layer, index)."""
        return self.layer, self.index


@dataclass(frozen=True)
class Provenance:
    """Where scores come from: enough to repeat the run and to refuse a foreign model.

    Attributes are plain values; `model_hash` is a digest of the model's weights,
    `tokenizer_hash` of its tokenizer, `task_hash` of the harness task's configuration. `dtype` is
    that of the weights as loaded, `attribution_dtype` the one they had while neurons were
    attributed, `batch_size` the number that was asked for or that `auto` came to. `asked` is JSON:
    how an AQUA task asks its questions (`aqua_settings.AquaSettings`), {} for other tasks;
    `method_args` is JSON too: the method's settings. `positions` is where neurons were chosen
    (`positions.POSITIONS`); the completeness gaps are None where they were not measured.
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

    @classmethod
    def from_dict(cls, values: Any, path: Path) -> Provenance:
        """Read from JSON; unknown, missing and mistyped keys are refused.

        Raises:
            ArtifactError: naming the file and the key.
        """
        number = (int, float)
        types: dict[str, Any] = {"str": str, "int": int, "float | None": (*number, type(None))}
        fields = {field.name: types[str(field.type)] for field in dataclasses.fields(cls)}
        values = exact_keys(values, set(fields), path, "provenance")
        for name, kind in fields.items():
            value = values[name]
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, kind) or isinstance(value, bool) or not finite:
                raise ArtifactError(
                    f"{path}: provenance.{name} is {value!r:.100}",
                    expected=_KINDS[kind],
                    remedy="run identify again",
                )
        return cls(**values)


@dataclass(frozen=True)
class NeuronScores:
    """Sums over questions, as `identification` leaves them.

    Attributes:
        score: [layers, neurons] float64, by the method; ACE sums log-nats over questions.
        good_count: [layers, neurons] int64, questions that put the neuron in G_e.
        bad_count: [layers, neurons] int64, questions that put it in B_e.
        half_sums: [2, layers, neurons] float64, the same of even and of odd questions.
        letter_sums: [letters, layers, neurons] float64, what prompts say, summed by gold letter.
        provenance: where they come from.
    """

    score: NDArray[np.float64]
    good_count: NDArray[np.int64]
    bad_count: NDArray[np.int64]
    half_sums: NDArray[np.float64]
    letter_sums: NDArray[np.float64]
    provenance: Provenance

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in DTYPES}
        dtypes = {name: str(getattr(self, name).dtype) for name in DTYPES}
        require_shapes(shapes, dtypes)
        for name in DTYPES:
            array = getattr(self, name)
            if not np.isfinite(array).all():
                raise ArtifactError(
                    f"scores: {name} holds NaN or infinity",
                    expected="finite numbers",
                    remedy="run identify again",
                )
            if name.endswith("_count") and array.min() < 0:
                raise ArtifactError(
                    f"scores: {name} holds {array.min()}",
                    expected="numbers of questions, 0 or more",
                    remedy="run identify again",
                )

    @property
    def shape(self) -> tuple[int, int]:
        """[layers, neurons]."""
        return self.score.shape[0], self.score.shape[1]

    def to_bytes(self) -> bytes:
        """The content of `scores.safetensors`."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in DTYPES}
        return save(arrays, metadata={METADATA: dump_json(self._header())})

    def _header(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": dataclasses.asdict(self.provenance),
        }

    @classmethod
    def load(cls, directory: Path) -> NeuronScores:
        """Read `scores.safetensors` of a run directory.

        Raises:
            ArtifactError: the file is missing, damaged, or of another schema.
        """
        path = Path(directory) / SCORES_FILE
        arrays, text = read_tensors(path)
        header = parse_json(text, path)
        header = exact_keys(header, {"schema_version", "provenance"}, path, "metadata")
        require_schema(header["schema_version"], SCHEMA_VERSION, path)
        provenance = Provenance.from_dict(header["provenance"], path)
        return naming(path, cls, **arrays, provenance=provenance)


@dataclass(frozen=True)
class NeuronSet:
    """Good and bad neurons, best first, with the scores that chose them.

    Attributes:
        n_layers: layers of the model they belong to.
        width: neurons per layer of that model.
        good: neurons that push the right option, highest score first.
        bad: neurons that push against it, lowest score first.
        top_k: how many of each were asked for (fewer are there if fewer have the right sign).
        ambiguous: `keep` or `drop`, the rule for neurons that are in some G_e and some B_e.
        provenance: where they come from.
    """

    n_layers: int
    width: int
    good: tuple[Neuron, ...]
    bad: tuple[Neuron, ...]
    top_k: int
    ambiguous: str
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.ambiguous not in AMBIGUOUS:
            raise ArtifactError(
                f"the rule for ambiguous neurons is {self.ambiguous!r}",
                expected=" or ".join(AMBIGUOUS),
                remedy="run identify again",
            )
        require_size_of_model(self.n_layers, self.width)
        for kind, neurons in (("good", self.good), ("bad", self.bad)):
            if len(neurons) > self.top_k:
                raise ArtifactError(
                    f"{len(neurons)} {kind} neurons chosen with top_k={self.top_k}",
                    expected=f"at most {self.top_k}",
                    remedy="run identify again",
                )
            for neuron in neurons:
                if not (0 <= neuron.layer < self.n_layers and 0 <= neuron.index < self.width):
                    raise ArtifactError(
                        f"{kind} neuron (layer {neuron.layer}, index {neuron.index})",
                        expected=f"layers 0 to {self.n_layers - 1}, indices 0 to {self.width - 1}",
                        remedy="the file does not fit the model it names; run identify again",
                    )
                if not math.isfinite(neuron.score):
                    raise ArtifactError(
                        f"{kind} neuron (layer {neuron.layer}, index {neuron.index}) has score "
                        f"{neuron.score}",
                        expected="a finite number",
                        remedy="run identify again",
                    )
        places = Counter(neuron.place for neuron in self.good + self.bad)
        if len(places) < places.total():
            twice = sorted(place for place, count in places.items() if count > 1)
            raise ArtifactError(
                f"neurons listed twice: {twice[:5]}",
                expected="every neuron at most once, good or bad",
                remedy="run identify again",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """[layers, neurons]."""
        return self.n_layers, self.width

    def top(self, k: int) -> NeuronSet:
        """The first `k` good and the first `k` bad neurons.

        Raises:
            ArtifactError: more than the set holds were asked for.
        """
        if not 1 <= k <= self.top_k:
            raise ArtifactError(
                f"top_k={k} of a set chosen with top_k={self.top_k}",
                expected=f"1 to {self.top_k}",
                remedy="run `neuronllm-eval identify` with a larger --top_k",
            )
        return dataclasses.replace(self, good=self.good[:k], bad=self.bad[:k], top_k=k)

    def to_json(self) -> str:
        """The content of `neurons.json`."""
        return dump_json({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: Path) -> NeuronSet:
        """Read a `neurons.json`, or the one in a run directory.

        Raises:
            ArtifactError: the file is missing, damaged, or of another schema.
        """
        path = Path(path)
        if path.is_dir() or not path.suffix:
            path = path / NEURONS_FILE
        names = {field.name for field in dataclasses.fields(cls)}
        values = exact_keys(read_json(path), names | {"schema_version"}, path, "the file")
        require_schema(values.pop("schema_version"), SCHEMA_VERSION, path)
        for name in ("n_layers", "width", "top_k"):
            if type(values[name]) is not int or not 1 <= values[name] <= MOST_NEURONS:
                raise ArtifactError(
                    f"{path}: {name} is {values[name]!r:.100}",
                    expected="a positive integer",
                    remedy="run identify again",
                )
        for kind in ("good", "bad"):
            if not isinstance(values[kind], list):
                raise ArtifactError(
                    f"{path}: {kind} is {values[kind]!r:.100}",
                    expected="a list of neurons",
                    remedy="run identify again",
                )
            values[kind] = tuple(_read_neuron(entry, path, kind) for entry in values[kind])
        values["provenance"] = Provenance.from_dict(values["provenance"], path)
        return naming(path, cls, **values)


def _read_neuron(entry: Any, path: Path, kind: str) -> Neuron:
    entry = exact_keys(entry, {"layer", "index", "score"}, path, kind)
    whole = all(type(entry[name]) is int for name in ("layer", "index"))
    score = entry["score"]
    # A whole number may have more digits than a float can hold.
    if not whole or not (type(score) is float or (type(score) is int and abs(score) < 2**1023)):
        raise ArtifactError(
            f"{path}: {kind} holds {entry!s:.100}",
            expected="integers for layer and index, a number for score",
            remedy="run identify again",
        )
    return Neuron(entry["layer"], entry["index"], float(score))
