"""Which tokens a neuron promotes and demotes, from the weights alone, and the file that says so.

1. The direction that neuron (l, i) writes is column i of layer l's down-projection.
2. It goes through the norm of the FFN's output, where the model has one, and the final norm
   (`norms`: gain and centring; the scale is left out), and through the unembedding.
3. What it adds to each token's logit is given in standard deviations from the mean over the
   vocabulary, since neither the size nor a shift of all logits has a meaning.
4. `tokens.json` holds the strongest tokens of the neurons that reports list. `identify` writes it;
   `explain` adds how often each neuron's activation is positive, and whether it is about letters.

That is the direct path alone, without what later layers make of the direction, and for a positive
activation. Nothing is selected on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neuronllm_eval.engine.option_head import restrictable_head
from neuronllm_eval.engine.scaled_copies import all_plain, output_weights
from neuronllm_eval.explain.norms import Norm, read_norm, step_before, step_behind, trace
from neuronllm_eval.formats.plain_files import dump_json
from neuronllm_eval.formats.typed_files import Count, artifact, load
from neuronllm_eval.models.ffn_layers import FFNLayers, input_width
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet

SetName = Literal["good", "bad"]
NeuronKey = tuple[str, int, int]  # set, layer, index
# Of each set, in reports.
LISTED_NEURONS = 10
LISTED_TOKENS = 4
_TRACED_TOKENS = 8
_CHUNK = 1 << 14  # tokens whose output vectors are in float32 at a time
_REMEDY = "remove the file: the report can be written without it"


@dataclass(frozen=True)
class TokenEffect:
    """A token's id and text, and what a direction adds to its logit.

    The effect is in standard deviations from the mean over the vocabulary.
    """

    token: int
    text: str
    effect: float


@dataclass(frozen=True)
class Promotion:
    """The tokens that a neuron's direction promotes most and demotes most, strongest first."""

    promotes: tuple[TokenEffect, ...] = ()
    demotes: tuple[TokenEffect, ...] = ()


@dataclass(frozen=True)
class Unembedding:
    """From the FFNs' outputs to the vocabulary.

    Attributes:
        layers: the model's down-projections.
        head: the LM head; None if its weights are not at hand.
        final: the final norm; None if none could be read.
        behind: by layer, the norm of the FFN's output; only layers that have one.
        notes: what is left out, and why.
    """

    layers: FFNLayers
    head: nn.Linear | None
    final: Norm | None
    behind: dict[int, Norm]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, layers: FFNLayers, context: Sequence[int]) -> Unembedding:
        """Trace a pass over the beginning of a prompt.

        Args:
            model: a Hugging Face causal LM in eval mode.
            layers: its FFN down-projections.
            context: tokens of a prompt.
        """
        head = restrictable_head(model)
        if head is None:
            note = "the LM head is not a plain linear layer, so no tokens are read"
            return cls(layers, None, None, {}, (note,))
        steps = trace(model, context[:_TRACED_TOKENS], layers.modules)
        notes = []
        before = step_before(steps, head)
        final = read_norm(before) if before is not None else None
        if final is None:
            why = "the LM head's input is no module's output"
            if before is not None:
                why = f"{before.name} feeds the LM head and is not a norm"
            notes.append(f"the final norm is left out: {why}")
        behind = {}
        for layer, down in enumerate(layers.modules):
            step = step_behind(steps, down)
            norm = read_norm(step) if step is not None else None
            if norm is not None:
                behind[layer] = norm
            elif step is not None:
                notes.append(f"{step.name}, which the FFN's output goes through, is left out")
        if len(direction(layers.modules[0], 0)) != head.in_features:
            head = None
            notes.append("the FFNs' output has another width than the LM head's input, so no "
                         "tokens are read")  # fmt: skip
        return cls(layers, head, final, behind, tuple(notes))

    @torch.no_grad()
    def effects(self, locations: Sequence[tuple[int, int]], n_tokens: int) -> Tensor | None:
        """What neurons' directions add to the tokens' logits.

        Args:
            locations: (layer, index) of each neuron.
            n_tokens: size of the vocabulary; heads may have further rows.

        Returns:
            [neurons, tokens] float32, in standard deviations from the mean over the tokens; None
            without a head.
        """
        if self.head is None or not locations:
            return None
        rows = torch.stack([self._input_to_head(layer, index) for layer, index in locations])
        weight = self.head.weight.detach()[:n_tokens]
        rows = rows.to(weight.device)
        logits = torch.cat([rows @ part.float().T for part in weight.split(_CHUNK)], dim=-1).cpu()
        spread = logits.std(-1, correction=0, keepdim=True)
        # A neuron that writes nothing has no effect on any token.
        return (logits - logits.mean(-1, keepdim=True)) / spread.where(spread > 0, 1.0)

    def _input_to_head(self, layer: int, index: int) -> Tensor:
        """[hidden] float32, on the CPU: what a neuron writes, as it reaches the head."""
        written = direction(self.layers.modules[layer], index)
        for norm in (self.behind.get(layer), self.final):
            written = norm.applied(written) if norm is not None else written
        return written


