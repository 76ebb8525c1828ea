"""The token sequences that score a prompt's options in full passes, and what is edited in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuronllm_eval.engine.interface import right_pad
from neuronllm_eval.prompts import ALL, Prompt


@dataclass(frozen=True)
class OptionSequences:
    """One sequence if all options are single tokens, else one per distinct context + option[:-1].

    Attributes:
        tokens: [sequences, positions] right-padded ids.
        edited: [sequences, positions] bool, the positions whose neurons are edited; no padding.
        sequence_of: per option, the sequence that scores it.
        prompt: the prompt.
        everywhere: whether all positions are edited; else those that are scored.
    """

    tokens: Tensor
    edited: Tensor
    sequence_of: tuple[int, ...]
    prompt: Prompt
    everywhere: bool

    @classmethod
    def build(cls, prompt: Prompt, device: torch.device, positions: str) -> OptionSequences:
        """Sequences of a prompt, edited at `positions` (`positions.POSITIONS`)."""
        heads = [prompt.context + option[:-1] for option in prompt.options]
        distinct = list(dict.fromkeys(heads))
        tokens = right_pad(distinct, device)
        columns = torch.arange(tokens.shape[1], device=device)
        lengths = torch.tensor([len(sequence) for sequence in distinct], device=device)
        everywhere = positions == ALL
        first = 0 if everywhere else len(prompt.context) - 1
        edited = (columns >= first) & (columns < lengths[:, None])
        sequence_of = tuple(distinct.index(head) for head in heads)
        return cls(tokens, edited, sequence_of, prompt, everywhere)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def option_scores(self, logits: Tensor, n_shared: int = 0) -> tuple[Tensor, Tensor]:
        """Logits [edits, sequences, positions, vocabulary] -> two of [edits, options].

        Args:
            logits: of the sequences.
            n_shared: how many of the tokens that the options share count in each of them.
        """
        context = self.prompt.context
        start = len(context) - 1 - n_shared
        totals, greedy = [], []
        for option, sequence in zip(self.prompt.options, self.sequence_of, strict=True):
            scored = (*context[start + 1 :], *option)
            rows = logits[:, sequence, start : start + len(scored)].float()
            ids = torch.tensor(scored, device=logits.device)
            token_logits = rows.gather(-1, ids.expand(len(rows), -1)[..., None])[..., 0]
            totals.append((token_logits - rows.logsumexp(-1)).sum(-1))
            greedy.append((rows.argmax(-1) == ids).all(-1))
        return torch.stack(totals, -1), torch.stack(greedy, -1)

    def activations(self, neurons: Tensor) -> Tensor:
        """[sequences, positions, neurons] -> [neurons] float32: what methods take for activations.

        Those of the last context token; of all positions their mean over the context, so that
        prompts of different lengths compare (our reading).
        """
        n_context = len(self.prompt.context)
        if self.everywhere:
            return neurons[0, :n_context].float().mean(0)
        return neurons[0, n_context - 1].float()
