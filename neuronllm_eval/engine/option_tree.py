"""The tokens that score a prompt's options, as a tree behind its context.

lm-eval reads the context once for every option. The rows that differ are few:

1. Row 0 is the context's last token; all options begin behind it.
2. Every further row is a token of an option that another token follows. Options that begin alike
   share these rows, and an option that begins another one needs no rows of its own.
3. A row sees the context, the rows that lead to it, and itself. The logits of the row before a
   token decide that token.

All rows are scored positions, so an edited copy of a prompt is a copy of its tree. Options of one
token each need row 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.divergence import DivergenceFromFirst
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.engine.shared_prefix import Prefix, Rows
from neuronllm_eval.prompts import Prompt

PADDING = -1  # in place of a token's id


@dataclass(frozen=True)
class OptionTree:
    """The tree of one prompt.

    Attributes:
        tokens: [rows] ids.
        depths: [rows] how many tokens of an option a row ends; 0 of row 0.
        parents: [rows] the row before each; of row 0 itself.
        reads: per option the row and the id of each of its tokens.
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    parents: tuple[int, ...]
    reads: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, prompt: Prompt) -> OptionTree:
        """The tree of a prompt's options."""
        rows: dict[tuple[int, ...], int] = {(): 0}
        reads = []
        for option in prompt.options:
            beginnings = [option[:length] for length in range(len(option))]
            for beginning in beginnings:
                rows.setdefault(beginning, len(rows))
            reads.append(
                tuple((rows[start], token) for start, token in zip(beginnings, option, strict=True))
            )
        return cls(
            tokens=(prompt.context[-1], *(start[-1] for start in rows if start)),
            depths=tuple(map(len, rows)),
            parents=tuple(rows[start[:-1]] for start in rows),
            reads=tuple(reads),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def sees(self, n_rows: int) -> Tensor:
        """[n_rows, n_rows] bool, which rows each of them sees; padding sees itself."""
        seen = torch.eye(n_rows, dtype=torch.bool)
        for row, parent in enumerate(self.parents):  # parents come first
            seen[row] |= seen[parent]
        return seen


class OptionTrees:
    """The trees of a batch of prompts, padded to the largest.

    Args:
        prompts: of the batch.

    Attributes:
        n_rows: rows of each tree, padding included.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.trees = [OptionTree.of(prompt) for prompt in prompts]
        self.n_rows = max(map(len, self.trees))

    def copies(self, prefix: Prefix, n_copies: int, *, first_row: bool = False) -> Rows:
        """Copies of every tree behind the prefixes of its batch, none of which sees another.

        Args:
            prefix: of the batch.
            n_copies: of each tree.
            first_row: whether row 0 of a tree comes before them, by itself.

        Returns:
            `n_copies` * `n_rows` rows for each prompt, one copy after another; one more with
            `first_row`.
        """
        if first_row:
            rows = self.copies(prefix, n_copies + 1)
            chosen = torch.arange(self.n_rows - 1, rows.tokens.shape[1], device=rows.tokens.device)
            chosen[0] = 0
            return Rows(
                rows.tokens[:, chosen],
                rows.positions[:, chosen],
                rows.sees[..., chosen, :][..., chosen],
            )
        device = prefix.lengths.device
        tokens = right_pad([tree.tokens for tree in self.trees], device)
        depths = right_pad([tree.depths for tree in self.trees], device)
        positions = prefix.lengths[:, None] + depths
        itself = torch.eye(n_copies, dtype=torch.bool, device=device)
        if self.n_rows == 1:
            return Rows(tokens.expand(-1, n_copies), positions.expand(-1, n_copies), itself)
        sees = torch.stack([tree.sees(self.n_rows) for tree in self.trees]).to(device)
        blocks = itself[None, :, None, :, None] & sees[:, None, :, None, :]
        size = n_copies * self.n_rows
        return Rows(
            tokens.repeat(1, n_copies),
            positions.repeat(1, n_copies),
            blocks.reshape(len(self.trees), size, size),
        )

    def loglikelihoods(self, logits: Tensor) -> list[Tensor]:
        """Per prompt [copies, options] float32: the options' log-likelihoods in log-nats.

        Args:
            logits: [batch, copies * rows, vocabulary] of copies of the trees.
        """
        return self._read(self._by_row(logits.float()))[0]

    def scores(
        self, logits: Tensor, divergence: DivergenceFromFirst
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per prompt `loglikelihoods`, `greedy`, and [copies] KL divergences at row 0.

        Args:
            logits: [batch, copies * rows, vocabulary] of copies of the trees; overwritten.
            divergence: of these prompts, from copies that came before, if any.
        """
        by_row = self._by_row(logits.float())
        greedy, (loglikelihoods, normalisers) = self.greedy(logits), self._read(by_row)
        kl = divergence.of(by_row[:, :, 0], normalisers[:, :, 0])
        return list(zip(loglikelihoods, greedy, kl.unbind(), strict=True))

    def _read(self, by_row: Tensor) -> tuple[list[Tensor], Tensor]:
        """Per prompt the options' log-likelihoods; [batch, copies, rows] logsumexp of the logits.

        Args:
            by_row: [batch, copies, rows, vocabulary] float32 logits.
        """
        rows, ids = self._reads(by_row.device)
        values, normalisers = _TokenLogProbabilities.apply(by_row, rows, ids)
        sums = values.masked_fill(ids[:, None] == PADDING, 0.0).sum(-1)
        of_prompts = [
            of_prompt[:, : len(tree.reads)]
            for of_prompt, tree in zip(sums.unbind(), self.trees, strict=True)
        ]
        return of_prompts, normalisers

    def greedy(self, logits: Tensor) -> list[Tensor]:
        """Per prompt [copies, options] bool: whether greedy decoding would produce the option."""
        rows, ids = self._reads(logits.device)
        likeliest = self._by_row(logits).argmax(-1)
        return [
            ((of_prompt[:, at] == tokens) | (tokens == PADDING)).all(-1)[:, : len(tree.reads)]
            for of_prompt, at, tokens, tree in zip(likeliest, rows, ids, self.trees, strict=True)
        ]

    def _by_row(self, logits: Tensor) -> Tensor:
        """[batch, copies, rows, vocabulary]."""
        return logits.reshape(len(self.trees), -1, self.n_rows, logits.shape[-1])

    def _reads(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two [batch, options, tokens]: the rows to read and the tokens' ids, else `PADDING`."""
        n_options = max(len(tree.reads) for tree in self.trees)
        n_tokens = max(len(option) for tree in self.trees for option in tree.reads)
        reads = torch.zeros(len(self.trees), n_options, n_tokens, 2, dtype=torch.long)
        reads[..., 1] = PADDING
        for index, tree in enumerate(self.trees):
            for number, option in enumerate(tree.reads):
                reads[index, number, : len(option)] = torch.tensor(option)
        rows, ids = reads.to(device).unbind(-1)
        return rows, ids


class _TokenLogProbabilities(torch.autograd.Function):
    """Log-softmax over the vocabulary at some rows and ids, with one buffer of logits' size.

    As `logits.log_softmax(-1)[..., rows, ids]`, but the gradient is written once rather than in
    parts that are added up.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, copies, options, tokens] log-nats, and [batch, copies, rows] the normalisers.

        These have no gradient.

        Args:
            ctx: of the backward pass.
            logits: [batch, copies, rows, vocabulary] float32.
            rows: [batch, options, tokens] indices.
            ids: [batch, options, tokens]; where padded, any value is returned.
        """
        normalisers = logits.logsumexp(-1)
        ctx.save_for_backward(logits, normalisers, rows, ids)
        ctx.mark_non_differentiable(normalisers)
        prompts = torch.arange(len(logits), device=logits.device)[:, None, None]
        # An index between slices would put the copies last.
        at_rows = logits.transpose(0, 1)[:, prompts, rows, ids].transpose(0, 1)
        of_rows = normalisers.transpose(0, 1)[:, prompts, rows].transpose(0, 1)
        return at_rows - of_rows, normalisers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of the log-probabilities [batch, copies, options, tokens]."""
        gradient, _ = gradients
        logits, normalisers, rows, ids = ctx.saved_tensors
        n_rows = logits.shape[2]
        at_rows = nn.functional.one_hot(rows.flatten(1), n_rows).to(gradient)
        of_rows = gradient.flatten(2) @ at_rows  # [batch, copies, rows]
        of_logits = logits.sub(normalisers[..., None]).exp_().mul_(-of_rows[..., None])
        prompts = torch.arange(len(logits), device=logits.device)[:, None, None, None]
        copies = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
        index = (prompts, copies, rows[:, None], ids[:, None])
        return of_logits.index_put_(index, gradient, accumulate=True), None, None