@torch.no_grad()
def direction(down: nn.Module, index: int) -> Tensor:
    """[hidden] float32, on the CPU: what neuron `index` of a down-projection writes.

    Layers whose weights do not show what they compute (with adapters, quantised) are run on it.
    """
    if all_plain([down]):
        return output_weights(down)[:, index].float().cpu()
    weights = list(down.parameters())
    # Of 8-bit layers without a bias no weight is of a floating-point type.
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
    inputs = torch.zeros(2, 1, input_width(down), device=weights[0].device, dtype=dtype)
    inputs[1, 0, index] = 1
    without, written = down(inputs)[:, 0].float().cpu()
    return written - without


def promotions(effects: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Promotion]:
    """Each neuron's `count` strongest tokens in both directions, of effects [neurons, tokens]."""
    found = []
    for row in effects:
        both = (row.topk(min(count, len(row)), largest=largest) for largest in (True, False))
        found.append(
            Promotion(
                *(
                    tuple(
                        TokenEffect(token, tokenizer.decode([token]), effect)
                        for effect, token in zip(*map(Tensor.tolist, top), strict=True)
                    )
                    for top in both
                )
            )
        )
    return found


# tokens.json ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronTokens:
    """The strongest tokens of one neuron.

    Attributes:
        kind: `good` or `bad`.
        layer: from 0.
        index: within the layer.
        promotes: where its activation is positive, strongest first.
        demotes: likewise.
        positive: share of the prompts on which its activation is above 0; None if not explained.
        reading: `letter`, `content`, or empty if not explained or not defined.
    """

    kind: SetName
    layer: Count
    index: Count
    promotes: tuple[TokenEffect, ...]
    demotes: tuple[TokenEffect, ...]
    positive: float | None = None
    reading: Literal["", "letter", "content"] = ""

    @property
    def key(self) -> NeuronKey:
        """Set, layer and index."""
        return self.kind, self.layer, self.index

    @property
    def on_most_prompts(self) -> Promotion:
        """What it promotes and demotes by the sign of its activation on most prompts.

        Every table shows this. Of a neuron that is not explained, while its activation is positive.
        """
        if self.positive is None or self.positive >= 0.5:
            return Promotion(self.promotes, self.demotes)
        reversed_effects = (
            tuple(replace(token, effect=-token.effect) for token in tokens)
            for tokens in (self.demotes, self.promotes)
        )
        return Promotion(*reversed_effects)

    def listed(self) -> NeuronTokens:
        """As reports list it: few tokens, and effects without what batches and devices change."""
        return replace(self, promotes=_rounded(self.promotes), demotes=_rounded(self.demotes))


def _rounded(effects: Sequence[TokenEffect]) -> tuple[TokenEffect, ...]:
    return tuple(replace(each, effect=round(each.effect, 2)) for each in effects[:LISTED_TOKENS])


@artifact
@dataclass(frozen=True)
class _TokensFile:
    schema_version: Literal[1]
    neurons: tuple[NeuronTokens, ...]

    def __post_init__(self) -> None:
        if len({each.key for each in self.neurons}) < len(self.neurons):
            raise ValueError("a neuron occurs twice")


def read_tokens(path: Path) -> dict[NeuronKey, NeuronTokens]:
    """The content of a `tokens.json`; empty without one.

    Raises:
        ArtifactError: it is damaged.
    """
    if not path.exists():
        return {}
    return {each.key: each for each in load(_TokensFile, path, _REMEDY).neurons}


def tokens_json(tokens: Iterable[NeuronTokens]) -> str:
    """The content of a `tokens.json`."""
    return dump_json(asdict(_TokensFile(1, tuple(each.listed() for each in tokens))))


def top_neurons(neurons: NeuronSet, count: int = LISTED_NEURONS) -> list[tuple[SetName, Neuron]]:
    """The first `count` good neurons, then the first bad ones; by default those of the reports."""
    sets: tuple[tuple[SetName, tuple[Neuron, ...]], ...]
    sets = (("good", neurons.good), ("bad", neurons.bad))
    return [(name, neuron) for name, members in sets for neuron in members[:count]]


def listed_tokens(
    unembedding: Unembedding, neurons: NeuronSet, tokenizer: PreTrainedTokenizerBase
) -> tuple[NeuronTokens, ...]:
    """The listed neurons' tokens; none where part of the path to the vocabulary is left out.

    `explain` shows what can be read then, beside what is left out; a report has no room for that.
    """
    listed = top_neurons(neurons)
    effects = unembedding.effects([each.location for _, each in listed], len(tokenizer))
    if unembedding.notes or effects is None:
        return ()
    return tuple(
        NeuronTokens(kind, neuron.layer, neuron.index, tokens.promotes, tokens.demotes)
        for (kind, neuron), tokens in zip(
            listed, promotions(effects, tokenizer, LISTED_TOKENS), strict=True
        )
    )
