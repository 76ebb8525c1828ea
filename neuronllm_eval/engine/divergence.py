"""How far edits move the next token's distribution: KL divergences, from logits that are there."""

from __future__ import annotations

from torch import Tensor


class DivergenceFromFirst:
    """KL divergences KL(p || q) of one batch of prompts, over chunks of its edits.

    p is the next token's distribution under the first edit of the first chunk, q that under each
    edit. KL(p || q) is p's mean of log p - log q, and these are logits minus the logsumexp of all:
    so it is the change of the logsumexp minus p's mean change of the logits. Changes are small
    where p and q are close, which keeps rounding small there too.
    """

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor, Tensor] | None = None  # logits, p, normalisers

    def of(self, logits: Tensor, normalisers: Tensor) -> Tensor:
        """[..., edits] KL divergences in nats, 0 or more. The logits are overwritten.

        Infinite where q rules out what p does not; NaN where a logsumexp is.

        Args:
            logits: [..., edits, vocabulary] float32, of one token of each prompt.
            normalisers: [..., edits] their logsumexp.
        """
        if self._first is None:
            p = (logits[..., :1, :] - normalisers[..., :1, None]).exp()
            p /= p.sum(-1, keepdim=True)
            self._first = logits[..., :1, :].clone(), p, normalisers[..., :1]
        before, p, normaliser = self._first
        # In place, since memory of this size takes longer to get than to compute. A sum rather than
        # a product of matrices, whose float32 sums lose digits over large vocabularies; without
        # NaN, since some models give -inf to ids that are no token, and what p rules out counts
        # as 0.
        mean_change = logits.sub_(before).mul_(p).nansum(-1)
        return (normalisers - normaliser - mean_change).clamp_min(0.0)  # below 0 by rounding
