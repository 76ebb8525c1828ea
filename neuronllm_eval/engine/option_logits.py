"""From logits to log-likelihoods of options, one full sequence for each of them as lm-eval has it.

- One-token options are read off one row of logits (`score_options`).
- Longer options need one sequence each (`OptionSequences`). `option_tree` has them in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.divergence import DivergenceFromFirst
from neuronllm_eval.models.ffn_layers import input_device
from neuronllm_eval.prompts import ALL, Prompt


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[sequences, longest] token ids, padded with 0 on the right, as lm-eval pads.

    Under a causal mask the tokens before the padding never see it, so no mask is needed.
    """
    longest = max(len(sequence) for sequence in sequences)
    rows = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


# One-token options ------------------------------------------------------------------------------


def score_options(logits: Tensor, options: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-likelihoods and greedy flags of one-token options.

    Args:
        logits: [..., vocabulary].
        options: token ids.

    Returns:
        log-likelihoods [..., options] float32 in log-nats; greedy [..., options] bool.
    """
    logits = logits.float()
    ids = torch.as_tensor(list(options), device=logits.device)
    loglikelihoods = logits[..., ids] - logits.logsumexp(-1, keepdim=True)
    return loglikelihoods, logits.argmax(-1, keepdim=True) == ids


@torch.no_grad()
def score_shared_tokens(model: nn.Module, prompt: Prompt) -> tuple[float, bool]:
    """Log-likelihood of the options' shared leading tokens, and whether they are greedy.

    The harness counts them in every option. They precede the scored position, so editing that
    position does not change them.

    Returns:
        log-nats, and whether greedy decoding would produce all of them; 0 and True without any.
    """
    if prompt.n_shared == 0:
        return 0.0, True
    tokens = right_pad([prompt.context[:-1]], input_device(model))
    logits = model(input_ids=tokens, use_cache=False).logits[0, -prompt.n_shared :].float()
    ids = torch.tensor(prompt.context[-prompt.n_shared :], device=logits.device)
    loglikelihoods = logits.log_softmax(-1).gather(-1, ids[:, None])
    return float(loglikelihoods.sum()), bool((logits.argmax(-1) == ids).all())


def counted_shared(model: nn.Module, prompt: Prompt) -> float:
    """The same log-likelihood where it makes a difference when options are compared, else 0."""
    return score_shared_tokens(model, prompt)[0] if prompt.counts_shared else 0.0


# Options of any length --------------------------------------------------------------------------


@dataclass(frozen=True)
class OptionSequences:
    """The sequences that score a prompt's options: one per distinct context + option[:-1].

    Options of one token each share a single sequence.

    Attributes:
        tokens: [sequences, positions] right-padded ids.
        edited: [sequences, positions] bool, the positions whose neurons are edited; no padding.
        sequence_of: per option, the index of the sequence that scores it.
        prompt: the prompt.
        all_positions: whether all positions are edited, or those alone that are scored.
    """

    tokens: Tensor
    edited: Tensor
    sequence_of: tuple[int, ...]
    prompt: Prompt
    all_positions: bool

    @classmethod
    def build(cls, prompt: Prompt, device: torch.device, positions: str) -> OptionSequences:
        """Sequences of a prompt, edited at `positions` (`prompts.POSITIONS`)."""
        heads = [prompt.context + option[:-1] for option in prompt.options]
        distinct = list(dict.fromkeys(heads))
        tokens = right_pad(distinct, device)
        columns = torch.arange(tokens.shape[1], device=device)
        lengths = torch.tensor([len(sequence) for sequence in distinct], device=device)
        first_edited = 0 if positions == ALL else len(prompt.context) - 1
        edited = (columns >= first_edited) & (columns < lengths[:, None])
        sequence_of = tuple(distinct.index(head) for head in heads)
        return cls(tokens, edited, sequence_of, prompt, positions == ALL)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def option_scores(self, logits: Tensor, n_shared: int = 0) -> tuple[Tensor, Tensor]:
        """Log-likelihoods in log-nats and greedy flags, both [edits, options].

        Args:
            logits: [edits, sequences, positions, vocabulary].
            n_shared: how many of the tokens that the options share are counted in each of them.
        """
        context = self.prompt.context
        start = len(context) - 1 - n_shared
        loglikelihoods, greedy = [], []
        for option, sequence in zip(self.prompt.options, self.sequence_of, strict=True):
            scored = (*context[start + 1 :], *option)
            rows = logits[:, sequence, start : start + len(scored)].float()
            ids = torch.tensor(scored, device=logits.device)
            token_logits = rows.gather(-1, ids.expand(len(rows), -1)[..., None])[..., 0]
            loglikelihoods.append((token_logits - rows.logsumexp(-1)).sum(-1))
            greedy.append((rows.argmax(-1) == ids).all(-1))
        return torch.stack(loglikelihoods, -1), torch.stack(greedy, -1)

    def divergence(self, logits: Tensor, divergence: DivergenceFromFirst) -> Tensor:
        """[edits] KL divergences at the last context token, which every sequence has.

        Args:
            logits: as in `option_scores`; overwritten.
            divergence: of this prompt, from edits that came before, if any.
        """
        rows = logits[:, 0, len(self.prompt.context) - 1].float()
        return divergence.of(rows, rows.logsumexp(-1))

    def shared(self, logits: Tensor) -> Tensor | float:
        """[edits] log-likelihood of the tokens that all options share, where they count; else 0.

        Args:
            logits: as in `option_scores`. Every sequence has these tokens; the first is read.
        """
        if not self.prompt.counts_shared:
            return 0.0
        end = len(self.prompt.context) - 1
        rows = logits[:, 0, end - self.prompt.n_shared : end].float()
        ids = torch.tensor(self.prompt.context[-self.prompt.n_shared :], device=logits.device)
        token_logits = rows.gather(-1, ids.expand(len(rows), -1)[..., None])[..., 0]
        return (token_logits - rows.logsumexp(-1)).sum(-1)

    def activations(self, neurons: Tensor) -> Tensor:
        """[sequences, positions, neurons] -> [neurons] float32, the prompt's activations.

        Those of the last context token; if all positions are edited, their mean over the context,
        so that prompts of different lengths compare (our reading).
        """
        n_context = len(self.prompt.context)
        if self.all_positions:
            return neurons[0, :n_context].float().mean(0)
        return neurons[0, n_context - 1].float()
