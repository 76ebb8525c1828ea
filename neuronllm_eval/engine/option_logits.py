"""From logits to log-likelihoods of options, and no more logits than they need.

- One-token options are read off one row of logits (`score_options`).
- Longer options need one sequence each, as lm-eval feeds them (`OptionSequences`).
- A target that only compares options needs the logits of their tokens alone: the softmax over the
  options depends on no other token, and neither does its gradient. The unedited row keeps all its
  logits, for its log-likelihoods (`OptionHead`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    def activations(self, neurons: Tensor) -> Tensor:
        """[sequences, positions, neurons] -> [neurons] float32, the prompt's activations.

        Those of the last context token; if all positions are edited, their mean over the context,
        so that prompts of different lengths compare (our reading).
        """
        n_context = len(self.prompt.context)
        if self.all_positions:
            return neurons[0, :n_context].float().mean(0)
        return neurons[0, n_context - 1].float()


# The LM head for the options' tokens alone ------------------------------------------------------


def restrictable_head(model: nn.Module) -> nn.Linear | None:
    """The model's LM head, if it is a plain linear layer whose weights are in memory."""
    get_output_embeddings = getattr(model, "get_output_embeddings", lambda: None)
    head = get_output_embeddings()
    return head if type(head) is nn.Linear and head.weight.device.type != "meta" else None


class OptionHead:
    """Reads the options off a pass's logits, and lets the LM head compute no others where it may.

    Within `restricted`, the head's output is [batch, rows + extra, tokens] for the tokens of all
    options: the extra rows hold row 0's logits of the whole vocabulary, one after another, so that
    what a model does to single logits afterwards (scaling, capping) is done to all of them.

    Args:
        head: the model's; None to leave it as it is.
        options: per prompt the token of each option.
        n_rows: rows of each prompt.
    """

    def __init__(
        self, head: nn.Linear | None, options: Sequence[Sequence[int]], n_rows: int
    ) -> None:
        self.head, self.options, self.n_rows = head, options, n_rows
        self.tokens = sorted({token for ids in options for token in ids})

    @contextmanager
    def restricted(self) -> Iterator[None]:
        """Within the context the head gives the options' logits alone, and row 0's in full."""
        if self.head is None:
            yield
            return
        head, n_tokens = self.head, len(self.tokens)
        ids = torch.tensor(self.tokens, device=head.weight.device)
        weight = head.weight[ids]
        bias = None if head.bias is None else head.bias[ids]

        def forward(hidden: Tensor) -> Tensor:
            hidden = hidden.to(weight.device)
            of_tokens = functional.linear(hidden, weight, bias)
            full = functional.linear(hidden[:, 0].detach(), head.weight, head.bias)
            padded = functional.pad(full, (0, -full.shape[-1] % n_tokens))
            return torch.cat((of_tokens, padded.reshape(len(full), -1, n_tokens)), dim=1)

        before = vars(head).get("forward")  # accelerate puts its own there
        try:
            vars(head)["forward"] = forward
            yield
        finally:
            if before is None:
                del vars(head)["forward"]
            else:
                vars(head)["forward"] = before

    def read(self, logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What a target needs of every row, and the unedited row's log-likelihoods.

        Args:
            logits: [batch, rows, vocabulary], or what the restricted head makes of them; float32.

        Returns:
            per prompt [rows, options] log-likelihoods, or logits of a restricted head; and
            [options] log-likelihoods of row 0 in log-nats, without gradients.
        """
        if self.head is None:
            scores = [score_options(logits[row], ids)[0] for row, ids in enumerate(self.options)]
            full = logits[:, 0]
        else:
            column = {token: index for index, token in enumerate(self.tokens)}
            scores = [
                logits[row, : self.n_rows][:, [column[token] for token in ids]]
                for row, ids in enumerate(self.options)
            ]
            full = logits[:, self.n_rows :].flatten(1)[:, : self.head.weight.shape[0]]
        unedited = [
            score_options(full[row].detach(), ids)[0] for row, ids in enumerate(self.options)
        ]
        return scores, unedited
