"""Which tokens a neuron promotes and demotes: its output direction in terms of the vocabulary.

1. The direction that neuron (l, i) writes is column i of layer l's down-projection.
2. It goes through the norm of the FFN's output, where the model has one, and the final norm
   (`norms`: gain and centring; the size is left out), and through the unembedding.
3. What it adds to each token's logit is put in standard deviations from the mean over the
   vocabulary, since neither the size nor a shift of all logits means anything.

That is the direct path alone: what later layers make of the direction is not in it. It is the
direction of a positive activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neuronllm_eval.engine.option_logits import restrictable_head
from neuronllm_eval.engine.scaled_copies import all_plain, output_weights
from neuronllm_eval.explain.norms import Norm, read_norm, step_before, step_behind, trace
from neuronllm_eval.models.ffn_layers import FFNLayers, input_width

_TOKENS = 8  # of the pass that shows where the norms are
_CHUNK = 1 << 14  # tokens whose output vectors are in float32 at a time


@dataclass(frozen=True)
class TokenEffect:
    """A token, and what a direction adds to its logit.

    Attributes:
        token: its id.
        text: what it stands for.
        effect: standard deviations from the mean over the vocabulary.
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
        """What a pass over the beginning of a prompt shows of a model.

        Args:
            model: a Hugging Face causal LM in eval mode.
            layers: its FFN down-projections.
            context: tokens of a prompt.
        """
        head = restrictable_head(model)
        if head is None:
            note = "the LM head is no plain linear layer, so no tokens are read"
            return cls(layers, None, None, {}, (note,))
        steps = trace(model, context[:_TOKENS], layers.modules)
        notes = []
        before = step_before(steps, head)
        final = read_norm(before) if before is not None else None
        if final is None:
            found = f"{before.name} feeds the LM head and is no norm" if before else (
                "no module's output is what the LM head is given"
            )  # fmt: skip
            notes.append(f"the final norm is left out: {found}")
        behind = {}
        for layer, down in enumerate(layers.modules):
            step = step_behind(steps, down)
            norm = read_norm(step) if step is not None else None
            if norm is not None:
                behind[layer] = norm
            elif step is not None:
                notes.append(f"{step.name}, which the FFN's output goes through, is left out")
        if len(direction(layers.modules[0], 0)) != head.in_features:
            notes.append("the FFNs write vectors of another size than the LM head takes, so no "
                         "tokens are read")  # fmt: skip
            head = None
        return cls(layers, head, final, behind, tuple(notes))

    @torch.no_grad()
    def effects(self, places: Sequence[tuple[int, int]], n_tokens: int) -> Tensor | None:
        """What neurons' directions add to the tokens' logits.

        Args:
            places: (layer, index) of each neuron.
            n_tokens: how many tokens there are; heads may have rows beyond them.

        Returns:
            [neurons, tokens] float32, in standard deviations from the mean over the tokens; None
            if the head is not at hand.
        """
        if self.head is None or not places:
            return None
        rows = torch.stack([self._given_to_head(layer, index) for layer, index in places])
        weight = self.head.weight.detach()[:n_tokens]
        rows = rows.to(weight.device)
        logits = torch.cat([rows @ part.float().T for part in weight.split(_CHUNK)], dim=-1).cpu()
        spread = logits.std(-1, correction=0, keepdim=True)
        # A neuron that writes nothing says nothing of any token.
        return (logits - logits.mean(-1, keepdim=True)) / spread.where(spread > 0, 1.0)

    def _given_to_head(self, layer: int, index: int) -> Tensor:
        """[hidden] float32, on the CPU: what a neuron writes, as it reaches the head."""
        written = direction(self.layers.modules[layer], index)
        for norm in (self.behind.get(layer), self.final):
            written = norm.applied(written) if norm is not None else written
        return written


@torch.no_grad()
def direction(down: nn.Module, index: int) -> Tensor:
    """[hidden] float32, on the CPU: what neuron `index` of a down-projection writes.

    Layers whose weights do not say what they compute (adapted, quantised) are asked.
    """
    if all_plain([down]):
        return output_weights(down)[:, index].float().cpu()
    like = next(each for each in down.parameters() if each.is_floating_point())
    asked = torch.zeros(2, 1, input_width(down), device=like.device, dtype=like.dtype)
    asked[1, 0, index] = 1
    without, written = down(asked)[:, 0].float().cpu()
    return written - without


def promotions(effects: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Promotion]:
    """Each neuron's strongest tokens.

    Args:
        effects: [neurons, tokens].
        tokenizer: says what tokens stand for.
        count: tokens of each kind.
    """
    found = []
    for row in effects:
        most = row.topk(min(count, len(row)))
        least = row.topk(min(count, len(row)), largest=False)
        found.append(
            Promotion(*(_named(top.indices, top.values, tokenizer) for top in (most, least)))
        )
    return found


def _named(
    tokens: Tensor, effects: Tensor, tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenEffect, ...]:
    return tuple(
        TokenEffect(token, tokenizer.decode([token]), effect)
        for token, effect in zip(tokens.tolist(), effects.tolist(), strict=True)
    )
