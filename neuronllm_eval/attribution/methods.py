"""The methods that score neurons: what `--method` chooses from.

All share the pass, the prompts, the splits and the selection, so that only the score differs. A
method is a class of three parts: what is attributed for a prompt (`quantity`), the prompt's value
for every neuron (`values`), and how sums over questions become scores (`score`). The highest
positive scores are good neurons, the lowest negative ones bad; a method without negative scores
finds no bad neurons.

In the formulas h is a neuron's activation at the scored position, IG(F) its integrated gradient
along alpha * h_l (`attribution`), F the log-softmax over the options (or over what they are
compared by, `prompts.OPTION_SCORES`) at the gold one and p(gold)
the probability of the gold option's token over the whole vocabulary. At all positions
(`positions`), products of h and gradients are summed over them, and h alone is its mean over the
context. Where a source ranks neurons per question, its extension to a task is marked as our
reading.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from neuronllm_eval.attribution.integrated_gradients import Attributions, Quantity
from neuronllm_eval.attribution.score_sums import EXTRA_POINT, FIXED_POINT, ScoreSums
from neuronllm_eval.engine.interface import (
    calibrated_cross_entropy,
    gold_loglikelihood,
    gold_probability,
    option_cross_entropy,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.neurons.scores import NeuronScores

Floats = NDArray[np.float64]
_CONTRASTIVE = Quantity(option_cross_entropy)
_ONE_STEP = Quantity(option_cross_entropy, path=False)
_CALIBRATED = Quantity(calibrated_cross_entropy)
_CALIBRATED_ONE_STEP = Quantity(calibrated_cross_entropy, path=False)
_PROBABILITY = Quantity(gold_probability)
_LOSS = Quantity(gold_loglikelihood, path=False)
_PENALTY = 2.0  # of `ace_balanced`, by default


@dataclass(frozen=True)
class Method:
    """A way to score neurons. The fields of a subclass are its settings (`--method_args`).

    `make_method` checks settings by the fields' types, such as `Annotated[int, Field(ge=1)]`.

    Attributes:
        name: what `--method` calls it.
        quantity: what is attributed; None if the activations are enough.
        also: what is attributed besides.
        votes: whether a question counts only for the neurons it puts in G_e or B_e.
        n_extras: how many tensors besides `values` are summed up by group (`extras`).
        unit: of the sums, see `ScoreSums`.
        measures: what `values` are, in words, for reports.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, allow_inf_nan=False)
    name: ClassVar[str]
    quantity: ClassVar[Quantity | None] = None
    also: ClassVar[tuple[Quantity, ...]] = ()
    votes: ClassVar[bool] = False
    n_extras: ClassVar[int] = 0
    unit: ClassVar[float] = FIXED_POINT
    measures: ClassVar[str] = "attribution, in log-nats"

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """All that is attributed."""
        return self.also if self.quantity is None else (self.quantity, *self.also)

    def values(self, attributions: Attributions) -> Tensor:
        """[layers, neurons] a prompt's value for every neuron; summed up over questions."""
        if self.quantity is None:
            return attributions.activations
        return attributions.by_quantity[self.quantity].values

    def extras(self, attributions: Attributions) -> tuple[Tensor, ...]:
        """`n_extras` times [layers, neurons] of a prompt; summed up as `values`."""
        return ()

    def n_groups(self, n_options: int) -> int:
        """Groups of prompts that are summed up separately, of at most `n_options` options."""
        return 1

    def group(self, gold: int, correct: bool) -> int:
        """The group of a prompt.

        Args:
            gold: index of its gold option.
            correct: whether the unedited model answers it correctly.
        """
        return 0

    def note(self, index: int, example_score: Tensor) -> Any:
        """What `score` needs to know about a question besides the sums, as JSON values.

        Args:
            index: of the question; even and odd ones are halves.
            example_score: [layers, neurons] `values` summed over its proxies.

        Returns:
            the note; None for nothing.
        """
        return None

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """[2, layers, neurons] the scores by even and by odd questions, for split-half statistics.

        Args:
            sums: over questions.
            notes: of all questions that have one.
        """
        return sums.floats(sums.half_sums)

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """[layers, neurons] the scores; arguments as `halves`."""
        return sums.floats(sums.half_sums.sum(0))

    def counts(self, sums: ScoreSums) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two [layers, neurons]: questions that put the neuron in G_e, and in B_e."""
        return sums.good_count, sums.bad_count


class ACE(Method):
    """Additive cross-entropy (NeuronLLM, arXiv 2601.04548).

    ES_e = sum over a question's proxies of IG(F); score = sum of ES_e over the questions whose
    `top_z` highest or lowest neurons of the layer (G_e, B_e) the neuron is among.
    """

    name = "ace"
    quantity = _CONTRASTIVE
    votes = True


@dataclass(frozen=True)
class ACEBalanced(Method):
    """ACE of what helps whichever option is the right one (ours).

    In the paper's sum a neuron that pushes one answer, whatever the question, counts as good: F is
    steeper where the model is wrong, so what it gives to one gold option and takes from another
    does not cancel. Here such a neuron counts for little.

    1. F is calibrated: each option's prior, fitted over all selection prompts (`stages.priors`), is
       taken off what options are compared by.
    2. A prompt's value is the mean of IG(F) and h * dF/dh at the unedited prompt: half of what
       the path from 0 to 2h, between suppressing and doubling, would give if its second half were
       as steep as its middle.
    3. m_c = mean of the values over the prompts whose gold option is the c-th; m = mean of m_c.
    4. s^2 = variance of m_c over c, less the part that the prompts' own variance v explains, plus
       the squared standard error of m; v is pooled within gold options. Plus d^2, d half the
       difference of IG(F) and h * dF/dh, as m: what an answer's prior hides at h counts away from
       it.
    5. score = m |m| / sqrt(m^2 + penalty^2 s^2): near m where m is many s, near
       m |m| / (penalty s) where it is few.

    There are no votes, so `top_z` makes no difference.

    Attributes:
        penalty: 0 or more; 0 is m itself. None is the default.
    """

    penalty: Annotated[float, Field(ge=0)] | None = _PENALTY

    name = "ace_balanced"
    quantity = _CALIBRATED
    also = (_CALIBRATED_ONE_STEP,)
    n_extras = 2

    def values(self, attributions: Attributions) -> Tensor:
        """[layers, neurons] the mean of both attributions."""
        integrated, at_one = self._both(attributions)
        return (integrated + at_one) / 2

    def extras(self, attributions: Attributions) -> tuple[Tensor, ...]:
        """Squares of the values, and half the difference of the attributions."""
        integrated, at_one = self._both(attributions)
        return self.values(attributions).double().square(), (integrated - at_one) / 2

    def _both(self, attributions: Attributions) -> list[Tensor]:
        return [attributions.by_quantity[quantity].values for quantity in self.quantities]

    def n_groups(self, n_options: int) -> int:
        """See `Method.n_groups`."""
        return n_options

    def group(self, gold: int, correct: bool) -> int:
        """See `Method.group`."""
        return gold

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.halves`."""
        return np.stack([self._score(sums, slice(half, half + 1)) for half in (0, 1)])

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.score`."""
        return self._score(sums, slice(None))

    def _score(self, sums: ScoreSums, halves: slice) -> Floats:
        counts = sums.group_count[:, halves].sum(1)
        is_gold = counts > 0
        n_prompts = counts[is_gold, None, None]
        totals = sums.floats(sums.group_sums[is_gold, halves].sum(1))
        extras = sums.extra_sums[:, is_gold, halves].sum(2)
        squares, differences = sums.floats(extras, EXTRA_POINT)
        if not len(totals):
            return np.zeros(sums.good_count.shape)
        means = totals / n_prompts
        freedom = max(1, int(n_prompts.sum()) - len(means))
        within = np.maximum(squares - totals * means, 0.0).sum(0) / freedom
        of_means = within * (1 / n_prompts).sum(0) / len(means)  # mean squared error of an m_c
        error = of_means / len(means)
        between = np.maximum(means.var(0) - (of_means - error), 0.0)
        mean, difference = means.mean(0), (differences / n_prompts).mean(0)
        penalty = _PENALTY if self.penalty is None else self.penalty
        size = np.sqrt(mean**2 + penalty**2 * (between + error + difference**2))
        return np.divide(mean * abs(mean), size, out=np.zeros_like(mean), where=size > 0)


@dataclass(frozen=True)
class Auto(ACEBalanced):
    """`ace_balanced` with the settings that serve the task best (ours; `stages.choose`).

    They and the number of neurons are chosen on the selection split, by what the neurons of one
    half of the questions do on the other.

    Attributes:
        penalty: as in `ace_balanced`; None to choose it.
    """

    penalty: Annotated[float, Field(ge=0)] | None = None

    name = "auto"


class ACEVocabulary(ACE):
    """ACE with log p(gold) in place of F: an ablation of the contrast between the options."""

    name = "ace_vocabulary"
    quantity = Quantity(gold_loglikelihood)


class GradXAct(Method):
    """ACE with one step: h * dF/dh at the unedited prompt in place of IG(F).

    Source: gradient times input (Shrikumar et al. 2016), of the target F.
    """

    name = "gradxact"
    quantity = _ONE_STEP
    votes = True


class KN(Method):
    """Knowledge neurons (Dai et al., ACL 2022): IG(p(gold)).

    Summed over all proxies and questions (our reading: the source thresholds per prompt, and keeps
    the neurons that a share of the prompts have in common).
    """

    name = "kn"
    quantity = _PROBABILITY
    measures = "attribution of the gold option's probability"


@dataclass(frozen=True)
class QRNCA(Method):
    """Query-relevant neuron cluster attribution (Chen et al., AAAI 2025).

    1. A prompt counts for the neurons whose IG(p(gold)) is above `threshold` times its largest.
       Those of a question's proxies together are its cluster c; the attribution of a neuron is the
       sum over the proxies that it counts in, and na = attribution / the cluster's sum.
    2. ica = log(number of clusters / (clusters with the neuron + 1)); naica = na * ica.
    3. A question chooses the `top_v` neurons of its cluster with the highest positive naica, but
       for common ones, which more than the share `common` of all clusters have.
    4. Score: sum of naica over the questions that choose the neuron (our reading: the source has
       one ranking per question).

    Clusters and shares are those of the authors' published code; the paper divides by the sum over
    all neurons, which may be zero or negative. Common neurons are dropped as the paper says; the
    code looks for their names in a list of numbers, and so drops none (`common=1` does the same).

    Attributes:
        threshold: 0 up to 1.
        common: above 0, up to 1.
        top_v: 1 or more.
    """

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.2
    common: Annotated[float, Field(gt=0, le=1)] = 0.3
    top_v: Annotated[int, Field(ge=1)] = 10

    name = "qrnca"
    quantity = _PROBABILITY
    measures = f"{KN.measures}, where above the prompt's threshold"

    def values(self, attributions: Attributions) -> Tensor:
        """[layers, neurons] attributions above the prompt's threshold, others 0."""
        values = super().values(attributions)
        threshold = (self.threshold * values.max()).clamp(min=0.0)
        return torch.where(values > threshold, values, 0.0)

    def note(self, index: int, example_score: Tensor) -> Any:
        """The question's cluster: indices of its neurons in the flat array, and their na."""
        values = example_score.cpu().double().numpy().ravel()
        members = np.flatnonzero(values)
        shares = values[members]
        shares = shares / shares.sum() if len(shares) else shares
        return {"half": index % 2, "neurons": members.tolist(), "shares": shares.tolist()}

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.halves`."""
        n_clusters = Counter(neuron for note in notes for neuron in note["neurons"])
        shape = sums.good_count.shape
        halves = np.zeros((2, math.prod(shape)))
        for note in notes:
            naica = [
                (share * math.log(len(notes) / (n_clusters[neuron] + 1)), neuron)
                for neuron, share in zip(note["neurons"], note["shares"], strict=True)
            ]
            # As in the authors' code, common neurons are counted among the `top_v`.
            for value, neuron in sorted(naica, key=lambda pair: -pair[0])[: self.top_v]:
                if value > 0 and n_clusters[neuron] <= int(len(notes) * self.common):
                    halves[note["half"], neuron] += value
        return halves.reshape(2, *shape)

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.score`."""
        return self.halves(sums, notes).sum(0)


