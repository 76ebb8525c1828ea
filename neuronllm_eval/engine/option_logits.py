"""The LM head where it is needed: all tokens of one row, the options' tokens of the others.

The softmax over the options does not depend on any other token's logit, so the gradient of the
target does not either. Only the unedited row's logits are needed in full, for its log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


def restrictable_head(model: nn.Module) -> nn.Linear | None:
    """The model's LM head, if it is a plain linear layer whose weights are at hand."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    if type(head) is nn.Linear and head.weight.device.type != "meta":
        return head
    return None


@contextmanager
def option_head(head: nn.Linear, tokens: Sequence[int]) -> Iterator[None]:
    """Within the context, the head gives the logits of `tokens` for each row, then row 0's in full.

    Its output is [batch, rows + extra, tokens]: the extra rows hold row 0's logits of the whole
    vocabulary, one after another, so that what a model does to single logits afterwards (scaling,
    capping) is done to all of them. `split_logits` takes it apart.

    Args:
        head: a linear layer.
        tokens: ids, `[n_tokens]`.
    """
    ids = torch.tensor(list(tokens), device=head.weight.device)
    weight = head.weight[ids]
    bias = None if head.bias is None else head.bias[ids]

    def forward(hidden: Tensor) -> Tensor:
        hidden = hidden.to(weight.device)
        some = functional.linear(hidden, weight, bias)
        full = functional.linear(hidden[:, 0].detach(), head.weight, head.bias)
        padded = functional.pad(full, (0, -full.shape[-1] % len(ids)))
        return torch.cat((some, padded.reshape(len(full), -1, len(ids))), dim=1)

    before = vars(head).get("forward")  # accelerate puts its own there
    try:
        vars(head)["forward"] = forward
        yield
    finally:
        if before is None:
            del vars(head)["forward"]
        else:
            vars(head)["forward"] = before


def split_logits(logits: Tensor, n_rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The two parts of what the model gives within `option_head`.

    Returns:
        logits of the tokens [batch, rows, tokens]; row 0's in full [batch, vocabulary].
    """
    return logits[:, :n_rows], logits[:, n_rows:].flatten(1)[:, :vocabulary]
