"""The LM head of a pass over copies: no more logits than the options need.

A target that only compares options with each other needs the logits of their tokens alone, where
all options are read off one row: the softmax over the options depends on no other token, and
neither does its gradient. That does not hold where log-likelihoods are divided by different
lengths. The unedited row keeps all its logits, for its log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuronllm_eval.engine.option_tree import OptionTrees
from neuronllm_eval.models.hooks import own_forward


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
        head: the model's, if all trees are one row; None to leave it as it is.
        trees: of the prompts.
        n_copies: of each of them in the pass.
    """

    def __init__(self, head: nn.Linear | None, trees: OptionTrees, n_copies: int) -> None:
        self.head, self.trees, self.n_copies = head, trees, n_copies
        # One-row trees have one token to read for each option.
        self.options = [[ids[0][1] for ids in tree.reads] for tree in trees.trees]
        self.tokens = sorted({token for ids in self.options for token in ids})

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

        with own_forward(head, forward):
            yield

    def read(self, logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What a target needs of every copy, and the unedited tree's log-likelihoods.

        Args:
            logits: [batch, rows, vocabulary], or what the restricted head makes of them; float32.

        Returns:
            per prompt [copies, options] log-likelihoods, or logits of a restricted head; and
            [options] log-likelihoods of the first copy in log-nats, without gradients.
        """
        if self.head is None:
            scores = self.trees.loglikelihoods(logits)
            return scores, [of_prompt[0].detach() for of_prompt in scores]
        column = {token: index for index, token in enumerate(self.tokens)}
        scores = [
            logits[row, : self.n_copies][:, [column[token] for token in ids]]
            for row, ids in enumerate(self.options)
        ]
        full = logits[:, self.n_copies :].flatten(1)[:, : self.head.weight.shape[0]]
        return scores, [of_prompt[0] for of_prompt in self.trees.loglikelihoods(full.detach())]