class TN(Method):
    """Task-specific neurons (Leng & Xiong, COLING 2025): |h * dL/dh| with L = -log p(gold).

    Summed over all proxies and questions; never negative, so there are no bad neurons.
    """

    name = "tn"
    quantity = _LOSS
    measures = "size of the attribution, in log-nats"

    def values(self, attributions: Attributions) -> Tensor:
        """See `Method.values`."""
        return super().values(attributions).abs()


class Activation(Method):
    """Mean of h over all prompts: the highest are good, the lowest negative ones bad.

    Source: none, a baseline; target: none, the model's answer does not matter.
    """

    name = "activation"
    unit = 2.0**24  # activations of thousands, summed over millions of prompts
    measures = "activation"

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.halves`."""
        return sums.floats(sums.half_sums) / max(1, sums.n_prompts)

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.score`."""
        return sums.floats(sums.half_sums.sum(0)) / max(1, sums.n_prompts)


class ContrastActivation(Method):
    """Mean of h over prompts answered correctly, minus that over those answered incorrectly.

    Zero where there are none of either. Source: none, a baseline; target: whether the likeliest
    option is the gold one.
    """

    name = "contrast_activation"
    unit = Activation.unit
    measures = Activation.measures

    def n_groups(self, n_options: int) -> int:
        """See `Method.n_groups`."""
        return 2

    def group(self, gold: int, correct: bool) -> int:
        """See `Method.group`."""
        return int(correct)

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.halves`."""
        return np.stack([self._difference(sums, slice(half, half + 1)) for half in (0, 1)])

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.score`."""
        return self._difference(sums, slice(None))

    def _difference(self, sums: ScoreSums, halves: slice) -> Floats:
        counts = sums.group_count[:, halves].sum(1)
        if not counts.all():
            return np.zeros(sums.good_count.shape)
        means = sums.floats(sums.group_sums[:, halves].sum(1)) / counts[:, None, None]
        return np.asarray(means[1] - means[0])


@dataclass(frozen=True)
class Random(ACE):
    """ACE's scores permuted within each layer, so that chance has the same layers.

    The permutation depends on the questions too: another task or seed is another draw. Source:
    none, a baseline; target: F, which decides how many neurons of a layer are good or bad.

    Attributes:
        seed: of the permutation, 0 or more.
    """

    seed: Annotated[int, Field(ge=0)] = 0

    name = "random"

    def halves(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.halves`; each half has its own permutation."""
        halves = super().halves(sums, notes)
        return np.stack([self._permuted(half, sums, 1 + i) for i, half in enumerate(halves)])

    def score(self, sums: ScoreSums, notes: Sequence[Any]) -> Floats:
        """See `Method.score`."""
        return self._permuted(super().score(sums, notes), sums, 0)

    def counts(self, sums: ScoreSums) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Method.counts`; permuted as the scores."""
        good, bad = super().counts(sums)
        return self._permuted(good, sums, 0), self._permuted(bad, sums, 0)

    def _permuted(self, values: NDArray[Any], sums: ScoreSums, number: int) -> NDArray[Any]:
        questions = hashlib.sha256(sums.questions.encode()).digest()
        seeds = [self.seed, number, int.from_bytes(questions[:8], "little")]
        return np.random.default_rng(seeds).permuted(values, axis=1)


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ACE,
        ACEBalanced,
        KN,
        QRNCA,
        TN,
        GradXAct,
        Activation,
        ContrastActivation,
        Random,
        ACEVocabulary,
        Auto,
    )
}


def register(method: type[Method]) -> type[Method]:
    """Class decorator that adds a method of your own; `docs/extending.md` has an example.

    Raises:
        UsageError: the name is taken.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise UsageError(
            f"a method {method.name!r} exists already",
            expected="another name",
            remedy=f"these are taken: {', '.join(METHODS)}",
        )
    return method


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of this name.

    Args:
        name: one of `METHODS`.
        settings: values of its fields; the others have their defaults.

    Raises:
        UsageError: an unknown method or setting, or a value it cannot have.
    """
    if name not in METHODS:
        raise UsageError(
            f"unknown method {name!r:.100}", expected=", ".join(METHODS), remedy="check --method"
        )
    settings, method = settings or {}, METHODS[name]
    names = [field.name for field in dataclasses.fields(method)]
    for setting in settings:
        if setting not in names:
            raise UsageError(
                f"method {name} has no setting {setting!r:.100}",
                expected=", ".join(names) or "none",
                remedy="check --method_args",
            )
    try:
        TypeAdapter(method).validate_json(json.dumps(dict(settings), default=str))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"{problem['loc'][0]} of method {name} is {problem['input']!r:.100}",
            expected=problem["msg"].removeprefix("Input should be "),
            remedy="check --method_args",
        ) from error
    return method(**settings)


def to_scores(
    method: Method, sums: ScoreSums, notes: Sequence[Any], provenance: Provenance
) -> NeuronScores:
    """What is written to `scores.safetensors`.

    Args:
        method: whose sums they are.
        sums: over all questions.
        notes: of the questions, in any order.
        provenance: of the scores.
    """
    good_count, bad_count = method.counts(sums)
    return NeuronScores(
        score=method.score(sums, notes),
        good_count=good_count,
        bad_count=bad_count,
        half_sums=method.halves(sums, notes),
        letter_sums=sums.floats(sums.letter_sums),
        provenance=provenance,
        activation_mean=sums.activation_mean,
    )
